"""Scatter plots: points, names and correlation."""

import numpy as np
import pytest

from repro.errors import UserError
from repro.results import NamedArray, Result
from tests.figures.examples import draw, lines, result

CLOUD = {"x": {"array": "strength"}, "y": {"array": "only_accuracy"}}


def test_points_names_and_published():
    place = draw({"kind": "scatter", "series": [{**CLOUD, "published": [[0.5, 0.6]]}]}).axes[0]
    points, published = place.get_lines()
    np.testing.assert_allclose(points.get_xydata(), [[0, 0], [0.25, 0.1], [0.5, 0.4], [0.75, 0.9]])
    np.testing.assert_allclose(published.get_xydata(), [[0.5, 0.6]])
    assert published.get_markerfacecolor() == "none"
    assert [text.get_text() for text in place.texts] == ["0", "1", "2", "3"]


def test_rank_correlation_of_a_monotone_cloud_is_one():
    title = draw({"kind": "scatter", "correlation": "spearman", "series": [CLOUD]}).axes[0].get_title()
    assert "1.00 (n = 4)" in title


def test_regression_is_the_least_squares_line_over_the_range_of_the_points():
    place = draw({"kind": "scatter", "regression": True, "series": [CLOUD]}).axes[0]
    line = next(line for line in place.get_lines() if line.get_label() == "_regression")
    # y = h^2 / 10 at x = h / 4 for h = 0..3 has slope 1.2 and starts at -0.1.
    np.testing.assert_allclose(line.get_xydata(), [[0, -0.1], [0.75, 0.8]], atol=1e-12)


def test_correlation_leaves_out_what_never_happened():
    arrays = {
        "x": NamedArray(np.array([1.0, 2, 3, 4]), {"head": 4}),
        "y": NamedArray(np.array([3.0, 2, 1, np.inf]), {"head": 4}),
    }
    spec = {
        "kind": "scatter",
        "correlation": "spearman",
        "series": [{"x": {"array": "x"}, "y": {"array": "y"}}],
    }
    assert "-1.00 (n = 3)" in draw(spec, Result(arrays=arrays)).axes[0].get_title()


def test_seeds_are_pooled_and_told_apart():
    spec = {"kind": "scatter", "correlation": "pearson", "series": [CLOUD]}
    place = draw(spec, result(0), result(1), labels=["seed 5", "seed 6"]).axes[0]
    drawn = lines(place)
    assert list(drawn) == ["seed 5", "seed 6"]
    assert drawn["seed 5"].get_color() != drawn["seed 6"].get_color()
    assert "(n = 8)" in place.get_title()


def test_arrays_over_different_things_are_refused():
    with pytest.raises(UserError, match="not the same points"):
        draw({"kind": "scatter", "series": [{**CLOUD, "y": {"array": "none.eval_fsl_train_loss"}}]})
