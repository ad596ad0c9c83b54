"""Attention outputs when rows of a block's input are put back to what they were at an earlier depth.

Source: Geva et al. 2023, arXiv 2304.14767, patching of early representations.
The block's input only matters at the last position here, so a run is not repeated. Of an earlier state's rows
only keys are made, and the last row's query; they are mixed as they are, and one vector a head goes through
W_V, since values are linear in them. That is about a tenth of a pass for each source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repro.data.facts_tokens import FactBatch
from repro.interventions.lm_edits import At
from repro.interventions.lm_run import Run
from repro.interventions.vocabulary_projection import hidden_at
from repro.models.language_model import LanguageModel, Layer

SETS = ("subject", "non_subject", "last")


@dataclass(frozen=True)
class Clean:
    """Reads of a clean run: every block's input at all positions, its last query, its keys and values."""

    hidden: list[At]
    heads: list[tuple[At, At, At]]

    @classmethod
    def of(cls, model: LanguageModel, facts: FactBatch) -> Clean:
        """For these prompts."""
        layers = range(model.depth)
        heads = [(At("q", i, positions=facts.end), At("k", i), At("v", i)) for i in layers]
        return cls([hidden_at(model, layer) for layer in layers], heads)

    @property
    def reads(self) -> list[At]:
        """All of them, for the run."""
        return [*self.hidden, *(place for places in self.heads for place in places)]


def patched_outputs(
    layer: Layer, run: Run, places: Clean, facts: FactBatch, sources: Sequence[int]
) -> Tensor:
    """Attention outputs of one block at the last position, [1 + source * set, B, d]; the clean one first.

    run: a clean one with `places.reads`. sources: hidden states that rows are put back to; sets in the order
    of `SETS`, the source outermost. One block is patched; its MLP and later blocks do not enter.
    """
    own: tuple[Tensor, Tensor, Tensor] = tuple(run[place] for place in places.heads[layer.index])  # type: ignore[assignment]
    batch, end = facts.batch.to(own[0].device), facts.end.to(own[0].device)
    columns = torch.arange(batch.tokens.shape[1], device=end.device)
    allowed = layer.allowed(end[:, None], columns[None])[:, None] & batch.mask[:, None, None]
    others = [place for place, source in enumerate(sources) if source != layer.index]
    with torch.no_grad():
        clean = layer.attend(*own, allowed)[:, 0]  # [B, H, D]
        z = clean.expand(len(sources), len(SETS), *clean.shape).clone()
        if others:
            count = len(others)
            attn_in = torch.cat([layer.norm1(run[places.hidden[sources[place]]]) for place in others])
            where = torch.stack([facts.positions(name).to(end.device).repeat(count, 1) for name in SETS])
            q, k, v = (part.repeat(count, 1, 1, 1) for part in own)
            scores = _scores(layer, q, k, attn_in, batch.position_ids.repeat(count, 1), end, where)
            pattern = layer.pattern(scores, allowed.repeat(count, 1, 1, 1), v.dtype)[..., 0, :]
            mixed = _mixed(layer, pattern, v, attn_in, where)
            z[others] = mixed.unflatten(1, (count, -1)).transpose(0, 1)
        return layer.attn_out(torch.cat([clean[None], z.flatten(0, 1)]))


def _scores(
    layer: Layer, q: Tensor, k: Tensor, attn_in: Tensor, position_ids: Tensor, end: Tensor, where: Tensor
) -> Tensor:
    """Scores [S, N, H, 1, T] of the last query: replaced rows have an earlier key; `last` its query, too.

    N: sources times prompts. q, k: of the clean run. attn_in: of earlier states [N, T, d]. where [S, N, T].
    """
    rows, end = torch.arange(len(q), device=q.device), end.repeat(len(q) // len(end))
    keys = layer.keys(attn_in, position_ids)
    query = layer.project(attn_in[rows, end][:, None], position_ids[rows, end][:, None])[0]
    subject, other, last = where[:, :, None, None]
    clean, new = layer.scores(q, k), layer.scores(q, keys)
    itself = layer.scores(query, keys[rows, end][:, None])
    return torch.stack([
        torch.where(subject, new, clean), torch.where(other, new, clean),
        torch.where(last, itself, layer.scores(query, k)),
    ])  # fmt: skip


def _mixed(layer: Layer, pattern: Tensor, v: Tensor, attn_in: Tensor, where: Tensor) -> Tensor:
    """z [S, N, H, D] of patterns [S, N, H, T]: replaced rows have the values of their earlier state."""
    kept = torch.where(where[:, :, None], 0.0, pattern)
    z = layer.mix(kept.permute(1, 2, 0, 3), v).transpose(0, 1)  # the sets as queries
    taken = pattern - kept
    weight, bias = layer.value_map()
    group = layer.heads // layer.kv_heads
    if group > 1:
        weight = weight.repeat_interleave(group, dim=0)
        bias = None if bias is None else bias.repeat_interleave(group, dim=0)
    rows = torch.einsum("snht,ntd->snhd", taken.to(attn_in.dtype), attn_in)
    z = z + torch.einsum("snhd,hde->snhe", rows, weight)
    return z if bias is None else z + taken.sum(-1, keepdim=True) * bias
