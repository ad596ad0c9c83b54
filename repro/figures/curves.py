"""Lines: one quantity over another, over training, layers, positions or any axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from repro.errors import UserError
from repro.figures import style
from repro.figures.selection import Stack, stack
from repro.figures.specs import Curves, CurvesPanel, Label, Pick, Series
from repro.results import Result

PANEL_INCHES = (3.9, 2.9)


@dataclass(frozen=True)
class Line:
    """x: (point,), y: (seed, point), and how to draw it."""

    x: np.ndarray
    y: Stack
    x_labels: list[Label]
    x_name: str
    text: str
    colour: str
    style: Any
    markers: bool = False
    band: tuple[np.ndarray, np.ndarray] | None = None


def figure(spec: Curves, results: Sequence[Result], labels: Sequence[str]) -> Canvas:
    """Draw every panel; means with bands from min to max when there are several results."""
    panels = spec.filled_panels()
    if not all(panel.series for panel in panels):
        raise UserError("curves need `series`, in the figure or in every panel")
    panels = [one for panel in panels for one in _spread(panel, results)]
    canvas, places = style.grid(spec, len(panels), PANEL_INCHES)
    numbers: dict[str, int] = {}
    for place, panel in zip(places, panels, strict=True):
        draw_panel(place, panel, results, numbers)
    if spec.share_y and len(places) > 1 and not any(panel.y_axis.limits for panel in panels):
        style.share_limits(places)
    extra: list[Artist] = [style.band_handle(len(results))] if len(results) > 1 else []
    if any(panel.published for panel in panels):
        extra.append(style.published_handle(spec.published_label))
    style.legend(canvas, places, spec, extra)
    return canvas


def _spread(panel: CurvesPanel, results: Sequence[Result]) -> list[CurvesPanel]:
    """The panel once for each label of the axis that it is spread over; series without it are in all."""
    axis = panel.panels_over
    if axis is None:
        return [panel]

    def has(series: Series) -> bool:
        return axis in stack(results, Pick(array=series.y), None).labels

    if not has(panel.series[0]):
        raise UserError(f"array {panel.series[0].y}: panels_over needs the axis {axis!r}, which it has not")
    found = []
    for label in stack(results, Pick(array=panel.series[0].y), None).labels[axis]:
        series = [
            one.model_copy(update={"select": {**one.select, axis: label}}) if has(one) else one
            for one in panel.series
        ]
        title = panel.title.replace("{label}", str(label)) if panel.title else f"{axis} {label}"
        found.append(panel.model_copy(update={"series": series, "title": title}))
    return found


def draw_panel(place: Axes, panel: CurvesPanel, results: Sequence[Result], numbers: dict[str, int]) -> None:
    """The lines of one panel, then references, published points and axes.

    numbers: text in the legend -> colour, shared by the panels: what has one name has one colour.
    """
    lines: list[Line] = []
    for series in panel.series:
        lines += series_lines(series, panel, results, numbers)
    for line in lines:
        _draw(place, line)
    style.references(place, panel)
    for text, position in panel.reference_x.items():
        place.axvline(position, color=style.GREY, linewidth=0.9, linestyle=(0, (1, 1.5)), label="_" + text)
    _published(place, panel, lines)
    if not lines:
        return
    y_axis = style.unit_of(panel.y_axis, lines[0].y.unit)
    names = (lines[0].x_name, panel.series[0].y.rsplit(".", 1)[-1])
    style.dress(place, panel.model_copy(update={"y_axis": y_axis}), *names)
    if not panel.x_axis.log and all(np.equal(np.mod(line.x, 1), 0).all() for line in lines):
        place.locator_params(axis="x", integer=True)  # no layer lies between two layers
    if any(isinstance(label, str) for label in lines[0].x_labels):
        place.set_xticks(lines[0].x, [str(label) for label in lines[0].x_labels])


def series_lines(
    series: Series, panel: CurvesPanel, results: Sequence[Result], numbers: dict[str, int]
) -> list[Line]:
    """The lines that one series of the spec stands for.

    numbers: text -> colour, extended here. Along `fan_out` over whole numbers the number itself chooses the
    colour, so that a head looks the same in every figure.
    """
    x_name = series.x or panel.x
    lines: list[Line] = []
    for condition, said in (series.conditions or {"": ""}).items():
        pick = _named(series, condition)
        x = None if x_name is None else _x(x_name.replace("{condition}", condition), results)
        for label, part in _fanned(series, stack(results, pick, None if series.fan_out else 1)):
            by_number = isinstance(label, int) and 0 <= label < 64 and not series.conditions
            text = _text(series, said, label)
            # Lines without a name are told apart by their order.
            number = label if by_number else numbers.setdefault(text or f"line {len(numbers)}", len(numbers))
            line = _line(part, x, x_name, pick.array, text, number)
            lines.append(_with(line, band=_band(series, condition, label, results)))
    if series.colours == "sequential":
        shades = style.sequential(len(lines))
        lines = [_with(line, colour=shade, style="solid") for line, shade in zip(lines, shades, strict=True)]
    if series.colour is not None:
        lines = [_with(line, colour=style.named_colour(series.colour, 0), style="solid") for line in lines]
    if series.markers:
        lines = [_with(line, markers=True) for line in lines]
    if series.style is not None:
        lines = [_with(line, style=series.style) for line in lines]
    return lines


def _with(line: Line, **changes: Any) -> Line:
    return Line(**{**line.__dict__, **changes})


def _band(
    series: Series, condition: str, label: Label | None, results: Sequence[Result]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The edges of one line's band, if it has one, and there is one result."""
    if series.band is None or len(results) > 1:
        return None
    edges = []
    for name in series.band:
        pick = _named(series, condition, name)
        values = stack(results, pick, None if series.fan_out else 1)
        edges.append((values if label is None else dict(_fanned(series, values))[label]).values[0])
    return edges[0], edges[1]


