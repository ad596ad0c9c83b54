"""The compiled parts of a training run: many steps at a time, and an evaluation.

Batches of a stretch of steps are drawn together (the same numbers as one by one), then the steps
run in one compiled loop whose length is a number, not a shape: one compilation serves every stretch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, UInt32

from repro.data.features import Features
from repro.data.random_streams import Key, key_schedule, on_published_streams
from repro.data.sequences import Batch, evaluator_batches, train_sampler
from repro.data.specs import Sequences
from repro.data.splits import class_ranges
from repro.interventions.icl_manipulations import Forward
from repro.models.icl_init import init
from repro.models.icl_transformer import IclTransformerModel
from repro.models.specs import IclTransformer
from repro.training import optimizer
from repro.training.compiling import jit
from repro.training.inputs import EvaluationSet, evaluation_inputs, training_inputs
from repro.training.metrics import cross_entropy, query_metrics
from repro.training.schedule import step_count
from repro.training.specs import Training


class State(NamedTuple):
    """All that a run carries from step to step."""

    weights: Float[Array, " parameter"]
    adam: optimizer.Adam
    data_key: Key


class Stretch(NamedTuple):
    """Per-step records of a stretch of steps, as long as the longest stretch; the rest is zero."""

    loss: Float[Array, " step"]
    grad_norm: Float[Array, " step"]


Evaluation = dict[str, dict[str, Float[Array, ""]]]  # evaluator, metric: mean over the sequences


class Program(NamedTuple):
    """What `build` makes. `advance` takes at most `longest` steps."""

    start: Callable[[], State]
    advance: Callable[[State, int], tuple[State, Stretch]]
    evaluate: Callable[[Float[Array, " parameter"]], Evaluation]
    model: Callable[[Float[Array, " parameter"]], IclTransformerModel]
    longest: int


class Seeds(NamedTuple):
    """Seeds of the initial weights, the training batches and the evaluation sequences."""

    init: int
    train: int
    eval: int


def outputs_of(model: IclTransformer, sequences: Sequences, features: Features) -> int:
    """Number of model outputs: as configured, else the labels, else one for each training class."""
    if model.outputs is not None:
        return model.outputs
    if sequences.labels:
        return sequences.labels
    return class_ranges(sequences, features.values.shape[0])["train"].size


def build(
    model: IclTransformer,
    sequences: Sequences,
    training: Training,
    seeds: Seeds,
    features: Features,
    forward: Forward,
    longest: int,
) -> Program:
    """Make the compiled functions of one run; nothing is compiled before its first use.

    forward: the model under the run's manipulations. longest: steps of the longest stretch.
    Raises `UserError` if the sequences cannot be drawn from the features.
    """
    values = jnp.asarray(features.values)
    keys = key_schedule(seeds.train, seeds.eval)
    template = init(model, values.shape[-1], outputs_of(model, sequences, features), seeds.init)
    arrays, static = eqx.partition(template, eqx.is_array)
    flat, unravel = ravel_pytree(arrays)

    def rebuild(weights: Float[Array, " parameter"]) -> IclTransformerModel:
        return eqx.combine(unravel(weights), static)

    def start() -> State:
        return State(flat, optimizer.start(flat), keys.train_data)

    draw = drawer(sequences, features, training.batch, longest)
    look_up = training_inputs(sequences, training.batch, values)

    def loss(weights: Float[Array, " parameter"], batch: Batch) -> Float[Array, ""]:
        trained = rebuild(weights)
        logits, _ = forward(trained, look_up(trained, batch), query_only=True)
        mean = jnp.mean(cross_entropy(logits[:, -1], batch.labels[:, -1]))
        return mean + _decay(training.weight_decay, trained) if training.weight_decay else mean

    def step(carry: tuple[Any, ...], batch: Batch) -> tuple[Any, ...]:
        weights, adam = carry
        value, gradient = jax.value_and_grad(loss)(weights, batch)
        norm = jnp.sqrt(jnp.sum(gradient**2))
        weights, adam = optimizer.update(training, step_count(training), weights, gradient, norm, adam)
        return (weights, adam), value, norm

    @jit
    def run_steps(weights: Any, adam: Any, chain: Any, batches: Batch, count: Any) -> tuple[State, Stretch]:
        def body(i: Any, carry: tuple[Any, Stretch]) -> tuple[Any, Stretch]:
            trained, record = carry
            trained, value, norm = step(trained, jax.tree.map(lambda array: array[i], batches))
            return trained, Stretch(record.loss.at[i].set(value), record.grad_norm.at[i].set(norm))

        empty = Stretch(jnp.zeros(longest), jnp.zeros(longest))
        (weights, adam), record = jax.lax.fori_loop(0, count, body, ((weights, adam), empty))
        return State(weights, adam, chain[count]), record

    def advance(state: State, count: int) -> tuple[State, Stretch]:
        chain, batches = draw(state.data_key)
        return run_steps(state.weights, state.adam, chain, batches, count)

    sets = evaluation_inputs(evaluation_batches(sequences, features, seeds.eval), values)

    evaluate = _evaluator(rebuild, forward, sets)
    return Program(start, advance, evaluate, jax.jit(rebuild), longest)


def _evaluator(
    rebuild: Callable[[Float[Array, " parameter"]], IclTransformerModel],
    forward: Forward,
    sets: dict[str, EvaluationSet],
) -> Callable[[Float[Array, " parameter"]], Evaluation]:
    """All metrics of all evaluators, as one compiled function of the weights."""

    @jit
    def evaluate(weights: Float[Array, " parameter"], sets: dict[str, EvaluationSet]) -> Evaluation:
        trained = rebuild(weights)
        means = {}
        for name, drawn in sets.items():
            logits, _ = forward(trained, drawn.inputs(trained), query_only=True)
            measured = query_metrics(logits[:, -1], drawn.labels)
            means[name] = {metric: jnp.mean(value) for metric, value in measured.items()}
        return means

    # The sequences are an argument, not a constant that the compiler would try to fold.
    return lambda weights: evaluate(weights, sets)


def _decay(coefficient: float, model: IclTransformerModel) -> Float[Array, ""]:
    """`coefficient` times the sum of the norms (not squared) of all parameter arrays."""
    total = jnp.zeros(())
    for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)):
        square = jnp.sum(leaf**2)
        # The norm has no derivative at zero, where biases start: there the penalty is taken as flat.
        total += jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return coefficient * total


Drawer = Callable[[Key], tuple[UInt32[Array, "link 2"], Batch]]
_drawers: dict[tuple[Any, ...], Drawer] = {}


def drawer(sequences: Sequences, features: Features, batch: int, longest: int) -> Drawer:
    """The compiled function that draws the batches of `longest` steps from the key of the first one.

    Returns the keys from which the chain goes on (entry i: after i steps) and the batches (leading
    axis `step`). Compiling it takes longer than drawing for a whole run, so the conditions of a figure
    that are drawn alike share it.
    """
    at = (sequences.model_dump_json(), features.sha256, features.values.shape, batch, longest)
    if at not in _drawers:
        sample = train_sampler(sequences, features, batch)

        @on_published_streams
        def draw(data_key: Key) -> tuple[UInt32[Array, "link 2"], Batch]:
            chain, batch_keys = _chain(data_key, longest)
            return chain, jax.vmap(sample)(batch_keys)

        _drawers[at] = on_published_streams(jit(draw))
    return _drawers[at]


_evaluation_batches: dict[tuple[Any, ...], dict[str, Batch]] = {}


def evaluation_batches(sequences: Sequences, features: Features, seed: int) -> dict[str, Batch]:
    """The sequences of all evaluators for an evaluation seed; shared for the same reason as drawers."""
    at = (sequences.model_dump_json(), features.sha256, features.values.shape, seed)
    if at not in _evaluation_batches:
        key = key_schedule(0, seed).evaluate_data  # does not depend on the training seed
        _evaluation_batches[at] = evaluator_batches(sequences, features, key)
    return _evaluation_batches[at]


@on_published_streams
def _chain(data_key: Key, count: int) -> tuple[UInt32[Array, "link 2"], UInt32[Array, "step 2"]]:
    """Keys from which the chain goes on before each of `count` steps and after the last, and batch keys."""

    def link(key: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        following, batch = jax.random.split(key)
        return following, (following, batch)

    _, (following, batch_keys) = jax.lax.scan(link, data_key, None, length=count)
    return jnp.concatenate([data_key[None], following]), batch_keys
