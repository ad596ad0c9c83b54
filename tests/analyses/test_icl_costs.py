"""Counted passes against what the analyses themselves go through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from repro.analyses import icl_costs, specs
from repro.analyses.icl_costs import Trainee, cost
from repro.analyses.icl_measures import training_sequences
from repro.costs import Cost
from repro.data.features import computed
from repro.data.specs import Sequences
from repro.models.icl_shape import IclShape
from repro.models.specs import IclTransformer
from repro.specs import Spec

PUBLISHED = Sequences(label_pair_split=(8, 2, 0))
MAIN = Trainee(IclShape(IclTransformer(), 512, 5), PUBLISHED, classes=50, checkpoints=1001)


def cases(found: Cost) -> float:
    """Forward passes over every training sequence, but for those that read heads' scores."""
    return sum(work.forwards for work in found.works if work.says != "head scores")


def test_there_are_78400_training_sequences() -> None:
    assert MAIN.every_sequence("all") == 50 * 49 * 16 * 2 == 78_400
    assert MAIN.every_sequence(500) == 500


def test_as_many_sequences_as_the_analyses_enumerate() -> None:
    sequences = Sequences(
        class_split=(6, "rest", 2), exemplar_split=(1, "rest", 0), label_pair_split=(8, 2, 0)
    )
    features = computed(np.zeros((10, 2, 3), np.float32), "test", "gaussian")
    assert len(training_sequences(sequences, features)) == replace(
        MAIN, sequences=sequences, classes=6
    ).every_sequence("all")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        # Full ablation, alone, removed, added, and added without the strongest; one more with layer 0 silent.
        (specs.HeadRoles(), 1 + 8 + 8 + 8 + 7 + 2),
        (specs.HeadRoles(also_without=None), 1 + 8 + 8 + 8 + 2),
        (specs.Wiring(), 2 * (8 + 2 * 64) + 2),
        (specs.CopySpecificity(), 16),
        (specs.IclFormation(), 0),
        (specs.LearningCurves(), 0),
        (
            specs.CircuitSettings(settings={"none": [], "preserved": [{"kind": "preserve", "sites": ["v"]}]}),
            3,
        ),
        (specs.CircuitSettings(settings={"none": []}, checkpoints=101), 101),
        (specs.PooledHeads(pools={"5": specs.Pool(main=""), "6": specs.Pool(main="")}), 16),
    ],
)
def test_passes(spec: specs.Analysis, expected: int) -> None:
    found = cost(spec, {"": MAIN}, None)
    assert found.modelled and cases(found) == expected


def test_scores_of_checkpoints_no_more_than_there_are() -> None:
    found = [cost(specs.IclFormation(checkpoints=count), {"": MAIN}, None) for count in (101, 5000)]
    assert [one.works[0].forwards for one in found] == [101, 1001]


def test_constants_are_those_of_the_analyses() -> None:
    from repro.analyses import icl_measures

    assert icl_costs.WORTH_SHARING == icl_measures.WORTH_SHARING and icl_costs.BATCH == icl_measures.BATCH


def test_an_analysis_may_say_its_own_cost() -> None:
    class Own(Spec):
        kind: str = "own"

        def cost(self, subject: Any, data: Any) -> Cost:
            return Cost(flops=subject + data)

    assert cost(Own(), 1, 2).flops == 3  # type: ignore[arg-type]


def test_an_analysis_without_one_is_not_guessed() -> None:
    class Other(specs.Analysis):
        pass

    assert not cost(Other(), {"": MAIN}, None).modelled
    assert not cost(specs.IclFormation(), {}, None).modelled
    assert not cost(specs.Inspect(run="somewhere"), {}, None).modelled
