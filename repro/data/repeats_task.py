"""Repeated random permutations: sequences that only induction can predict."""

from __future__ import annotations

import numpy as np

from repro.data.lm_task_specs import RepeatsTask
from repro.data.lm_tasks import Scored, generator


class Repeats:
    """See `RepeatsTask`. Token ids are words t0, t1, ...; there is no start token."""

    def __init__(self, spec: RepeatsTask) -> None:
        self._spec = spec
        self.vocabulary = [f"t{i}" for i in range(spec.vocabulary)]
        self.start, self.filler = None, 0

    def batch(self, seed: int, step: int, size: int) -> Scored:
        """`size` sequences of `length` tokens; periods from length/8 to length/2."""
        rng, length = generator("repeats train", seed, step), self._spec.length
        return self._draw(rng, rng.integers(max(1, length // 8), length // 2 + 1, size))

    def probes(self) -> dict[str, Scored]:
        """Sequences with periods of a quarter, a third and a half of the length."""
        parts = {"quarter": 4, "third": 3, "half": 2}
        count, length = self._spec.probe_sequences, self._spec.length
        return {
            name: self._draw(generator(f"repeats {name}"), np.full(count, length // part))
            for name, part in parts.items()
        }

    def _draw(self, rng: np.random.Generator, periods: np.ndarray) -> Scored:
        columns = np.arange(self._spec.length)
        # The first n entries of a random order of all tokens are n different tokens in random order.
        orders = np.argsort(rng.random((len(periods), self._spec.vocabulary)), axis=1)
        tokens = np.take_along_axis(orders, columns[None] % periods[:, None], axis=1)
        # Where the second copy begins cannot be known before it has begun.
        return Scored(tokens, columns[None] > periods[:, None])


def build(spec: RepeatsTask) -> Repeats:
    """The task of repeated permutations."""
    return Repeats(spec)
