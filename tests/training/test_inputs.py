"""Looking projected exemplars up gives what projecting the gathered features gives."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repro.data.features import Features
from repro.data.random_streams import key_schedule
from repro.data.sequences import Batch, evaluator_batches, gather, train_sampler
from repro.data.specs import Sequences
from repro.interventions.icl_manipulations import untouched
from repro.models.icl_init import init
from repro.models.specs import IclTransformer
from repro.training.inputs import evaluation_inputs, training_inputs
from tests.training.small_runs import MODEL, SEQUENCES, features

KEYS = key_schedule(0, 1)
FEATURES = features()
VALUES = jnp.asarray(FEATURES.values)
# Compiled once for one call: the compilation is what costs.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def drawn(changes: dict[str, Any], count: int, data: Features = FEATURES) -> tuple[Sequences, Batch]:
    spec = Sequences.parse({**SEQUENCES, **changes}, "sequences")
    return spec, quick_jit(train_sampler(spec, data, count))(KEYS.train_data)


def loss_of(inputs: Any, batch: Batch) -> Any:
    """A function of the model that depends on every logit."""

    def loss(model: Any) -> jax.Array:
        made = inputs(model, batch)
        logits, _ = untouched(model, made, (), False)
        return jnp.sum(jnp.sin(logits))

    return loss


@pytest.mark.parametrize(
    "changes",
    [{}, {"exemplar_split": [2, "rest", 0], "match_query_and_distractors": True}],
    ids=["one exemplar", "two exemplars"],
)
def test_look_up_equals_projecting(changes: dict[str, Any]) -> None:
    """Same embeddings, same raw features, same gradients."""
    spec, batch = drawn(changes, 32)
    model = init(IclTransformer.parse(MODEL, "model"), 32, 5, 5)
    look_up = training_inputs(spec, 32, VALUES)
    made = look_up(model, batch)
    raw = gather(VALUES, batch)
    np.testing.assert_array_equal(made.examples, raw)
    assert made.example_embedding is not None
    np.testing.assert_allclose(made.example_embedding, model.example_embed(raw), atol=1e-6)

    def gathered(model: Any, batch: Batch) -> Any:
        return made._replace(examples=gather(VALUES, batch), example_embedding=None)

    one, other = (quick_jit(jax.grad(loss_of(inputs, batch)))(model) for inputs in (look_up, gathered))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "batch"), [({"noise": 0.5}, 32), ({"exemplar_split": [4, 1, 0]}, 8), ({}, 4)]
)
def test_nothing_is_looked_up_where_it_does_not_pay(changes: dict[str, Any], batch: int) -> None:
    """Noise differs from item to item; 80 or 20 exemplars are more than what 8 or 4 sequences show."""
    spec, one = drawn(changes, batch)
    made = training_inputs(spec, batch, VALUES)(init(IclTransformer(), 32, 5, 5), one)
    assert made.example_embedding is None
    np.testing.assert_array_equal(made.examples, gather(VALUES, one))


def test_evaluation_sets_hold_each_exemplar_once() -> None:
    spec = Sequences.parse(SEQUENCES, "sequences")
    batches = evaluator_batches(spec, FEATURES, KEYS.evaluate_data)
    model = init(IclTransformer.parse(MODEL, "model"), 32, 5, 5)
    sets = evaluation_inputs(batches, VALUES)
    assert list(sets) == list(SEQUENCES["evaluate"])
    for name, one in sets.items():
        raw, made = gather(VALUES, batches[name]), one.inputs(model)
        assert len(np.unique(np.asarray(one.rows), axis=0)) == len(one.rows) <= 80
        np.testing.assert_array_equal(made.labels, batches[name].labels)
        np.testing.assert_array_equal(made.examples, raw)
        np.testing.assert_allclose(made.example_embedding, model.example_embed(raw), atol=1e-6)


def test_noisy_evaluators_keep_their_noise() -> None:
    evaluate = {"clean": {}, "noisy": {"noise": 0.5}}
    spec = Sequences.parse({**SEQUENCES, "evaluate": evaluate}, "sequences")
    batches = evaluator_batches(spec, FEATURES, KEYS.evaluate_data)
    sets = evaluation_inputs(batches, VALUES)
    model = init(IclTransformer(), 32, 5, 5)
    examples = sets["noisy"].inputs(model).examples
    np.testing.assert_array_equal(examples, gather(VALUES, batches["noisy"]))
    clean = VALUES[batches["noisy"].classes, batches["noisy"].exemplars]
    assert abs(float(jnp.std(examples - clean)) - 0.5) < 0.02
