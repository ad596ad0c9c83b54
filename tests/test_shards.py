"""Analyses in parts: what belongs to which, how they are put together, and how the walk treats them."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from repro import config, pipeline, results
from repro.analyses.specs import Analysis
from repro.config import Config
from repro.errors import UserError
from repro.results import NamedArray, Result, read_json
from repro.run_directory import RunDirectory, find_runs
from repro.shards import WHOLE, Part, add, finished, join, shard_configs
from tests import split_sums

ROOT = Path(__file__).resolve().parent.parent
FILES = ("scalars.json", "arrays.npz", "arrays.json", "notes.json")


@pytest.fixture
def sums(project: Path):
    """The config of a run with so many shards, in a project whose papers have the analysis of squares."""
    (project / "conf" / "analysis" / "split_sums.yaml").write_text("kind: split_sums\n")
    split_sums.asked.clear()
    split_sums.fails_at.clear()

    def compose(shards: int = 1, *more: str) -> Config:
        words = ["paper/invented=first", "analysis=split_sums", f"shards={shards}", *more]
        return config.compose(words, project)

    return compose


def prepared(asked: Config) -> Config:
    """With config.json, as a dispatcher leaves it."""
    asked.directory.mkdir(parents=True, exist_ok=True)
    (asked.directory / config.CONFIG_JSON).write_text(asked.to_json())
    return asked


# who gets what


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("length", [8, 9, 23, 64])
def test_parts_are_neighbours_balanced_and_everything(count: int, length: int) -> None:
    items = [f"item {i}" for i in range(length)]
    parts = [Part(index, count).of(items) for index in range(count)]
    assert [one for part in parts for one in part] == items
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


def test_fewer_items_than_parts_are_refused_but_not_of_the_whole() -> None:
    with pytest.raises(UserError, match="got 4, and there are only 3 items.*shards=3 or less"):
        Part(0, 4).of("abc")
    assert WHOLE.of([]) == []
    with pytest.raises(ValueError, match="index 3, count 3"):
        Part(3, 3)


# together again


def result(labels: list, values: list, extra: float = 0.5, **others: NamedArray) -> Result:
    arrays = {
        "by_head": NamedArray(np.array([values, values]), {"layer": 2, "head": labels}, "nat"),
        "common": NamedArray(np.array([extra, np.nan]), {"layer": 2}),
    }
    return Result({"loss": 1.25, "never": float("inf")}, arrays | others, {"model": "m"})


def test_join_puts_labels_and_values_one_after_the_other() -> None:
    joined = join([result(["a", "b"], [1, 2]), result(["c"], [3])], "head")
    assert joined.arrays["by_head"].axes == {"layer": 2, "head": ["a", "b", "c"]}
    np.testing.assert_array_equal(joined.arrays["by_head"].values, [[1, 2, 3], [1, 2, 3]])
    assert joined.arrays["by_head"].unit == "nat"
    np.testing.assert_array_equal(joined.arrays["common"].values, [0.5, np.nan])
    assert joined.scalars == {"loss": 1.25, "never": float("inf")} and joined.notes == {"model": "m"}


def test_join_adds_lengths_where_there_are_no_labels() -> None:
    parts = [Result({}, {"x": NamedArray(np.arange(n), {"prompt": n})}) for n in (2, 3)]
    assert join(parts, "prompt").arrays["x"].axes == {"prompt": 5}


def test_add_sums_exactly_what_is_exact() -> None:
    terms = [Result({}, {"n": NamedArray(np.array([i, 2**53]), {"k": 2})}) for i in (1, 2, 4)]
    np.testing.assert_array_equal(add(terms, ["n"]).arrays["n"].values, [7, 3 * 2**53])
    # Halves and quarters have sums without rounding in any order.
    terms = [Result({}, {"x": NamedArray(np.array(value), {})}) for value in (0.5, 0.25, 0.125)]
    assert add(terms, ["x"]).arrays["x"].values == add(terms[::-1], ["x"]).arrays["x"].values == 0.875


def test_sums_differ_by_rounding_alone() -> None:
    values = np.random.default_rng(0).standard_normal(1000)
    together = {}
    for count in (1, 3, 8):
        parts = [Part(index, count).of(list(values)) for index in range(count)]
        terms = [Result({}, {"x": NamedArray(np.asarray(np.sum(part)), {})}) for part in parts]
        together[count] = float(add(terms, ["x"]).arrays["x"].values)
    bound = np.abs(values).sum() * 2.2e-16
    assert abs(together[3] - together[1]) <= 3 * bound and abs(together[8] - together[1]) <= 8 * bound


def test_sums_of_short_floats_are_refused() -> None:
    short = Result({}, {"x": NamedArray(np.ones(2, np.float32), {"k": 2})})
    with pytest.raises(ValueError, match="float64, got float32"):
        add([short, short], ["x"])


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (result(["c"], [3], extra=0.6), "common"),
        (replace(result(["c"], [3]), scalars={"loss": 1.3, "never": float("inf")}), "loss"),
        (replace(result(["c"], [3]), scalars={"loss": 1.25, "never": 3.0}), "never"),
        (replace(result(["c"], [3]), notes={"model": "other"}), "model"),
        (replace(result(["c"], [3]), arrays={}), r"which arrays there are \(by_head, common\)"),
        (result(["c"], [3], by_head=NamedArray(np.ones(1), {"head": 1})), "the axes of by_head"),
    ],
)
def test_parts_of_different_things_are_not_put_together(other: Result, says: str) -> None:
    with pytest.raises(UserError, match=f"shards 0 and 1 disagree in {says}.*rerun=true"):
        join([result(["a", "b"], [1, 2]), other], "head")


def test_what_is_common_may_differ_by_the_rounding_of_another_machine() -> None:
    joined = join([result(["a"], [1]), result(["b"], [2], extra=0.5 * (1 + 1e-6))], "head")
    assert joined.arrays["common"].values[0] == 0.5


# what is asked for


def test_shards_are_no_part_of_the_hash(sums) -> None:
    assert sums(3).hash == sums(1).hash and sums(3).directory == sums().directory
    assert sums(3).changed == sums().changed


@pytest.mark.parametrize("shards", ["0", "-1", "2.5", "many", "true"])
def test_shards_must_be_a_positive_integer(sums, shards: str) -> None:
    with pytest.raises(UserError, match="shards: expected an integer of at least 1"):
        sums(shards)


def test_more_shards_than_items_are_refused_when_the_config_is_made(sums) -> None:
    assert sums(7).values["shards"] == 7
    with pytest.raises(
        UserError, match="shards: got 8, and there are only 7 examples. Give shards=7 or less"
    ):
        sums(8)


def test_an_analysis_that_cannot_be_split_is_refused(project: Path) -> None:
    able = r"copy_specificity \(over .*\), head_roles \(over ablations\), .*pooled_heads \(over pools\)"
    with pytest.raises(UserError, match=f"toy_factors cannot be split. These can: .*{able}"):
        config.compose(["paper/invented=first", "shards=2"], project)


def test_items_follow_from_schedule_model_and_condition() -> None:
    """101 asked for of more; 8 heads in each of two layers; 5 asked for of 11."""
    for words, items in (("formation", 101), ("wiring", 2 * (8 + 2 * 64)), ("smoke", 5)):
        paper = f"paper/induction_heads={words}"
        assert config.compose([paper, f"shards={items}"]).values["shards"] == items
        with pytest.raises(UserError, match=f"only {items} "):
            config.compose([paper, f"shards={items + 1}"])


@pytest.mark.parametrize("kind", sorted(Analysis.kinds()))
def test_whatever_says_that_it_splits_has_parts(kind: str) -> None:
    spec = Analysis.kinds()[kind]
    # Read, not imported: some of them load PyTorch, others JAX.
    file = ROOT / f"{spec.module.replace('.', '/')}.py"
    tree = ast.parse(file.read_text() if file.exists() else "")
    names = {"run_part", "merge"} & {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert names == ({"run_part", "merge"} if spec.splits_over else set())


# directories


def test_every_part_has_a_directory_that_is_no_run_of_its_own(sums) -> None:
    asked = sums(3)
    parts = shard_configs(asked)
    assert [part.directory for part in parts] == [asked.directory / "shards" / f"{i}-of-3" for i in range(3)]
    assert {part.hash for part in parts} == {asked.hash} and shard_configs(parts[0]) == []
    assert shard_configs(sums(1)) == []
    assert parts[1].title == f"{asked.title} shard 1-of-3"
    assert config.load(prepared(parts[1]).directory) == parts[1]
    for one in (*parts, asked):
        pipeline.run(prepared(one))
    assert [run.path for run in find_runs(asked.values["runs_dir"])] == [asked.directory]


# the walk


def test_split_in_any_way_and_order_the_files_are_those_of_the_whole(sums, tmp_path: Path) -> None:
    whole = sums(1, f"runs_dir={tmp_path}/whole")
    pipeline.run(whole)
    saved = {name: (whole.directory / name).read_bytes() for name in FILES}
    assert results.load(whole.directory).scalars == {"examples": 7, "largest": 36, "sum": 91}
    for shards in (2, 3, 7):
        asked = sums(shards, f"runs_dir={tmp_path}/{shards}")
        for part in reversed(shard_configs(asked)):
            pipeline.run(prepared(part))
            assert RunDirectory(part.directory).status().state == "done"
            assert not any((part.directory / name).exists() for name in ("figures", "claims.json", "wandb"))
        split_sums.asked.clear()
        pipeline.run(prepared(asked))
        assert split_sums.asked == []
        assert {name: (asked.directory / name).read_bytes() for name in FILES} == saved
        assert (asked.directory / "claims.json").exists() == (whole.directory / "claims.json").exists()


def test_missing_parts_are_computed_by_the_run_itself(sums) -> None:
    asked = sums(3)
    pipeline.run(prepared(shard_configs(asked)[1]))
    assert split_sums.asked == [(2, 3)]
    pipeline.run(prepared(asked))
    assert split_sums.asked == [(2, 3), (0, 1), (4, 5, 6)]
    status = RunDirectory(shard_configs(asked)[2].directory).status()
    assert (status.state, status.step, status.total) == ("done", 3, 3)
    pipeline.run(asked)  # is done
    pipeline.run(prepared(shard_configs(asked)[1]))
    assert len(split_sums.asked) == 3


def test_only_the_failed_part_is_computed_again(sums) -> None:
    asked = sums(3)
    split_sums.fails_at.add(3)
    for part in shard_configs(asked):
        if part.part == (1, 3):
            with pytest.raises(RuntimeError):
                pipeline.run(prepared(part))
        else:
            pipeline.run(prepared(part))
    failed = RunDirectory(shard_configs(asked)[1].directory).status()
    assert (failed.state, failed.reason) == ("failed", "RuntimeError: cannot square [3]")
    split_sums.fails_at.clear()
    split_sums.asked.clear()
    pipeline.run(prepared(asked))
    assert split_sums.asked == [(2, 3)]
    assert results.load(asked.directory).scalars["sum"] == 91


def _truncate(part: Config) -> None:
    path = part.directory / "arrays.npz"
    path.write_bytes(path.read_bytes()[:-30])


def _flip(part: Config) -> None:
    path = part.directory / "arrays.npz"
    content = bytearray(path.read_bytes())
    content[60:90] = b"\xff" * 30
    path.write_bytes(content)


def _no_scalars(part: Config) -> None:
    (part.directory / "scalars.json").write_text("[]")


def _other(**changes):
    return lambda part: (part.directory / config.CONFIG_JSON).write_text(replace(part, **changes).to_json())


@pytest.mark.parametrize(
    "spoil",
    [_truncate, _flip, _no_scalars, _other(hash="0" * 12), _other(part=(0, 3))],
    ids=["truncated", "flipped", "no scalars", "other hash", "other part"],
)
def test_damaged_and_foreign_parts_are_computed_again(sums, spoil) -> None:
    asked = sums(3)
    parts = shard_configs(asked)
    for part in parts:
        pipeline.run(prepared(part))
    spoil(parts[1])
    assert finished(parts[1]) is None and finished(parts[2]) is not None
    split_sums.asked.clear()
    pipeline.run(prepared(asked))
    assert split_sums.asked == [(2, 3)]
    assert results.load(asked.directory).scalars["sum"] == 91
    saved = read_json(parts[1].directory / config.CONFIG_JSON)
    assert (saved["hash"], saved["part"]) == (asked.hash, [1, 3])


def test_a_part_by_another_commit_is_used(sums) -> None:
    asked = sums(2)
    for part in shard_configs(asked):
        pipeline.run(prepared(part))
        RunDirectory(part.directory).note(commit="another")
    split_sums.asked.clear()
    pipeline.run(prepared(asked))
    assert split_sums.asked == []


def test_rerun_computes_every_part_again_once(sums) -> None:
    """Parts that were computed since it was asked for are not computed once more by the run."""
    asked = sums(2)
    pipeline.run(prepared(asked))
    again = prepared(sums(2, "rerun=true"))
    pipeline.run(prepared(shard_configs(again)[0]))
    assert split_sums.asked == [(0, 1, 2), (3, 4, 5, 6), (0, 1, 2)]
    pipeline.run(again)
    assert split_sums.asked[3:] == [(3, 4, 5, 6)]
    assert results.load(asked.directory).scalars["sum"] == 91
