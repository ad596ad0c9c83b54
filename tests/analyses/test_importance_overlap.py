"""Overlap and capacity: hand-made tables with known answers, loops, and the published statistic's defect."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models.tiny_models import tiny

from repro import results
from repro.analyses import capacity_retained, head_importance, importance_overlap
from repro.analyses.base_specs import Analysis
from repro.analyses.capacity_retained import retained
from repro.analyses.importance_overlap import correlations, top_overlap
from repro.analyses.importance_specs import HeadImportance
from repro.analyses.overlap_specs import CapacityRetained, ImportanceOverlap
from repro.data.scored_texts import Example, ScoredTexts, TaskSet
from repro.errors import UserError
from repro.results import NamedArray, Result


def spearman(first: Any, second: Any) -> float:
    """1 - 6 sum d^2 / n (n^2 - 1), the textbook's formula for ranks without ties."""
    ranks = [{one: place for place, one in enumerate(sorted(some))} for some in (first, second)]
    n = len(first)
    gaps = [ranks[0][a] - ranks[1][b] for a, b in zip(first, second, strict=True)]
    return 1 - 6 * sum(gap**2 for gap in gaps) / (n * (n**2 - 1))


def order(scores: Any) -> list[int]:
    """Numbers of the heads, least important first."""
    return sorted(range(len(scores)), key=lambda head: scores[head])


def test_both_statistics_are_the_textbooks_formula() -> None:
    scores = np.random.RandomState(0).rand(4, 40)
    ranks, published = correlations(scores, False)[0], correlations(scores, True)[0]
    for a, b in combinations(range(4), 2):
        assert ranks[a, b] == pytest.approx(spearman(scores[a], scores[b]), abs=1e-12)
        assert published[a, b] == pytest.approx(spearman(order(scores[a]), order(scores[b])), abs=1e-12)
    np.testing.assert_array_equal(ranks, ranks.T)
    np.testing.assert_array_equal(np.diag(published), 1)


def test_known_correlations() -> None:
    rising = np.arange(10.0)
    assert correlations(np.stack([rising, rising**2]), False)[0][0, 1] == pytest.approx(1)
    assert correlations(np.stack([rising, -rising]), False)[0][0, 1] == pytest.approx(-1)
    # Heads in order of importance: 0 1 2 ... and the same; as published, too, that is agreement.
    assert correlations(np.stack([rising, rising**2]), True)[0][0, 1] == pytest.approx(1)


def test_the_published_statistic_is_blind_to_a_hump_in_depth() -> None:
    """Two noisy tables of one hump over layers: they agree in rank and in their top, not as published."""
    rng, layers = np.random.RandomState(1), 64
    hump = np.exp(-(((np.arange(layers) - 30) / 12) ** 2))[:, None] * np.ones((layers, 72))
    tables = np.stack([(hump * np.exp(0.5 * rng.randn(layers, 72))).reshape(-1) for _ in range(2)])
    assert correlations(tables, False)[0][0, 1] > 0.8
    assert abs(correlations(tables, True)[0][0, 1]) < 0.15
    assert top_overlap(tables, 0.3)[0, 1] > 0.7


def test_the_top_is_compared_as_a_set() -> None:
    scores = np.array([[9, 8, 7, 1, 2, 3, 0, 0, 0, 0], [9, 8, 1, 7, 2, 3, 0, 0, 0, 0.0]])
    assert top_overlap(scores, 0.3)[0, 1] == pytest.approx(2 / 3)
    assert top_overlap(scores, 0.2)[0, 1] == 1 and top_overlap(scores, 0.39)[0, 1] == pytest.approx(2 / 3)
    assert top_overlap(np.random.RandomState(0).rand(2, 4608), 0.3)[0, 1] == pytest.approx(0.3, abs=0.05)


def test_capacity_is_a_sum_over_the_heads_that_are_left() -> None:
    score, importance = np.array([1.0, 2, 3, 4]), np.array([3.0, 1, 4, 2])
    # Least important first: heads 1, 3, 0, 2.
    assert retained(score, importance).tolist() == [100, 80, 40, 30]
    assert retained(np.ones(5), np.arange(5.0)).tolist() == [100, 80, 60, 40, 20]


