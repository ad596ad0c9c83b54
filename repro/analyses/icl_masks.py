"""Many ablations of heads in one go: which heads act is an argument of one compiled function.

A sweep over heads as manipulations would compile a forward pass for each head. Here values are multiplied
by a mask over [layer, head], which for zeros and ones is what `ablate_heads` does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from repro.analyses.icl_measures import Measured, SequenceSet, batches
from repro.errors import UserError
from repro.interventions import icl_edits
from repro.interventions.compatibility import in_order
from repro.interventions.icl_edits import Situation
from repro.interventions.icl_manipulations import Inputs, untouched
from repro.interventions.specs import (
    GraftIn,
    GraftOut,
    Manipulation,
    PerfectPreviousTokenInput,
)
from repro.models.icl_transformer import Edit, IclTransformerModel, Place, Tap, forward
from repro.progress import progress
from repro.training.compiling import jit
from repro.training.metrics import cross_entropy

Masks = Float[np.ndarray, "case layer head"]
# These need passes of their own, which masks cannot be put into.
_OTHER_PASSES = (GraftIn, GraftOut, PerfectPreviousTokenInput)


class MaskedMeasure:
    """Evaluates a model with any of its heads ablated, on one set of sequences; compiled once.

    manipulations: hold in every case besides the masks, such as `preserve`; the values that masks zero are
    those after them, as with `ablate_heads`. Raises `UserError` for grafts and perfect inputs.
    """

    def __init__(self, sequences: SequenceSet, manipulations: Sequence[Manipulation] = ()) -> None:
        for one in manipulations:
            if isinstance(one, _OTHER_PASSES):
                raise UserError(f"masks of heads: cannot be combined with {one.model_dump()['kind']}")
        self._sequences, self._rows = sequences, jnp.asarray(sequences.rows)
        ordered = in_order(manipulations)

        def batch(model: Any, masks: Any, embedded: Any, items: Any, labels: Any) -> tuple[Array, Array]:
            inputs = Inputs(labels, self._rows[items], embedded[items])
            fixed = _edits(ordered, model, inputs)

            # One case after the other: side by side they would need memory for all, and be no faster.
            return jax.lax.map(lambda mask: _case(model, inputs, fixed, mask), masks)

        self._batch = jit(batch)
        self._embed = jit(lambda model, rows: model.example_embed(rows))

    def __call__(self, model: IclTransformerModel, masks: Masks, says: str = "ablations") -> list[Measured]:
        """Measure the model in each case. masks: 1 for heads that act, 0 for ablated ones.

        says: what is shown as the progress, counted in batches of all cases.
        """
        _refuse_other_shape(masks, model)
        embedded, parts = self._embed(model, self._rows), []
        given = jnp.asarray(masks, jnp.float32)
        with progress(len(self._sequences) * len(masks), says, "sequences") as bar:
            for count, (items, labels, _) in batches(self._sequences):
                out = self._batch(model, given, embedded, items, labels)
                parts.append([np.asarray(array)[:, :count] for array in out])
                bar.advance(count * len(masks))
        loss, predicted = (np.concatenate(column, axis=1) for column in zip(*parts, strict=True))
        right = predicted == self._sequences.labels[:, -1]
        return [Measured(loss[i], right[i].astype(np.float64), predicted[i]) for i in range(len(masks))]


def _edits(ordered: Sequence[Manipulation], model: Any, inputs: Inputs) -> dict[Place, list[Edit]]:
    """The edits of the manipulations, in order, by place; with one pass of the untouched model if needed."""
    depth = len(model.blocks)
    needed = {place for one in ordered for place in icl_edits.reads(one, depth)}
    base = untouched(model, inputs, needed, query_only=True)[1] if needed else {}
    situation = Situation(inputs.labels, inputs.examples, base, depth)
    edits: dict[Place, list[Edit]] = {}
    for one in ordered:
        for place, edit in icl_edits.edits(one, situation).items():
            edits.setdefault(place, []).append(edit)
    return edits


def _case(model: Any, inputs: Inputs, fixed: dict[Place, list[Edit]], mask: Array) -> tuple[Array, Array]:
    """Loss and prediction at the query with the values of heads multiplied by `mask` [layer, head]."""
    edits = {place: list(some) for place, some in fixed.items()}
    for layer in range(len(model.blocks)):
        edits.setdefault(("v", layer), []).append(_masked(mask[layer]))
    logits = forward(
        model, inputs.examples, inputs.labels, Tap(edits), inputs.example_embedding, query_only=True
    )
    return cross_entropy(logits[:, -1], inputs.labels[:, -1]), jnp.argmax(logits[:, -1], axis=-1)


def _masked(mask: Float[Array, " head"]) -> Edit:
    return lambda value, _: value * mask[:, None]


def _refuse_other_shape(masks: Masks, model: IclTransformerModel) -> None:
    shape = (len(model.blocks), model.heads)
    if masks.ndim != 3 or masks.shape[1:] != shape:
        raise ValueError(f"masks: expected (cases, layers, heads) = (any, {shape}), got {masks.shape}")


def mask(
    model: IclTransformerModel,
    layer: int,
    active: Collection[int] | None = None,
    ablated: Collection[int] = (),
) -> Float[np.ndarray, "layer head"]:
    """All heads act but, in `layer`, those not in `active` (if given) and those in `ablated`."""
    made = np.ones((len(model.blocks), model.heads))
    if active is not None:
        made[layer] = np.isin(np.arange(model.heads), list(active))
    made[layer, list(ablated)] = 0
    return made