def _named(series: Series, condition: str, name: str | None = None) -> Pick:
    """What is drawn for a condition; name: of another array in place of `y`."""
    minus = series.minus.replace("{condition}", condition) if series.minus else None
    array = (name or series.y).replace("{condition}", condition)
    return Pick(array=array, select=series.select, average_over=series.average_over, minus=minus)


def _fanned(series: Series, values: Stack) -> list[tuple[Label | None, Stack]]:
    if series.fan_out is None:
        return [(None, values)]
    if series.fan_out not in values.labels or len(values.labels) != 2:
        raise UserError(
            f"array {series.y}: fan_out needs the axis {series.fan_out!r} and one more. "
            f"Axes left: {', '.join(values.labels)}"
        )
    return [(label, values.along(series.fan_out, label)) for label in values.labels[series.fan_out]]


def _x(name: str, results: Sequence[Result]) -> np.ndarray:
    values = stack(results, Pick(array=name), 1).values
    if not np.array_equal(values, np.broadcast_to(values[:1], values.shape)):
        raise UserError(f"array {name}: the runs have different x values and cannot become one mean")
    return values[0]


def _text(series: Series, condition: str, label: Label | None) -> str:
    if series.label:
        return series.label.replace("{condition}", condition).replace("{label}", str(label))
    named = "" if label is None else (str(label) if isinstance(label, str) else f"{series.fan_out} {label}")
    return " ".join(part for part in (condition, named) if part)


def _line(part: Stack, x: np.ndarray | None, x_name: str | None, array: str, text: str, number: Any) -> Line:
    axis, labels = next(iter(part.labels.items()))
    if x is None:
        numeric = all(not isinstance(label, str) for label in labels)
        x = np.array(labels, dtype=float) if numeric else np.arange(len(labels), dtype=float)
        x_name, shown = axis, labels
    else:
        shown = []
    if len(x) != part.values.shape[1]:
        raise UserError(f"{array} has {part.values.shape[1]} points and its x {x_name} has {len(x)}")
    return Line(x, part, shown, x_name or axis, text, style.colour(number), style.line_style(number))


def _draw(place: Axes, line: Line) -> None:
    marker = {"marker": "o", "markersize": 3} if line.markers else {}
    place.plot(line.x, line.y.mean, color=line.colour, linestyle=line.style, label=line.text, **marker)
    if line.band is not None:
        place.fill_between(line.x, *line.band, color=line.colour, alpha=0.2, linewidth=0)
    if len(line.y.values) > 1:
        place.fill_between(line.x, line.y.lowest, line.y.highest, color=line.colour, alpha=0.2, linewidth=0)


def _published(place: Axes, panel: CurvesPanel, lines: Sequence[Line]) -> None:
    colours = {line.text: line.colour for line in lines}
    for text, points in panel.published.items():
        if text not in colours:  # such as a head that the model at hand does not have
            continue
        x, y = np.array(points, dtype=float).T
        place.plot(
            x, y, linestyle="none", marker="o", markersize=4.5, markerfacecolor="white",
            markeredgecolor=colours[text], markeredgewidth=1.1, label="_published " + text, zorder=3,
        )  # fmt: skip
