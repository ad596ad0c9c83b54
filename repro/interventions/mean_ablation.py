"""Knockouts: heads and MLPs at chosen positions replaced by their mean over reference prompts, or by zero.

Means are taken for each template and each position in it (source: Wang et al. 2022, arXiv 2211.00593,
section on knockouts): averaging over templates would mix what stands at different places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repro.data.token_batch import TokenBatch
from repro.errors import UserError
from repro.interventions.lm_edits import At, Read, Transform
from repro.interventions.lm_run import run
from repro.models.language_model import LanguageModel

SITES = ("z", "mlp_out")
Place = tuple[str, int]
# What is knocked out: (site, layer) -> booleans [B, T, H] for z, [B, T] for mlp_out.
Masks = Mapping[Place, Tensor]


@dataclass(frozen=True, eq=False)
class Means:
    """Mean activations by template and position among the real tokens: (site, layer) -> [G, P, ...].

    groups: the template numbers, in the order of axis G. counts: reference prompts behind each mean, [G, P].
    """

    values: Mapping[Place, Tensor]
    groups: Tensor
    counts: Tensor

    def at(self, site: str, layer: int, batch: TokenBatch, groups: Tensor) -> Tensor:
        """The mean for every token of a batch, [B, T, ...]; zeros on padding."""
        index, places = self._index(groups), batch.position_ids
        values = self.values[site, layer]
        found = values[index[:, None].to(values.device), places.to(values.device)]
        real = batch.mask.to(values.device).view(*batch.mask.shape, *[1] * (found.ndim - 2))
        return torch.where(real, found, 0.0)

    def check(self, batch: TokenBatch, groups: Tensor) -> None:
        """Refuse prompts of a template, or with a length, that no reference prompt has."""
        unknown = sorted(set(groups.tolist()) - set(self.groups.tolist()))
        if unknown:
            raise UserError(
                f"mean ablation: no reference prompt has the template (group) {unknown[0]}. Groups of the"
                f" reference prompts: {', '.join(map(str, self.groups.tolist()))}"
            )
        lengths = (self.counts[self._index(groups)] > 0).sum(-1)
        short = (batch.mask.sum(-1) > lengths).nonzero().flatten().tolist()
        if short:
            raise UserError(
                f"mean ablation: prompt {short[0]} has {int(batch.mask[short[0]].sum())} tokens and the"
                f" longest reference prompt of its template {int(lengths[short[0]])}: no mean for its last"
                " positions. Use reference prompts of the same length"
            )

    def _index(self, groups: Tensor) -> Tensor:
        return torch.searchsorted(self.groups, groups).clamp(max=len(self.groups) - 1)


def reference_means(
    model: LanguageModel, batch: TokenBatch, groups: Tensor, sites: Sequence[str] = SITES, rows: int = 64
) -> Means:
    """Means of every layer's sites over reference prompts. groups: template number of each row.

    rows: in one pass. Sums are float64, so the result hardly depends on how rows are split or ordered.
    """
    known, index = torch.unique(groups, return_inverse=True)
    length = int(batch.mask.sum(-1).max())
    counts = torch.zeros(len(known), length)
    sums: dict[Place, Tensor] = {}
    for start in range(0, len(batch), rows):
        part = batch.rows(slice(start, start + rows))
        where = (
            index[start : start + rows, None].expand_as(part.tokens)[part.mask],
            part.position_ids[part.mask],
        )
        counts.index_put_(where, torch.ones(len(where[0])), accumulate=True)
        reads = [Read(At(site, layer)) for site in sites for layer in range(model.depth)]
        found = run(model, part, reads=reads, logits=None)
        for read in reads:
            value = found[read]
            real = value[part.mask.to(value.device)].double()
            place = (read.at.site, read.at.layer or 0)
            if place not in sums:
                sums[place] = real.new_zeros(len(known), length, *real.shape[1:])
            sums[place].index_put_(tuple(i.to(real.device) for i in where), real, accumulate=True)
    values = {
        place: (total / _like(counts.clamp(min=1).to(total), total)).to(model.dtype)
        for place, total in sums.items()
    }
    return Means(values, known, counts)


def zero_means(means_of: LanguageModel, groups: Tensor, length: int) -> Means:
    """Zeros in place of means, for zero ablation."""
    model, known = means_of, torch.unique(groups)
    shape = {"z": (model.heads, model.head_width), "mlp_out": (model.width,)}
    values = {
        (site, layer): torch.zeros(len(known), length, *shape[site], dtype=model.dtype, device=model.device)
        for site in SITES
        for layer in range(model.depth)
    }
    return Means(values, known, torch.ones(len(known), length))


def knock_out(means: Means, batch: TokenBatch, groups: Tensor, masks: Masks) -> list[Transform]:
    """Edits that put the means where the masks are True, and nowhere else; none for places without any."""
    return [
        _where(At(site, layer), mask, means.at(site, layer, batch, groups))
        for (site, layer), mask in masks.items()
        if bool(mask.any())
    ]


def _where(at: At, mask: Tensor, mean: Tensor) -> Transform:
    def function(found: Tensor) -> Tensor:
        return torch.where(mask[..., None].to(found.device), mean.to(found), found)

    return Transform(at, function)


def head_masks(
    model: LanguageModel, batch: TokenBatch, nodes: Sequence[tuple[int, int | str | None, Tensor | None]]
) -> dict[Place, Tensor]:
    """Masks of nodes (layer, head, columns [B, P]): head None is the MLP, "*" all heads; columns None all."""
    rows, length = batch.tokens.shape
    masks: dict[Place, Tensor] = {}
    for layer, head, columns in nodes:
        where = torch.ones(rows, length, dtype=torch.bool)
        if columns is not None:
            where = torch.zeros(rows, length, dtype=torch.bool).scatter_(1, columns, True)
        if head is None:
            mask = masks.setdefault(("mlp_out", layer), torch.zeros(rows, length, dtype=torch.bool))
            mask |= where
            continue
        mask = masks.setdefault(("z", layer), torch.zeros(rows, length, model.heads, dtype=torch.bool))
        chosen = range(model.heads) if head == "*" else [int(head)]
        for one in chosen:
            mask[:, :, one] |= where
    return masks


def outside(model: LanguageModel, batch: TokenBatch, masks: Masks) -> dict[Place, Tensor]:
    """Everything of all heads that the masks leave out: what is knocked out when a circuit is kept."""
    rows, length = batch.tokens.shape
    none = torch.zeros(rows, length, model.heads, dtype=torch.bool)
    return {("z", layer): ~masks.get(("z", layer), none) for layer in range(model.depth)}


def _like(counts: Tensor, total: Tensor) -> Tensor:
    return counts.view(*counts.shape, *[1] * (total.ndim - 2))
