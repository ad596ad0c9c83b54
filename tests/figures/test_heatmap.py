"""Heat maps: colours and numbers are read back from the axes."""

import numpy as np
import pytest

from repro.errors import UserError
from tests.figures.examples import draw, result

WIRING = {"kind": "heatmap", "array": "wiring_accuracy"}


def test_one_panel_a_label_on_one_scale():
    canvas = draw({**WIRING, "fan_out": "mode"})
    images = [place.images[0] for place in canvas.axes[:2]]
    np.testing.assert_array_equal(images[0].get_array(), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(images[1].get_array(), [[6, 7, 8], [9, 10, 11]])
    assert images[0].get_clim() == images[1].get_clim() == (0, 11)
    assert [place.get_title() for place in canvas.axes[:2]] == ["only", "remove"]
    assert [text.get_text() for text in canvas.axes[0].get_xticklabels()] == ["a", "b", "c"]


def test_rows_can_be_chosen():
    place = draw({**WIRING, "select": {"mode": "remove"}, "rows": "lower"}).axes[0]
    np.testing.assert_array_equal(place.images[0].get_array(), [[6, 9], [7, 10], [8, 11]])
    assert (place.get_xlabel(), place.get_ylabel()) == ("upper", "lower")


def test_numbers_stand_in_their_cells():
    place = draw({**WIRING, "select": {"mode": "only"}, "digits": 1}).axes[0]
    assert {text.get_position(): text.get_text() for text in place.texts}[(2, 1)] == "5.0"
    assert not draw({**WIRING, "select": {"mode": "only"}, "annotate": False}).axes[0].texts


def test_centre_is_white_and_the_scale_symmetric():
    image = draw({**WIRING, "select": {"mode": "only"}, "centre": 1}).axes[0].images[0]
    assert image.get_clim() == (-3, 5)
    assert min(image.cmap(image.norm(1.0))[:3]) > 0.95


def test_titles_may_name_the_label_and_no_zero_is_negative():
    canvas = draw({**WIRING, "fan_out": "mode", "title": "heads: {label}", "minus": "wiring_accuracy"})
    assert [place.get_title() for place in canvas.axes[:2]] == ["heads: only", "heads: remove"]
    canvas = draw({**WIRING, "select": {"mode": "only"}, "digits": 0}, result(-0.25))
    texts = {text.get_position(): text.get_text() for text in canvas.axes[0].texts}
    assert (texts[0, 0], texts[1, 0]) == ("0", "1")


def test_several_runs_become_their_mean():
    canvas = draw({**WIRING, "select": {"mode": "only"}}, result(0), result(4))
    np.testing.assert_array_equal(canvas.axes[0].images[0].get_array(), [[2, 3, 4], [5, 6, 7]])
    assert "mean of 2 seeds" in canvas.axes[1].get_ylabel()


def test_missing_axes_are_named():
    with pytest.raises(UserError, match="2 axis must be left and there are 3: mode, upper, lower"):
        draw(WIRING)
    with pytest.raises(UserError, match="no axis 'layer' left. Axes: upper, lower"):
        draw({**WIRING, "select": {"mode": "only"}, "rows": "layer"})
