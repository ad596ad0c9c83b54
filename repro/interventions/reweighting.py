"""Attention outputs of one query with some columns of its pattern removed, everything upstream unchanged.

Source: Geva et al. 2023, arXiv 2304.14767, section on attribute extraction. The text removes columns; the
released code sets them to -1e6 in the pattern, which holds probabilities already, and takes a second softmax,
so that what is left becomes almost uniform. Both are here: `renormalised` and `released`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from repro.data.token_batch import TokenBatch
from repro.interventions.lm_edits import At
from repro.interventions.lm_run import Run, run
from repro.models.language_model import LanguageModel, Layer

Reweight = Literal["released", "renormalised"]
UNTOUCHED, NOTHING_LEFT = "MHSA*", "all"
# Rows of the published table: what is dropped, or what alone is kept. `before`: before the last position.
DROPPED = {
    "subject": ("subject",),
    "subject-last": ("subject-last",),
    "last": ("last",),
    "subject-last+last": ("subject-last", "last"),
    "non-subject": ("before", "last"),
    "non-subject-ex-last": ("before",),
}
KEPT = {
    "all-but-first": ("first",),
    "all-but-last": ("last",),
    "all-but-subject-last": ("subject-last",),
    "all-but-subject-last+last": ("subject-last", "last"),
}
ROWS = (UNTOUCHED, *DROPPED, *KEPT, NOTHING_LEFT)


@dataclass(frozen=True, eq=False)
class Columns:
    """Sets of columns of each prompt, [B, T] each: real, first, last, subject, subject-last, before.

    subject: from subject_first to subject_last, both included; before: real, neither subject nor last.
    """

    sets: dict[str, Tensor]

    @classmethod
    def of(cls, batch: TokenBatch, subject_first: Tensor, subject_last: Tensor, last: Tensor) -> Columns:
        """From columns [B] by name; the batch may be padded on either side."""
        at = torch.arange(batch.tokens.shape[1])[None]
        real = batch.mask & (at <= last[:, None])
        subject = (at >= subject_first[:, None]) & (at <= subject_last[:, None])
        is_last = at == last[:, None]
        first = real & (real.cumsum(-1) == 1)
        before = real & ~subject & ~is_last
        own_last = at == subject_last[:, None]
        sets = {"real": real, "first": first, "last": is_last, "subject": subject, "before": before}
        return cls({**sets, "subject-last": own_last})

    def kept(self, row: str) -> Tensor:
        """Columns whose weight stays in a row of the table, [B, T]."""
        names = DROPPED.get(row, KEPT.get(row))
        real = self.sets["real"]
        if names is None:
            return real if row == UNTOUCHED else torch.zeros_like(real)
        together = torch.stack([self.sets[name] for name in names]).any(0)
        return real & (together if row in KEPT else ~together)


def reweighted(pattern: Tensor, kept: Tensor, seen: Tensor, how: Reweight) -> Tensor:
    """A pattern [B, H, 1, T] without the columns that are not kept [B, T]; seen [B, T]: those it may look at.

    Where nothing that is kept can be seen, or has any weight, the pattern is zero.
    """
    left = (kept & seen)[:, None, None].to(pattern.device)
    if how == "renormalised":
        rest = torch.where(left, pattern, 0.0)
        total = rest.sum(-1, keepdim=True)
        return torch.where(total > 0, rest / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)
    # exp(-1e6) is 0 in every precision, so the second softmax is one over what is left.
    again = torch.softmax(torch.where(left, pattern, -torch.inf), dim=-1)
    return torch.where(left.any(-1, keepdim=True), again, 0.0)


def attention_reads(model: LanguageModel, last: Tensor) -> list[tuple[At, At]]:
    """Each layer's values at all positions, and its pattern at the last one."""
    return [(At("v", layer), At("pattern", layer, positions=last)) for layer in range(model.depth)]


def variants(
    layer: Layer, value: Tensor, pattern: Tensor, columns: Columns, last: Tensor, how: Sequence[Reweight]
) -> Tensor:
    """Attention outputs at the last position for every way and row, [way, row, B, d].

    value: [B, T, K, D]; pattern: [B, H, 1, T] at `last` [B]. Rows are those of `ROWS`.
    """
    everywhere = torch.arange(pattern.shape[-1], device=last.device)
    seen = layer.allowed(last[:, None], everywhere[None])[:, 0]
    found = [[_row(layer, value, pattern, columns, seen, row, way) for row in ROWS] for way in how]
    return torch.stack([torch.stack(rows) for rows in found])


def _row(
    layer: Layer, value: Tensor, pattern: Tensor, columns: Columns, seen: Tensor, row: str, way: Reweight
) -> Tensor:
    if row == NOTHING_LEFT:
        pattern = torch.zeros_like(pattern)
    elif row != UNTOUCHED:
        pattern = reweighted(pattern, columns.kept(row), seen, way)
    with torch.no_grad():
        return layer.attn_out(layer.mix(pattern, value))[:, 0]


def extraction_run(model: LanguageModel, batch: TokenBatch, last: Tensor, reads: Sequence[At]) -> Run:
    """One run that keeps values, patterns at the last position, and `reads`; logits at the last position."""
    pairs = [place for pair in attention_reads(model, last) for place in pair]
    return run(model, batch, reads=[*pairs, *reads], logits=last)
