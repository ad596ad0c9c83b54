"""Grouped bars, with published values as open circles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from repro.errors import UserError
from repro.figures import style
from repro.figures.selection import Stack, published_at, scalars, stack
from repro.figures.specs import Bars, BarSeries, BarsPanel
from repro.results import Result

GROUP_WIDTH = 0.8


def figure(spec: Bars, results: Sequence[Result], labels: Sequence[str]) -> Canvas:
    """Draw every panel; mean bars with whiskers from min to max when there are several results."""
    panels = spec.filled_panels()
    found = [[bar_heights(series, results) for series in panel.series] for panel in panels]
    if not all(found):
        raise UserError("a bar chart needs `series`, in the figure or in every panel")
    bars = max(sum(len(heights.mean) for heights in group) for group in found)
    canvas, places = style.grid(spec, len(panels), (min(max(0.25 * bars + 1.2, 2.6), 9.0), 2.8))
    for place, panel, heights in zip(places, panels, found, strict=True):
        draw_panel(place, panel, heights, spec.values)
    if spec.share_y and len(places) > 1 and not any(panel.y_axis.limits for panel in panels):
        style.share_limits(places)
    extra: list[Artist] = [style.band_handle(len(results))] if len(results) > 1 else []
    if any(series.published for panel in panels for series in panel.series):
        extra.append(style.published_handle(spec.published_label))
    style.legend(canvas, places, spec, extra, most_inside=0)
    return canvas


def bar_heights(series: BarSeries, results: Sequence[Result]) -> Stack:
    """The heights, (seed, bar), with one axis."""
    if series.array:
        return stack(results, series, 1)
    values = np.stack([scalars(results, name) for name in series.scalars.values()], axis=1)
    return Stack(values, {"": list(series.scalars)})


def draw_panel(place: Axes, panel: BarsPanel, heights: Sequence[Stack], numbers: bool) -> None:
    """One group for each label, one colour for each series."""
    axis, labels = next(iter(heights[0].labels.items()))
    for series, values in zip(panel.series, heights, strict=True):
        if next(iter(values.labels.values())) != labels:
            raise UserError(
                f"bars {series.label or series.array}: other labels than the first series, {labels}"
            )
    width = GROUP_WIDTH / len(heights)
    for index, (series, values) in enumerate(zip(panel.series, heights, strict=True)):
        centres = np.arange(len(labels)) - GROUP_WIDTH / 2 + width * (index + 0.5)
        shade = style.named_colour(series.colour, index)
        text = series.label or ("" if len(heights) == 1 else series.array)
        bars = place.bar(centres, values.mean, width * 0.92, color=shade, alpha=0.85, label=text or "_bars")
        if len(values.values) > 1:
            # The mean of equal numbers can differ from them in the last digit.
            reach = np.maximum([values.mean - values.lowest, values.highest - values.mean], 0)
            place.errorbar(centres, values.mean, reach, fmt="none", ecolor="black", elinewidth=0.9, capsize=2)
        if numbers:
            place.bar_label(bars, fmt="%.3g", fontsize=6.5, padding=2)
        _published(place, series, centres, labels)
    style.references(place, panel, beside=True)
    y_axis = style.unit_of(panel.y_axis, heights[0].unit)
    name = panel.series[0].array.rsplit(".", 1)[-1] if len(heights) == 1 else ""
    style.dress(place, panel.model_copy(update={"y_axis": y_axis}), axis, name)
    place.set_xticks(range(len(labels)), [str(label) for label in labels])
    place.grid(False, axis="x")
    _turn_long_labels(place, labels)


def _turn_long_labels(place: Axes, labels: Sequence[object]) -> None:
    longest = max(len(str(label)) for label in labels)
    room = place.get_figure().get_size_inches()[0] / max(len(labels), 1)  # type: ignore[union-attr]
    if longest * 0.07 > room * 0.8 or (longest > 6 and len(labels) > 4):
        for text in place.get_xticklabels():
            text.set(rotation=35, ha="right", rotation_mode="anchor")


def _published(
    place: Axes, series: BarSeries, centres: np.ndarray, labels: Sequence[str | int | float]
) -> None:
    points = [
        (centre, value)
        for centre, value in zip(centres, published_at(series, labels), strict=True)
        if value is not None
    ]
    if points:
        x, y = np.array(points).T
        place.plot(
            x, y, linestyle="none", marker="o", markersize=4.5, markerfacecolor="white",
            markeredgecolor="black", markeredgewidth=1, zorder=4, label="_published " + series.label,
        )  # fmt: skip
