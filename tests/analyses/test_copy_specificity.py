"""Heads that copy known labels."""

from __future__ import annotations

import numpy as np
import pytest

from repro.analyses import copy_specificity
from repro.analyses.copy_specificity import by_label, run
from repro.analyses.icl_measures import Measured
from repro.analyses.specs import CopySpecificity
from repro.errors import UserError
from tests.analyses.small_runs import COUNT, SPEC, circuit_run, features
from tests.analyses.splitting import assert_split_equals_whole


@pytest.fixture(scope="module")
def result():
    """1:0 copies labels 0 and 1, 1:1 label 2; label 0 is also predicted where nothing is copied."""
    subject = {"": circuit_run(copies=((0, 1), (2,)))}
    return run(subject, features(), None, None, CopySpecificity())


def test_heads_copy_their_labels_when_they_attend_perfectly(result):
    perfect = result.arrays["accuracy_by_label"].select(setting="perfect")
    np.testing.assert_array_equal(perfect.values, [[1, 1, 0], [1, 0, 1]])
    assert perfect.labels("label") == [0, 1, 2] and perfect.labels("head") == ["1:0", "1:1"]
    np.testing.assert_array_equal(
        result.arrays["mistakes_by_label"].select(setting="perfect").values, [[0, 0, 1], [0, 1, 0]]
    )
    np.testing.assert_allclose(result.arrays["perfect_accuracy"].values, [2 / 3, 2 / 3])


def test_only_a_head_that_matches_copies_with_its_own_pattern(result):
    own = result.arrays["accuracy_by_label"].select(setting="own").values
    np.testing.assert_array_equal(own[0], [1, 1, 0])
    # Label 2 next to a query of label 0 or 1 is copied by a head that attends evenly.
    np.testing.assert_allclose(own[1], [0.5, 0, 1])
    np.testing.assert_array_equal(
        result.arrays["mistakes"].values, [[COUNT / 3, COUNT / 2], [COUNT / 3, COUNT / 3]]
    )


def test_the_other_head_mends_the_mistakes_of_the_strongest(result):
    np.testing.assert_array_equal(result.arrays["mended"].values, [np.nan, 1])
    scalars = result.scalars
    assert (scalars["reference"], scalars["reference.mistakes"]) == (0, COUNT / 3)
    assert scalars["reference.accuracy"] == scalars["reference.own_accuracy"] == pytest.approx(2 / 3)


def test_another_reference():
    subject = {"": circuit_run(copies=((0, 1), (2,)))}
    result = run(subject, features(), None, None, CopySpecificity(reference="1:1"))
    np.testing.assert_array_equal(result.arrays["mended"].values, [1, np.nan])
    assert result.notes == {"reference": "1:1"}
    with pytest.raises(UserError, match="analysis.reference.*1:0, 1:1"):
        run(subject, features(), None, None, CopySpecificity(reference="0:1"))


def test_shares_by_label_by_hand():
    target = np.array([4, 4, 4, 7, 7])
    cases = [Measured(np.zeros(5), np.array(r, float), target) for r in ([1, 0, 0, 1, 0], [1, 1, 1, 1, 1])]
    accuracy, shares = by_label(cases, target, [4, 7])
    np.testing.assert_allclose(accuracy, [[1 / 3, 1 / 2], [1, 1]])
    np.testing.assert_allclose(shares, [[2 / 3, 1 / 3], [np.nan, np.nan]])


@pytest.mark.parametrize("reference", [None, "1:1"])
def test_split_over_settings_and_heads(tmp_path, reference):
    asked = CopySpecificity(reference=reference)
    items = asked.items(lambda _: {"model": SPEC})
    assert items == 4
    subject = {"": circuit_run(copies=((0, 1), (2,)))}
    assert_split_equals_whole(copy_specificity, subject, features(), asked, items, tmp_path, (2, 3, 4))
