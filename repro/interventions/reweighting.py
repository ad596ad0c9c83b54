"""Attention outputs of one query with some columns of its pattern removed, everything upstream unchanged.

Source: Geva et al. 2023, arXiv 2304.14767, section on attribute extraction. The text removes columns; the
released code sets them to -1e6 in the pattern, which holds probabilities already, and takes a second softmax,
so that what is left becomes almost uniform. Both are here: `renormalised` and `released`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from repro.data.facts_tokens import FactBatch
from repro.interventions.lm_edits import At
from repro.models.language_model import LanguageModel, Layer

Reweight = Literal["released", "renormalised"]
UNTOUCHED, NOTHING_LEFT = "MHSA*", "all"
# Rows of the published table: sets of positions that are dropped, or that alone are kept. first: column 0.
DROPPED = {
    "subject": ("subject",),
    "subject-last": ("last_subject",),
    "last": ("last",),
    "subject-last+last": ("last_subject", "last"),
    "non-subject": ("non_subject", "last"),
    "non-subject-ex-last": ("non_subject",),
}
KEPT = {
    "all-but-first": ("first",),
    "all-but-last": ("last",),
    "all-but-subject-last": ("last_subject",),
    "all-but-subject-last+last": ("last_subject", "last"),
}
ROWS = (UNTOUCHED, *DROPPED, *KEPT, NOTHING_LEFT)


def kept_columns(facts: FactBatch, row: str) -> Tensor:
    """Columns whose weight stays in a row of the table, booleans [B, T]."""
    real = facts.positions("all")
    names = DROPPED.get(row, KEPT.get(row))
    if names is None:
        return real if row == UNTOUCHED else torch.zeros_like(real)
    first = real & (torch.arange(real.shape[1]) == 0)
    sets = [first if name == "first" else facts.positions(name) for name in names]
    together = torch.stack(sets).any(0)
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


def attention_reads(model: LanguageModel, facts: FactBatch) -> list[tuple[At, At]]:
    """Each layer's values at all positions, and its pattern at the last one."""
    end = facts.end
    return [(At("v", layer), At("pattern", layer, positions=end)) for layer in range(model.depth)]


def variants(
    layer: Layer, value: Tensor, pattern: Tensor, facts: FactBatch, how: Sequence[Reweight]
) -> Tensor:
    """Attention outputs at the last position for every way and row, [way, row, B, d].

    value: [B, T, K, D]; pattern: [B, H, 1, T] at the last position. Rows are those of `ROWS`.
    """
    columns = torch.arange(pattern.shape[-1])
    seen = layer.allowed(facts.end[:, None], columns[None])[:, 0]
    found = [[_row(layer, value, pattern, facts, seen, row, way) for row in ROWS] for way in how]
    return torch.stack([torch.stack(rows) for rows in found])


def _row(
    layer: Layer, value: Tensor, pattern: Tensor, facts: FactBatch, seen: Tensor, row: str, way: Reweight
) -> Tensor:
    if row == NOTHING_LEFT:
        pattern = torch.zeros_like(pattern)
    elif row != UNTOUCHED:
        pattern = reweighted(pattern, kept_columns(facts, row), seen, way)
    with torch.no_grad():
        return layer.attn_out(layer.mix(pattern, value))[:, 0]