TABLES = {
    "a": [[4, 3], [2, 1], [0, 5]], "b": [[3, 4], [2, 1], [0, 5]], "held": [[0, 1], [2, 3], [4, 9]],
    "a.1shot": [[4, 3], [2, 1], [0, 5]], "b.1shot": [[5, 4], [2, 1], [0, 3]],
    "held.1shot": [[0, 1], [2, 3], [4, 5]], "only.1shot": [[0, 0], [0, 0], [0, 1]],
}  # fmt: skip


def written(folder: Path, tables: Any = None) -> str:
    path = folder / "scores.json"
    path.write_text(json.dumps(TABLES if tables is None else tables))
    return str(path)


def test_a_file_of_scores(tmp_path: Path) -> None:
    spec = ImportanceOverlap(
        scores=written(tmp_path), held_out=["held"], top=0.5, random=0, pairs=[["held", "a"], ["a", "no"]]
    )
    found = importance_overlap.run(None, None, None, None, spec)
    names = ["a", "b", "held", "aggregate", "random"]
    array = found.arrays["srcc_ranks"]
    assert array.axes == {"shot": [0, 1], "task": names, "other": names}, "`only` has no 0 shots"
    assert array.values[0, 0, 1] == pytest.approx(spearman([4, 3, 2, 1, 0, 5], [3, 4, 2, 1, 0, 5]))
    assert found.scalars["ranks.0_shot.mean"] == found.scalars["ranks.0_shot.min"] == array.values[0, 0, 1]
    assert found.scalars["overlap.1_shot.mean"] == 1.0
    assert found.scalars["pair.held-a.0_shot.published"] == found.arrays["srcc_published"].values[0, 2, 0]
    assert (found.scalars["pair.held-a.0_shot.overlap"], found.scalars["pair.held-a.0_shot.lower"]) == (
        1 / 3,
        0,
    )
    assert np.isnan(found.scalars["pair.a-no.1_shot.ranks"])
    cross = found.arrays["cross_shot_ranks"]
    assert cross.labels("shots") == ["0-1"] and cross.values[0, 0] == pytest.approx(1)
    assert cross.values[1, 0] == pytest.approx(spearman([3, 4, 2, 1, 0, 5], [5, 4, 2, 1, 0, 3]))
    assert found.scalars["cross_shot.ranks.0-1.mean"] == pytest.approx(cross.values[:2, 0].mean())
    # The aggregate is the plain mean of a and b: for 1 shot [4.5, 3.5, 2, 1, 0, 4].
    expected = spearman([4, 3, 2, 1, 0, 5], [4.5, 3.5, 2, 1, 0, 4])
    assert array.values[1, 0, 3] == pytest.approx(expected)


def run_of(folder: Path, score: Any) -> str:
    folder.mkdir()
    axes: dict[str, Any] = {"layer": 3, "head": 2}
    results.save(folder, Result({}, {"score": NamedArray(np.array(score, dtype=float), axes)}))
    return str(folder)


