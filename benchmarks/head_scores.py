"""Head scores of a checkpoint over all 78,400 training sequences: shared prefixes against the definition.

    NPROC=1 python benchmarks/head_scores.py        (one thread; about a minute)

Prints processor time per checkpoint, medians of alternating calls, and their ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import numpy as np

from repro.analyses.icl_measures import Measure, SharedMeasure, training_sequences
from repro.data.features import Features, computed
from repro.data.specs import Sequences
from repro.interventions.icl_manipulations import untouched
from repro.models.icl_init import init
from repro.models.specs import IclTransformer

REPEATS = 9


def features() -> Features:
    """Random features of as many classes as are trained on and held out."""
    values = np.random.default_rng(0).standard_normal((160, 5, 512)).astype(np.float32)
    return computed(values, "benchmark", "gaussian")


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Time of one call."""
    begin = clock()
    jax.block_until_ready(call())
    return clock() - begin


def main() -> None:
    """Measure and print."""
    data = features()
    sequences = training_sequences(
        Sequences.parse({"class_split": [50, "rest", 100], "labels": 5}, "sequences"), data
    )
    model = init(IclTransformer(), data.values.shape[-1], 5, 5)
    takes = {"definition": Measure(untouched, sequences, scores=True), "shared": SharedMeasure(sequences)}
    first = {name: seconds(lambda take=take: take(model)) for name, take in takes.items()}
    times = {name: [] for name in takes}
    for _ in range(REPEATS):
        for name, take in takes.items():
            times[name].append(seconds(lambda take=take: take(model)))
    medians = {name: float(np.median(each)) for name, each in times.items()}
    for name, median in medians.items():
        low = min(times[name])
        print(f"{name:10s} {median * 1e3:7.1f} ms (least {low * 1e3:.1f}), first {first[name]:.1f} s")
    print(f"ratio      {medians['definition'] / medians['shared']:7.2f}")


if __name__ == "__main__":
    main()
