"""Compiled training against the published implementation, hand computations and itself in other stretches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repro.data.features import computed
from repro.data.random_streams import key_schedule, published_streams
from repro.data.sequences import gather, train_sampler
from repro.data.specs import Sequences
from repro.models.icl_init import init
from repro.models.icl_transformer import forward
from repro.models.specs import IclTransformer
from repro.models.weights import named
from repro.training.metrics import METRICS
from repro.training.program import Program, drawer, outputs_of
from tests.training.small_runs import EVALUATE, MODEL, SEED, SEQUENCES, equal, features, program

PUBLISHED = Path(__file__).parent / "golden" / "training.npz"
BATCHES = json.loads(
    (Path(__file__).parent.parent / "data" / "golden" / "published_sequences.json").read_text()
)
ABLATE = {"kind": "ablate_heads", "heads": ["1:0"]}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "induction": {"manipulations": [{"kind": "induction_heads", "heads": ["1:1"], "strength": 0.8}, ABLATE]},
    "layer1": {"manipulations": [{"kind": "perfect_previous_token_input"}, ABLATE]},
    "copy": {"manipulations": [{"kind": "perfect_copy", "head": "1:1"}]},
    "decay": {"training": {"weight_decay": 0.01}},
}


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    with np.load(PUBLISHED) as stored:
        return dict(stored)


@pytest.mark.parametrize("case", CASES)
def test_runs_are_those_of_the_published_implementation(case: str, published: dict[str, np.ndarray]) -> None:
    made = program(**CASES[case])
    state, first = made.advance(made.start(), 13)
    assert published["sequences"].tolist() == [13 * 8, 50 * 8]
    early = made.evaluate(state.weights)
    state, second = made.advance(state, 37)
    loss = np.concatenate([first.loss[:13], second.loss[:37]])
    norm = np.concatenate([first.grad_norm[:13], second.grad_norm[:37]])
    np.testing.assert_allclose(loss, published[f"{case}/train_loss"], rtol=1e-5)
    np.testing.assert_allclose(norm, published[f"{case}/train_grad_norm"], rtol=1e-4)
    np.testing.assert_array_equal(state.data_key, published["data_key"])
    for name, value in named(made.model(state.weights)).items():
        np.testing.assert_allclose(value, published[f"{case}/weights/{name}"], atol=1e-6, err_msg=name)
    for at, means in enumerate((early, made.evaluate(state.weights))):
        assert means.keys() == EVALUATE.keys()
        for evaluator, metrics in means.items():
            assert metrics.keys() == set(METRICS)
            for metric, value in metrics.items():
                expected = published[f"{case}/eval_{evaluator}_{metric}"][at]
                np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=metric)


def run(made: Program, *stretches: int) -> tuple[Any, np.ndarray]:
    state, losses = made.start(), []
    for count in stretches:
        state, record = made.advance(state, count)
        losses.append(np.asarray(record.loss)[:count])
        assert not np.any(np.asarray(record.loss)[count:]), "what lies beyond the stretch is zero"
    return state, np.concatenate(losses)


def test_how_steps_are_cut_into_stretches_changes_no_bit() -> None:
    made = program()
    whole, loss = run(made, 20)
    for stretches in ((7, 13), (1,) * 20):
        again, again_loss = run(made, *stretches)
        assert equal(whole, again) and np.array_equal(loss, again_loss), stretches
    other, other_loss = run(program(longest=7), 7, 7, 6)
    assert equal(whole, other) and np.array_equal(loss, other_loss)


def test_the_first_loss_is_the_untrained_model_on_the_first_batch() -> None:
    made, loaded = program(), features()
    keys = key_schedule(SEED["train"], SEED["eval"])
    spec = Sequences.parse(SEQUENCES, "sequences")
    with published_streams():
        key = jax.random.split(keys.train_data)[1]
    batch = train_sampler(spec, loaded, 8)(key)
    model = init(IclTransformer.parse(MODEL, "model"), 32, 5, SEED["init"])
    logits = np.asarray(forward(model, gather(jnp.asarray(loaded.values), batch), batch.labels), np.float64)
    by_hand = 0.0
    for scores, label in zip(logits[:, -1], np.asarray(batch.labels)[:, -1], strict=True):
        by_hand += (np.log(np.sum(np.exp(scores))) - scores[label]) / 8
    state, record = made.advance(made.start(), 1)
    np.testing.assert_allclose(record.loss[0], by_hand, rtol=1e-6)

    def loss_of(weights: Any) -> Any:
        return -jnp.mean(
            jax.nn.log_softmax(
                forward(made.model(weights), gather(jnp.asarray(loaded.values), batch), batch.labels)[:, -1]
            )[jnp.arange(8), batch.labels[:, -1]]
        )

    gradient = np.asarray(jax.grad(loss_of)(made.start().weights), np.float64)
    np.testing.assert_allclose(record.grad_norm[0], np.sqrt(np.sum(gradient**2)), rtol=1e-5)
    # The first step of Adam is the learning rate against the gradient's sign, wherever there is a gradient.
    moved = np.asarray(state.weights - made.start().weights)
    clear = np.abs(gradient) > 1e-4
    np.testing.assert_allclose(moved[clear], -0.003 * np.sign(gradient[clear]), rtol=1e-3)
    assert clear.sum() > 1000


@pytest.mark.parametrize("case", [BATCHES[0], BATCHES[3]], ids=lambda case: case["name"])
def test_batches_are_the_published_ones_step_by_step(case: dict[str, Any]) -> None:
    values = np.arange(1623 * 5, dtype=np.float32).reshape(1623, 5, 1)
    spec = Sequences.parse({**case["spec"], "evaluate": {}}, "sequences")
    draw = drawer(spec, computed(values, "numbers", "test"), case["batch"], len(case["steps"]))
    chain, batches = draw(key_schedule(case["train_seed"], case["eval_seed"]).train_data)
    assert chain[-1].tolist() == case["next_key"]
    for step, expected in enumerate(case["steps"]):
        np.testing.assert_array_equal(batches.labels[step], expected["labels"])
        if "classes" in expected:
            np.testing.assert_array_equal(batches.classes[step], expected["classes"])
            np.testing.assert_array_equal(batches.exemplars[step], expected["exemplars"])


def test_weight_decay_adds_norms_and_spares_zero_arrays() -> None:
    """At the start biases are zero: they add nothing to loss or gradient, and nothing becomes NaN."""
    plain, decayed = program(), program(training={"weight_decay": 0.25})
    weights = named(plain.model(plain.start().weights))
    penalty = 0.25 * sum(np.linalg.norm(array.astype(np.float64)) for array in weights.values())
    assert not np.any(weights["example_embed.bias"])
    _, without = plain.advance(plain.start(), 1)
    state, with_it = decayed.advance(decayed.start(), 3)
    np.testing.assert_allclose(with_it.loss[0] - without.loss[0], penalty, rtol=1e-5)
    assert np.isfinite(np.asarray(state.weights)).all()


def test_the_loss_falls() -> None:
    _, loss = run(program(training={"sequences": 2400}), *(50,) * 6)
    assert loss[-30:].mean() < 0.75 * loss[:30].mean()


def test_number_of_outputs() -> None:
    spec, data = Sequences.parse(SEQUENCES, "sequences"), features()
    assert outputs_of(IclTransformer(), spec, data) == 5
    assert outputs_of(IclTransformer(outputs=9), spec, data) == 9
    classes = Sequences.parse({"class_split": [20, "rest", 10], "labels": 0}, "sequences")
    assert outputs_of(IclTransformer(), classes, data) == 20
