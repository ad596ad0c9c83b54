"""Does a head's strength tell what it does alone, and how fast it learns alone?

Source: arXiv 2404.07129, Fig. 18.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from repro.analyses.icl_masks import MaskedMeasure, mask
from repro.analyses.icl_measures import condition, head_index, layer_heads, measure, training_sequences
from repro.analyses.learning_curves import first_below
from repro.analyses.specs import Pool, PooledHeads
from repro.data.features import Features
from repro.errors import UserError
from repro.expressions import spearman
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join
from repro.training.store import Trained

Pooled = Float[np.ndarray, "seed head"]


def run(
    subject: Mapping[str, Trained], data: Features, record: Any, directory: Path, spec: PooledHeads
) -> Result:  # fmt: skip
    """Measure the last layer's heads at the end of training, for every seed.

    Arrays [seed, head]: strength, only_accuracy, only_loss (the other heads of the layer ablated), and
    time_alone: sequences at the first evaluation with a loss below the threshold in the run that has this
    head alone; its whole length if there is none, NaN if there is no such run. accuracy [seed]: all heads.
    Scalars, pooled over seeds and heads: spearman_strength_only_accuracy, spearman_strength_only_loss,
    spearman_strength_time_alone, time_alone.min and .max, never_alone (runs that do not get below).
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(
    subject: Mapping[str, Trained], data: Features, directory: Path | None, spec: PooledHeads, part: Part
) -> Result:  # fmt: skip
    """The arrays of `run` for some of the seeds, and never_alone [seed]."""
    every = {name: condition(subject, pool.main) for name, pool in spec.pools.items()}
    heads = _common_heads(every)
    first = next(iter(every.values()))
    last = first.plan.model.depth - 1
    names = part.of(list(spec.pools))
    sequences = training_sequences(first.plan.sequences, data, spec.sequences)
    take, alone = measure(first, [], sequences, scores=True), MaskedMeasure(sequences)
    strength, accuracy, loss = np.empty((3, len(names), heads))
    full = np.empty(len(names))
    for row, name in enumerate(names):
        model = every[name].model()
        whole = take(model)
        assert whole.induction is not None
        strength[row], full[row] = whole.induction[last], whole.accuracy
        masks = np.stack([mask(model, last, active=[head]) for head in range(heads)])
        only = alone(model, masks, f"heads alone, seed {name}")
        accuracy[row] = [one.accuracy for one in only]
        loss[row] = [one.mean_loss for one in only]
    times = [_times(subject, spec.pools[name], f"analysis.pools.{name}", last, heads, spec) for name in names]
    time, never = (np.array([pair[i] for pair in times]) for i in (0, 1))

    seeds: dict[str, Any] = {"seed": names}
    axes = {**seeds, "head": layer_heads(heads, last)}
    arrays = {
        "strength": NamedArray(strength, axes),
        "only_accuracy": NamedArray(accuracy, axes),
        "only_loss": NamedArray(loss, axes, "nat"),
        "time_alone": NamedArray(time, axes, "sequence"),
        "accuracy": NamedArray(full, seeds),
        "never_alone": NamedArray(never, seeds),
    }
    return Result({}, arrays)


def merge(parts: Sequence[Result], spec: PooledHeads) -> Result:
    """All seeds together, and rank correlations over them."""
    result = join(parts, "seed")
    never = result.arrays.pop("never_alone").values
    pooled = ("strength", "only_accuracy", "only_loss", "time_alone")
    result.scalars.update(summary(*(result.arrays[name].values for name in pooled)))
    result.scalars["never_alone"] = float(never.sum())
    return result


def summary(strength: Pooled, accuracy: Pooled, loss: Pooled, time: Pooled) -> dict[str, float]:
    """Rank correlations over all heads of all seeds; those with times where there are any."""
    timed = np.isfinite(time)
    return {
        "spearman_strength_only_accuracy": spearman(strength, accuracy),
        "spearman_strength_only_loss": spearman(strength, loss),
        "spearman_strength_time_alone": spearman(strength[timed], time[timed]) if timed.any() else np.nan,
        "time_alone.min": float(time[timed].min()) if timed.any() else np.nan,
        "time_alone.max": float(time[timed].max()) if timed.any() else np.nan,
    }


def _times(
    subject: Mapping[str, Trained], pool: Pool, where: str, last: int, heads: int, spec: PooledHeads
) -> tuple[Float[np.ndarray, " head"], int]:
    """Learning time of each head's own run, and how many of them never learn."""
    times, never = np.full(heads, np.nan), 0
    for head, name in pool.only.items():
        trained = condition(subject, name)
        loss = trained.history.get(f"eval_{spec.evaluator}_loss")
        if loss is None:
            known = ", ".join(trained.plan.sequences.evaluate)
            raise UserError(f"analysis.evaluator: got {spec.evaluator!r}. Valid choices: {known}")
        evaluated = trained.history["points"] * trained.plan.training.batch
        time = first_below(evaluated, loss, spec.threshold)
        reached = bool(np.isfinite(time))
        never += not reached
        times[head_index(head, last, heads, f"{where}.only")] = time if reached else evaluated[-1]
    return times, never


def _common_heads(mains: Mapping[str, Trained]) -> int:
    """How many heads each has. Raises `UserError` unless all have as many and see the same sequences."""
    plans = [trained.plan for trained in mains.values()]
    for name, plan in zip(mains, plans, strict=True):
        if (plan.model, plan.sequences) != (plans[0].model, plans[0].sequences):
            raise UserError(
                f"analysis.pools.{name}: its model or sequences differ from those of {next(iter(mains))}."
                " Pool conditions that differ in the seed alone"
            )
    return plans[0].model.heads
