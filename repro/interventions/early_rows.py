"""Attention outputs when rows of a block's input are put back to what they were at an earlier depth.

Source: Geva et al. 2023, arXiv 2304.14767, patching of early representations.
The block's input only matters at the last position here, so a run is not repeated. Keys and values are
linear in the rows of an earlier state: the clean query goes through W_K, once for all states, and is compared
with the rows as they are; rows are mixed as they are, and one vector a head goes through W_V. Only the last
row has a query, key and value made. That is less than a tenth of a pass for each source.
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
from repro.models.language_model import LanguageModel, Layer, per_query_head

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
    q, k, v = (run[place] for place in places.heads[layer.index])
    batch, end = facts.batch.to(q.device), facts.end.to(q.device)
    columns = torch.arange(batch.tokens.shape[1], device=q.device)
    allowed = layer.allowed(end[:, None], columns[None])[:, None] & batch.mask[:, None, None]
    others = [place for place, source in enumerate(sources) if source != layer.index]
    with torch.no_grad():
        clean = layer.attend(q, k, v, allowed)[:, 0]  # [B, H, D]
        z = clean.expand(len(sources), len(SETS), *clean.shape).clone()
        if others:
            attn_in = torch.stack([layer.norm1(run[places.hidden[sources[place]]]) for place in others])
            where = torch.stack([facts.positions(name).to(q.device) for name in SETS])  # [set, B, T]
            count, rows = len(others), torch.arange(len(q), device=q.device)
            ids = batch.position_ids[rows, end][:, None].repeat(count, 1)
            last = layer.project(attn_in[:, rows, end].flatten(0, 1)[:, None], ids)  # [S * B, 1, H or K, D]
            scores = _scores(layer, q, k, attn_in, batch.position_ids, last, where)
            pattern = layer.pattern(scores.flatten(2, 3), allowed, v.dtype).unflatten(2, scores.shape[2:4])
            z[others] = _mixed(layer, pattern, v, attn_in, last[2], where)
        return layer.attn_out(torch.cat([clean[None], z.flatten(0, 1)]))


def _scores(
    layer: Layer,
    q: Tensor,
    k: Tensor,
    attn_in: Tensor,
    position_ids: Tensor,
    last: tuple[Tensor, Tensor, Tensor],
    where: Tensor,
) -> Tensor:
    """Scores [B, H, set, S, T] of the last query: replaced rows have an earlier key; `last` its query, too.

    q [B, 1, H, D], k: of the clean run. attn_in: of S earlier states [S, B, T, d]. last: query, key and value
    of their last rows. where: [set, B, T].
    """
    query, key, _ = (part.unflatten(0, (len(attn_in), -1)) for part in last)
    itself = layer.scores(last[0], last[1]).unflatten(0, (len(attn_in), -1))
    itself = itself[..., 0, 0].permute(1, 2, 0)[..., None]  # [B, H, S, 1]
    of_last = layer.scores(query[:, :, 0].transpose(0, 1), k)
    clean, new = layer.scores(q, k), _scores_of_keys(layer, q, attn_in, position_ids)
    subject, other, end = where[:, :, None, None]
    return torch.stack([
        torch.where(subject, new, clean), torch.where(other, new, clean), torch.where(end, itself, of_last),
    ], 2)  # fmt: skip


def _scores_of_keys(layer: Layer, q: Tensor, attn_in: Tensor, position_ids: Tensor) -> Tensor:
    """Scores [B, H, S, T] of the clean last query and the keys of S earlier states.

    Keys are linear in attn_in, so the query goes through W_K, once for all states. Where they are not, or
    where half precision would round differently from the model, the keys are made.
    """
    keys = layer.key_map()
    if keys is None or attn_in.dtype not in (torch.float32, torch.float64):
        made = layer.keys(attn_in.flatten(0, 1), position_ids.repeat(len(attn_in), 1))
        scores = layer.scores(q.repeat(len(attn_in), 1, 1, 1), made)
        return scores.unflatten(0, (len(attn_in), -1))[..., 0, :].permute(1, 2, 0, 3)
    weight, bias = _for_query_heads(layer, *keys)
    turned = layer.unrotated(q, position_ids) * layer.scaling  # [B, T or 1, H, D]
    states = attn_in.permute(1, 2, 0, 3)  # [B, T, S, d]
    if turned.shape[1] == 1:
        directions = torch.einsum("bhe,hde->bdh", turned[:, 0], weight)
        found = (states.flatten(1, 2) @ directions).unflatten(1, states.shape[1:3]).permute(0, 3, 2, 1)
    else:  # head by head: a direction for each position of each prompt takes memory
        heads = [states @ (turned[:, :, i] @ weight[i].T)[..., None] for i in range(layer.heads)]
        found = torch.stack([head[..., 0] for head in heads]).permute(1, 0, 3, 2)
    if bias is not None:
        found = found + torch.einsum("bthe,he->bht", turned, bias)[:, :, None]
    return found


def _mixed(layer: Layer, pattern: Tensor, v: Tensor, attn_in: Tensor, last: Tensor, where: Tensor) -> Tensor:
    """z [S, set, B, H, D] of patterns [B, H, set, S, T]: replaced rows have values of their earlier state.

    last: values of their last rows [S * B, 1, K, D], all that the last set replaces.
    """
    kept = torch.where(where.transpose(0, 1)[:, None, :, None], 0.0, pattern)
    z = layer.mix(kept.flatten(2, 3), v).unflatten(1, kept.shape[2:4]).permute(2, 1, 0, 3, 4)
    taken = (pattern - kept).permute(3, 2, 0, 1, 4)  # [S, set, B, H, T]
    mixed = taken[:, :-1].transpose(1, 2).flatten(2, 3) @ attn_in  # [S, B, set * H, d]
    rows = mixed.view(-1, layer.heads, mixed.shape[-1]).transpose(0, 1)
    weight, bias = _for_query_heads(layer, *layer.value_map())
    value = (rows @ weight).transpose(0, 1).unflatten(0, (len(attn_in), len(v), -1)).transpose(1, 2)
    if bias is not None:
        value = value + taken[:, :-1].sum(-1, keepdim=True) * bias
    of_last = per_query_head(last, layer.heads)[:, 0].unflatten(0, (len(attn_in), 1, -1))
    return z + torch.cat([value, taken[:, -1:].sum(-1, keepdim=True) * of_last], 1)


def _for_query_heads(layer: Layer, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A map to keys or values, for each query head: [H, d, D] and [H, D]."""
    many = per_query_head(weight, layer.heads, 0)
    return many, None if bias is None else per_query_head(bias, layer.heads, 0)
