"""Learning curves of every condition of a figure, and when each falls below given losses (sheet A, B.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from repro.analyses.specs import LearningCurves, Thresholds
from repro.data.features import Features
from repro.results import NamedArray, Result
from repro.training.metrics import UNITS
from repro.training.store import Trained


def run(
    subject: Mapping[str, Trained], data: Features, record: Any, directory: Path, spec: LearningCurves
) -> Result:  # fmt: skip
    """Curves of all conditions, side by side.

    Arrays of a condition are named "<condition>.<array>" (just "<array>" if it has no name):
    train_loss, train_grad_norm, train_sequences [step]; eval_sequences and
    eval_<evaluator>_<metric> [point]. Scalars likewise; see `summary`.
    """
    result = Result(scalars={}, arrays={})
    for name, trained in subject.items():
        part = curves(trained, spec.thresholds, spec.plateau)
        prefix = f"{name}." if name else ""
        result.scalars.update({prefix + key: value for key, value in part.scalars.items()})
        result.arrays.update({prefix + key: array for key, array in part.arrays.items()})
    return result


def curves(trained: Trained, thresholds: Thresholds, plateau: float) -> Result:
    """The learning curves of one run and what can be read off them."""
    history, batch = trained.history, trained.plan.training.batch
    points = history["points"] * batch
    steps = len(history["train_loss"])
    arrays = {
        "train_sequences": _axis("step", (np.arange(steps) + 1) * batch, "sequence"),
        "train_loss": _axis("step", history["train_loss"], "nat"),
        "train_grad_norm": _axis("step", history["train_grad_norm"], "1"),
        "eval_sequences": _axis("point", points, "sequence"),
    }
    scalars = {"sequences": float(steps * batch)}
    for evaluator in trained.plan.sequences.evaluate:
        for metric, unit in UNITS.items():
            name = f"eval_{evaluator}_{metric}"
            arrays[name] = _axis("point", history[name], unit)
            scalars[f"final_{evaluator}_{metric}"] = float(history[name][-1])
    if thresholds.evaluator in trained.plan.sequences.evaluate:
        scalars |= summary(points, history[f"eval_{thresholds.evaluator}_loss"], thresholds, plateau)
    return Result(scalars, arrays)


def summary(
    sequences: Int[np.ndarray, " point"],
    loss: Float[np.ndarray, " point"],
    thresholds: Thresholds,
    plateau: float,
) -> dict[str, float]:
    """first_below_<v>: sequences at the first evaluation with loss < v (infinite: never).

    loss_at_<n>: loss interpolated at n sequences (NaN beyond the run). plateau: the longest stretch of
    sequences between evaluations that all lie within `plateau` of ln 2. final_loss: at the end.
    """
    found = {"final_loss": float(loss[-1]), "plateau": longest_rest(sequences, loss, plateau)}
    for value in thresholds.values:
        found[f"first_below_{value:g}"] = first_below(sequences, loss, value)
    for at in thresholds.report_at:
        inside = sequences[0] <= at <= sequences[-1]
        found[f"loss_at_{at}"] = float(np.interp(at, sequences, loss)) if inside else math.nan
    return found


def first_below(
    sequences: Int[np.ndarray, " point"], loss: Float[np.ndarray, " point"], value: float
) -> float:
    """Sequences seen at the first evaluation whose loss is below `value`; infinite if there is none."""
    below = np.flatnonzero(loss < value)
    return float(sequences[below[0]]) if below.size else math.inf


def longest_rest(
    sequences: Int[np.ndarray, " point"], loss: Float[np.ndarray, " point"], share: float
) -> float:
    """Length of the longest run of evaluations within `share` of ln 2, in sequences; 0 if there is none."""
    near = np.abs(loss - math.log(2)) <= share * math.log(2)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], near.astype(int), [0]])))
    stretches = [sequences[end - 1] - sequences[begin] for begin, end in edges.reshape(-1, 2)]
    return float(max(stretches, default=0))


def _axis(axis: str, values: np.ndarray, unit: str) -> NamedArray:
    return NamedArray(np.asarray(values), {axis: len(values)}, unit)
