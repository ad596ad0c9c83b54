"""Scores of heads from sums over examples, whatever the batches, shards and interruptions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from repro.analyses import head_importance
from repro.analyses import partial as partial_module
from repro.analyses.importance_specs import HeadImportance
from repro.data.scored_texts import Example, TaskSet
from repro.errors import UserError
from repro.interventions.head_importance import Fitted, How, importance
from tests.analyses.scale_cases import task, texts, two_tasks
from tests.analyses.splitting import assert_split_equals_whole
from tests.models.tiny_models import tiny

SPEC = HeadImportance()


@pytest.fixture(scope="module")
def model():
    return tiny("opt", "sdpa", torch.float64)


def test_scores_are_sums_over_examples_with_the_divisors_of_the_release(model) -> None:
    data = two_tasks()
    found = head_importance.run(model, data, None, None, SPEC)
    sums, inputs, targets = [], [], []
    for one in data.sets:
        fits = [Fitted.of(example, 32) for example in one.examples]
        sums.append(torch.cat([importance(model, [fit], How()) for fit in fits]).numpy())
        inputs.append(sum(len(example.tokens) - 1 for example in one.examples))
        targets.append(sum(len(example.continuation) for example in one.examples))
    each = found.arrays["per_example"]
    assert list(each.axes) == ["example", "layer", "head"]
    np.testing.assert_allclose(each.values, np.concatenate(sums), rtol=1e-9)
    by_task = found.arrays["task_score"]
    assert by_task.labels("task") == ["one", "two"]
    for place in range(2):
        total = sums[place].sum(0)
        np.testing.assert_allclose(by_task.values[place, :2], total[:2] / inputs[place], rtol=1e-9)
        np.testing.assert_allclose(by_task.values[place, 2], total[2] / targets[place], rtol=1e-9)
    score = found.arrays["score"]
    assert list(score.axes) == ["layer", "head"]
    np.testing.assert_allclose(score.values, by_task.values.mean(0), rtol=1e-12)
    alike = head_importance.run(model, data, None, None, HeadImportance(last_layer_divisor="inputs"))
    np.testing.assert_allclose(
        alike.arrays["task_score"].values[:, 2] / by_task.values[:, 2],
        (np.array(targets) / np.array(inputs))[:, None] * np.ones(4), rtol=1e-12,
    )  # fmt: skip
    without = head_importance.run(model, data, None, None, HeadImportance(held_out=["two"]))
    np.testing.assert_array_equal(without.arrays["score"].values, by_task.values[0])


def test_the_mean_of_one_shot_count_is_of_its_tasks(model) -> None:
    data = texts(task("one", 1), task("two", 2), task("one", 3, shot=5))
    found = head_importance.run(model, data, None, None, SPEC).arrays
    assert found["task_score"].labels("task") == ["one", "two", "one.5shot"]
    by_task, by_shot = found["task_score"].values, found["shot_score"]
    assert by_shot.labels("shot") == [0, 5]
    np.testing.assert_allclose(by_shot.values, np.stack([by_task[:2].mean(0), by_task[2]]), rtol=1e-12)


def test_batches_do_not_matter(model) -> None:
    one, many = (
        head_importance.run(model, two_tasks(), None, None, HeadImportance(tokens=tokens)).arrays
        for tokens in (1, 1000)
    )
    for name in ("per_example", "score", "task_score"):
        np.testing.assert_allclose(one[name].values, many[name].values, rtol=1e-10, atol=1e-14)
    assert HeadImportance(tokens=1).fingerprint() == HeadImportance().fingerprint()


def test_the_order_of_examples_does_not_matter(model) -> None:
    one = task("one", 1)
    turned = replace(one, examples=one.examples[::-1])
    found = [head_importance.run(model, texts(some), None, None, SPEC).arrays for some in (one, turned)]
    np.testing.assert_allclose(found[0]["score"].values, found[1]["score"].values, rtol=1e-12)
    np.testing.assert_allclose(
        found[0]["per_example"].values, found[1]["per_example"].values[::-1], rtol=1e-10
    )


def test_parts_are_the_whole(model, tmp_path: Path) -> None:
    spec = HeadImportance(tokens=40)
    assert_split_equals_whole(head_importance, model, two_tasks(), spec, 11, tmp_path, (2, 4, 11))


def test_an_interrupted_run_goes_on(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, data = HeadImportance(tokens=1), two_tasks()
    whole = head_importance.run(model, data, None, None, spec)
    calls = []

    def failing(model, some, how):
        calls.append(len(some))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return importance(model, some, how)

    monkeypatch.setattr(head_importance, "importance", failing)
    monkeypatch.setattr(partial_module, "SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        head_importance.run(model, data, None, tmp_path, spec)
    pieces = sorted((tmp_path / "partial" / "head_importance").glob("*.npz"))
    assert pieces
    again = head_importance.run(model, data, None, tmp_path, spec)
    assert len(calls) == 6 + 11 - 5
    np.testing.assert_array_equal(again.arrays["per_example"].values, whole.arrays["per_example"].values)
    assert not (tmp_path / "partial" / "head_importance").exists()


def test_a_damaged_piece_is_computed_again(tmp_path: Path) -> None:
    first = partial_module.Partial(tmp_path, "x", seconds=0)
    first.add([3, 1], np.array([[1.0], [2.0]]))
    first.add([2], np.array([[5.0]]))
    assert {at: float(value[0]) for at, value in partial_module.Partial(tmp_path, "x").values.items()} == {
        3: 1.0, 1: 2.0, 2: 5.0,
    }  # fmt: skip
    broken = sorted((tmp_path / "partial" / "x").glob("*.npz"))[0]
    broken.write_bytes(broken.read_bytes()[:40])
    assert len(partial_module.Partial(tmp_path, "x").values) in (1, 2) and not broken.exists()


def long_task() -> TaskSet:
    one = task("one", 1)
    return replace(one, examples=(*one.examples, Example(tuple(range(2, 40)), (3, 4))))


def test_examples_beyond_the_context_window(model) -> None:
    data = texts(long_task())
    with pytest.raises(
        UserError, match=r"1 of 8 examples of one.*example 7 has 40 tokens, and 33 are possible"
    ):
        head_importance.run(model, data, None, None, SPEC)
    dropped = head_importance.run(model, data, None, None, HeadImportance(overlength="drop"))
    assert dropped.scalars["dropped"] == 1 and len(dropped.arrays["number"].values) == 7
    cut = head_importance.run(model, data, None, None, HeadImportance(overlength="left_truncate"))
    assert cut.scalars["truncated"] == 1 and cut.arrays["cut"].values.tolist() == [0] * 7 + [7]
    short = Example(tuple(range(9, 40)), (3, 4))
    expected = importance(model, [Fitted.of(short, 32)], How()).numpy()[0]
    np.testing.assert_allclose(cut.arrays["per_example"].values[7], expected, rtol=1e-9)
    only = texts(replace(long_task(), examples=long_task().examples[7:]))
    with pytest.raises(UserError, match="all 1 examples of one are longer"):
        head_importance.run(model, only, None, None, HeadImportance(overlength="drop"))


def test_a_task_without_training_split_is_refused(model) -> None:
    data = texts(task("one", 1), replace(task("two", 2), examples=()))
    with pytest.raises(UserError, match="task two has no training split"):
        head_importance.run(model, data, None, None, SPEC)
    with pytest.raises(UserError, match="needs tasks with examples or questions"):
        head_importance.run(model, object(), None, None, SPEC)


def test_share_of_the_top_heads_in_the_middle() -> None:
    score = np.zeros((8, 10))
    score[2, :4], score[7, :4] = 2.0, 3.0
    assert head_importance.middle_share(score) == 0.5
