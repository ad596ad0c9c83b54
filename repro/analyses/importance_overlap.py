"""Are the same heads important for other tasks and other numbers of demonstrations? Arithmetic on scores.

Source: Bansal et al. 2023, arXiv 2212.09095, sections on overlap across tasks and shots. Their script gives
Spearman's coefficient `argsort(scores)`, the numbers of the heads in order of importance, in place of
scores: it correlates the numbers of heads that stand at equal rank. It reacts to a trend of importance with
depth alone, and is near 0 for a hump in the middle even where tasks agree. Both statistics are given.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

from repro.analyses.importance_tables import Tables, tables
from repro.analyses.overlap_specs import ImportanceOverlap
from repro.results import NamedArray, Result

SIGNIFICANT = 0.01
STATISTICS = ("published", "ranks")


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: ImportanceOverlap) -> Result:
    """Statistics of all pairs of tasks (and their mean, "aggregate") for each number of shots.

    srcc_published, srcc_ranks [shot, task, other]: Spearman's rank correlation as the paper's script computes
    it, and of the scores; p_published, p_ranks: two-sided, that there is none. overlap [shot, task, other]:
    share of the `top` most important heads of one task that are among those of the other (chance: `top`).
    cross_shot_published, cross_shot_ranks [task, shots]: between numbers of shots, by task.
    Scalars, of STAT published or ranks: STAT.K_shot.mean, .min (over pairs of tasks), .significant (share of
    all pairs, those with the aggregate included, that are positive with p < 0.01); overlap.K_shot.mean, .min;
    cross_shot.STAT.A-B.mean and .variance over tasks. For each of `spec.pairs` pair.ONE-OTHER.K_shot with
    .published, .ranks, .overlap, and .lower: how many other tasks agree less with OTHER (as published).
    """
    found = tables(subject, data, directory, spec)
    names, flat = found.flat()
    if spec.random is not None:
        order = np.random.default_rng(spec.random).permutation(flat.shape[-1]).astype(float)
        names = [*names, "random"]
        flat = np.concatenate([flat, np.broadcast_to(order, (len(flat), 1, len(order)))], axis=1)
    axes: dict[str, Any] = {"shot": found.shots, "task": names, "other": names}
    arrays = {
        "overlap": NamedArray(np.stack([top_overlap(one, spec.top) for one in flat]), axes),
        "layer_mean": _by_layer(found),
    }
    for name in STATISTICS:
        pairs = [correlations(one, name == "published") for one in flat]
        arrays[f"srcc_{name}"] = NamedArray(np.stack([rho for rho, _ in pairs]), axes)
        arrays[f"p_{name}"] = NamedArray(np.stack([p for _, p in pairs]), axes)
    if len(found.shots) > 1:
        arrays |= _cross_shot(found)
    notes = {"importance": found.source, "statistics": "published: of argsort(scores), as released"}
    scalars = _scalars(arrays, found)
    for one, other in spec.pairs:
        scalars |= _pair(arrays, found, one, other)
    return Result(scalars, arrays, notes)


def correlations(
    scores: Float[np.ndarray, "task head"], published: bool
) -> tuple[Float[np.ndarray, "task task"], Float[np.ndarray, "task task"]]:
    """Spearman's coefficient of every pair of tasks, and its p value.

    published: of the numbers of heads in order of importance, least first, in place of the scores.
    """
    given = np.argsort(scores, axis=-1, kind="stable") if published else scores
    count = len(given)
    rho, p = np.ones((count, count)), np.zeros((count, count))
    for first, second in combinations(range(count), 2):
        found: Any = spearmanr(given[first], given[second])
        rho[first, second] = rho[second, first] = found.statistic
        p[first, second] = p[second, first] = found.pvalue
    return rho, p


def top_overlap(scores: Float[np.ndarray, "task head"], share: float) -> Float[np.ndarray, "task task"]:
    """Share of the floor(share * heads) most important heads (at least one) that two tasks have in common."""
    count = max(1, int(share * scores.shape[-1]))
    # As in pruning: ascending and stable, so that of equal heads the later ones count as more important.
    best = [set(order[-count:].tolist()) for order in np.argsort(scores, axis=-1, kind="stable")]
    return np.array([[len(one & other) / count for other in best] for one in best])


def _cross_shot(found: Tables) -> dict[str, NamedArray]:
    names, flat = found.flat()
    pairs = list(combinations(range(len(found.shots)), 2))
    axes: dict[str, Any] = {
        "task": names, "shots": [f"{found.shots[a]}-{found.shots[b]}" for a, b in pairs],
    }  # fmt: skip
    arrays = {}
    for name in STATISTICS:
        by_task = [correlations(flat[:, place], name == "published")[0] for place in range(len(names))]
        arrays[f"cross_shot_{name}"] = NamedArray(
            np.array([[rho[a, b] for a, b in pairs] for rho in by_task]), axes
        )
    return arrays


def _by_layer(found: Tables) -> NamedArray:
    """Mean importance of a layer's heads, [shot, task, layer], divided by that of all heads."""
    joined = np.concatenate([found.values, found.aggregate[:, None]], axis=1).mean(-1)
    axes: dict[str, Any] = {
        "shot": found.shots, "task": [*found.tasks, "aggregate"], "layer": list(range(joined.shape[-1])),
    }  # fmt: skip
    with np.errstate(invalid="ignore", divide="ignore"):
        return NamedArray(joined / joined.mean(-1, keepdims=True), axes)


