"""Attention outputs when rows of a block's input are put back to what they were at an earlier depth.

Source: Geva et al. 2023, arXiv 2304.14767, patching of early representations.
The block's input only matters at the last position here, so a run is not repeated: the rows' keys and values,
and the last row's query, are computed from the earlier states and mixed with those of the clean run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repro.data.facts_tokens import FactBatch
from repro.interventions.lm_run import Run
from repro.interventions.vocabulary_projection import hidden_at
from repro.models.language_model import LanguageModel, Layer

SETS = ("subject", "non_subject", "last")


def hidden_places(model: LanguageModel) -> list:
    """Where to read every block's input, at all positions."""
    return [hidden_at(model, layer) for layer in range(model.depth)]


def patched_outputs(
    model: LanguageModel, layer: Layer, clean: Run, places: Sequence, facts: FactBatch, sources: Sequence[int]
) -> Tensor:
    """Attention outputs of one block at the last position, [1 + source * set, B, d]; the clean one first.

    clean: a run with reads of `hidden_places`. sources: hidden states that rows are put back to; sets in the
    order of `SETS`, the source outermost. One block is patched; its MLP and later blocks do not enter.
    """
    batch = facts.batch.to(clean[places[0]].device)
    rows, width = batch.tokens.shape
    end = facts.end.to(batch.tokens.device)
    own = _qkv(layer, clean[places[layer.index]], batch.position_ids)
    earlier = [_qkv(layer, clean[places[source]], batch.position_ids) for source in sources]
    swapped = [torch.zeros(rows, width, dtype=torch.bool)]
    swapped += [facts.positions(name) for _ in sources for name in SETS]
    others = [own, *(state for state in earlier for _ in SETS)]
    at = torch.arange(rows, device=end.device)
    queries, keys, values = [], [], []
    for where, (q, k, v) in zip(swapped, others, strict=True):
        where = where.to(end.device)
        queries.append(torch.where(where[at, end][:, None, None], q[at, end], own[0][at, end])[:, None])
        keys.append(torch.where(where[..., None, None], k, own[1]))
        values.append(torch.where(where[..., None, None], v, own[2]))
    columns = torch.arange(width, device=end.device)
    allowed = layer.allowed(end[:, None], columns[None])[:, None] & batch.mask[:, None, None]
    with torch.no_grad():
        z = layer.attend(
            torch.cat(queries), torch.cat(keys), torch.cat(values), allowed.repeat(len(others), 1, 1, 1)
        )
        return layer.attn_out(z)[:, 0].view(len(others), rows, -1)


def _qkv(layer: Layer, resid: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        return layer.project(layer.norm1(resid), position_ids)
