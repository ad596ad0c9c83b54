"""Heads alone, removed and added back, in a circuit whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from repro.analyses import head_roles
from repro.analyses.head_roles import run, summary
from repro.analyses.icl_measures import Measured, measure, training_sequences
from repro.analyses.specs import HeadRoles
from repro.errors import UserError
from repro.interventions.specs import AblateHeads
from tests.analyses.small_runs import COUNT, SEQUENCES, circuit_run, features, random_run
from tests.analyses.splitting import assert_split_equals_whole

GUESS = 1 / 3  # of a model that always predicts label 0


@pytest.fixture(scope="module")
def result():
    return run({"": circuit_run()}, features(), None, None, HeadRoles())


def test_a_circuit_of_one_head(result):
    arrays = {name: array.values for name, array in result.arrays.items()}
    np.testing.assert_allclose(arrays["strength"], [1, 0], atol=1e-5)
    np.testing.assert_allclose(arrays["previous_token"], [1, 0.375], atol=1e-5)
    np.testing.assert_allclose(arrays["only_accuracy"], [1, GUESS])
    np.testing.assert_allclose(arrays["removed_accuracy"], [GUESS, 1])
    np.testing.assert_array_equal(arrays["order"], [0, 1])
    np.testing.assert_allclose(arrays["added_accuracy"], [1, 1])
    np.testing.assert_array_equal(arrays["without_order"], [1])
    np.testing.assert_allclose(arrays["without_accuracy"], [GUESS])
    assert arrays["without_loss"][0] == pytest.approx(np.log(3), abs=1e-3)
    assert np.isnan(arrays["mended_share"]).all()  # the strongest makes no mistake
    assert result.arrays["strength"].labels("head") == ["1:0", "1:1"]
    assert result.arrays["previous_token"].labels("head") == ["0:0", "0:1"]
    assert result.arrays["added_loss"].labels("count") == [1, 2]


def test_scalars_of_a_circuit_of_one_head(result):
    scalars = result.scalars
    assert scalars["full.accuracy"] == scalars["no_first_layer_output.accuracy"] == 1
    assert scalars["layer_ablated.accuracy"] == scalars["min_removed_accuracy"] == pytest.approx(GUESS)
    assert (scalars["strongest"], scalars["min_removed_head"], scalars["strength.heads_above_0_4"]) == (
        0,
        0,
        1,
    )
    assert scalars["spearman_strength_only_accuracy"] == pytest.approx(1)
    assert result.notes == {"order": "1:0, 1:1", "strongest": "1:0"}


def test_heads_that_copy_different_labels_mend_each_other():
    """The strongest head misses label 2, a third of the sequences; the other sees it in its even pattern."""
    subject = {"": circuit_run(copies=((0, 1), (2,)))}
    arrays = run(subject, features(), None, None, HeadRoles()).arrays
    assert arrays["only_accuracy"].values[0] == pytest.approx(2 / 3)
    np.testing.assert_array_equal(arrays["mended_share"].values, [np.nan, 1])


def test_equals_ablations_one_by_one():
    subject, sequences = random_run(), training_sequences(SEQUENCES, features())
    result = run({"x": subject}, features(), None, None, HeadRoles(condition="x", layer=0, order=["0:1"]))
    expected = measure(subject, [AblateHeads(heads=["0:0"])], sequences)(subject.model())
    for name in ("only_loss", "added_loss", "removed_loss"):
        values = result.arrays[name].values
        assert (values[0] if name != "only_loss" else values[1]) == pytest.approx(
            expected.mean_loss, rel=1e-5
        )
    assert len(result.arrays["only_loss"].values) == 2 and len(result.arrays["added_loss"].values) == 1
    assert len(expected.loss) == COUNT


def test_manipulations_of_the_training_are_not_used():
    subject = circuit_run()
    subject.manipulations = (AblateHeads(heads=["1:0"]),)
    assert run({"": subject}, features(), None, None, HeadRoles()).scalars["full.accuracy"] == 1


def test_nothing_is_left_out_if_asked():
    arrays = run(
        {"": circuit_run()}, features(), None, None, HeadRoles(also_without=None, sequences=20)
    ).arrays
    assert not [name for name in arrays if name.startswith("without")]


def test_summary_by_hand():
    def cases(*accuracies):
        return [Measured(np.zeros(10), np.arange(10) < 10 * a, np.zeros(10, int)) for a in accuracies]

    strength = np.array([0.41, 0.9, 0.2])
    found = summary(strength, cases(0.5, 0.8, 0.3), cases(1.0, 0.6, 0.9))
    assert found == {
        "strongest": 1,
        "strongest.mistakes": 2,
        "strength.max": 0.9,
        "strength.heads_above_0_4": 2,
        "spearman_strength_only_accuracy": pytest.approx(1),
        "min_removed_accuracy": 0.6,
        "min_removed_head": 1,
    }


@pytest.mark.parametrize(
    "wrong", [{"order": ["0:1"]}, {"also_without": "1:7"}, {"layer": 2}, {"condition": "y"}]
)
def test_heads_and_layers_that_do_not_exist_are_refused(wrong):
    with pytest.raises(UserError, match=f"analysis.{next(iter(wrong))}"):
        run({"": circuit_run()}, features(), None, None, HeadRoles(sequences=10, **wrong))


@pytest.mark.parametrize(
    ("changes", "items"),
    [
        ({}, 1 + 2 * 4 + 4 + 3),
        ({"also_without": None}, 1 + 2 * 4 + 4),
        ({"order": ["1:2", "1:0"], "also_without": "1:3"}, 1 + 2 * 4 + 2 + 2),
        ({"order": ["1:2", "1:0"], "also_without": "1:0"}, 1 + 2 * 4 + 2 + 1),
    ],
)
def test_split_over_ablations(tmp_path, changes, items):
    asked, subject = HeadRoles(sequences=40, **changes), random_run(3, heads=4)
    assert asked.items(lambda _: {"model": subject.spec}) == items
    counts = (1, 3, 5) if not changes else (2,)
    assert_split_equals_whole(head_roles, {"": subject}, features(), asked, items, tmp_path, counts)


def test_how_many_ablations_may_depend_on_strengths():
    asked = HeadRoles(order=["1:0"], also_without="strongest")
    assert asked.items(lambda _: {"model": random_run(3, heads=4).spec}) is None