def _pair(arrays: dict[str, NamedArray], found: Tables, one: str, other: str) -> dict[str, float]:
    """What a pair of tasks has in common; NaN where one of them is not there."""
    scalars = {}
    for place, shot in enumerate(found.shots):
        key = f"pair.{one}-{other}.{shot}_shot"
        if one not in found.tasks or other not in found.tasks:
            scalars |= {f"{key}.{name}": float("nan") for name in ("published", "ranks", "overlap", "lower")}
            continue
        first, second = found.tasks.index(one), found.tasks.index(other)
        for name, array in (("overlap", "overlap"), *((name, f"srcc_{name}") for name in STATISTICS)):
            scalars[f"{key}.{name}"] = float(arrays[array].values[place, first, second])
        agree = arrays["srcc_published"].values[place, : len(found.tasks), second]
        scalars[f"{key}.lower"] = float((np.delete(agree, second) < agree[first]).sum())
    return scalars


def _scalars(arrays: dict[str, NamedArray], found: Tables) -> dict[str, float]:
    counting = [place for place, name in enumerate(found.tasks) if name not in found.held_out]
    pairs = list(combinations(counting, 2))
    whole = [*pairs, *((place, len(found.tasks)) for place in counting)]
    scalars: dict[str, float] = {"tasks": float(len(counting)), "heads": float(found.values[0, 0].size)}

    def of(array: str, shot: int, some: Any) -> np.ndarray:
        return np.array([arrays[array].values[shot, first, second] for first, second in some])

    for place, shot in enumerate(found.shots):
        for array, key in (("overlap", "overlap"), *((f"srcc_{name}", name) for name in STATISTICS)):
            values = of(array, place, pairs)
            if len(values):
                scalars[f"{key}.{shot}_shot.mean"] = float(values.mean())
                scalars[f"{key}.{shot}_shot.min"] = float(values.min())
        for name in STATISTICS:
            held = (of(f"srcc_{name}", place, whole) > 0) & (of(f"p_{name}", place, whole) < SIGNIFICANT)
            scalars[f"{name}.{shot}_shot.significant"] = float(held.mean())
    for name in STATISTICS:
        array = arrays.get(f"cross_shot_{name}")
        for column, label in enumerate(array.labels("shots") if array else []):
            values = array.values[counting, column] if array else np.array([])
            scalars[f"cross_shot.{name}.{label}.mean"] = float(values.mean())
            variance = float(values.var(ddof=1)) if len(values) > 1 else float("nan")
            scalars[f"cross_shot.{name}.{label}.variance"] = variance
    return scalars
