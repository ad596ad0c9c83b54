"""Our flat Adam against optax, and learning rates at steps where they are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repro.training import optimizer
from repro.training.specs import Training

TARGET = np.random.default_rng(0).normal(size=40)


def gradient_at(weights: jax.Array, step: int) -> jax.Array:
    """Of a quadratic around TARGET, with a scale that changes from step to step."""
    return (weights - jnp.asarray(TARGET, weights.dtype)) * (1 + step % 7) ** 2


def ours(training: Training, steps: int, weights: jax.Array) -> jax.Array:
    state = optimizer.start(weights)
    for step in range(steps):
        gradient = gradient_at(weights, step)
        norm = jnp.sqrt(jnp.sum(gradient**2))
        weights, state = optimizer.update(training, steps, weights, gradient, norm, state)
    assert int(state.updates) == steps
    return weights


def theirs(transformation: optax.GradientTransformation, steps: int, weights: jax.Array) -> jax.Array:
    state = transformation.init(weights)
    for step in range(steps):
        update, state = transformation.update(gradient_at(weights, step), state)
        weights = optax.apply_updates(weights, update)  # type: ignore[assignment]
    return weights


@pytest.mark.parametrize(("wide", "tolerance"), [(False, 2e-6), (True, 1e-12)])
def test_adam_is_that_of_optax(wide: bool, tolerance: float) -> None:
    with jax.enable_x64(wide):
        start = jnp.zeros(40, jnp.float64 if wide else jnp.float32)
        training = Training(sequences=10_000, learning_rate=1e-2)
        got = ours(training, 300, start)
        assert got.dtype == start.dtype
        np.testing.assert_allclose(got, theirs(optax.adam(1e-2), 300, start), atol=tolerance)


@pytest.mark.parametrize("schedule", ["constant", "warmup_decay", "cosine"])
def test_every_schedule_goes_downhill(schedule: str) -> None:
    training = Training(sequences=10_000, learning_rate=0.05, schedule=schedule, warmup_steps=20)
    before = np.sum(TARGET**2)
    after = np.sum((np.asarray(ours(training, 200, jnp.zeros(40))) - TARGET) ** 2)
    assert after < 0.05 * before


def test_only_warmup_decay_clips() -> None:
    """The published chain: gradients scaled to norm 5, Adam, then the schedule (there without its sign)."""
    for schedule, clipped in (("warmup_decay", True), ("cosine", False)):
        training = Training(
            sequences=10_000,
            learning_rate=1e-2,
            schedule=schedule,
            warmup_steps=10,
            final_learning_rate=1e-3,
        )
        chain = optax.chain(
            optax.clip_by_global_norm(5.0) if clipped else optax.identity(),
            optax.scale_by_adam(),
            optax.scale_by_schedule(lambda count: -optimizer.learning_rate(training, 100, count)),  # noqa: B023
        )
        start = jnp.zeros(40)
        assert jnp.sqrt(jnp.sum(gradient_at(start, 1) ** 2)) > 5
        np.testing.assert_allclose(ours(training, 100, start), theirs(chain, 100, start), atol=2e-6)


def rates(schedule: str, at: list[int]) -> np.ndarray:
    training = Training(
        sequences=10_000, learning_rate=1e-2, schedule=schedule, warmup_steps=100, final_learning_rate=1e-3
    )
    return np.array([float(optimizer.learning_rate(training, 500, jnp.asarray(step))) for step in at])


def test_learning_rates_at_known_steps() -> None:
    """Warm-up ends at step 100, training at 500: 200 is a quarter of the way down, 300 half of it."""
    np.testing.assert_allclose(rates("constant", [0, 300, 500]), 1e-2)
    begin, end = 1e-5, 1e-3
    np.testing.assert_allclose(
        rates("warmup_decay", [0, 50, 100, 200, 400, 500]),
        [begin, (begin + 1e-2) / 2, 1e-2, end + 9e-3 * 0.75**0.5, end + 9e-3 * 0.5, end],
        rtol=1e-5,
    )
    begin = 1e-6
    np.testing.assert_allclose(
        rates("cosine", [0, 50, 100, 300, 500, 600]),
        [begin, (begin + 1e-2) / 2, 1e-2, end + 9e-3 * 0.5, end, end],
        rtol=1e-5,
    )


def test_published_schedules_of_optax() -> None:
    """Warm-up and decay as optax joins them, with as many steps as here."""
    decay = optax.join_schedules(
        [
            optax.polynomial_schedule(1e-5, 1e-2, 1.0, 100),
            optax.polynomial_schedule(1e-2, 1e-3, 0.5, 400),
        ],
        [100],
    )
    cosine = optax.warmup_cosine_decay_schedule(1e-6, 1e-2, 100, 500, 1e-3)
    at = list(range(0, 500, 7))
    np.testing.assert_allclose(
        rates("warmup_decay", at), [float(decay(step)) for step in at], rtol=1e-5, atol=1e-9
    )
    np.testing.assert_allclose(
        rates("cosine", at), [float(cosine(step)) for step in at], rtol=1e-5, atol=1e-9
    )
