"""From drawn indices to what the model reads, without projecting an exemplar twice.

The exemplars of a run are few and its items many: projecting each exemplar once and looking the
results up gives the same embeddings for less work. Raw features are handed on as well; a compiled
function that does not use them never gathers them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from repro.data.sequences import Batch, gather
from repro.data.specs import Sequences
from repro.data.splits import class_ranges, exemplar_ranges
from repro.interventions.icl_manipulations import Inputs
from repro.models.icl_transformer import IclTransformerModel

Values = Float[Array, "class exemplar dim"]

# Looking up pays as long as there are not many more exemplars than items of a batch.
_TABLE_ROWS_PER_ITEM = 1.5


def training_inputs(
    sequences: Sequences, batch: int, values: Values
) -> Callable[[IclTransformerModel, Batch], Inputs]:
    """How the batches of a run become inputs: by look-up where that is less work."""
    classes = class_ranges(sequences, values.shape[0])["train"]
    exemplars = exemplar_ranges(sequences, values.shape[1])["train"]
    rows = classes.size * exemplars.size

    def raw(model: IclTransformerModel, drawn: Batch) -> Inputs:
        return Inputs(drawn.labels, gather(values, drawn))

    if sequences.noise > 0 or rows > _TABLE_ROWS_PER_ITEM * batch * (sequences.context + 1):
        return raw
    used = values[classes.start :, exemplars.start :][: classes.size, : exemplars.size]
    table = used.reshape(rows, values.shape[-1])

    def look_up(model: IclTransformerModel, drawn: Batch) -> Inputs:
        row = (drawn.classes - classes.start) * exemplars.size + (drawn.exemplars - exemplars.start)
        return Inputs(drawn.labels, table[row], model.example_embed(table)[row])

    return look_up


class EvaluationSet(NamedTuple):
    """The fixed sequences of one evaluator: `rows` are the exemplars in use, `items` index them."""

    labels: Int[Array, "sequence item"]
    items: Int[Array, "sequence item"]
    rows: Float[Array, "row dim"]

    def inputs(self, model: IclTransformerModel) -> Inputs:
        """What the model reads."""
        return Inputs(self.labels, self.rows[self.items], model.example_embed(self.rows)[self.items])


def evaluation_inputs(batches: dict[str, Batch], values: Values) -> dict[str, EvaluationSet]:
    """Every evaluator's sequences with the exemplars they use, each once (noisy ones: each item its own)."""
    sets = {}
    for name, drawn in batches.items():
        labels = jnp.asarray(drawn.labels)
        if drawn.noise is not None:
            rows = gather(values, drawn).reshape(-1, values.shape[-1])
            items = jnp.arange(rows.shape[0]).reshape(labels.shape)
        else:
            flat = np.asarray(drawn.classes) * values.shape[1] + np.asarray(drawn.exemplars)
            used, inverse = np.unique(flat, return_inverse=True)
            rows = values.reshape(-1, values.shape[-1])[used]
            items = jnp.asarray(inverse.reshape(labels.shape))
        sets[name] = EvaluationSet(labels, items, jax.device_put(rows))
    return sets
