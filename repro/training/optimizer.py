"""Adam on one flat parameter vector, and the learning-rate schedules (sheet C.9).

One vector instead of a tree of arrays: the update is then a single fused loop.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from repro.training.specs import Training

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
CLIP_NORM = 5.0
WARMUP_START = {"warmup_decay": 1e-5, "cosine": 1e-6}


class Adam(NamedTuple):
    """First and second moment of the gradient, and the number of updates made."""

    first: Float[Array, " parameter"]
    second: Float[Array, " parameter"]
    updates: Int[Array, ""]


def start(weights: Float[Array, " parameter"]) -> Adam:
    """The state before the first update."""
    return Adam(jnp.zeros_like(weights), jnp.zeros_like(weights), jnp.zeros((), jnp.int32))


def update(
    training: Training,
    total_steps: int,
    weights: Float[Array, " parameter"],
    gradient: Float[Array, " parameter"],
    norm: Float[Array, ""],
    state: Adam,
) -> tuple[Float[Array, " parameter"], Adam]:
    """One step downhill. `norm` is the L2 norm of the gradient."""
    if training.schedule == "warmup_decay":
        gradient = gradient * jnp.minimum(1.0, CLIP_NORM / jnp.maximum(norm, 1e-30))
    rate = learning_rate(training, total_steps, state.updates)
    updates = state.updates + 1
    first = BETA1 * state.first + (1 - BETA1) * gradient
    second = BETA2 * state.second + (1 - BETA2) * gradient**2
    count = updates.astype(weights.dtype)
    step = (first / (1 - BETA1**count)) / (jnp.sqrt(second / (1 - BETA2**count)) + EPSILON)
    return weights - rate * step, Adam(first, second, updates)


def learning_rate(training: Training, total_steps: int, updates: Int[Array, ""]) -> Float[Array, ""] | float:
    """The learning rate of the update after `updates` others."""
    peak, warmup = training.learning_rate, training.warmup_steps
    if training.schedule == "constant":
        return peak
    begin = WARMUP_START[training.schedule]
    rising = begin + (peak - begin) * jnp.minimum(updates / warmup, 1.0)
    share = jnp.clip((updates - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
    falling = (
        jnp.sqrt(1 - share) if training.schedule == "warmup_decay" else 0.5 * (1 + jnp.cos(jnp.pi * share))
    )
    end = training.final_learning_rate
    return jnp.where(updates < warmup, rising, end + (peak - end) * falling)
