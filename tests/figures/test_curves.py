"""Curves: what is drawn is read back from the axes."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from repro.errors import UserError
from repro.results import Result
from tests.figures.examples import SEQUENCES, banded, draw, lines, result

LOSS = {"kind": "curves", "x": "{condition}.eval_sequences"}
BOTH = {"y": "{condition}.eval_fsl_train_loss", "conditions": {"none": "no clamp", "match": 4}}
HEADS = {"kind": "curves", "series": [{"y": "induction_strength", "select": {"layer": 1}, "fan_out": "head"}]}


def test_one_line_a_condition_over_its_own_x():
    drawn = lines(draw({**LOSS, "series": [BOTH]}).axes[0])
    assert list(drawn) == ["no clamp", "4"]
    np.testing.assert_array_equal(drawn["no clamp"].get_xdata(), SEQUENCES)
    np.testing.assert_array_equal(drawn["no clamp"].get_ydata(), [1.0, 0.5, 0.25])
    np.testing.assert_array_equal(drawn["4"].get_ydata(), [0.5, 0.25, 0.125])


def test_one_line_a_head_of_the_selected_layer_over_checkpoints():
    drawn = lines(draw(HEADS).axes[0])
    assert list(drawn) == ["head 0", "head 1", "head 2", "head 3"]
    np.testing.assert_array_equal(drawn["head 2"].get_xdata(), [0, 100_000, 200_000])
    np.testing.assert_array_equal(drawn["head 2"].get_ydata(), [20, 21, 22])
    assert len({line.get_color() for line in drawn.values()}) == 4


def test_a_head_has_the_same_colour_when_drawn_alone():
    alone = {"y": "induction_strength", "select": {"layer": 1, "head": [2]}, "fan_out": "head"}
    everything, only = lines(draw(HEADS).axes[0]), lines(draw({"kind": "curves", "series": [alone]}).axes[0])
    assert only["head 2"].get_color() == everything["head 2"].get_color()


def test_a_name_has_one_colour_in_all_panels():
    second = {"series": [{"y": "{condition}.eval_fsl_val_rl_loss", "conditions": {"match": "4"}}]}
    one, two = draw({**LOSS, "panels": [{"series": [BOTH]}, second]}).axes
    assert lines(one)["4"].get_color() == lines(two)["4"].get_color() != lines(one)["no clamp"].get_color()
    np.testing.assert_array_equal(lines(two)["4"].get_xdata(), SEQUENCES)  # x comes from the figure


def test_ordered_lines_get_ordered_colours():
    spec = {**HEADS, "series": [{**HEADS["series"][0], "colours": "sequential"}]}
    colours = [line.get_color() for line in lines(draw(spec).axes[0]).values()]
    brightness = [sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in colours]
    assert brightness == sorted(brightness) and len(set(brightness)) == 4


def test_seeds_become_mean_and_band_and_the_legend_says_how_many():
    canvas = draw({**LOSS, "series": [BOTH]}, result(0.0), result(0.1), result(0.5))
    place = canvas.axes[0]
    np.testing.assert_allclose(lines(place)["no clamp"].get_ydata(), np.array([1.0, 0.5, 0.25]) + 0.2)
    edges = place.collections[0].get_paths()[0].vertices
    at_start = edges[edges[:, 0] == 0][:, 1]
    assert at_start.min() == pytest.approx(1.0) and at_start.max() == pytest.approx(1.5)
    texts = [text.get_text() for text in place.get_legend().get_texts()]
    assert any("n = 3" in text for text in texts)


def test_one_run_has_no_band():
    assert len(draw({**LOSS, "series": [BOTH]}).axes[0].collections) == 0


def test_a_band_of_the_result_itself_lies_around_its_line():
    spec = {
        "kind": "curves",
        "series": [{"y": "mean", "band": ["mean_low", "mean_high"], "fan_out": "set"}],
    }
    shown = draw(spec, Result({}, banded()))
    place = shown.axes[0]
    for band, base, line in zip(place.collections, (0, 10), place.lines, strict=True):
        corners = {tuple(point) for point in band.get_paths()[0].vertices}
        assert corners == {(x, base + x + edge) for x in range(3) for edge in (-1, 2)}
        assert band.get_facecolor()[0][:3].tolist() == pytest.approx(to_rgb(line.get_color()))
    seeds = draw(spec, Result({}, banded()), Result({}, banded(4.0)))
    bands = seeds.axes[0].collections  # the smallest and the largest value alone
    assert len(bands) == 2 and {point[1] for point in bands[0].get_paths()[0].vertices} == {0, 1, 2, 4, 5, 6}
    with pytest.raises(UserError, match="band"):
        draw({"kind": "curves", "series": [{"y": "mean", "band": ["mean_low"]}]})


def test_published_points_in_the_colour_of_their_line():
    spec = {**LOSS, "series": [BOTH], "published": {"no clamp": [[5.0e4, 0.785], [1.0e5, 0.731]]}}
    place = draw(spec).axes[0]
    points = next(line for line in place.get_lines() if line.get_label() == "_published no clamp")
    np.testing.assert_array_equal(points.get_xydata(), [[5.0e4, 0.785], [1.0e5, 0.731]])
    assert points.get_linestyle() == "None" and points.get_markerfacecolor() == "white"
    assert points.get_markeredgecolor() == lines(place)["no clamp"].get_color()
    assert "published (digitised)" in [text.get_text() for text in place.get_legend().get_texts()]


def test_published_values_of_a_line_that_the_model_does_not_have_are_left_out():
    """As of the eighth head, asked of a model with four."""
    place = draw({**LOSS, "series": [BOTH], "published": {"clamp": [[0, 1]], "no clamp": [[0, 1]]}}).axes[0]
    drawn = [line.get_label() for line in place.get_lines() if line.get_label().startswith("_published")]
    assert drawn == ["_published no clamp"]


def test_reference_lines_scales_and_limits():
    axes = {"x_axis": {"label": "time", "limits": [0, 150_000]}, "y_axis": {"label": "loss", "log": True}}
    place = draw({**LOSS, **axes, "series": [BOTH], "reference": {"ln 2": 0.6931}}).axes[0]
    reference = next(line for line in place.get_lines() if line.get_label() == "_ln 2")
    assert list(reference.get_ydata()) == [0.6931, 0.6931]
    assert (place.get_yscale(), place.get_xlim()) == ("log", (0, 150_000))
    assert place.get_ylabel() == "loss (nat)"  # the array's own unit


def test_average_and_difference():
    mean = {"y": "induction_strength", "select": {"layer": 1}, "average_over": "head", "label": "mean"}
    zero = {"y": "none.eval_fsl_train_loss", "minus": "none.eval_fsl_val_rl_loss", "label": "zero"}
    np.testing.assert_array_equal(
        lines(draw({"kind": "curves", "series": [mean, {**mean, "label": "b"}]}).axes[0])["mean"].get_ydata(),
        [15, 16, 17],
    )
    np.testing.assert_array_equal(
        lines(draw({"kind": "curves", "series": [zero]}).axes[0])["zero"].get_ydata(), [0, 0, 0]
    )


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({"y": "induction"}, "no array 'induction'. Arrays: induction_strength, match.eval"),
        ({"y": "induction_strength"}, "1 axis must be left"),
        ({"y": "strength", "fan_out": "layer"}, "fan_out needs the axis 'layer'"),
        ({"y": "induction_strength", "select": {"layer": 7, "head": 0}}, "no label 7. Labels: 0, 1"),
        ({"y": "strength", "x": "none.eval_sequences"}, "4 points and its x none.eval_sequences has 3"),
    ],
)
def test_what_is_missing_is_named(series, message):
    with pytest.raises(UserError, match=message):
        draw({"kind": "curves", "series": [series]})


def test_runs_with_other_x_values_are_not_averaged():
    spec = {"kind": "curves", "series": [{"y": "only_accuracy", "x": "strength"}]}
    with pytest.raises(UserError, match="different x values"):
        draw(spec, result(0), result(1))
