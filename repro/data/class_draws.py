"""Which classes a sequence contains: bursts, distractors and the rest (sheet C.4).

Axes while drawing are (item, sequence), because the published streams fill arrays in that order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32

from repro.data.random_streams import Key
from repro.data.sequence_specs import ClassDraw
from repro.data.splits import Range
from repro.errors import UserError

OTHER, BURSTY, DISTRACTOR, QUERY = range(4)
Drawn = tuple[Int32[Array, "sequence item"], Int32[Array, "sequence item"]]


class ClassSource(NamedTuple):
    """One class sampler: a `ClassDraw` with the classes it draws from and their probabilities."""

    how: ClassDraw
    classes: Range
    probabilities: Float32[Array, " class"]
    context: int

    @classmethod
    def make(
        cls, how: ClassDraw, classes: Range, probabilities: Float32[Array, " class"], context: int, where: str
    ) -> ClassSource:
        """Check that there are enough classes for what `how` asks (`UserError`), and normalise."""
        classes.require_some(f"{where}.classes")
        taken = 1 + (how.burstiness > 0 and how.distractor)
        rest = how.rest(context)
        needed = taken + (rest if how.unique_rest else int(rest > 0 and how.no_support))
        if classes.size < needed:
            raise UserError(
                f"{where}: a sequence with these options needs {needed} different classes,"
                f" and there are {classes.size} to draw from. Use more classes or a shorter context"
            )
        return cls(how, classes, probabilities / jnp.sum(probabilities), context)

    def draw(self, key: Key, count: int) -> Drawn:
        """Classes and item types of `count` sequences, query last."""
        query_key, distractor_key, rest_key, shuffle_key = jax.random.split(key, 4)
        how, rest, log_p = self.how, self.how.rest(self.context), jnp.log(self.probabilities)
        query = _categorical(query_key, log_p, (1, count))
        allowed = self._other_than(query)
        parts, types = [], [OTHER] * rest
        if how.burstiness:
            parts += [query] * how.burstiness
            types += [BURSTY] * how.burstiness
        if how.burstiness and how.distractor:
            distractor = self._draw_allowed(distractor_key, allowed, 1)
            allowed &= self._other_than(distractor)
            parts += [distractor] * how.burstiness
            types += [DISTRACTOR] * how.burstiness
        if rest:
            parts.insert(0, self._draw_rest(rest_key, allowed, rest))
        items = jnp.concatenate(parts)
        item_types = jnp.broadcast_to(jnp.array(types, jnp.int32)[:, None], items.shape)
        if how.burstiness:
            items, item_types = shuffle(shuffle_key, [items, item_types], axis=0)
        items = jnp.concatenate([items, query])
        item_types = jnp.pad(item_types, ((0, 1), (0, 0)), constant_values=QUERY)
        return self.classes.start + items.T, item_types.T

    def _other_than(self, drawn: Int32[Array, "1 sequence"]) -> Bool[Array, "sequence class"]:
        return jnp.arange(self.classes.size) != drawn[0][:, None]

    def _conditional(self, allowed: Bool[Array, "sequence class"]) -> Float32[Array, "sequence class"]:
        weights = jnp.where(allowed, self.probabilities, 0)
        return weights / jnp.sum(weights, axis=1, keepdims=True)

    def _draw_allowed(
        self, key: Key, allowed: Bool[Array, "sequence class"], items: int
    ) -> Int32[Array, "item sequence"]:
        return _categorical(key, jnp.log(self._conditional(allowed)), (items, allowed.shape[0]))

    def _draw_rest(
        self, key: Key, allowed: Bool[Array, "sequence class"], items: int
    ) -> Int32[Array, "item sequence"]:
        count = allowed.shape[0]
        if self.how.unique_rest:
            draw = functools.partial(
                jax.random.choice, a=self.classes.size, shape=(items,), replace=False, mode="low"
            )
            drawn = jax.vmap(lambda key, p: draw(key, p=p))(
                jax.random.split(key, count), self._conditional(allowed)
            )
            return drawn.T
        if self.how.no_support:
            return self._draw_allowed(key, allowed, items)
        return _categorical(key, jnp.log(self.probabilities), (items, count))


def _categorical(
    key: Key, log_p: Float32[Array, "*shape"], shape: tuple[int, int]
) -> Int32[Array, "item sequence"]:
    # The mode is a global setting of JAX otherwise, and changes the draws.
    return jax.random.categorical(key, log_p, shape=shape, mode="low")


def draw_mixture(key: Key, sources: Sequence[ClassSource], weights: Sequence[float], count: int) -> Drawn:
    """Each of `count` sequences from one source, chosen by weight.

    With one source too, the key is split as if there were a choice: training streams depend on it.
    """
    keys = jax.random.split(key, len(sources) + 1)
    if len(sources) == 1:
        return sources[0].draw(keys[0], count)
    drawn = [source.draw(keys[i], count) for i, source in enumerate(sources)]
    which = jax.random.categorical(keys[-1], jnp.log(jnp.array(weights)), shape=(count,), mode="low")
    classes, types = (jnp.stack(arrays)[which, jnp.arange(count)] for arrays in zip(*drawn, strict=True))
    return classes, types


def shuffle(key: Key, arrays: Sequence[Int32[Array, "*shape"]], axis: int) -> list[Int32[Array, "*shape"]]:
    """Permute equally shaped `arrays` along `axis`, every slice on its own, all arrays alike.

    Equals `jax.random.permutation(key, array, axis, independent=True)` of each array, with one
    sort for all of them, or none where there are only two items to exchange.
    """
    shape = arrays[0].shape
    for _ in range(_shuffle_rounds(arrays[0].size)):
        key, bits_key = jax.random.split(key)
        bits = jax.random.bits(bits_key, shape)
        if shape[axis] == 2:
            first, second = jnp.split(bits, 2, axis)
            arrays = [jnp.where(second < first, jnp.flip(array, axis), array) for array in arrays]
        else:
            _, *arrays = lax.sort([bits, *arrays], dimension=axis, num_keys=1)
    return list(arrays)


def _shuffle_rounds(size: int) -> int:
    """Rounds of sorting by 32 random bits after which ties no longer matter, as `jax.random` counts them."""
    rounds = 0
    while 2.0 ** (32 * rounds) < float(size) ** 3:
        rounds += 1
    return rounds
