"""Attention outputs when rows of a block's input are put back to what they were at an earlier depth.

Source: Geva et al. 2023, arXiv 2304.14767, patching of early representations.
The block's input only matters at the last position here, so a run is not repeated: the rows' keys and values,
and the last row's query, are computed from the earlier states and mixed with those of the clean run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repro.data.facts_tokens import FactBatch
from repro.data.token_batch import TokenBatch
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
    states = [
        own if source == layer.index else _earlier(layer, run[places.hidden[source]], batch, end)
        for source in sources
    ]
    queries, keys, values = [own[0]], [own[1]], [own[2]]
    for q, k, v in states:
        for name in SETS:
            where = facts.positions(name).to(end.device)[..., None, None]
            queries.append(q if name == "last" else own[0])
            keys.append(torch.where(where, k, own[1]))
            values.append(torch.where(where, v, own[2]))
    columns = torch.arange(batch.tokens.shape[1], device=end.device)
    allowed = layer.allowed(end[:, None], columns[None])[:, None] & batch.mask[:, None, None]
    with torch.no_grad():
        z = layer.attend(
            torch.cat(queries), torch.cat(keys), torch.cat(values), allowed.repeat(len(keys), 1, 1, 1)
        )
        return layer.attn_out(z)[:, 0].view(len(keys), len(facts), -1)


def _earlier(layer: Layer, resid: Tensor, batch: TokenBatch, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the block makes of an earlier state: the last query [B, 1, H, D], keys and values of all rows."""
    with torch.no_grad():
        q, k, v = layer.project(layer.norm1(resid), batch.position_ids)
    return q[torch.arange(len(q), device=q.device), end][:, None], k, v
