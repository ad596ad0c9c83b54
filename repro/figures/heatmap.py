"""Matrices as colours, with their numbers written in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from repro.errors import UserError
from repro.figures import style
from repro.figures.selection import Stack, stack
from repro.figures.specs import Heatmap, HeatmapPanel, Label
from repro.results import Result

CELL_INCHES = 0.42
MOST_NUMBERS = 400
MOST_TICKS = 24


def figure(spec: Heatmap, results: Sequence[Result], labels: Sequence[str]) -> Canvas:
    """Draw every panel on one colour scale; the mean over several results."""
    parts = [part for panel in spec.filled_panels() for part in _parts(panel, results)]
    low, high = _limits(spec, [matrix for _, _, matrix in parts])
    canvas, places = style.grid(spec, len(parts), _size(parts))
    centred = spec.centre is not None
    for place, (panel, title, matrix) in zip(places, parts, strict=True):
        image = place.imshow(
            matrix.mean, cmap="RdBu_r" if centred else "viridis", vmin=low, vmax=high, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        _dress(place, panel.model_copy(update={"title": title}), matrix)
        if spec.annotate and matrix.mean.size <= MOST_NUMBERS:
            _numbers(place, matrix.mean, spec.digits, image)
    if len({(place.get_ylabel(), len(part[2].mean)) for place, part in zip(places, parts, strict=True)}) == 1:
        style.left_only(places)
    name = spec.colour_label or _name(parts[0][0].array, parts[0][2].unit)
    if len(results) > 1:
        name += f"\nmean of {len(results)} seeds"
    canvas.colorbar(image, ax=places, label=name, shrink=0.9, fraction=0.05, pad=0.02)
    return canvas


def _name(array: str, unit: str) -> str:
    words = array.replace("_", " ")
    return words if unit == "1" else f"{words} ({unit})"


def _parts(panel: HeatmapPanel, results: Sequence[Result]) -> list[tuple[HeatmapPanel, str, Stack]]:
    """(panel, title, matrix as [seed, row, column]) for each place in the figure."""
    if not panel.array:
        raise UserError("a heatmap needs `array`, in the figure or in every panel")
    whole = stack(results, panel, None if panel.fan_out else 2)
    if panel.fan_out is None:
        return [(panel, panel.title, _oriented(panel, whole))]
    if panel.fan_out not in whole.labels or len(whole.labels) != 3:
        raise UserError(
            f"array {panel.array}: fan_out needs the axis {panel.fan_out!r} and two more. "
            f"Axes left: {', '.join(whole.labels)}"
        )
    return [
        (panel, _title(panel, label),
         _oriented(panel, whole.along(panel.fan_out, label)))
        for label in whole.labels[panel.fan_out]
    ]  # fmt: skip


def _title(panel: HeatmapPanel, label: Label) -> str:
    if "{label}" in panel.title:
        return panel.title.replace("{label}", str(label))
    return str(label) if isinstance(label, str) else f"{panel.fan_out} {label}"


def _oriented(panel: HeatmapPanel, matrix: Stack) -> Stack:
    first, second = matrix.labels
    for name in (panel.rows, panel.columns_axis):
        if name is not None and name not in matrix.labels:
            raise UserError(f"array {panel.array} has no axis {name!r} left. Axes: {first}, {second}")
    if panel.rows == second or panel.columns_axis == first:
        turned = {second: matrix.labels[second], first: matrix.labels[first]}
        return Stack(matrix.values.swapaxes(1, 2), turned, matrix.unit)
    return matrix


def _limits(spec: Heatmap, matrices: Sequence[Stack]) -> tuple[float, float]:
    if spec.limits is not None:
        return spec.limits
    values = np.concatenate([matrix.mean.ravel() for matrix in matrices])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    if spec.centre is not None:
        reach = float(np.abs(values - spec.centre).max()) or 1.0
        return spec.centre - reach, spec.centre + reach
    return float(values.min()), float(values.max())


def _size(parts: Sequence[tuple[Any, str, Stack]]) -> tuple[float, float]:
    rows = max(matrix.mean.shape[0] for _, _, matrix in parts)
    columns = max(matrix.mean.shape[1] for _, _, matrix in parts)
    width = min(max(columns * CELL_INCHES, 1.8), 6.0) + 1.0
    return width, min(max(rows * CELL_INCHES * 0.8, 1.5), 6.0) + 0.8


def _dress(place: Axes, panel: HeatmapPanel, matrix: Stack) -> None:
    rows, columns = matrix.labels
    style.dress(place, panel, columns, rows)
    place.grid(False)
    for ticks, labels in ((place.xaxis, matrix.labels[columns]), (place.yaxis, matrix.labels[rows])):
        step = -(-len(labels) // MOST_TICKS)
        ticks.set_ticks(range(0, len(labels), step), [str(label) for label in labels[::step]])
        ticks.set_tick_params(length=0)
    if max(len(str(label)) for label in matrix.labels[columns]) > 4:
        place.tick_params(axis="x", labelrotation=40)
        for text in place.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    for spine in place.spines.values():
        spine.set_visible(False)


def _numbers(place: Axes, matrix: np.ndarray, digits: int, image: Any) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        if not np.isfinite(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        text = f"{value:.{digits}f}"
        text = text.lstrip("-") if float(text) == 0 else text
        # ".93" says as much as "0.93" and fits the cell.
        text = text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
        place.text(
            column, row, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black"
        )
