"""How much prefix matching and copying is left when unimportant heads are removed. Arithmetic on scores.

Source: Bansal et al. 2023, arXiv 2212.09095, section on induction heads: the sum of a score over the heads
that are left, in percent of the sum over all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from repro.analyses import copying, prefix_matching
from repro.analyses.importance_tables import score_of, tables
from repro.analyses.induction_specs import Copying, PrefixMatching
from repro.analyses.overlap_specs import CapacityRetained
from repro.analyses.sequence_scores import places
from repro.data import token_sequences
from repro.errors import UserError
from repro.results import NamedArray, Result

SCORES = ("prefix_matching", "copying")


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: CapacityRetained) -> Result:
    """Curves by the mean importance over tasks, and by that of every task.

    percent [removed]: i of all N heads removed, i = 0 .. N - 1. retained [score, shot, removed] and
    task_retained [score, shot, task, removed], in percent of the whole: the sum over heads that are not
    among the i least important ones. prefix_matching, copying [layer, head]: the scores themselves.
    Scalars by SCORE and K shots: SCORE.K_shot.area (mean of the curve, %), .bend (largest distance from the
    straight line between 0 and 70 % removed, points), .early and .late (fall from 0 to 20 % and from 40 to
    70 % removed, points lost for one point removed); for each of `spec.tasks` SCORE.TASK.K_shot.early; and
    SCORE.max, .above_half.count and others that say where high scores are (see `sequence_scores.merged`).
    """
    scores = {"prefix_matching": _prefix(subject, spec), "copying": _copying(subject, spec)}
    found = tables(subject, data, directory, spec)
    shape = found.values.shape[2:]
    for name, score in scores.items():
        if score.shape != shape:
            raise UserError(
                f"analysis: {name} is of {score.shape} layers and heads, head importance of {shape}. Give"
                " scores of one model"
            )
    names, flat = found.flat()
    percent = 100 * np.arange(flat.shape[-1]) / flat.shape[-1]
    curves = np.array([
        [[retained(scores[name].reshape(-1), one) for one in tasks] for tasks in flat] for name in SCORES
    ])  # fmt: skip
    removed: dict[str, Any] = {"removed": len(percent)}
    axes: dict[str, Any] = {"score": list(SCORES), "shot": found.shots}
    table: dict[str, Any] = {"layer": list(range(shape[0])), "head": list(range(shape[1]))}
    arrays = {
        "percent": NamedArray(percent, removed, "%"),
        "retained": NamedArray(curves[:, :, -1], {**axes, **removed}, "%"),
        "task_retained": NamedArray(curves[:, :, :-1], {**axes, "task": found.tasks, **removed}, "%"),
        **{name: NamedArray(values, table) for name, values in scores.items()},
    }
    scalars = {}
    for place, name in enumerate(SCORES):
        scalars |= {f"{name}.{key}": value for key, value in places(scores[name]).items()}
        for row, shot in enumerate(found.shots):
            scalars |= _shape(f"{name}.{shot}_shot", percent, curves[place, row, -1])
            for task in spec.tasks:
                there = task in found.tasks
                curve = (
                    curves[place, row, found.tasks.index(task)] if there else np.full_like(percent, np.nan)
                )
                scalars[f"{name}.{task}.{shot}_shot.early"] = _fall(percent, curve, 0, 20)
    return Result(scalars, arrays, {"importance": found.source, "sequences": _said(spec)})


def retained(score: Float[np.ndarray, " head"], importance: Float[np.ndarray, " head"]) -> np.ndarray:
    """Percent of the sum of `score` that is left when the i least important heads are gone, i = 0 .. N - 1.

    Heads of equal importance go in their order, as in pruning. NaN where the scores sum to nothing.
    """
    ordered = score[np.argsort(importance, kind="stable")]
    left = np.cumsum(ordered[::-1])[::-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * left / score.sum()


def _prefix(subject: Any, spec: CapacityRetained) -> np.ndarray:
    if spec.prefix_scores is not None:
        return score_of(spec.prefix_scores, "analysis.prefix_scores")
    asked = PrefixMatching(prefix=spec.prefix)
    drawn = token_sequences.load(_fitting(subject, spec))
    return prefix_matching.run(subject, drawn, None, None, asked).arrays["score"].values


def _copying(subject: Any, spec: CapacityRetained) -> np.ndarray:
    if spec.copying_scores is not None:
        return score_of(spec.copying_scores, "analysis.copying_scores")
    drawn = token_sequences.load(_fitting(subject, spec))
    asked = Copying(copying=spec.copying)
    return copying.run(subject, drawn, None, None, asked).arrays["score"].values


def _fitting(subject: Any, spec: CapacityRetained) -> Any:
    """The sequences, shorter where the model's context is."""
    return spec.induction_sequences.within(getattr(subject, "max_positions", None))


def _shape(key: str, percent: np.ndarray, curve: np.ndarray) -> dict[str, float]:
    ends = np.interp([0, 70], percent, curve)
    inside = percent <= 70
    line = ends[0] + (ends[1] - ends[0]) * percent[inside] / 70
    return {
        f"{key}.area": float(curve.mean()),
        f"{key}.bend": float(np.abs(curve[inside] - line).max()),
        f"{key}.early": _fall(percent, curve, 0, 20),
        f"{key}.late": _fall(percent, curve, 40, 70),
    }


def _fall(percent: np.ndarray, curve: np.ndarray, begin: float, end: float) -> float:
    first, last = np.interp([begin, end], percent, curve)
    return float((first - last) / (end - begin))


def _said(spec: CapacityRetained) -> str:
    given = [name for name in ("prefix_scores", "copying_scores") if getattr(spec, name)]
    return f"{', '.join(given)} given" if given else "scores on sequences drawn here"
