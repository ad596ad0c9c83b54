"""In-context sequences: which classes, exemplars and labels each one has, as published (sheet C.4-C.7).

A sequence has T context items and a query (axis `item`, T + 1 long, query last). Samplers return
indices, not features: `gather` looks the features up. Everything is a pure function of a key and
can be jitted and vmapped over keys; `repro.data.class_draws` draws the classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from repro.data.class_draws import BURSTY, DISTRACTOR, OTHER, QUERY, ClassSource, draw_mixture, shuffle
from repro.data.features import Features
from repro.data.random_streams import Key, on_published_streams
from repro.data.specs import Evaluator, Sequences
from repro.data.splits import (
    LabelPairs,
    Range,
    class_distribution,
    class_ranges,
    exemplar_ranges,
    label_pairs,
)

Items = Int32[Array, "sequence item"]


class Noise(NamedTuple):
    """Gaussian noise yet to be drawn: `scale` * N(0, 1) on every feature, from `key`."""

    key: Key
    scale: Float32[Array, ""]


class Batch(NamedTuple):
    """N sequences by index. `labels` are what the model sees and predicts; `types` are item types."""

    classes: Items
    exemplars: Items
    labels: Items
    types: Items
    noise: Noise | None = None


Sampler = Callable[[Key], Batch]


class _Assembly(NamedTuple):
    """How drawn classes become a batch."""

    exemplars: Range
    match_query_and_distractors: bool
    relabel: LabelPairs | str | None
    random_query_label: bool
    noise: float


@on_published_streams
def train_sampler(spec: Sequences, features: Features, batch: int) -> Sampler:
    """A function from a key to a training batch of `batch` sequences.

    The batch size is part of the stream: other sizes give other sequences. Raises `UserError` if
    the splits do not fit the features.
    """
    classes = class_ranges(spec, features.values.shape[0])["train"]
    probabilities = class_distribution(classes.size, spec.zipf_alpha)
    sources = [
        ClassSource.make(draw, classes, probabilities, spec.context, f"sequences.train[{i}]")
        for i, draw in enumerate(spec.train)
    ]
    weights = [sampler.weight for sampler in spec.train]
    assembly = _Assembly(
        exemplar_ranges(spec, features.values.shape[1])["train"],
        spec.match_query_and_distractors,
        label_pairs(spec)["train"] if spec.labels else None,
        spec.random_query_label,
        spec.noise,
    )

    @on_published_streams
    def sample(key: Key) -> Batch:
        class_key, exemplar_key, label_key = jax.random.split(key, 3)
        drawn, types = draw_mixture(class_key, sources, weights, batch)
        return _assemble(key, exemplar_key, label_key, drawn, types, assembly)

    return sample


@on_published_streams
def evaluator_batches(spec: Sequences, features: Features, evaluate_data_key: Key) -> dict[str, Batch]:
    """The fixed sequences of every evaluator, by name.

    The number and the order of the evaluators are part of the stream (sheet C.7). Raises
    `UserError` if the splits do not fit the features or an evaluator has nothing to draw from.
    """
    samplers = {name: evaluator_sampler(spec, features, name) for name in spec.evaluate}
    if not samplers:
        return {}

    # Drawn once, so a short compilation is worth more than fast code.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def draw_all(key: Key) -> dict[str, Batch]:
        keys = jax.random.split(key, len(samplers))
        return {name: sample(keys[i]) for i, (name, sample) in enumerate(samplers.items())}

    drawn = draw_all(evaluate_data_key)
    return {name: drawn[name] for name in samplers}  # jit sorts the keys of a dict


@on_published_streams
def evaluator_sampler(spec: Sequences, features: Features, name: str) -> Sampler:
    """A function from a key to the `evaluation_sequences` sequences of the evaluator `name`."""
    evaluator = spec.evaluate[name]
    classes = class_ranges(spec, features.values.shape[0])[evaluator.classes]
    exemplars = exemplar_ranges(spec, features.values.shape[1])[evaluator.exemplars]
    where = f"sequences.evaluate.{name}"
    exemplars.require_some(f"{where}.exemplars: {evaluator.exemplars!r}")
    source = ClassSource.make(
        evaluator, classes, jnp.ones(classes.size) / classes.size, evaluator.context or spec.context, where
    )
    assembly = _Assembly(
        exemplars,
        spec.match_query_and_distractors,
        _relabelling(spec, evaluator),
        evaluator.random_query_label,
        spec.noise if evaluator.noise is None else evaluator.noise,
    )

    @on_published_streams
    def sample(key: Key) -> Batch:
        class_key, exemplar_key, label_key = jax.random.split(key, 3)
        drawn, types = source.draw(class_key, spec.evaluation_sequences)
        return _assemble(key, exemplar_key, label_key, drawn, types, assembly)

    return sample


@on_published_streams
def gather(values: Float[Array, "class exemplar dim"], batch: Batch) -> Float[Array, "sequence item dim"]:
    """The features of a batch, with its noise if it has any."""
    examples = values[batch.classes, batch.exemplars]
    if batch.noise is None:
        return examples
    return examples + batch.noise.scale * jax.random.normal(batch.noise.key, examples.shape)


def _relabelling(spec: Sequences, evaluator: Evaluator) -> LabelPairs | str | None:
    """The label pairs an evaluator draws from, the word flip, or None for class indices."""
    if evaluator.relabel in (None, "flip"):
        return evaluator.relabel
    if evaluator.relabel == "01":
        return np.array([[0, 1]], np.int32)
    return label_pairs(spec)[evaluator.relabel] if spec.labels else None


def _assemble(
    key: Key, exemplar_key: Key, label_key: Key, classes: Items, types: Items, how: _Assembly
) -> Batch:
    """Add exemplars, labels and noise to drawn classes (sheet C.6), in the published order."""
    exemplars = _draw_exemplars(exemplar_key, types, how)
    # The published code draws both of these from the batch's own key, which it has split already.
    spare = jax.random.split(key, 2)[1]
    labels = classes
    if how.relabel is None and how.random_query_label:
        chosen = jax.random.randint(spare, (classes.shape[0],), 0, classes.shape[1] - 1)
        labels = jnp.where(jnp.arange(classes.shape[1]) == chosen[:, None], classes[:, -1:], classes)
    elif isinstance(how.relabel, str):
        labels = _flip(classes, types)
    elif how.relabel is not None:
        labels = _relabel(label_key, classes, types, how.relabel)
    noise = Noise(spare, jnp.float32(how.noise)) if how.noise > 0 else None
    return Batch(classes, exemplars, labels, types, noise)


def _draw_exemplars(key: Key, types: Items, how: _Assembly) -> Items:
    """Sheet C.5: independent for every item, or one for the query's class and one for the distractor."""
    start, size = how.exemplars
    if size == 1:  # a draw among one changes nothing
        return jnp.full_like(types, start)
    if not how.match_query_and_distractors:
        return start + jax.random.randint(key, types.shape, 0, size)
    key, query_key = jax.random.split(key)
    matched = jax.random.randint(query_key, (types.shape[0], 1), 0, size)
    distractor = jax.random.randint(key, (types.shape[0], 1), 0, size)
    other = jax.random.randint(key, types.shape, 0, size)
    of_query = (types == BURSTY) | (types == QUERY)
    return start + jnp.where(of_query, matched, jnp.where(types == DISTRACTOR, distractor, other))


def _relabel(key: Key, classes: Items, types: Items, pairs: LabelPairs) -> Items:
    """Give the query's class and the distractor's the two labels of a random pair in random order."""
    pair_key, order_key = jax.random.split(key)
    count = classes.shape[0]
    row = jax.random.randint(pair_key, (count,), 0, len(pairs)) if len(pairs) > 1 else jnp.zeros(count, int)
    (drawn,) = shuffle(order_key, [jnp.asarray(pairs)[row]], axis=1)
    of_query = (types == BURSTY) | (types == QUERY)
    return jnp.where(of_query, drawn[:, :1], jnp.where(types == DISTRACTOR, drawn[:, 1:], classes))


def _flip(classes: Items, types: Items) -> Items:
    """Exchange the labels of the two classes in the context; the query gets the distractor's."""
    distractor = jnp.max(jnp.where(types == DISTRACTOR, classes, -1), axis=1, keepdims=True)
    return jnp.where(types == DISTRACTOR, classes[:, -1:], jnp.where(types == OTHER, classes, distractor))
