"""Numbers as text, measured beside published."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from repro.errors import UserError
from repro.figures import style
from repro.figures.selection import published_at, scalars, stack
from repro.figures.specs import Table
from repro.results import Result

ROW_INCHES = 0.24
LETTER_INCHES = 0.075


def figure(spec: Table, results: Sequence[Result], labels: Sequence[str]) -> Canvas:
    """Draw the table between three lines, as in print; with several results mean and range."""
    rows = cells(spec, results)
    widths = [
        max(len(line) for row in rows for line in row[index].split("\n")) for index in range(len(rows[0]))
    ]
    inches = [LETTER_INCHES * width + 0.25 for width in widths]
    title = textwrap.wrap(spec.title, max(int(sum(inches) / LETTER_INCHES), 24))
    spec = spec.model_copy(update={"title": "\n".join(title)})
    size = (sum(inches) + 0.1, ROW_INCHES * len(rows) + 0.1 + 0.25 * len(title))
    canvas, (place,) = style.grid(spec.model_copy(update={"size": None}), 1, size)
    _draw(place, spec, rows, np.array(inches) / sum(inches))
    return canvas


def cells(spec: Table, results: Sequence[Result]) -> list[list[str]]:
    """The texts, row by row, the head first."""
    return _rows_of_scalars(spec, results) if spec.rows else _columns_of_arrays(spec, results)


def _rows_of_scalars(spec: Table, results: Sequence[Result]) -> list[list[str]]:
    with_published = any(row.published is not None for row in spec.rows.values())
    head = [spec.row_name, "measured" if len(results) == 1 else f"mean of {len(results)} seeds [min, max]"]
    table = [head + ["published"] * with_published]
    for name, row in spec.rows.items():
        line = [name, _number(scalars(results, row.scalar), spec.digits)]
        if with_published:
            line.append("" if row.published is None else _plain(row.published, spec.digits))
        table.append(line)
    return table


def _columns_of_arrays(spec: Table, results: Sequence[Result]) -> list[list[str]]:
    head, columns, labels = [], [], None
    for column in spec.table_columns:
        values = stack(results, column, 1)
        axis, known = next(iter(values.labels.items()))
        if labels is None:
            labels, head = known, [spec.row_name or axis.replace("_", " ")]
            columns.append([str(label) for label in known])
        if known != labels:
            raise UserError(f"table column {column.array}: other labels than the first column, {labels}")
        head.append(column.label or column.array.replace("_", " "))
        columns.append([_number(values.values[:, index], spec.digits) for index in range(len(known))])
        if column.published:
            head.append("published")
            given = published_at(column, known)
            columns.append(["" if value is None else _plain(value, spec.digits) for value in given])
    return [head, *(list(row) for row in zip(*columns, strict=True))]


def _plain(value: float, digits: int) -> str:
    if not np.isfinite(value):
        return "–" if np.isnan(value) else "never"
    large = abs(value) >= 1e4 and float(value).is_integer()
    fixed = value == 0 or 10.0**-digits <= abs(value) < 1
    return f"{value:,.0f}" if large else f"{value:.{digits}{'f' if fixed else 'g'}}"


def _number(values: np.ndarray, digits: int) -> str:
    if len(values) == 1:
        return _plain(values[0], digits)
    return f"{_plain(values.mean(), digits)} [{_plain(values.min(), digits)}, {_plain(values.max(), digits)}]"


def _draw(place: Axes, spec: Table, rows: Sequence[Sequence[str]], shares: np.ndarray) -> None:
    place.set_axis_off()
    place.set_title(spec.title, loc="left")
    place.set_xlim(0, 1)
    place.set_ylim(len(rows), 0)
    edges = np.concatenate([[0], np.cumsum(shares)])
    for row, line in enumerate(rows):
        for column, text in enumerate(line):
            first = column == 0
            place.text(
                edges[column] + 0.005 if first else edges[column + 1] - 0.005, row + 0.52, text,
                ha="left" if first else "right", va="center", fontsize=8.5,
                fontweight="bold" if row == 0 else "normal",
                color=style.GREY if rows[0][column] == "published" else "black",
            )  # fmt: skip
    for height, thick in ((0, 1.2), (1, 0.7), (len(rows), 1.2)):
        place.axhline(height, color="black", linewidth=thick, clip_on=False)
