"""What heads do on repeated random tokens: look back by one, at an earlier copy, behind it, and copy.

Source: Wang et al. 2022, arXiv 2211.00593, appendix on heads outside the task; prefix matching and copying
as in Olsson et al. 2022, arXiv 2209.11895.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.lm_direct import readout
from repro.analyses.lm_measure_specs import RandomTokenScores
from repro.analyses.logit_attribution import CONVENTIONS
from repro.data.token_batch import TokenBatch
from repro.errors import UserError
from repro.interventions.lm_edits import At, Read
from repro.interventions.lm_run import run as forward
from repro.models.language_model import LanguageModel
from repro.results import Result

ATTENTION = ("previous_token", "duplicate_token", "induction")


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: RandomTokenScores) -> Result:
    """Scores of every head, means over queries and sequences.

    previous_token: attention to the token before, over all queries that have one; duplicate_token: of
    tokens of the second and later copies to the same token one copy earlier; induction: of those to the
    token behind it (the last of the first copy has none and is left out); copying: what the head writes
    along the next token, over tokens of the second and later copies. Arrays: these four [layer, head], and
    each with _per_sequence [layer, head, sequence]. Scalars: SCORE.max; repeat.accuracy and repeat.loss
    (nat): the model's own, on tokens of the later copies but their first.
    """
    model = lm.model_of(subject)
    if not hasattr(data, "length") or not hasattr(data, "batch"):
        raise UserError("data: it needs repeated random tokens. Give data=random_tokens")
    batch, start, length = data.batch(model.vocabulary), data.start, data.length
    parts = [
        _measure(model, batch.rows(rows), start, length, spec) for rows in lm.chunks(len(batch), spec.batch)
    ]
    found = {name: torch.cat([part[name] for part in parts], dim=-1) for name in parts[0]}
    result = Result({}, {}, {"copying": CONVENTIONS[spec.norm]})
    table = {"layer": model.depth, "head": model.heads}
    for name in (*ATTENTION, "copying"):
        unit = "logit" if name == "copying" and spec.norm == "frozen" else "1"
        result.arrays[name] = lm.array(found[name].mean(-1), table, unit)
        result.arrays[f"{name}_per_sequence"] = lm.array(found[name], {**table, "sequence": len(batch)}, unit)
        result.scalars[f"{name}.max"] = float(found[name].mean(-1).max())
    for name in ("accuracy", "loss"):
        result.scalars[f"repeat.{name}"] = float(found[name].mean())
    return result


def attention_scores(pattern: Tensor, start: int, length: int) -> dict[str, Tensor]:
    """The three attention scores [B, H] of patterns [B, H, T, T]; random tokens from column `start` on."""
    later = start + length
    induction = pattern.diagonal(1 - length, -2, -1)  # entry i: from token i + length - 1 to token i
    return {
        "previous_token": pattern.diagonal(-1, -2, -1)[..., start:].double().mean(-1),
        "duplicate_token": pattern.diagonal(-length, -2, -1)[..., later - length :].double().mean(-1),
        "induction": induction[..., start + 1 :].double().mean(-1),
    }


def _measure(
    model: LanguageModel, batch: TokenBatch, start: int, length: int, spec: RandomTokenScores
) -> dict[str, Tensor]:
    """[layer, head, B] by score, and accuracy and loss [B]."""
    later = slice(start + length, batch.tokens.shape[1] - 1)
    patterns = [
        Read(At("pattern", layer), reduce=lambda found: attention_scores(found.cpu(), start, length))
        for layer in range(model.depth)
    ]
    columns = range(batch.tokens.shape[1])[later]
    outputs = [At("z", layer, positions=list(columns)) for layer in range(model.depth)]
    last = At("resid_post", model.depth - 1, positions=list(columns))
    found = forward(model, batch, reads=[*patterns, *outputs, last], logits=None)
    following = batch.tokens[:, later.start + 1 : later.stop + 1]
    values = {name: torch.stack([found[read][name].T for read in patterns]) for name in ATTENTION}
    values["copying"] = _copying(model, found, outputs, last, following, spec.norm)
    with torch.no_grad():
        logits = model.unembed(model.final_norm(found[last])).float()
    chosen = following.to(logits.device)
    loss = -logits.log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
    values["accuracy"] = (logits.argmax(-1) == chosen).double().mean(-1).cpu()
    values["loss"] = loss.double().mean(-1).cpu()
    return values


def _copying(
    model: LanguageModel, found: Any, outputs: list[At], last: At, following: Tensor, norm: str
) -> Tensor:
    """[layer, head, B]: mean over positions of head output . vector of the next token."""
    rows, count = following.shape
    vectors, _ = readout(model, found[last].flatten(0, 1), following.reshape(-1, 1), norm)
    vectors = vectors[:, 0].view(rows, count, -1)
    scores = []
    for layer, place in zip(model.layers, outputs, strict=True):
        through = torch.einsum("btd,hcd->bthc", vectors, layer.output_matrix.detach().cpu().double())
        scores.append((found[place].cpu().double() * through).sum(-1).mean(1).T)
    return torch.stack(scores)
