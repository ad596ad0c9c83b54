"""Splits by hand, and the label pairs of the published seed. Known values: fact sheet C.3."""

import numpy as np
import pytest

from repro.data.specs import Sequences
from repro.data.splits import class_distribution, class_ranges, exemplar_ranges, label_pairs, ranges
from repro.errors import UserError


def spec(**options):
    return Sequences.parse(options, "sequences")


def test_ranges_are_contiguous_and_rest_takes_what_is_left():
    parts = class_ranges(spec(class_split=[50, "rest", 100]), 1623)
    assert parts == {"train": (0, 50), "val": (50, 1473), "test": (1523, 100), "all": (0, 1623)}
    assert exemplar_ranges(spec(exemplar_split=[1, 4, 0]), 5) == exemplar_ranges(spec(), 5)


@pytest.mark.parametrize(
    "split, message",
    [
        ([50, 1473, 101], "needs 1624 of the class axis, and the features have 1623"),
        ([50, 100, 100], "adds up to 250, expected 1623"),
        ([2000, "rest", 0], "needs 2000"),
    ],
)
def test_a_split_that_does_not_add_up_is_refused(split, message):
    with pytest.raises(UserError, match=message) as error:
        ranges(tuple(split), 1623, "class_split")
    assert "sequences.class_split" in str(error.value)


PAIRS_10 = [(2, 6), (1, 2), (0, 7), (1, 4), (2, 8), (6, 9), (2, 5), (0, 9), (2, 4)]
PAIRS_15 = [(5, 6), (11, 13), (1, 4), (10, 13), (4, 6), (6, 10), (3, 12), (12, 13), (3, 7), (5, 7), (3, 13)]
PAIRS_15 += [(5, 13), (5, 8), (3, 6), (12, 14), (3, 4), (1, 7), (0, 8), (11, 12), (7, 8), (3, 10)]


@pytest.mark.parametrize(
    "labels, split, held_out",
    [(5, [8, 2, 0], [(1, 3), (0, 2)]), (10, [36, 9, 0], PAIRS_10), (15, [84, 21, 0], PAIRS_15)],
)
def test_label_pairs_of_the_published_seed(labels, split, held_out):
    pairs = label_pairs(spec(labels=labels, label_pair_split=split))
    assert [tuple(pair) for pair in pairs["val"].tolist()] == held_out
    train, everything = {tuple(p) for p in pairs["train"].tolist()}, {tuple(p) for p in pairs["all"].tolist()}
    assert everything == {(i, j) for i in range(labels) for j in range(i + 1, labels)}
    assert train == everything - set(held_out) and len(pairs["test"]) == 0


def test_training_pairs_of_five_labels_in_their_order():
    pairs = label_pairs(spec(labels=5, label_pair_split=[8, 2, 0]))["train"].tolist()
    assert pairs == [[1, 2], [2, 3], [0, 4], [0, 3], [0, 1], [2, 4], [1, 4], [3, 4]]


def test_a_label_that_training_never_sees_is_refused():
    with pytest.raises(UserError, match=r"labels \[.*\] occur in no training pair"):
        label_pairs(spec(labels=5, label_pair_split=[1, 9, 0]))


def test_without_labels_or_split():
    assert len(label_pairs(spec(labels=0))["train"]) == 0
    pairs = label_pairs(spec(labels=3))
    assert pairs["train"].tolist() == [[0, 1], [0, 2], [1, 2]] and len(pairs["val"]) == 0


def test_class_distribution_by_hand():
    np.testing.assert_allclose(class_distribution(3, 1.0), np.array([6, 3, 2]) / 11, rtol=1e-6)
    np.testing.assert_allclose(class_distribution(4, 0.0), 0.25)
