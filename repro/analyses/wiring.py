"""Which heads of the first layer each head of the second reads, and by which path.

Source: arXiv 2404.07129, Fig. 11.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from repro.analyses.icl_masks import MaskedMeasure, mask
from repro.analyses.icl_measures import Measured, condition, layer_heads, training_sequences
from repro.analyses.specs import Wiring
from repro.data.features import Features
from repro.errors import UserError
from repro.expressions import spearman
from repro.interventions.specs import Preserve
from repro.models.icl_transformer import IclTransformerModel
from repro.results import NamedArray, Result
from repro.training.store import Trained

MODES = ("removed", "kept")
PRESERVED = ("pattern", "v")
KINDS = ("q", "k", "v")  # in the order of the fused projection


def run(
    subject: Mapping[str, Trained], data: Features, record: Any, directory: Path, spec: Wiring
) -> Result:  # fmt: skip
    """With one head of layer 1 active, remove each head of layer 0, or keep only it.

    Arrays: accuracy, loss [mode, preserved, layer1_head, layer0_head]: what is preserved (patterns or
    values of both layers, from an untouched pass) is the path that the ablation cannot act through, so
    `pattern` shows what is read through values and `v` what is read through patterns. only_accuracy,
    only_loss [layer1_head]: nothing of layer 0 ablated. composition [kind, layer1_head, layer0_head]: see
    `composition`. Scalars: composition.<kind>.min and .max; spearman_k_composition_kept (with accuracy,
    only that head kept, values preserved) and spearman_v_composition_kept (patterns preserved).
    """
    trained = condition(subject, spec.condition)
    model = trained.model(spec.checkpoint)
    if len(model.blocks) != 2:
        raise UserError(f"analysis: wiring is defined for two layers, got model.depth={len(model.blocks)}")
    sequences = training_sequences(trained.plan.sequences, data, spec.sequences)
    count = model.heads
    masks = np.stack([*_alone(model), *_pairs(model)])
    accuracy, loss = np.empty((2, len(MODES), len(PRESERVED), count, count))
    alone: list[Measured] = []
    for at, site in enumerate(PRESERVED):
        measured = MaskedMeasure(sequences, [Preserve(sites=[site])])(
            model, masks, f"wiring, {site} preserved"
        )
        # Nothing of layer 0 is ablated here, so it does not matter what is preserved.
        alone, pairs = measured[:count], measured[count:]
        shape = (len(MODES), count, count)
        accuracy[:, at] = np.reshape([one.accuracy for one in pairs], shape)
        loss[:, at] = np.reshape([one.mean_loss for one in pairs], shape)

    readers: dict[str, Any] = {"layer1_head": layer_heads(count, 1)}
    writers: dict[str, Any] = {"layer0_head": layer_heads(count, 0)}
    axes = {"mode": list(MODES), "preserved": list(PRESERVED), **readers, **writers}
    scores = composition(model)
    arrays = {
        "accuracy": NamedArray(accuracy, axes),
        "loss": NamedArray(loss, axes, "nat"),
        "only_accuracy": NamedArray(np.array([one.accuracy for one in alone]), readers),
        "only_loss": NamedArray(np.array([one.mean_loss for one in alone]), readers, "nat"),
        "composition": NamedArray(scores, {"kind": list(KINDS), **readers, **writers}),
    }
    kept = accuracy[MODES.index("kept")]
    scalars = {f"composition.{kind}.min": float(scores[i].min()) for i, kind in enumerate(KINDS)}
    scalars |= {f"composition.{kind}.max": float(scores[i].max()) for i, kind in enumerate(KINDS)}
    for kind, site in (("k", "v"), ("v", "pattern")):
        values = kept[PRESERVED.index(site)]
        scalars[f"spearman_{kind}_composition_kept"] = spearman(scores[KINDS.index(kind)], values)
    return Result(scalars, arrays)


def composition(model: IclTransformerModel) -> Float[np.ndarray, "kind layer1_head layer0_head"]:
    """||W_O W_X|| / (||W_O|| ||W_X||) in Frobenius norms: how much of what a head of layer 0 writes a head
    of layer 1 reads as query, key or value (X); 0 if it writes or reads nothing.

    Source: arXiv 2404.07129, appendix on wiring (Fig. 11).
    """
    count, width = model.heads, model.width
    size = width // count
    writes = np.asarray(model.blocks[0].attn.out.weight, np.float64).reshape(width, count, size)
    reads = np.asarray(model.blocks[1].attn.qkv.weight, np.float64).reshape(3, count, size, width)
    through = np.einsum("xisc,cjt->xijst", reads, writes)
    scale = np.multiply.outer(_norm(reads, (2, 3)), _norm(writes, (0, 2)))
    return _norm(through, (3, 4)) / np.where(scale > 0, scale, 1)


def _norm(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.sqrt(np.sum(values**2, axis=axes))


def _alone(model: IclTransformerModel) -> Iterator[np.ndarray]:
    for reader in range(model.heads):
        yield mask(model, 1, active=[reader])


def _pairs(model: IclTransformerModel) -> Iterator[np.ndarray]:
    """Masks in the order mode, head of layer 1, head of layer 0."""
    for mode in MODES:
        for reader in _alone(model):
            for writer in range(model.heads):
                writers = (
                    mask(model, 0, ablated=[writer]) if mode == "removed" else mask(model, 0, active=[writer])
                )
                yield reader * writers
