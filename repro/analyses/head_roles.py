"""What each head of a layer does at the end of training: alone, missing, and added back.

Source: arXiv 2404.07129, Fig. 4a, 13 and 14, Table 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from repro.analyses.icl_cases import CASE, take, to_arrays
from repro.analyses.icl_masks import MaskedMeasure, mask
from repro.analyses.icl_measures import (
    Measured,
    condition,
    head_index,
    layer_heads,
    layer_index,
    measure,
    mended,
    training_sequences,
)
from repro.analyses.specs import HeadRoles
from repro.data.features import Features
from repro.expressions import spearman
from repro.interventions.specs import AblateHeads, Preserve
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join
from repro.training.store import Trained

STRONG = 0.4


def run(
    subject: Mapping[str, Trained], data: Features, record: Any, directory: Path, spec: HeadRoles
) -> Result:  # fmt: skip
    """Measure one layer's heads over every training sequence, without manipulations of the training.

    Arrays [head]: strength, only_accuracy, only_loss (all other heads of the layer ablated),
    removed_accuracy, removed_loss, mended_share (of the mistakes of the strongest head alone, those that
    this one alone gets right: Table 2); previous_token [head] of the first layer. Arrays [count]: order
    (numbers of heads), added_accuracy, added_loss with the first `count` of them active; and
    without_order, without_accuracy, without_loss, which skip one head (Fig. 14).
    Scalars: accuracy and loss as full.*, no_first_layer_output.* (its heads ablated, but patterns and
    values of all layers preserved) and layer_ablated.*; and those of `summary`.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(
    subject: Mapping[str, Trained], data: Features, directory: Path | None, spec: HeadRoles, part: Part
) -> Result:  # fmt: skip
    """Some of the ablations, sequence by sequence; strengths and orders, which decide on all of them."""
    trained = condition(subject, spec.condition)
    model = trained.model(spec.checkpoint)
    layer = layer_index(spec.layer, len(model.blocks))
    sequences = training_sequences(trained.plan.sequences, data, spec.sequences)
    full = measure(trained, [], sequences, scores=True)(model)
    silent = [Preserve(sites=["pattern", "v"]), AblateHeads(heads=layer_heads(model.heads, 0))]
    no_first_layer_output = measure(trained, silent, sequences)(model)
    assert full.induction is not None and full.previous_token is not None
    strength = full.induction[layer]

    order = _order(spec, strength, layer)
    left_out = _left_out(spec, strength, layer)
    rest = [] if left_out is None else [head for head in order if head != left_out]
    masks = {"ablated": mask(model, layer, active=[])}
    for head in range(model.heads):
        masks[f"only.{head}"] = mask(model, layer, active=[head])
        masks[f"removed.{head}"] = mask(model, layer, ablated=[head])
    for name, some in (("added", order), ("without", rest)):
        masks |= {f"{name}.{n}": mask(model, layer, active=some[: n + 1]) for n in range(len(some))}
    names = part.of(list(masks))
    measured = MaskedMeasure(sequences)(
        model, np.stack([masks[name] for name in names]), "ablations of heads"
    )

    first: dict[str, Any] = {"head": layer_heads(model.heads, 0)}
    arrays = {
        "strength": NamedArray(strength, {"head": [*layer_heads(model.heads, layer)]}),
        "previous_token": NamedArray(full.previous_token[0], first),
        "order": NamedArray(np.array(order, int), _count(order)),
        **to_arrays(names, measured),
    }
    if left_out is not None:
        arrays["without_order"] = NamedArray(np.array(rest, int), _count(rest))
    scalars = {**_both("full", full), **_both("no_first_layer_output", no_first_layer_output)}
    notes = {"order": ", ".join(f"{layer}:{head}" for head in order)}
    return Result(scalars, arrays, {**notes, "strongest": f"{layer}:{int(np.argmax(strength))}"})


def merge(parts: Sequence[Result], spec: HeadRoles) -> Result:
    """All ablations as curves over heads and counts, and what they say of the heads."""
    result = join(parts, CASE)
    arrays, every = result.arrays, take(result)
    measured = {
        name: [every[f"{name}.{i}"] for i in range(len(every)) if f"{name}.{i}" in every]
        for name in ("only", "removed", "added", "without")
    }
    strength, heads = arrays["strength"].values, arrays["strength"].axes
    arrays["mended_share"] = NamedArray(mended(measured["only"], int(np.argmax(strength))), heads)
    arrays.update(_means("only", measured["only"], heads))
    arrays.update(_means("removed", measured["removed"], heads))
    arrays.update(_means("added", measured["added"], arrays["order"].axes))
    if "without_order" in arrays:
        arrays.update(_means("without", measured["without"], arrays["without_order"].axes))
    result.scalars.update(_both("layer_ablated", every["ablated"]))
    result.scalars.update(summary(strength, measured["only"], measured["removed"]))
    return result


def summary(
    strength: Float[np.ndarray, " head"], only: Sequence[Measured], removed: Sequence[Measured]
) -> dict[str, float]:
    """strongest (its number), strongest.mistakes (alone), strength.max, strength.heads_above_0_4,
    spearman_strength_only_accuracy, min_removed_accuracy and min_removed_head."""
    accuracy = np.array([one.accuracy for one in only])
    without = np.array([one.accuracy for one in removed])
    strongest = int(np.argmax(strength))
    return {
        "strongest": float(strongest),
        "strongest.mistakes": float(np.sum(only[strongest].right == 0)),
        "strength.max": float(strength.max()),
        "strength.heads_above_0_4": float(np.sum(strength > STRONG)),
        "spearman_strength_only_accuracy": spearman(strength, accuracy),
        "min_removed_accuracy": float(without.min()),
        "min_removed_head": float(np.argmin(without)),
    }


def _order(spec: HeadRoles, strength: np.ndarray, layer: int) -> list[int]:
    if spec.order is None:
        return [int(head) for head in np.argsort(-strength, kind="stable")]
    return [head_index(head, layer, len(strength), "analysis.order") for head in spec.order]


def _left_out(spec: HeadRoles, strength: np.ndarray, layer: int) -> int | None:
    if spec.also_without is None:
        return None
    if spec.also_without == "strongest":
        return int(np.argmax(strength))
    return head_index(spec.also_without, layer, len(strength), "analysis.also_without")


def _count(order: Sequence[int]) -> dict[str, Any]:
    return {"count": list(range(1, len(order) + 1))}


def _both(name: str, one: Measured) -> dict[str, float]:
    return {f"{name}.accuracy": one.accuracy, f"{name}.loss": one.mean_loss}


def _means(name: str, measured: Sequence[Measured], axes: dict[str, Any]) -> dict[str, NamedArray]:
    return {
        f"{name}_accuracy": NamedArray(np.array([one.accuracy for one in measured]), axes),
        f"{name}_loss": NamedArray(np.array([one.mean_loss for one in measured]), axes, "nat"),
    }
