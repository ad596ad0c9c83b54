"""Pruning curves against whole passes with the paper's schedule, from rankings of every source."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repro import results
from repro.analyses import ffn_importance, head_importance, masked_scores, pruning
from repro.analyses.importance_specs import FfnImportance, HeadImportance, Pruning
from repro.data.scored_texts import Question, TaskSet
from repro.errors import UserError
from repro.interventions.masks import Mask
from repro.models.language_model import LanguageModel
from tests.analyses.scale_cases import task, texts, two_tasks
from tests.analyses.splitting import assert_split_equals_whole
from tests.analyses.test_ffn_importance import accuracy_by_hand
from tests.models.tiny_models import tiny


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny("opt", "sdpa", torch.float64)


def file_with(path: Path, **tables: Any) -> str:
    path.write_text(json.dumps({name: np.asarray(table).tolist() for name, table in tables.items()}))
    return str(path)


def test_a_ranking_from_a_file_removes_the_least_important_first(
    model: LanguageModel, tmp_path: Path
) -> None:
    score = np.arange(12.0)[::-1].reshape(3, 4)
    score[0, 0] = score[2, 3] = 0.0  # a tie: the one that stands first goes first
    spec = Pruning(head_percents=[0, 9, 25, 90], ranking=file_with(tmp_path / "mine.json", score=score))  # type: ignore[arg-type]
    data = two_tasks()
    arrays = pruning.run(model, data, None, None, spec).arrays
    order = [(0, 0), (2, 3), (2, 2), (2, 1), (2, 0), (1, 3), (1, 2), (1, 1), (1, 0), (0, 3), (0, 2), (0, 1)]
    masks = [Mask.of(3, order[:gone]) for gone in (0, 1, 3, 10)]
    expected = np.array([[accuracy_by_hand(model, one, mask) for mask in masks] for one in data.sets])
    assert arrays["removed_heads"].values.tolist() == [0, 1, 3, 10]
    assert list(arrays["accuracy"].axes) == ["level"] and arrays["accuracy"].labels("level") == [0, 9, 25, 90]
    np.testing.assert_allclose(arrays["task_accuracy"].values[:, 0], expected, atol=1e-12)
    np.testing.assert_allclose(arrays["accuracy"].values, expected.mean(0), atol=1e-12)
    assert arrays["task_accuracy"].labels("ranking") == ["mine"]


def test_ffns_and_the_grid_of_both(model: LanguageModel, tmp_path: Path) -> None:
    file = file_with(tmp_path / "mine.json", score=np.arange(12.0).reshape(3, 4), imp=[3.0, -1.0, 2.0])
    data = texts(task("one", 1))
    spec = Pruning(component="ffns", ffn_percents=[0, 34, 67], ranking=[file])
    curve = pruning.run(model, data, None, None, spec).arrays
    masks = [Mask.of(3, (), gone) for gone in ([], [1], [1, 2])]
    expected = [accuracy_by_hand(model, data.sets[0], mask) for mask in masks]
    np.testing.assert_allclose(curve["accuracy"].values, expected, atol=1e-12)
    both = Pruning(component="both", head_percents=[0, 50], ffn_percents=[0, 34, 67], ranking=[file])
    grid = pruning.run(model, data, None, None, both)
    found = grid.arrays["accuracy"]
    assert list(found.axes) == ["head_percent", "ffn_percent"] and found.values.shape == (2, 3)
    np.testing.assert_allclose(found.values[0], expected, atol=1e-12)
    half = [(0, head) for head in range(4)] + [(1, 0), (1, 1)]
    expected = [accuracy_by_hand(model, data.sets[0], Mask.of(3, half, gone)) for gone in ([], [1], [1, 2])]
    np.testing.assert_allclose(found.values[1], expected, atol=1e-12)
    assert grid.scalars["accuracy.h50.f67"] == pytest.approx(found.values[1, 2])
    assert grid.scalars["drop.h50.f67"] == pytest.approx(100 * (found.values[0, 0] - found.values[1, 2]))


def test_rankings_of_the_task_itself_of_others_and_of_their_mean(model: LanguageModel) -> None:
    data = texts(task("one", 1), task("two", 2), task("three", 3), task("one", 4, shot=5))
    scores = head_importance.run(model, data, None, None, HeadImportance()).arrays["task_score"]
    worth = ffn_importance.run(model, data, None, None, FfnImportance()).arrays["task_imp"]
    sources = ["own", "aggregate", "task:two", "shot:0", "aggregate:5", "random", "random:7"]
    small: dict[str, Any] = {
        "head_percents": [50],
        "ffn_percents": [50],
        "ranking": sources,
        "held_out": ["two"],
    }
    heads = pruning.run(model, data, None, None, Pruning(evaluate=["one"], **small)).arrays["head_score"]
    ffns = pruning.run(model, data, None, None, Pruning(component="ffns", **small)).arrays["ffn_imp"]
    assert heads.labels("task") == ["one", "one.5shot"]
    for found, known in ((heads, scores), (ffns, worth)):
        one, two, three, five = known.values
        for label, own, mean in (("one", one, (one + three) / 2), ("one.5shot", five, five)):
            of = found.select(task=label)
            expected = {"own": own, "aggregate": mean, "task:two": two, "shot:0": one, "aggregate:5": five}
            for source, table in expected.items():
                np.testing.assert_allclose(of.select(ranking=source).values, table, rtol=1e-9, atol=1e-12)
    random, again = (heads.select(ranking=name, task="one").values for name in ("random", "random:7"))
    assert sorted(random.reshape(-1)) == list(range(12)) and not np.array_equal(random, again)


def test_partners_are_those_whose_scores_agree_most_and_least(tmp_path: Path) -> None:
    up = np.arange(12.0).reshape(3, 4)
    near, far = up.copy(), -up
    near[0, :2] = near[0, 1::-1]
    tables = {"one": up, "two": far, "three": near}
    (tmp_path / "all.json").write_text(json.dumps({name: table.tolist() for name, table in tables.items()}))
    data = texts(*(task(name, seed) for seed, name in enumerate(tables)))
    spec = Pruning(
        head_scores=str(tmp_path / "all.json"), ranking=["highest", "lowest"], evaluate=["one"],
        head_percents=[50],
    )  # fmt: skip
    found = pruning.run(tiny("opt"), data, None, None, spec).arrays["head_score"].values[:, 0]
    np.testing.assert_array_equal(found, np.stack([near, far]))
    given = spec.model_copy(update={"partners": {"one": ["two", "three"]}})
    found = pruning.run(tiny("opt"), data, None, None, given).arrays["head_score"].values[:, 0]
    np.testing.assert_array_equal(found, np.stack([far, near]))


def test_runs_and_npz_files_serve_as_rankings(model: LanguageModel, tmp_path: Path) -> None:
    data = two_tasks()
    results.save(tmp_path, head_importance.run(model, data, None, None, HeadImportance()))
    own = Pruning(head_percents=[50])
    computed = pruning.run(model, data, None, None, own).arrays
    taken = pruning.run(model, data, None, None, own.model_copy(update={"head_scores": str(tmp_path)})).arrays
    np.testing.assert_allclose(taken["head_score"].values, computed["head_score"].values, rtol=1e-9)
    mean = pruning.run(model, data, None, None, Pruning(head_percents=[50], ranking=[str(tmp_path)])).arrays
    np.testing.assert_allclose(
        mean["head_score"].values[0], np.stack([taken["head_score"].values[0].mean(0)] * 2), rtol=1e-12
    )
    np.savez(tmp_path / "flat.npz", score=np.arange(12.0))
    flat = pruning.run(
        model, data, None, None, Pruning(head_percents=[50], ranking=[str(tmp_path / "flat.npz")])
    ).arrays
    np.testing.assert_array_equal(flat["head_score"].values[0, 0], np.arange(12.0).reshape(3, 4))
    assert (
        Pruning(ranking=[str(tmp_path)]).fingerprint()
        == Pruning(ranking=[str(tmp_path / "arrays.npz")]).fingerprint()
    )


def test_a_head_that_decides_is_pruned_last_and_accuracy_falls_with_it() -> None:
    """Head 1.2 alone writes the direction of the right token; all others write nothing."""
    model = tiny("opt", "sdpa", torch.float64)
    with torch.no_grad():
        for layer in model.layers:
            for parameter in (*layer.out.parameters(), *layer.down.parameters()):
                parameter.zero_()
        decides = model.layers[1]
        value: Any = decides.attention.v_proj
        value.weight.zero_()
        value.bias.fill_(1.0)  # whatever it attends to
        written: Any = decides.out.weight
        written.view(24, 4, 6)[:, 2] = 100 * model.unembedding[7][:, None]
    asked = tuple(Question(((5, 6, number),), ((8,), (7,)), (1,)) for number in range(2, 6))
    one = task("decided", 1)
    data = texts(TaskSet("decided", 0, one.examples, asked))
    spec = Pruning(head_percents=[0, 50, 91, 92, 100])
    accuracy = pruning.run(model, data, None, None, spec).arrays["accuracy"].values
    unaided = accuracy_by_hand(model, data.sets[0], Mask.of(3, [(1, 2)]))
    assert unaided < 1 and accuracy.tolist() == [1, 1, 1, 1, unaided]  # 92 % of 12 are 11


def test_passes_and_shards_do_not_matter(model: LanguageModel, tmp_path: Path) -> None:
    data = two_tasks()
    spec = Pruning(
        head_percents=[0, 40], ffn_percents=[0, 34], component="both", ranking=["own", "aggregate"]
    )
    small = spec.model_copy(update={"tokens": 1, "chunk": 2})
    one, many = (pruning.run(model, data, None, None, each).arrays for each in (small, spec))
    np.testing.assert_allclose(one["loglik"].values, many["loglik"].values, rtol=0, atol=1e-10)
    assert small.fingerprint() == spec.fingerprint()
    assert_split_equals_whole(pruning, model, data, small, 15, tmp_path, (4,))


def test_what_is_known_is_not_computed_again(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = masked_scores.evaluate

    def counted(model, questions, masks, columns, tokens):
        seen.append(len(masks))
        return real(model, questions, masks, columns, tokens)

    monkeypatch.setattr(masked_scores, "evaluate", counted)
    data, cells = texts(task("one", 1)), str(tmp_path / "cells")
    ffn_importance.run(model, data, None, None, FfnImportance(cells=cells))
    pruning.run(model, data, None, None, Pruning(component="ffns", ffn_percents=[0, 34, 67], cells=cells))
    assert seen == [4, 1]  # of the curve only the cell with two FFNs is new
    pruning.run(model, data, None, None, Pruning(head_percents=[0, 50], cells=cells))
    assert seen == [4, 1, 1]
    monkeypatch.setattr(pruning, "scores_of", None)  # scores of heads are kept, too
    pruning.run(model, data, None, None, Pruning(head_percents=[0, 50, 75], cells=cells))
    assert seen == [4, 1, 1, 1]


def test_knees_of_single_and_joint_removal() -> None:
    spec = Pruning(component="both", head_percents=[0, 10, 20, 30], ffn_percents=[0, 10, 20])
    table = np.array([[0.9, 0.9, 0.6], [0.9, 0.87, 0.5], [0.86, 0.8, 0.4], [0.7, 0.6, 0.3]])
    # Alone 20 % of heads and 10 % of FFNs; together 10 % and 10 %, or 20 % and none.
    assert pruning.knees(table, spec) == {"knee.heads": 20, "knee.ffns": 10, "knee.moved": 10}
    assert pruning.knees(np.minimum(table[:, :1], table[:1]), spec)["knee.moved"] == 0


def test_scalars_of_tasks_that_are_reported_are_there(model: LanguageModel) -> None:
    spec = Pruning(head_percents=[0, 50], ranking=["random"], report=["one", "copa"])
    scalars = pruning.run(model, texts(task("one", 1)), None, None, spec).scalars
    assert np.isnan(scalars["copa.accuracy.h50.f0"]) and np.isnan(scalars["copa.drop.h0.f0"])
    assert scalars["one.accuracy.h50.f0"] == scalars["0_shot.accuracy.h50.f0"] == scalars["accuracy.h50.f0"]
    assert scalars["one.drop.h0.f0"] == 0


@pytest.mark.parametrize(
    ("tables", "component", "says"),
    [
        ({"score": np.zeros((3, 5))}, "heads", r"expected one score.*shape \[3, 4\].*got \[3, 5\]"),
        ({"imp": np.zeros(3)}, "heads", r"has no 'score'. It has: imp"),
        ({"imp": np.zeros(4)}, "ffns", r"shape \[3\] \(\[layer\]\); got \[4\]"),
        ({"score": np.full((3, 4), np.nan)}, "heads", "12 scores are NaN"),
    ],
)
def test_rankings_that_do_not_fit_are_refused(
    tmp_path: Path, tables: dict[str, Any], component: Any, says: str
) -> None:
    path = tmp_path / "ranking.npz"
    np.savez(path, **tables)
    with pytest.raises(UserError, match=says):
        pruning.run(tiny("opt"), two_tasks(), None, None, Pruning(component=component, ranking=[str(path)]))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"ranking": ["mean"]}, "mean is neither a file nor one of own, shot"),
        ({"ranking": ["shot:x"]}, "a number is needed after shot"),
        ({"ranking": ["task:three"]}, "no task three. There are: one, two"),
        ({"evaluate": ["three"]}, "analysis.evaluate: no task three. There are: one, two"),
        ({"held_out": ["one", "two"], "ranking": ["aggregate"]}, "no task with 0 demonstrations"),
    ],
)
def test_sources_that_are_not_there_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        pruning.run(tiny("opt"), two_tasks(), None, None, Pruning(**values))


def test_settings_that_contradict_are_refused() -> None:
    for values, says in (
        ({"head_percents": [0, 0]}, "twice"),
        ({"ranking": ["own", "own"]}, "twice"),
        ({"ffn_ranking": ["own", "aggregate"]}, "one for each ranking"),
        ({"head_percents": [101]}, "100"),
    ):
        with pytest.raises(UserError, match=says):
            Pruning.parse(values, "analysis")


def test_a_task_without_examples_has_no_own_ranking() -> None:
    data = texts(replace(task("one", 1), examples=()))
    with pytest.raises(UserError, match="one has no training split"):
        pruning.run(tiny("opt"), data, None, None, Pruning())
    with pytest.raises(UserError, match="normalises after each sublayer"):
        pruning.run(tiny("opt_post_norm"), two_tasks(), None, None, Pruning(component="ffns"))
