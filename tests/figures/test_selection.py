"""From names to numbers."""

import numpy as np
import pytest

from repro.errors import UserError
from repro.figures.selection import stack
from repro.figures.specs import Pick
from repro.results import NamedArray, Result

# value = 100 row + 10 column + depth, so every number says where it came from
CUBE = np.add.outer(np.add.outer(100 * np.arange(2), 10 * np.arange(3)), np.arange(4)).astype(float)
AXES = {"row": ["up", "down"], "column": [5, 7, 9], "depth": 4}
RESULT = Result(
    arrays={
        "cube": NamedArray(CUBE, AXES),
        "other": NamedArray(CUBE.swapaxes(0, 1), {"a": 3, "b": 2, "c": 4}),
    }
)


def taken(**pick):
    return stack([RESULT], Pick(array="cube", **pick))


@pytest.mark.parametrize("row", ["down", -1])
@pytest.mark.parametrize("column", [7, "7"])
def test_labels_choose_not_positions(row, column):
    part = taken(select={"row": row, "column": column})
    np.testing.assert_array_equal(part.values, [[110, 111, 112, 113]])
    assert part.labels == {"depth": [0, 1, 2, 3]}


def test_a_list_of_labels_keeps_the_axis_in_the_given_order():
    part = taken(select={"column": [9, 5], "row": "up", "depth": 0})
    np.testing.assert_array_equal(part.values, [[20, 0]])
    assert part.labels == {"column": [9, 5]}


def test_averages_over_what_is_left():
    part = taken(select={"column": [5, 9]}, average_over=["depth", "column"])
    np.testing.assert_array_equal(part.values, [[11.5, 111.5]])


def test_along_takes_one_label():
    np.testing.assert_array_equal(taken().along("column", 9).values[0], CUBE[:, 2])


def test_seeds_are_stacked_in_order():
    more = Result(arrays={"cube": NamedArray(CUBE + 3, AXES)})
    part = stack([RESULT, more], Pick(array="cube", select={"row": "up", "column": 5, "depth": 0}))
    np.testing.assert_array_equal(part.values, [0, 3])
    assert (part.mean, part.lowest, part.highest) == (1.5, 0, 3)


@pytest.mark.parametrize(
    ("pick", "message"),
    [
        ({"select": {"layer": 0}}, "has no axis 'layer'. Axes: row, column, depth"),
        ({"average_over": "layer"}, "has no axis 'layer'"),
        ({"select": {"row": "left"}}, "no label 'left'. Labels: up, down"),
        ({"minus": "other"}, r"shapes \(2, 3, 4\) and \(3, 2, 4\) differ"),
        ({"minus": "absent"}, "no array 'absent'. Arrays: cube, other"),
    ],
)
def test_what_is_missing_is_named(pick, message):
    with pytest.raises(UserError, match=message):
        taken(**pick)


def test_runs_of_different_shapes_are_refused():
    short = Result(arrays={"cube": NamedArray(CUBE[:1], {"row": ["up"], "column": [5, 7, 9], "depth": 4})})
    with pytest.raises(UserError, match="different shapes"):
        stack([RESULT, short], Pick(array="cube"))
