"""What the analyses of the in-context-learning models share: sequences, losses, and head scores.

All measures are means over every possible training sequence (sheet B.4), in batches of which the
result does not depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from repro.analyses.icl_prefixes import PrefixPass
from repro.data.features import Features
from repro.data.specs import Sequences
from repro.data.splits import class_ranges, exemplar_ranges, label_pairs
from repro.errors import UserError
from repro.interventions import icl_manipulations
from repro.interventions.icl_manipulations import Forward, Inputs
from repro.interventions.specs import Manipulation
from repro.models.icl_transformer import IclTransformerModel
from repro.training.compiling import jit
from repro.training.metrics import cross_entropy
from repro.training.store import Trained, load_frozen

BATCH = 1024
# Sequences times models from which on the time saved by sharing prefixes exceeds that of compiling it.
WORTH_SHARING = 1_000_000


class SequenceSet(NamedTuple):
    """Sequences by index into `rows`, the exemplars in use. `correct`: context item of the query's class."""

    items: Int[np.ndarray, "sequence item"]
    labels: Int[np.ndarray, "sequence item"]
    correct: Int[np.ndarray, " sequence"]
    rows: Float[np.ndarray, "row dim"]

    def __len__(self) -> int:
        return len(self.labels)


def training_sequences(
    sequences: Sequences, features: Features, most: int | str = "all"
) -> SequenceSet:  # fmt: skip
    """Every training sequence of two pairs with one exemplar a class, in the published order (sheet B.4).

    Class pairs are first-class-major; label pairs, then the same reversed, are the slow index; the
    query repeats the first class in the first half and the second class in the other. `most`: an
    evenly spaced subset of at most so many.
    """
    if sequences.context != 2 or not sequences.labels:
        raise UserError(
            f"analysis: enumerating all sequences needs sequences.context 2 and labels, got context"
            f" {sequences.context} and {sequences.labels} labels"
        )
    classes = class_ranges(sequences, features.values.shape[0])["train"]
    exemplars = exemplar_ranges(sequences, features.values.shape[1])["train"]
    n = classes.size
    first, second = (axis.ravel() for axis in np.indices((n, n)))
    pairs = np.stack([first, second], axis=1)[first != second]
    labels = label_pairs(sequences)["train"]
    labels = np.concatenate([labels, labels[:, ::-1]])
    context = np.tile(pairs, (len(labels), 1))
    context_labels = np.repeat(labels, len(pairs), axis=0)
    query = [np.concatenate([context, context[:, i : i + 1]], axis=1) for i in (0, 1)]
    query_labels = [np.concatenate([context_labels, context_labels[:, i : i + 1]], axis=1) for i in (0, 1)]
    items, labels = np.concatenate(query), np.concatenate(query_labels)
    correct = np.repeat([0, 1], len(context))
    if most != "all" and len(items) > int(most):
        kept = np.linspace(0, len(items) - 1, int(most)).round().astype(int)
        items, labels, correct = items[kept], labels[kept], correct[kept]
    rows = features.values[classes.start : classes.start + n, exemplars.start]
    return SequenceSet(items.astype(np.int32), labels.astype(np.int32), correct.astype(np.int32), rows)