def test_capacity_from_runs_needs_no_model(tmp_path: Path) -> None:
    prefix = run_of(tmp_path / "prefix", [[0, 0], [0, 0], [0, 1]])  # all of it in the last head
    copying = run_of(tmp_path / "copying", np.ones((3, 2)))
    spec = CapacityRetained(
        scores=written(tmp_path), prefix_scores=prefix, copying_scores=copying, held_out=["held"]
    )
    found = capacity_retained.run(None, None, None, None, spec)
    assert found.arrays["retained"].axes["score"] == ["prefix_matching", "copying"]
    np.testing.assert_allclose(found.arrays["percent"].values, 100 * np.arange(6) / 6)
    # With 0 shots the last head is the most important one of all; with 1 shot one of two of its worth.
    np.testing.assert_allclose(found.arrays["retained"].values[0, 0], 100)
    np.testing.assert_allclose(found.arrays["retained"].values[0, 1], [100, 100, 100, 100, 100, 0])
    np.testing.assert_allclose(found.arrays["retained"].values[1], [100 * np.arange(6, 0, -1) / 6] * 2)
    assert found.scalars["copying.0_shot.bend"] == pytest.approx(0, abs=1e-9)
    assert found.scalars["copying.0_shot.early"] == pytest.approx(1)
    assert found.scalars["prefix_matching.1_shot.area"] == pytest.approx(500 / 6)
    other = run_of(tmp_path / "other", np.ones((3, 2)))
    with pytest.raises(UserError, match="scores of one model"):
        path = written(tmp_path, {"a": [[1, 2, 3]]})
        spec = CapacityRetained(scores=path, prefix_scores=other, copying_scores=other)
        capacity_retained.run(None, None, None, None, spec)


def texts() -> ScoredTexts:
    rng = np.random.RandomState(0)

    def example() -> Example:
        return Example(tuple(rng.randint(2, 60, 6).tolist()), tuple(rng.randint(2, 60, 2).tolist()))

    sets = [
        TaskSet(name, shot, tuple(example() for _ in range(3)), (), held_out=name == "held")
        for shot in (0, 1)
        for name in ("a", "b", "held")
    ]
    return ScoredTexts(tuple(sets), "test", "", "test")


def test_computed_here_or_read_from_a_run_is_the_same(tmp_path: Path) -> None:
    model, data = tiny("opt"), texts()
    here = importance_overlap.run(model, data, None, None, ImportanceOverlap())
    saved = head_importance.run(model, data, None, None, HeadImportance())
    (tmp_path / "run").mkdir()
    results.save(tmp_path / "run", saved)
    read = importance_overlap.run(None, None, None, None, ImportanceOverlap(scores=str(tmp_path / "run")))
    assert here.scalars["tasks"] == 2, "what the data hold out counts in no mean"
    assert here.scalars == read.scalars and here.arrays.keys() == read.arrays.keys()
    for name, array in here.arrays.items():
        np.testing.assert_array_equal(array.values, read.arrays[name].values)


def test_capacity_computed_here_has_the_scores_of_the_two_analyses() -> None:
    model, data = tiny("opt"), texts()
    spec: Any = Analysis.choose(
        {
            "kind": "capacity_retained",
            "induction_sequences": {"kind": "induction_sequences", "count": 3, "first": 2},
        },
        "analysis",
    )
    model.tokenizer = None
    found = capacity_retained.run(model, data, None, None, spec)
    scores = found.arrays["prefix_matching"].values.reshape(-1)
    importance = head_importance.run(model, data, None, None, HeadImportance()).arrays["shot_score"].values
    np.testing.assert_allclose(
        found.arrays["retained"].values[0, 1], retained(scores, importance[1].reshape(-1))
    )


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        Analysis.choose({"kind": "importance_overlap", "scores": str(tmp_path / "no")}, "analysis")
    with pytest.raises(UserError, match="this run has no task_score"):
        run = run_of(tmp_path / "run", np.ones((3, 2)))
        importance_overlap.run(None, None, None, None, ImportanceOverlap(scores=run))
    for tables, said in (({"a": [1, 2]}, "expected tables"), ({}, "not empty"), ([1], 'expected {"task"')):
        with pytest.raises(UserError, match=said):
            spec = ImportanceOverlap(scores=written(tmp_path, tables))
            importance_overlap.run(None, None, None, None, spec)
    with pytest.raises(UserError, match="no task was measured with all of 0, 1 demonstrations"):
        spec = ImportanceOverlap(scores=written(tmp_path, {"a": [[1, 2]], "b.1shot": [[1, 2]]}))
        importance_overlap.run(None, None, None, None, spec)
    with pytest.raises(UserError, match="needs tasks"):
        importance_overlap.run(tiny("opt"), SimpleNamespace(), None, None, ImportanceOverlap())
