"""A text whose tokens are coloured by a number each: red above zero, blue below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from repro.figures import style
from repro.figures.selection import stack
from repro.figures.specs import Pick
from repro.figures.token_specs import Tokens
from repro.results import Result

LINE_INCHES, LETTER_INCHES = 0.26, 0.088


def figure(spec: Tokens, results: Sequence[Result], labels: Sequence[str]) -> Canvas:
    """Draw the text in lines of at most `letters` letters, as the first of several results has it."""
    found = stack(results[:1], Pick(array=spec.array), 1)
    pieces = [str(label).split(":", 1)[-1] for label in next(iter(found.labels.values()))]
    lines = list(_lines(pieces, spec.letters))
    size = (LETTER_INCHES * spec.letters + 0.3, LINE_INCHES * len(lines) + 0.3)
    canvas, (place,) = style.grid(spec.model_copy(update={"size": None}), 1, size)
    _draw(place, spec, lines, pieces, found.mean)
    bar = ScalarMappable(Normalize(-1, 1), "RdBu_r")
    canvas.colorbar(bar, ax=place, label=spec.colour_label or spec.array, shrink=0.9, fraction=0.05, pad=0.02)
    return canvas


def _lines(pieces: Sequence[str], letters: int) -> Iterator[list[int]]:
    """Numbers of the tokens of every line."""
    line, used = [], 0
    for number, piece in enumerate(pieces):
        if line and used + len(piece) > letters:
            yield line
            line, used = [], 0
        line.append(number)
        used += len(piece)
    if line:
        yield line


def _draw(place: Axes, spec: Tokens, lines: Sequence[list[int]], pieces: Sequence[str], values: Any) -> None:
    place.set_xlim(0, spec.letters)
    place.set_ylim(len(lines), 0)
    place.set_axis_off()
    place.set_title(spec.title)
    colours = mpl.colormaps["RdBu_r"]
    for row, line in enumerate(lines):
        column = 0
        for number in line:
            text, width = pieces[number].replace("\n", "↵"), len(pieces[number])
            shade = colours(0.5 + float(values[number]) / 2)
            place.add_patch(Rectangle((column, row + 0.08), width, 0.84, color=shade, lw=0))
            dark = sum(shade[:3]) < 1.5
            place.text(column, row + 0.5, text, family="monospace", fontsize=10.5, va="center",
                       color="white" if dark else "black")  # fmt: skip
            column += width