def batches(sequences: SequenceSet) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Items, labels and correct items of `BATCH` sequences at a time, and how many of them count.

    The last batch is filled up, so that one compiled function serves all of them.
    """
    for begin in range(0, len(sequences), BATCH):
        part = [array[begin : begin + BATCH] for array in sequences[:3]]
        count = len(part[0])
        yield count, [np.concatenate([array, np.repeat(array[:1], BATCH - count, axis=0)]) for array in part]


class Measured(NamedTuple):
    """Of each sequence: cross entropy (nat), whether the prediction is right, and the predicted label.

    induction: [layer, head] mean induction strength; previous_token: [layer, head] mean score.
    """

    loss: Float[np.ndarray, " sequence"]
    right: Float[np.ndarray, " sequence"]
    predicted: Int[np.ndarray, " sequence"]
    induction: Float[np.ndarray, "layer head"] | None = None
    previous_token: Float[np.ndarray, "layer head"] | None = None

    @property
    def accuracy(self) -> float:
        """Share of sequences predicted right."""
        return float(np.mean(self.right, dtype=np.float64))

    @property
    def mean_loss(self) -> float:
        """Mean cross entropy, in nats."""
        return float(np.mean(self.loss, dtype=np.float64))


class Measure:
    """Evaluates models of one architecture on one set of sequences under one forward pass; compiled once.

    scores: also measure head strengths (then all patterns are read).
    """

    def __init__(self, forward: Forward, sequences: SequenceSet, scores: bool = False) -> None:
        self._sequences, self._scores = sequences, scores
        self._rows = jnp.asarray(sequences.rows)

        def batch(model: Any, embedded: Any, items: Any, labels: Any, correct: Any) -> tuple[Any, ...]:
            inputs = Inputs(labels, self._rows[items], embedded[items])
            read = [("pattern", layer) for layer in range(len(model.blocks))] if scores else []
            logits, values = forward(model, inputs, read, query_only=not scores)
            last = logits[:, -1]
            loss, predicted = cross_entropy(last, labels[:, -1]), jnp.argmax(last, axis=-1)
            if not scores:
                return loss, predicted
            patterns = jnp.stack([values[place] for place in read])
            return (
                loss,
                predicted,
                jnp.moveaxis(induction_strength(patterns, correct), 2, 0),
                jnp.moveaxis(previous_token_score(patterns), 2, 0),
            )

        self._batch = jit(batch)
        self._embed = jit(lambda model, rows: model.example_embed(rows))

    def __call__(self, model: IclTransformerModel) -> Measured:
        """Measure one model."""
        embedded, parts = self._embed(model, self._rows), []
        for count, batch in batches(self._sequences):
            out = self._batch(model, embedded, *batch)
            parts.append([np.asarray(array)[:count] for array in out])
        loss, predicted, *scores = (np.concatenate(column) for column in zip(*parts, strict=True))
        right = (predicted == self._sequences.labels[:, -1]).astype(np.float64)
        means = [np.asarray(np.mean(array, axis=0, dtype=np.float64)) for array in scores]
        return Measured(loss, right, predicted, *means)


class SharedMeasure:
    """What `Measure` measures with scores=True of a model without manipulations, to rounding, but several
    times faster for each model: prefixes that sequences share are computed once. Slower to compile.
    """

    def __init__(self, sequences: SequenceSet) -> None:
        self._labels, self._pass = sequences.labels[:, -1], PrefixPass(sequences, sequences.rows)

    def __call__(self, model: IclTransformerModel) -> Measured:
        """Measure one model."""
        found = self._pass(model)
        right = (found.predicted == self._labels).astype(np.float64)
        return Measured(found.loss, right, found.predicted, found.induction, found.previous_token)


def measure(
    trained: Trained,
    manipulations: Sequence[Manipulation] | None,
    sequences: SequenceSet,
    scores: bool = False,
    models: int = 1,
) -> Callable[[IclTransformerModel], Measured]:
    """A measure of a trained run's checkpoints under `manipulations` (None: those it was trained with).

    models: how many will be measured; of many, without manipulations, shared prefixes are computed once.
    """
    used = trained.plan.manipulations if manipulations is None else tuple(manipulations)
    if scores and not used and models * len(sequences) >= WORTH_SHARING:
        return SharedMeasure(sequences)
    return Measure(icl_manipulations.build(used, load_frozen), sequences, scores)


def induction_strength(
    patterns: Float[Array, "layer batch head query key"], correct: Int[Array, " batch"]
) -> Float[Array, "layer head batch"]:
    """Attention from the query to the label of its own class, minus that to the other label (sheet B.4)."""
    query = patterns[:, :, :, -1]
    to_labels = jnp.stack([query[..., 1], query[..., 3]], axis=-1)
    right = jnp.take_along_axis(to_labels, correct[None, :, None, None], axis=-1)[..., 0]
    wrong = jnp.take_along_axis(to_labels, 1 - correct[None, :, None, None], axis=-1)[..., 0]
    return jnp.moveaxis(right - wrong, 1, 2)


def previous_token_score(
    patterns: Float[Array, "layer batch head query key"],
) -> Float[Array, "layer head batch"]:
    """Attention of a label token to the token before it, averaged over the labels of the context."""
    labels = np.arange(1, patterns.shape[-1] - 1, 2)
    return jnp.moveaxis(jnp.mean(patterns[:, :, :, labels, labels - 1], axis=-1), 1, 2)


def parse(manipulations: Sequence[Mapping[str, Any]], where: str) -> list[Manipulation]:
    """Manipulations of the config as specs. Raises `UserError` naming the valid kinds and keys."""
    return [Manipulation.choose(item, f"{where}.{i}") for i, item in enumerate(manipulations)]


def condition(subject: Mapping[str, Trained], name: str) -> Trained:
    """The trained condition that an analysis asks for. Raises `UserError` naming those there are."""
    if name not in subject:
        raise UserError(f"analysis.condition: got {name!r}. Valid choices: {', '.join(map(repr, subject))}")
    return subject[name]


def layer_heads(model_heads: int, layer: int, but: Collection[int] = ()) -> list[str]:
    """All heads of a layer, written "layer:head", but those in `but`."""
    return [f"{layer}:{head}" for head in range(model_heads) if head not in but]


def mended(measured: Sequence[Measured], reference: int) -> Float[np.ndarray, " case"]:
    """Of the mistakes that case `reference` makes, the share that each case gets right (sheet B.4, Table 2).

    NaN for the reference itself, and for all if it makes none.
    """
    wrong = measured[reference].right == 0
    shares = [float(np.mean(one.right[wrong])) if wrong.any() else np.nan for one in measured]
    shares[reference] = np.nan
    return np.array(shares)


def layer_index(layer: int, depth: int) -> int:
    """The layer from 0, of one that may be counted from the end. Raises `UserError` if there is none."""
    if not -depth <= layer < depth:
        raise UserError(f"analysis.layer: got {layer}. Valid: {-depth} to {depth - 1}")
    return layer % depth


def head_index(head: str, layer: int, heads: int, where: str) -> int:
    """Number of a head of `layer`. Raises `UserError` for heads of other layers or that do not exist."""
    of_layer = layer_heads(heads, layer)
    if head not in of_layer:
        raise UserError(f"{where}: got head {head}. Valid choices: {', '.join(of_layer)}")
    return of_layer.index(head)
