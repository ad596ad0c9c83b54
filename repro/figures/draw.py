"""All figures of a run, from saved results to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from repro.errors import UserError
from repro.figures.specs import Figure
from repro.figures.style import RC, bottom_note, powers_of_ten
from repro.results import Result, write_atomic

DPI = 160


def figure(
    spec: Figure, results: Sequence[Result], labels: Sequence[str] = (), notes: Sequence[str] = ()
) -> Canvas:
    """Draw one figure without writing it.

    results: one for each seed; labels: their names, by default "run 0", ...; notes: small text underneath.
    Raises UserError, naming what there is, when an array, scalar, axis or label is missing.
    """
    if not results:
        raise UserError("there is no result to draw: run the experiment first")
    named = list(labels) or [f"run {index}" for index in range(len(results))]
    with mpl.rc_context(RC):
        canvas = import_module(spec.module).figure(spec, results, named)
        powers_of_ten(canvas)
        bottom_note(canvas, notes)
    return canvas


def draw_all(
    specs: Mapping[str, Figure],
    results: Sequence[Result],
    labels: Sequence[str],
    directory: Path,
    notes: Sequence[str] = (),
) -> list[Path]:
    """Write <name>.png and <name>.pdf of every figure into `directory`, each file whole or not at all.

    Raises one UserError for all figures that could not be drawn, after the others are written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written, wrong = [], []
    for name, spec in specs.items():
        try:
            canvas = figure(spec, results, labels, notes)
        except UserError as error:
            wrong.append(f"figures.{name}: {error}")
            continue
        with mpl.rc_context(RC):
            for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
                path = directory / f"{name}{suffix}"
                write_atomic(
                    path,
                    # The loop's names are read at once, before they change.
                    lambda file, suffix=suffix, metadata=metadata, canvas=canvas: canvas.savefig(
                        file, format=suffix[1:], dpi=DPI, metadata=metadata
                    ),
                )
                written.append(path)
    if wrong:
        raise UserError("\n".join(wrong))
    return written
