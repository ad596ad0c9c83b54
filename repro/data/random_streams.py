"""Random numbers of the published runs, whatever the rest of the process has set.

JAX has two ways to lay threefry bits out over an array. Until 0.4 the default was
`jax_threefry_partitionable=False`, and every published stream depends on it; from 0.5 on it is
True. The switch is made here, for a scope, and never globally. It is part of the key of JAX's
compilation cache, so one function can be compiled under both settings without mixing them up.
A function traced inside an outer `jax.jit` takes the setting at the time of its own tracing:
decorate what draws, not only what calls it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, ParamSpec, TypeVar

import jax
from jax import lax
from jaxtyping import Array, UInt32

P = ParamSpec("P")
R = TypeVar("R")
Key = UInt32[Array, "2"]


@contextmanager
def published_streams() -> Iterator[None]:
    """Within it, `jax.random` gives the streams of the published runs. Also usable as a decorator.

    Undone on leaving, also by an exception; an inner scope or an outer setting does not matter.
    """
    with jax.threefry_partitionable(False):
        yield


def on_published_streams(function: Callable[P, R]) -> Callable[P, R]:
    """Make `function` draw its random numbers from the published streams, at every call or trace."""

    @functools.wraps(function)
    def scoped(*args: P.args, **kwargs: P.kwargs) -> R:
        with published_streams():
            return function(*args, **kwargs)

    return scoped


class KeySchedule(NamedTuple):
    """The keys a run starts from: one chain for training batches, one key that evaluators share out."""

    train_data: Key
    train_model: Key
    evaluate_data: Key
    evaluate_model: Key


@on_published_streams
def key_schedule(train_seed: int, evaluate_seed: int) -> KeySchedule:
    """Split the two data seeds as the published runs do (sheet C.7)."""
    train = jax.random.split(jax.random.PRNGKey(train_seed), 2)
    evaluate = jax.random.split(jax.random.PRNGKey(evaluate_seed), 2)
    return KeySchedule(train[0], train[1], evaluate[0], evaluate[1])


@on_published_streams
def steps_keys(train_data_key: Key, steps: int) -> tuple[Key, UInt32[Array, "step 2"]]:
    """The keys of the next `steps` training batches, and the key from which the chain goes on.

    One step is `chain, batch = split(chain)`; doing `steps` at once gives the same keys, so
    batches can be drawn together by `jax.vmap(sample)(keys)`.
    """

    def step(chain: Key, _: None) -> tuple[Key, Key]:
        chain, batch = jax.random.split(chain)
        return chain, batch

    return lax.scan(step, train_data_key, None, length=steps)
