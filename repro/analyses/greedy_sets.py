"""Greedy search for the set of items that makes an objective largest, in several random runs at once.

Source: Wang et al. 2022, arXiv 2211.00593, appendix on greedy sets; the objective and the rule that a
step counts only if it rises are those of the published code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from repro.analyses.lm_circuit_specs import Greedy

# Of sets of item numbers, what is to become large: one number a set.
Objective = Callable[[Sequence[frozenset[int]]], np.ndarray]


@dataclass
class GreedyRun:
    """members: items in the order in which they were taken; path: the objective after each step, rising."""

    members: list[int] = field(default_factory=list)
    path: list[float] = field(default_factory=list)


def greedy(items: int, objective: Objective, spec: Greedy, seed: int) -> list[GreedyRun]:
    """`spec.runs` runs. In each step a run draws `spec.candidates` of the items it lacks, and takes the best
    one if the objective rises. Every run has random numbers of its own, so more runs change none before."""
    runs = [GreedyRun() for _ in range(spec.runs)]
    random = [np.random.default_rng([seed, 1, run]) for run in range(spec.runs)]
    value = float(objective([frozenset()])[0])
    best = [value] * len(runs)
    for _ in range(spec.steps):
        tried: list[tuple[int, int]] = []
        for i, run in enumerate(runs):
            left = [item for item in range(items) if item not in run.members]
            drawn = random[i].permutation(len(left))[: spec.candidates]
            tried += [(i, left[at]) for at in drawn]
        found = objective([frozenset([*runs[i].members, item]) for i, item in tried]) if tried else []
        for i, run in enumerate(runs):
            mine = [(score, item) for (j, item), score in zip(tried, found, strict=True) if j == i]
            top, item = max(mine, default=(best[i], -1), key=lambda pair: pair[0])
            if top > best[i]:
                run.members.append(item)
                best[i] = float(top)
            run.path.append(best[i])
    return runs
