"""Bars: heights, whiskers and published markers are read back from the axes."""

import numpy as np
import pytest

from repro.errors import UserError
from tests.figures.examples import draw, result

PAIR = {
    "kind": "bars",
    "series": [{"array": "only_accuracy"}, {"array": "removed_accuracy", "published": {3: 0.9}}],
}


def heights(place):
    return [[bar.get_height() for bar in container] for container in place.containers if len(container) == 4]


def test_heights_and_colours_of_groups():
    place = draw(PAIR).axes[0]
    np.testing.assert_allclose(heights(place), [[0, 0.1, 0.4, 0.9], [1, 1, 1, 1]])
    assert len({container[0].get_facecolor() for container in place.containers}) == 2
    assert [text.get_text() for text in place.get_xticklabels()] == ["0", "1", "2", "3"]


def test_bars_of_a_group_do_not_overlap():
    first, second = draw(PAIR).axes[0].containers
    assert first[0].get_x() + first[0].get_width() <= second[0].get_x()
    assert second[0].get_x() + second[0].get_width() <= first[1].get_x()


def test_a_published_value_is_on_its_own_bar():
    place = draw(PAIR).axes[0]
    (points,) = [line for line in place.get_lines() if line.get_label().startswith("_published")]
    bar = place.containers[1][3]
    np.testing.assert_allclose(points.get_xydata(), [[bar.get_x() + bar.get_width() / 2, 0.9]])


def test_scalars_as_bars():
    bars = {"scalars": {"patterns kept": "pt_patterns.accuracy", "values kept": "pt_values.accuracy"}}
    place = draw({"kind": "bars", "series": [bars]}).axes[0]
    assert [bar.get_height() for bar in place.containers[0]] == pytest.approx([0.99, 0.7])


def test_whiskers_from_smallest_to_largest_over_seeds():
    place = draw(
        {"kind": "bars", "series": [{"array": "strength"}]}, result(0), result(0.1), result(0.5)
    ).axes[0]
    segments = place.collections[0].get_segments()
    np.testing.assert_allclose(segments[2][:, 1], [0.5, 1.0])
    assert heights(place)[0][2] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({"array": "strength", "published": [1.0]}, "1 published values for 4 labels"),
        (
            {"array": "strength", "published": {9: 1.0}},
            r"published names \['9'\], and the labels are 0, 1, 2, 3",
        ),
        (
            {"scalars": {"a": "nothing"}},
            "no scalar 'nothing'. Scalars: pt_patterns.accuracy, pt_values.accuracy",
        ),
        ({"label": "empty"}, "either `array` or `scalars`"),
    ],
)
def test_mistakes_are_named(series, message):
    with pytest.raises(UserError, match=message):
        draw({"kind": "bars", "series": [series]})
