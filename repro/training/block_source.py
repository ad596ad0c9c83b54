"""Blocks of tokens to train on: shuffled epochs at a constant rate, as in the published recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from repro.data.lm_tasks import Scored, generator
from repro.errors import UserError


@dataclass(frozen=True)
class BlockRecipe:
    """AdamW (0.9, 0.999) at a constant rate, without clipping: see `repro.training.lm_loop.Recipe`."""

    seed: int
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    evaluate_every: int
    drops: bool = False
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    decays: bool = False
    until: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class BlockSource:
    """Blocks [block, position] in an order drawn anew for every epoch; all tokens but the first are scored.

    measured: blocks by name to measure on.
    """

    blocks: np.ndarray
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)
    _orders: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def batch(self, seed: int, step: int, size: int) -> Scored:
        """The blocks of one step; the last, incomplete batch of an epoch is dropped."""
        epoch, at = divmod(step, steps_an_epoch(len(self.blocks), size))
        if (seed, epoch) not in self._orders:
            self._orders.clear()
            self._orders[seed, epoch] = generator("blocks", seed, epoch).permutation(len(self.blocks))
        return scored(self.blocks[self._orders[seed, epoch][at * size : (at + 1) * size]])

    def probes(self) -> dict[str, Scored]:
        """The blocks to measure on."""
        return {name: scored(blocks) for name, blocks in self.measured.items()}


def steps_an_epoch(blocks: int, batch: int) -> int:
    """Whole batches. Raises `UserError` if there is none."""
    if blocks < batch:
        raise UserError(
            f"model: {blocks} blocks to train on make no batch of {batch}. Give more blocks (data.train, or a"
            f" longer text) or a smaller batch, such as model.tuning.batch={max(blocks, 1)}"
        )
    return blocks // batch


def scored(blocks: np.ndarray) -> Scored:
    """Blocks of which every token but the first is predicted."""
    predicted = np.ones(blocks.shape, bool)
    predicted[:, 0] = False
    return Scored(blocks, predicted)
