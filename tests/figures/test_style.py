"""Colours that can be told apart, and room for what is written."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from repro.figures import style
from repro.figures.specs import Axis
from tests.figures.examples import draw


def luminance(colour):
    return sum(
        weight * int(colour[i : i + 2], 16) / 255 for weight, i in ((0.299, 1), (0.587, 3), (0.114, 5))
    )


def test_colours_differ_and_are_dark_enough_for_white_paper():
    assert len(set(style.PALETTE)) == 8
    assert max(map(luminance, style.PALETTE)) < 0.72


def test_more_lines_than_colours_get_other_dashes():
    looks = [(style.colour(index), str(style.line_style(index))) for index in range(32)]
    assert len(set(looks)) == 32


@pytest.mark.parametrize(
    ("axis", "unit", "text"),
    [
        (Axis(), "1", "eval loss"),
        (Axis(), "nat", "eval loss (nat)"),
        (Axis(label="loss"), "nat", "loss (nat)"),
        (Axis(label="loss", unit="bit"), "nat", "loss (bit)"),
        (Axis(label="loss", unit=""), "nat", "loss"),
        (Axis(label="training sequences"), "sequences", "training sequences"),
    ],
)
def test_axes_are_named_with_units(axis, unit, text):
    assert style.axis_text(style.unit_of(axis, unit), "eval_loss") == text


CURVES = {
    "kind": "curves",
    "series": [{"y": "induction_strength", "select": {"layer": 1}, "fan_out": "head"}],
}


def test_a_legend_beside_the_panel_takes_nothing_from_it():
    inside, beside = draw({**CURVES, "legend": "inside"}), draw({**CURVES, "legend": "outside"})
    assert inside.axes[0].get_legend() is not None and not inside.legends
    assert beside.axes[0].get_legend() is None and len(beside.legends) == 1
    widths = []
    for canvas in (inside, beside):
        canvas.draw_without_rendering()
        widths.append(canvas.axes[0].get_position().width * canvas.get_size_inches()[0])
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_nothing_overlaps_the_note():
    canvas = draw(CURVES, notes=["first note", "second note"])
    canvas.draw_without_rendering()
    renderer = FigureCanvasAgg(canvas).get_renderer()
    note = canvas.texts[0].get_window_extent(renderer)
    assert note.y1 <= canvas.axes[0].get_tightbbox(renderer).y0 and note.y0 >= 0


def test_panels_with_one_scale_share_their_limits():
    panels = [{"series": [{"y": "strength"}]}, {"series": [{"y": "removed_accuracy"}]}]
    axis = {"y_axis": {"label": "value"}}
    shared = draw({"kind": "curves", "panels": panels, **axis}).axes
    apart = draw({"kind": "curves", "panels": panels, **axis, "share_y": False}).axes
    assert shared[0].get_ylim() == shared[1].get_ylim()
    assert apart[0].get_ylim() != apart[1].get_ylim()


def test_logarithmic_axes_always_carry_numbers():
    for limits, wanted in (((0.2, 0.8), "0.4"), ((1e-4, 1), "10^{-2}")):
        canvas = draw({**CURVES, "y_axis": {"log": True, "limits": limits}})
        canvas.draw_without_rendering()
        axis = canvas.axes[0].yaxis
        texts = [text.get_text() for text in [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]]
        assert any(wanted in text for text in texts), (limits, texts)
