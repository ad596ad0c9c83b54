"""When to evaluate and to save: from the config's schedule to step numbers (sheet C.10).

The published loop looks once before every step: if the count of sequences seen has reached the
next entry of the schedule, it acts and labels the act with that count. So a label is an entry
rounded up to a multiple of the batch, and two entries within one batch act at successive steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from repro.training.specs import Every, LogSpaced, Training


def entries(every: int | None, at: Sequence[Every | LogSpaced | int], sequences: int) -> list[int]:
    """All scheduled counts of sequences below `sequences`, sorted, each once."""
    wanted: set[int] = set()
    for item in [*([Every(every=every)] if every else []), *at]:
        if isinstance(item, Every):
            wanted.update(range(item.start, min(item.stop or sequences, sequences), item.every))
        elif isinstance(item, LogSpaced):
            points = np.geomspace(item.first, sequences, item.log_spaced)
            wanted.update(int(round(point)) for point in points)
        else:
            wanted.add(item)
    return sorted(entry for entry in wanted if entry < sequences)


def steps(scheduled: Sequence[int], sequences: int, batch: int) -> Int[np.ndarray, " point"]:
    """The steps before which the loop acts, for entries in sequences; at most one a step."""
    acting, last = [], -1
    for entry in scheduled:
        step = max(-(-entry // batch), last + 1)
        if step * batch >= sequences:
            break
        acting.append(step)
        last = step
    return np.asarray(acting, dtype=np.int64)


def step_count(training: Training) -> int:
    """Steps of the whole run: the last one begins before `sequences` are seen."""
    return -(-training.sequences // training.batch)


def evaluation_steps(training: Training) -> Int[np.ndarray, " point"]:
    """Steps before which to evaluate; the last one is the end of training."""
    scheduled = entries(training.evaluate_every, training.evaluate_at, training.sequences)
    return np.append(steps(scheduled, training.sequences, training.batch), step_count(training))


def checkpoint_steps(training: Training) -> Int[np.ndarray, " checkpoint"]:
    """Steps before which to save the weights; with the end of training, or empty if none is asked for."""
    if training.checkpoint_every is None and not training.checkpoint_at:
        return np.zeros(0, dtype=np.int64)
    scheduled = entries(training.checkpoint_every, training.checkpoint_at, training.sequences)
    return np.append(steps(scheduled, training.sequences, training.batch), step_count(training))


def nearest(saved: Sequence[int], count: int) -> list[int]:
    """The saved checkpoints that are nearest to `count` points of a linear grid, each once (sheet B.4)."""
    grid = np.linspace(min(saved), max(saved), count)
    at = np.asarray(sorted(saved))
    return [int(one) for one in at[np.unique(np.argmin(np.abs(grid[:, None] - at[None]), axis=1))]]
