"""Attention knockout as it is defined: one whole pass a set of positions and a window, with edges cut.

Source: Geva et al. 2023, arXiv 2304.14767, section 4. Slow; what `attention_knockout` is tested against.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from repro.data.token_batch import TokenBatch
from repro.interventions.attention_knockout import NothingLeft, probability
from repro.interventions.lm_edits import At, CutEdges, Edit, Transform
from repro.interventions.lm_run import run
from repro.models.language_model import LanguageModel


def knockout_by_definition(
    model: LanguageModel,
    batch: TokenBatch,
    sets: Bool[Tensor, "B S T"],
    windows: Sequence[range],
    answer: Int[Tensor, " B"],
    nothing_left: NothingLeft = "uniform",
) -> Float[Tensor, "B S W"]:
    """The same as `attention_knockout.knockout`, of whole passes."""
    found = [
        [one(model, batch, chosen, layers, answer, nothing_left) for layers in windows]
        for chosen in sets.unbind(1)
    ]
    return torch.stack([torch.stack(cells, dim=-1) for cells in found], dim=1)


def one(
    model: LanguageModel,
    batch: TokenBatch,
    chosen: Bool[Tensor, "B T"],
    layers: Sequence[int],
    answer: Int[Tensor, " B"],
    nothing_left: NothingLeft = "uniform",
) -> Float[Tensor, " B"]:
    """Probability of the answer in one pass, the last position not attending to `chosen` in these layers."""
    edits: list[Edit] = []
    for layer in layers:
        for row, columns in enumerate(chosen):
            keys = columns.nonzero().flatten().tolist()
            if keys:
                edits.append(CutEdges(layer, [int(batch.last[row])], keys, rows=[row]))
        if nothing_left == "uniform":
            edits += _uniform(model, batch, chosen, layer)
    logits = run(model, batch, edits, logits="last").logits
    assert logits is not None
    return probability(logits, answer)


def _uniform(model: LanguageModel, batch: TokenBatch, chosen: Tensor, layer: int) -> list[Edit]:
    """For rows that have nothing left in a layer: attention to all that was seen, equally."""
    columns, edits = torch.arange(chosen.shape[1]), list[Edit]()
    for row, taken in enumerate(chosen):
        end = batch.last[row]
        seen = model.layers[layer].allowed(end[None], columns)[0] & batch.mask[row]
        if not bool((seen & ~taken).any()):
            even = seen.double() / seen.sum()

            def spread(pattern: Tensor, even: Tensor = even) -> Tensor:
                return even.to(pattern).expand_as(pattern)

            edits.append(Transform(At("pattern", layer, positions=[int(end)], rows=[row]), spread))
    return edits
