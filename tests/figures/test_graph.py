"""Graphs of circuits: boxes, nodes, arrows."""

import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from repro.errors import UserError
from repro.figures.graph import boxes, effects
from repro.figures.specs import Graph
from repro.results import NamedArray, Result
from tests.figures.examples import draw, small_graph


def test_every_head_is_in_the_box_of_its_class_at_its_layer():
    early, late = boxes(Graph(), Result({}, small_graph()))
    assert (early.name, late.name) == ("early", "late")
    assert [round(y) for _, y in late.nodes.values()] == [2, 2]
    assert early.right < late.left and early.place == "S2"
    (x, _), (other, _) = late.nodes.values()
    assert late.left < x < other < late.right and other - x == pytest.approx(1)


def test_one_arrow_an_effect_red_up_and_blue_down():
    place = draw({"kind": "graph"}, Result({}, small_graph())).axes[0]
    arrows = [patch for patch in place.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == 3
    widths = sorted(arrow.get_linewidth() for arrow in arrows)
    assert widths[0] < widths[1] < widths[2]
    red = [arrow for arrow in arrows if arrow.get_edgecolor()[0] > arrow.get_edgecolor()[2]]
    assert len(red) == 1 and red[0].get_linewidth() == widths[0]
    assert sum(isinstance(patch, FancyBboxPatch) for patch in place.patches) == 2 + 3
    texts = {text.get_text() for text in place.texts}
    assert {"0.1", "2.0", "2.3", "early", "late", "logits"} <= texts


def test_the_colour_scale_is_white_at_zero():
    colours = draw({"kind": "graph"}, Result({}, small_graph())).axes[-1]
    low, high = colours.get_ylim()
    assert (low, high) == (-50.0, 50.0)


def test_seeds_get_a_panel_each():
    place, other, _ = draw({"kind": "graph"}, *[Result({}, small_graph())] * 2, labels=["a", "b"]).axes
    assert (place.get_title(), other.get_title()) == ("a", "b")


def test_arrays_over_other_nodes_are_refused():
    arrays = small_graph()
    arrays["node.layer"] = NamedArray(np.arange(3), {"node": ["x", "y", "z"]})
    with pytest.raises(UserError, match="node.layer must be over the nodes"):
        boxes(Graph(), Result({}, arrays))
    with pytest.raises(UserError, match="no array 'nothing'"):
        boxes(Graph(group="nothing"), Result({}, small_graph()))


def test_nan_is_no_arrow():
    found = effects(Graph(), Result({}, small_graph()))
    assert sum(np.isfinite(value) for value in found.values()) == 3
    assert found["0.1@S2", "late"] == -20
