"""The stages of a fit: sums over blocks that give covariances, then their eigenvectors, then eigenvalues."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from repro.analyses.influence import algebra
from repro.analyses.influence.modules import Tracked
from repro.analyses.influence.passes import Gradients, Labels, computed_in, not_finite
from repro.analyses.influence_specs import InfluenceAnalysis
from repro.data.token_blocks import Blocks
from repro.errors import UserError
from repro.models.language_model import LanguageModel
from repro.progress import Progress

log = logging.getLogger(__name__)
Tensors = dict[str, Tensor]


def covariance_sums(
    model: LanguageModel, tracked: Sequence[Tracked], blocks: Blocks, labels: Labels,
    settings: InfluenceAnalysis, batch: int, bar: Progress,
) -> Tensors:  # fmt: skip
    """A.NAME = sum a a', S.NAME = sum g g' over all positions of all blocks (upper halves), and their count.

    All positions count, the last one too, whose g is zero; padding does not.
    """
    kind = computed_in(settings)
    inputs = [torch.zeros(one.inputs, one.inputs, dtype=kind, device=one.device) for one in tracked]
    outputs = [torch.zeros(one.outputs, one.outputs, dtype=kind, device=one.device) for one in tracked]
    total = 0

    def each(number: int, a: Tensor, g: Tensor) -> None:
        algebra.add_inputs(inputs[number], a, here, tracked[number].bias)
        algebra.add_symmetric(outputs[number], g.flatten(0, 1))

    passes = Gradients(model, tracked, settings)
    for rows in torch.arange(len(blocks)).split(batch):
        some = blocks.rows(rows)
        here = some.tokens.numel() if some.mask is None else int(some.mask.sum())
        passes.take(some, each, None if labels is None else labels[rows])
        total += here
        bar.advance(len(rows))
    found = {"count": torch.tensor(total)}
    for one, a, g in zip(tracked, inputs, outputs, strict=True):
        found.update({f"A.{one.name}": a, f"S.{one.name}": g})
    return found


def decomposed(sums: Tensors, tracked: Sequence[Tracked], settings: InfluenceAnalysis) -> Tensors:
    """Eigenvectors QA, QS and eigenvalues DA, DS of the mean covariances, decomposed in float64."""
    kind, count, found = computed_in(settings), int(sums["count"]), {}
    widest = max(max(one.inputs, one.outputs) for one in tracked)
    if count < widest and settings.strategy == "ekfac" and settings.fisher == "sampled":
        log.warning(
            "%d positions of training blocks for covariances of up to %d columns: some eigenvectors are"
            " arbitrary, and scores depend on rounding. Give more blocks, or analysis.fisher=empirical",
            count, widest,
        )  # fmt: skip
    for one in tracked:
        for side in ("A", "S"):
            whole = algebra.symmetric(sums[f"{side}.{one.name}"]) / count
            if not bool(torch.isfinite(whole).all()):
                raise not_finite(f"the covariance of {one.name}")
            try:
                values, vectors = torch.linalg.eigh(whole)
            except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
                raise UserError(
                    f"the covariance of {one.name} cannot be decomposed ({error}). Give"
                    " analysis.dtype=float64, or leave the module out of analysis.modules"
                ) from None
            found[f"Q{side}.{one.name}"] = vectors.to(kind)
            found[f"D{side}.{one.name}"] = values.to(kind)
    return found


def square_sums(
    model: LanguageModel, tracked: Sequence[Tracked], blocks: Blocks, labels: Labels,
    settings: InfluenceAnalysis, batch: int, bar: Progress, eigen: Tensors | None,
) -> Tensors:  # fmt: skip
    """L.NAME = sum over blocks of the squared gradient, in the eigenbasis or (eigen None) as it is."""
    kind = torch.float32 if settings.gentle else computed_in(settings)
    totals = [torch.zeros(one.outputs, one.inputs, dtype=kind, device=one.device) for one in tracked]
    bases = _bases(eigen, tracked, kind)

    def each(number: int, a: Tensor, g: Tensor) -> None:
        a, g = a.to(kind), g.to(kind)
        if eigen is None:
            found = algebra.gradients(a, g, tracked[number].inputs)
        else:
            found = algebra.rotated_gradients(a, g, *bases[number])
        algebra.add_squares(totals[number], found)

    passes = Gradients(model, tracked, settings)
    for rows in torch.arange(len(blocks)).split(batch):
        passes.take(blocks.rows(rows), each, None if labels is None else labels[rows])
        bar.advance(len(rows))
    found = {"count": torch.tensor(len(blocks))}
    return {**found, **{f"L.{one.name}": total for one, total in zip(tracked, totals, strict=True)}}


def _bases(
    eigen: Tensors | None, tracked: Sequence[Tracked], kind: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    if eigen is None:
        return []
    return [
        (eigen[f"QS.{one.name}"].to(one.device, kind), eigen[f"QA.{one.name}"].to(one.device, kind))
        for one in tracked
    ]
