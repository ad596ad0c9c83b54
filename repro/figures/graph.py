"""A circuit as a graph: heads in boxes of their class, by layer and position, with arrows for effects."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.patheffects import withStroke

from repro.errors import UserError
from repro.figures import style
from repro.figures.selection import stack
from repro.figures.specs import Graph
from repro.results import Result

MARGIN = 0.42  # of a box around its nodes, in slots and layers
GAP = 0.55  # between boxes, in slots
MOST_WIDTH = 3.2  # of an arrow, in points
NODE_WIDTH, NODE_HEIGHT = 0.66, 0.44
COLOURS = "RdBu_r"


@dataclass
class Box:
    """A group: where its nodes are, {node: (x, y)}, and its extent with margins."""

    name: str
    place: str
    nodes: dict[str, tuple[float, float]] = field(default_factory=dict)
    left: float = 0.0
    right: float = 0.0

    @property
    def bottom(self) -> float:
        return min(y for _, y in self.nodes.values()) - MARGIN

    @property
    def top(self) -> float:
        return max(y for _, y in self.nodes.values()) + MARGIN

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2


def figure(spec: Graph, results: Sequence[Result], labels: Sequence[str]) -> Canvas:
    """Draw the graph of every result, on one colour scale that is white at zero."""
    drawn = [(boxes(spec, result), effects(spec, result)) for result in results]
    values = [abs(value) for _, arrows in drawn for value in arrows.values()]
    most = max([value for value in values if np.isfinite(value)], default=1.0) or 1.0
    scale = ScalarMappable(Normalize(-most, most), COLOURS)
    wide = max(max(box.right for box in found) for found, _ in drawn)
    high = max(max(box.top for box in found) - min(box.bottom for box in found) for found, _ in drawn)
    canvas, places = style.grid(spec, len(drawn), (max(0.62 * wide + 1.1, 3.6), 0.42 * high + 1.6))
    for place, (found, arrows), label in zip(places, drawn, labels, strict=True):
        draw_panel(place, spec, found, arrows, scale)
        place.set_title(spec.title or (label if len(drawn) > 1 else ""))
    unit = stack(results[:1], spec, 2).unit
    words = spec.colour_label or f"{spec.array.replace('.', ' ')} ({unit})"
    canvas.colorbar(scale, ax=places, label=words, shrink=0.8, fraction=0.05, pad=0.02)
    return canvas


def boxes(spec: Graph, result: Result) -> list[Box]:
    """The groups with places for their nodes: lower groups to the left, places kept together.

    Raises UserError for arrays that are missing or do not name the same nodes.
    """
    groups, places, layers = (
        _over_nodes(spec, result, name) for name in (spec.group, spec.place, spec.layer)
    )
    found: dict[str, Box] = {}
    rows: dict[str, dict[int, list[str]]] = {}
    for node, group in groups.items():
        found.setdefault(group, Box(group, places[node]))
        rows.setdefault(group, {}).setdefault(int(layers[node]), []).append(node)
    height = {
        box.name: float(np.mean([layers[n] for n in groups if groups[n] == box.name]))
        for box in found.values()
    }
    of_place = {
        one: float(np.mean([layers[n] for n in places if places[n] == one])) for one in places.values()
    }
    order = sorted(
        found.values(), key=lambda box: (of_place[box.place], box.place, height[box.name], box.name)
    )
    x = 0.0
    for box in order:
        widest = max(len(nodes) for nodes in rows[box.name].values())
        # A long name needs room above its box.
        width = max(widest, 0.17 * max(len(word) for word in box.name.split("_"))) - 1
        box.left, box.right = x, x + width + 2 * MARGIN
        for layer, nodes in rows[box.name].items():
            for i, node in enumerate(nodes):
                box.nodes[node] = (box.middle + i - (len(nodes) - 1) / 2, float(layer))
        x = box.right + GAP
    return order


def effects(spec: Graph, result: Result) -> dict[tuple[str, str], float]:
    """The arrows: (node, group) -> effect, in order; NaN where there is none."""
    found = stack([result], spec, 2)
    nodes, groups = ([str(label) for label in labels] for labels in found.labels.values())
    matrix = found.values[0]
    return {
        (node, group): float(matrix[i, j]) for i, node in enumerate(nodes) for j, group in enumerate(groups)
    }


def draw_panel(
    place: Axes, spec: Graph, found: Sequence[Box], arrows: dict[tuple[str, str], float],
    scale: ScalarMappable,
) -> None:  # fmt: skip
    """Boxes, nodes and arrows; a group without nodes is written on top, where its arrows end."""
    top = max(box.top for box in found)
    nodes = {node: at for box in found for node, at in box.nodes.items()}
    drawn = {edge: value for edge, value in arrows.items() if np.isfinite(value)}
    ends = {box.name: (box.left, box.right, box.bottom) for box in found}
    for name in dict.fromkeys(group for _, group in arrows if group not in ends):
        senders = [nodes[node][0] for node, group in drawn if group == name] or [found[-1].middle]
        middle = (min(senders) + max(senders)) / 2
        ends[name] = (middle - 1, middle + 1, top + 1.2)
        place.text(middle, top + 1.25, name, fontweight="bold", ha="center", va="bottom")
    order = list(dict.fromkeys(group for _, group in arrows))  # a class keeps its colour, wherever its box is
    for box in found:
        _draw_box(place, box, style.colour(order.index(box.name) if box.name in order else len(order)))
    for group, (left, right, height) in ends.items():
        # Arrows into one box end beside each other, in the order of where they come from.
        into = sorted((edge for edge in drawn if edge[1] == group), key=lambda edge: nodes[edge[0]])
        for i, edge in enumerate(into):
            end = (left + (right - left) * (i + 1) / (len(into) + 1), height)
            _arrow(place, nodes[edge[0]], end, drawn[edge], scale)
    _frame(place, spec, found, max(height for *_, height in ends.values()))


def _arrow(
    place: Axes, start: tuple[float, float], end: tuple[float, float], effect: float, scale: ScalarMappable
) -> None:
    width = 0.5 + MOST_WIDTH * abs(effect) / float(scale.get_clim()[1] or 1.0)
    place.add_patch(
        FancyArrowPatch(
            (start[0], start[1] + NODE_HEIGHT / 2),
            end,
            arrowstyle="-|>",
            mutation_scale=6 + width,
            shrinkA=0,
            shrinkB=1,
            linewidth=width,
            color=scale.to_rgba(np.array([effect]))[0],
            zorder=2.5,
            connectionstyle=f"arc3,rad={0.08 * np.sign(start[0] - end[0]):.2f}",
            path_effects=[withStroke(linewidth=width + 0.8, foreground="#999999")],
        )  # fmt: skip
    )


def _draw_box(place: Axes, box: Box, shade: str) -> None:
    place.add_patch(
        FancyBboxPatch(
            (box.left, box.bottom),
            box.right - box.left,
            box.top - box.bottom,
            facecolor=to_rgba(shade, 0.12),
            edgecolor=shade,
            boxstyle="round,pad=0,rounding_size=0.2",
            linewidth=1,
            zorder=1,
        )  # fmt: skip
    )
    words = textwrap.fill(box.name.replace("_", " "), max(int(7 * (box.right - box.left)), 8))
    place.text(
        box.left, box.top + 0.08, words, color=shade, fontsize=7.5, ha="left", va="bottom", zorder=5,
        linespacing=0.9, fontweight="bold", path_effects=[withStroke(linewidth=2, foreground="white")],
    )  # fmt: skip
    for node, (x, y) in box.nodes.items():
        place.add_patch(
            FancyBboxPatch(
                (x - NODE_WIDTH / 2, y - NODE_HEIGHT / 2),
                NODE_WIDTH,
                NODE_HEIGHT,
                facecolor=shade,
                zorder=3,
                edgecolor="white",
                boxstyle="round,pad=0,rounding_size=0.2",
            )  # fmt: skip
        )
        text = node.partition("@")[0]
        place.text(x, y, text, color="white", fontsize=7, ha="center", va="center", zorder=4)


def _frame(place: Axes, spec: Graph, found: Sequence[Box], high: float) -> None:
    low = min(box.bottom for box in found)
    layers = sorted({int(y) for box in found for _, y in box.nodes.values()})
    place.set_xlim(-0.3, max(box.right for box in found) + 0.3)
    place.set_ylim(low - 0.4, max(high + 0.7, max(box.top for box in found) + 0.7))
    places = dict.fromkeys(box.place for box in found)
    middles = [
        (min(b.left for b in found if b.place == one) + max(b.right for b in found if b.place == one)) / 2
        for one in places
    ]
    place.set_xticks(middles, list(places))
    place.set_yticks(range(layers[0], layers[-1] + 1))
    place.set_xlabel(spec.x_axis.label or "position")
    place.set_ylabel(spec.y_axis.label or "layer")
    place.tick_params(axis="x", length=0)
    place.grid(False, axis="x")


def _over_nodes(spec: Graph, result: Result, name: str) -> dict[str, Any]:
    """An array over the nodes, by node; the nodes are those of the effects."""
    nodes = stack([result], spec, 2).labels
    first = next(iter(nodes))
    array = result.arrays.get(name)
    if array is None:
        raise UserError(f"there is no array {name!r}. Arrays: {', '.join(sorted(result.arrays)) or 'none'}")
    if list(array.axes) != [first] or array.labels(first) != nodes[first]:
        raise UserError(f"array {name} must be over the nodes of {spec.array}, {nodes[first]}")
    return {str(node): value for node, value in zip(nodes[first], array.values.tolist(), strict=True)}
