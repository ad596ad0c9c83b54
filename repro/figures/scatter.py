"""One quantity against another, each point named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from scipy import stats

from repro.errors import UserError
from repro.figures import style
from repro.figures.selection import Stack, stack
from repro.figures.specs import Points, Scatter, ScatterPanel
from repro.results import Result

PANEL_INCHES = (3.3, 2.9)
SEED_MARKERS = "os^Dv<>P"
CROWD = 60  # more points than that are drawn small and see-through


def figure(spec: Scatter, results: Sequence[Result], labels: Sequence[str]) -> Canvas:
    """Draw every panel; with several results all their points, told apart by marker."""
    panels = spec.filled_panels()
    if not all(panel.series for panel in panels):
        raise UserError("a scatter plot needs `series`, in the figure or in every panel")
    canvas, places = style.grid(spec, len(panels), PANEL_INCHES)
    for place, panel in zip(places, panels, strict=True):
        draw_panel(place, panel, results, labels)
    extra = []
    if any(series.published for panel in panels for series in panel.series):
        extra.append(style.published_handle(spec.published_label))
    style.legend(canvas, places, spec, extra)
    return canvas


def cloud(series: Points, results: Sequence[Result]) -> tuple[Stack, Stack]:
    """x and y as (seed, point), over one shared axis."""
    x, y = stack(results, series.x, 1), stack(results, series.y, 1)
    if list(x.labels.values()) != list(y.labels.values()):
        raise UserError(
            f"{series.x.array} over {x.labels} and {series.y.array} over {y.labels}: not the same points"
        )
    return x, y


def draw_panel(place: Axes, panel: ScatterPanel, results: Sequence[Result], labels: Sequence[str]) -> None:
    """The clouds of one panel, published points and the correlation of what was measured."""
    if not panel.series:
        raise UserError("a scatter plot needs `series`, in the figure or in every panel")
    clouds = [cloud(series, results) for series in panel.series]
    many = len(results) > 1
    for index, (series, (x, y)) in enumerate(zip(panel.series, clouds, strict=True)):
        for seed, (across, up) in enumerate(zip(x.values, y.values, strict=True)):
            by_seed = many and len(panel.series) == 1
            shade = style.named_colour(series.colour, seed if by_seed else index)
            text = " ".join(part for part in (series.label, labels[seed] if many else "") if part)
            crowd = len(across) > CROWD
            place.plot(
                across, up, linestyle="none", marker=SEED_MARKERS[seed % len(SEED_MARKERS)],
                markersize=3 if crowd else 5, markeredgewidth=0, color=shade, alpha=0.5 if crowd else 0.9,
                label=text or "_points",
            )  # fmt: skip
        if series.point_labels and not many:
            _name_points(place, x, y)
        if panel.regression:
            _draw_regression(place, x, y, style.named_colour(series.colour, index))
        if series.published:
            across, up = np.array(series.published, dtype=float).T
            shade = style.named_colour(series.colour, index)
            place.plot(
                across, up, linestyle="none", marker="o", markersize=5, markerfacecolor="none",
                markeredgecolor=shade, alpha=0.8, label="_published " + series.label,
            )  # fmt: skip
    x, y = clouds[0]
    axes = {"x_axis": style.unit_of(panel.x_axis, x.unit), "y_axis": style.unit_of(panel.y_axis, y.unit)}
    style.references(place, panel)
    style.dress(place, panel.model_copy(update=axes), panel.series[0].x.array, panel.series[0].y.array)
    place.margins(0.1)
    if panel.diagonal:
        place.axline((0, 0), slope=1, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    if panel.correlation:
        _write_correlation(place, panel, clouds)


def correlation(panel: ScatterPanel, clouds: Sequence[tuple[Stack, Stack]]) -> tuple[float, int]:
    """The coefficient over every finite point of every series and seed, and how many points those are."""
    x = np.concatenate([x.values.ravel() for x, _ in clouds])
    y = np.concatenate([y.values.ravel() for _, y in clouds])
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 3:
        return float("nan"), int(both.sum())
    x, y = x[both], y[both]
    if panel.correlation == "spearman":
        x, y = stats.rankdata(x), stats.rankdata(y)
    return float(np.corrcoef(x, y)[0, 1]), len(x)


def _draw_regression(place: Axes, x: Stack, y: Stack, shade: str) -> None:
    """The least-squares line of y on x through all finite points of all seeds, over their range."""
    across, up = x.values.ravel(), y.values.ravel()
    both = np.isfinite(across) & np.isfinite(up)
    if both.sum() < 3 or np.ptp(across[both]) == 0:
        return
    slope, start = np.polyfit(across[both], up[both], 1)
    ends = np.array([across[both].min(), across[both].max()])
    place.plot(ends, start + slope * ends, color=shade, linewidth=1.2, label="_regression")


def _write_correlation(place: Axes, panel: ScatterPanel, clouds: Sequence[tuple[Stack, Stack]]) -> None:
    value, count = correlation(panel, clouds)
    symbol = r"Spearman $\rho$" if panel.correlation == "spearman" else "Pearson $r$"
    # Above the axes, where no point can be.
    place.set_title(
        "\n".join(part for part in (panel.title, f"{symbol} = {value:.2f} (n = {count})") if part)
    )


def _name_points(place: Axes, x: Stack, y: Stack) -> None:
    points = np.stack([x.values[0], y.values[0]], axis=1)
    near = 0.06 * np.nanmax(np.ptp(points[np.isfinite(points).all(axis=1)], axis=0, keepdims=True), axis=0)
    named: list[np.ndarray] = []
    low, high = np.nanmin(points[:, 0]), np.nanmax(points[:, 0])
    for name, point in zip(next(iter(x.labels.values())), points, strict=True):
        if not np.isfinite(point).all():
            continue
        crowded = any((np.abs(point - other) < near).all() for other in named)
        # A long name to the right of a point at the right edge would take its room from the axes.
        outside = len(str(name)) > 6 and point[0] > low + 0.6 * (high - low)
        left = crowded or outside
        place.annotate(
            str(name), tuple(point), xytext=(-4 if left else 4, -3 if crowded else 3), fontsize=7,
            textcoords="offset points", ha="right" if left else "left", va="top" if crowded else "bottom",
            color=style.GREY,
        )  # fmt: skip
        named.append(point)
