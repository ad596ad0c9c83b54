"""Log-probability of every choice under a mask, by definition: one whole pass for each, with edits."""

from __future__ import annotations

import torch
from torch import Tensor

from repro.data.scored_texts import Question
from repro.data.token_batch import TokenBatch
from repro.interventions.lm_edits import At, Edit, zero
from repro.interventions.lm_run import run
from repro.interventions.masks import Mask
from repro.models.language_model import LanguageModel


def edits_of(mask: Mask) -> list[Edit]:
    """Removed heads have z = 0, removed FFNs mlp_out = 0."""
    heads = [zero(At("z", layer, heads=list(gone))) for layer, gone in enumerate(mask.heads) if gone]
    return [*heads, *(zero(At("mlp_out", layer)) for layer, gone in enumerate(mask.ffns) if gone)]


def log_likelihood(
    model: LanguageModel, question: Question, choice: int, mask: Mask, columns: int | None = None
) -> tuple[float, bool]:
    """Sum of the log-probabilities of a choice's tokens, and whether each is the likeliest.

    The input loses tokens from the left where it is longer than the model takes. columns: the log-softmax is
    over the first so many logits (None: all).
    """
    context, ids = question.context(choice), question.choices[choice]
    whole = (context + ids)[-(model.max_positions + 1) :]
    cut = len(context) + len(ids) - len(whole)
    first = max(len(context) - cut, 1)
    found = run(model, TokenBatch.of([whole[:-1]]), edits_of(mask))
    assert found.logits is not None
    logits: Tensor = found.logits[0, first - 1 :, :columns]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    targets = torch.tensor(whole[first:], device=wide.device)
    chances = torch.log_softmax(wide, dim=-1).gather(1, targets[:, None])
    return float(chances.double().sum()), bool((wide.argmax(-1) == targets).all())
