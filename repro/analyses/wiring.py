"""Which heads of the first layer each head of the second reads, and by which path.

Source: arXiv 2404.07129, Fig. 11.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from repro.shards import WHOLE, Part, join
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
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(
    subject: Mapping[str, Trained], data: Features, directory: Path | None, spec: Wiring, part: Part
) -> Result:  # fmt: skip
    """Accuracy and loss [case] of some of the ablations, site by site, and `composition`."""
    trained = condition(subject, spec.condition)
    model = trained.model(spec.checkpoint)
    if len(model.blocks) != 2:
        raise UserError(f"analysis: wiring is defined for two layers, got model.depth={len(model.blocks)}")
    sequences = training_sequences(trained.plan.sequences, data, spec.sequences)
    masks = np.stack([*_alone(model), *_pairs(model)])
    cases = part.of([(site, index) for site in PRESERVED for index in range(len(masks))])
    measured: list[Measured] = []
    for site in PRESERVED:
        here = masks[[index for one, index in cases if one == site]]
        if len(here):
            take = MaskedMeasure(sequences, [Preserve(sites=[site])])
            measured += take(model, here, f"wiring, {site} preserved")
    names: dict[str, Any] = {"case": [f"{site}.{index}" for site, index in cases]}
    readers: dict[str, Any] = {"layer1_head": layer_heads(model.heads, 1)}
    writers: dict[str, Any] = {"layer0_head": layer_heads(model.heads, 0)}
    arrays = {
        "accuracy": NamedArray(np.array([one.accuracy for one in measured]), names),
        "loss": NamedArray(np.array([one.mean_loss for one in measured]), names, "nat"),
        "composition": NamedArray(composition(model), {"kind": list(KINDS), **readers, **writers}),
    }
    return Result({}, arrays)


def merge(parts: Sequence[Result], spec: Wiring) -> Result:
    """The ablations as tables of pairs of heads, and how they go with the composition scores."""
    result = join(parts, "case")
    arrays, scalars = result.arrays, result.scalars
    scores, heads = arrays["composition"].values, arrays["composition"].axes
    readers = {"layer1_head": heads["layer1_head"]}
    axes = {"mode": list(MODES), "preserved": list(PRESERVED), **readers, "layer0_head": heads["layer0_head"]}
    count = scores.shape[1]
    for name, unit in (("accuracy", "1"), ("loss", "nat")):
        cases = arrays[name].values.reshape(len(PRESERVED), -1)
        # Nothing of layer 0 is ablated in the first ones, so it does not matter what is preserved.
        arrays[f"only_{name}"] = NamedArray(cases[-1, :count], readers, unit)
        pairs = cases[:, count:].reshape(len(PRESERVED), len(MODES), count, count)
        arrays[name] = NamedArray(np.moveaxis(pairs, 1, 0), axes, unit)
    kept = arrays["accuracy"].values[MODES.index("kept")]
    scalars.update({f"composition.{kind}.min": float(scores[i].min()) for i, kind in enumerate(KINDS)})
    scalars.update({f"composition.{kind}.max": float(scores[i].max()) for i, kind in enumerate(KINDS)})
    for kind, site in (("k", "v"), ("v", "pattern")):
        values = kept[PRESERVED.index(site)]
        scalars[f"spearman_{kind}_composition_kept"] = spearman(scores[KINDS.index(kind)], values)
    return result


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
