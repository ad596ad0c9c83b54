"""What measurements on language models share: prompts in batches, logit differences, saved arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.data.token_batch import TokenBatch
from repro.data.token_pairs import PromptPairs
from repro.errors import UserError
from repro.interventions.lm_edits import At, Edit, Read
from repro.interventions.lm_run import run
from repro.models.language_model import LanguageModel
from repro.results import NamedArray

NAMES = ("IO", "S1", "S2")
ANSWER = "END"


def model_of(subject: Any) -> LanguageModel:
    """The model under study. Raises `UserError` if it is none of the Hugging Face kind."""
    if isinstance(subject, LanguageModel):
        return subject
    raise UserError("analysis: it needs a language model. Give model=hf model.path=NAME_OR_FOLDER")


def pairs_of(model: LanguageModel, data: Any) -> PromptPairs:
    """The data's prompts as token ids of this model. Raises `UserError` for data without prompts."""
    if not hasattr(data, "pairs"):
        raise UserError("data: it needs prompts with answers. Valid choices: data=ioi, data=token_pairs, ...")
    pairs: PromptPairs = data.pairs(model.tokenizer)
    pairs.check_vocabulary(model.vocabulary)
    return pairs


def side(pairs: PromptPairs, which: str) -> tuple[TokenBatch, dict[str, Tensor]]:
    """The clean or the corrupt prompts, and their named columns [B]."""
    if which == "clean":
        return pairs.clean, dict(pairs.positions)
    return pairs.corrupt, dict(pairs.corrupt_positions)


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` rows in order."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def part_of(pairs: PromptPairs, rows: slice) -> PromptPairs:
    """The pairs of these rows."""
    return pairs.rows(list(range(rows.start, rows.stop)))


def named_positions(pairs: PromptPairs, names: Sequence[str] | None, key: str) -> list[str]:
    """The names, all of which the data must have; null: those of IO, S1, S2 that it has."""
    if names is None:
        return [name for name in NAMES if name in pairs.positions]
    unknown = [name for name in names if name not in pairs.positions]
    if unknown:
        raise UserError(f"{key}: got {', '.join(unknown)}. This data has: {', '.join(pairs.positions)}")
    return list(names)


def answer_columns(pairs: PromptPairs) -> Tensor:
    """Answer and wrong token of each row, [B, 2]."""
    return torch.stack([pairs.answer, pairs.wrong], dim=1)


def logit_difference(model: LanguageModel, resid: Tensor, columns: Tensor, end: Tensor) -> Tensor:
    """Answer minus wrong logit [R] at `end` [B], in float64.

    resid: the last residual stream, [R, T, d] or at `end` alone [R, d]. columns: [B, 2]. R may be a
    multiple of B: copies of the batch, one after another. Raises `UserError` for logits that are not finite.
    """
    copies = len(resid) // len(columns)
    columns, end = columns.repeat(copies, 1).to(resid.device), end.repeat(copies).to(resid.device)
    if resid.ndim == 3:
        resid = resid[torch.arange(len(resid), device=resid.device), end]
    with torch.no_grad():
        logits = model.unembed(model.final_norm(resid), columns).double()
    if not bool(torch.isfinite(logits).all()):
        raise UserError(
            f"logits are not finite (dtype {model.dtype}). Give model.dtype=float32, and check the"
            " checkpoint's weights"
        )
    return logits[:, 0] - logits[:, 1]


def run_difference(
    model: LanguageModel, batch: TokenBatch, columns: Tensor, end: Tensor, edits: Sequence[Edit] = ()
) -> Tensor:
    """Answer minus wrong logit [B] at `end` of a run with these edits, in float64."""
    read = Read(At("resid_post", model.depth - 1, positions=end))
    found = run(model, batch, edits, [read], logits=None)
    return logit_difference(model, found[read][:, 0], columns, end)


def at_rows(values: Tensor, columns: Tensor) -> Tensor:
    """values [B, T, ...] at one column a row [B]: [B, ...]."""
    return values[torch.arange(len(values), device=values.device), columns.to(values.device)]


def array(values: Tensor, axes: Mapping[str, Any], unit: str = "1") -> NamedArray:
    """A tensor as it is saved; half precision, which NumPy lacks or does not print, becomes float32."""
    kept = values.detach().cpu()
    kept = kept.float() if kept.dtype in (torch.bfloat16, torch.float16) else kept
    return NamedArray(kept.numpy(), dict(axes), unit)


def summary(name: str, values: np.ndarray | Tensor) -> dict[str, float]:
    """Scalars NAME.mean, NAME.sd and NAME.se (standard error of the mean) over prompts."""
    found = np.asarray(values, dtype=float)
    count = len(found)
    sd = float(found.std(ddof=1)) if count > 1 else float("nan")
    return {f"{name}.mean": float(found.mean()), f"{name}.sd": sd, f"{name}.se": sd / count**0.5}
