"""Plans: what changes their name, what does not, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from repro.data.specs import Data, FeaturesFile, Gaussian
from repro.errors import UserError
from repro.training.plans import CONDITION, Plan, plans
from tests.training.small_runs import DATA, EVALUATE, SEED, config, plan

GRAFT = {"kind": "graft_in", "till_layer": 0}


def digest(data: Data | None = None, name: str = "", **changes: Any) -> str:
    made = plans({name: config(**changes)}, data or Gaussian(**DATA), Path("store"))
    return made[name].digest()


def reordered(value: Any) -> Any:
    """The same plain values, with the keys of every mapping but `evaluate` in opposite order."""
    if not isinstance(value, dict):
        return value
    return {
        key: inner if key == "evaluate" else reordered(inner) for key, inner in reversed(list(value.items()))
    }


def test_the_order_of_keys_and_the_name_of_a_condition_do_not_matter() -> None:
    plain = digest()
    assert len(plain) == 12 and set(plain) <= set("0123456789abcdef")
    assert digest(name="other") == plain
    shuffled = plans({"": reordered(config())}, Gaussian(**DATA), Path("elsewhere"))[""]
    assert shuffled.digest() == plain


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": {**SEED, "init": 6}},
        {"seed": {**SEED, "train": 7}},
        {"sequences": {"evaluate": dict(reversed(EVALUATE.items()))}},
        {"sequences": {"labels": 10}},
        {"training": {"learning_rate": 1e-4}},
        {"training": {"checkpoint_every": 40}},
        {"manipulations": [{"kind": "ablate_heads", "heads": ["1:0"]}]},
        {"model": {"kind": "icl_transformer", "width": 16, "heads": 4}},
    ],
    ids=str,
)
def test_whatever_can_change_a_number_changes_the_name(changes: dict[str, Any]) -> None:
    assert digest(**changes) != digest()


def test_manipulations_that_mean_the_same_share_a_name() -> None:
    one = [
        {"kind": "ablate_heads", "heads": ["1:0", "0:1"]},
        {"kind": "previous_token_heads", "heads": ["0:0"]},
    ]
    other = [
        {"kind": "previous_token_heads", "heads": ["L0H0"]},
        {"kind": "ablate_heads", "heads": [[0, 1], [1, 0]]},
    ]
    assert digest(manipulations=one) == digest(manipulations=other)


def test_features_count_by_content_not_by_path(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((60, 5, 4)).astype(np.float32)
    names = []
    for file, content in (("a.h5", values), ("b.h5", values), ("c.h5", values + 1)):
        with h5py.File(tmp_path / file, "w", track_order=False) as stored:
            stored.create_dataset("resnet18/224/feat", data=content, track_times=False)
        names.append(digest(FeaturesFile(path=str(tmp_path / file))))
    assert names[0] == names[1] != names[2]


def test_a_plan_survives_its_text(tmp_path: Path) -> None:
    manipulations = [
        {**GRAFT, "run": str(tmp_path / "0123456789ab"), "checkpoint": 64},
        {"kind": "ablate_heads", "heads": ["1:0"]},
    ]
    made = plan(tmp_path, manipulations=manipulations)
    again = Plan.from_json(made.to_json())
    assert again == made and again.digest() == made.digest()


def test_equal_seeds_are_refused_with_a_seed_that_is_free() -> None:
    with pytest.raises(UserError, match=r"must differ.*seed\.init=4"):
        digest(seed={"init": 3, "train": 3, "eval": 1})


def grafted(run: str) -> dict[str, Any]:
    return config(manipulations=[{**GRAFT, "run": CONDITION + run}])


def test_conditions_come_after_those_they_take_layers_from(tmp_path: Path) -> None:
    conditions = {"c": grafted("b"), "b": grafted("a"), "a": config()}
    made = plans(conditions, Gaussian(**DATA), tmp_path)
    assert list(made) == ["a", "b", "c"]
    assert made["c"].needs == ("b",) and made["a"].needs == ()
    (graft,) = made["b"].manipulations
    assert graft.model_dump()["run"] == str(tmp_path / made["a"].digest())
    moved = plans(conditions, Gaussian(**DATA), tmp_path / "moved")
    assert moved["c"].digest() == made["c"].digest()
    other = plans({**conditions, "a": config(seed={**SEED, "init": 8})}, Gaussian(**DATA), tmp_path)
    assert other["c"].digest() != made["c"].digest(), "what a graft is made of counts"


@pytest.mark.parametrize(
    ("conditions", "named"),
    [
        ({"a": grafted("b"), "b": grafted("a"), "free": config()}, "a, b take layers from a, b"),
        ({"a": grafted("a")}, "a take layers from a"),
        ({"a": grafted("missing"), "free": config()}, "a take layers from missing.*Valid: a, free"),
    ],
)
def test_circles_and_unknown_conditions_are_refused(conditions: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        plans(conditions, Gaussian(**DATA), Path("store"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"kind": "none"}}, r"conditions\.x\.model\.kind: only icl_transformer"),
        ({"training": {"sequences": 1}}, r"at least one batch of 8"),
        (
            {"manipulations": [{"kind": "ablate_heads", "heads": ["1:2"]}]},
            r"conditions\.x\.manipulations.*1:2",
        ),
        ({"sequences": {"context": 1}}, r"conditions\.x\..*burstiness|burstiness"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_mistakes_name_their_condition(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        digest(name="x", **changes)
