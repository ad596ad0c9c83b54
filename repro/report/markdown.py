"""The report as Markdown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from repro.claims import NOT_REPRODUCED, NOT_RUN, REPRODUCED
from repro.claims_file import show
from repro.report.contents import PaperSummary, RunSummary

EMBEDDED = "Embedded model or data: these are not the paper's numbers."


def write(papers: Sequence[PaperSummary], folder: Path) -> str:
    """The text of report.md, with figures linked relative to `folder`."""
    parts = ["# Papers, claims and results", "", *_overview(papers)]
    for paper in papers:
        parts += ["", f"## {_cell(paper.title)}", ""]
        parts += [f"`{paper.slug}`. {paper.citation}".strip(), "", *_claims(paper)]
        for run in paper.finished:
            parts += ["", *_run(run, folder)]
        if paper.unfinished:
            parts += ["", "### Not finished", ""]
            parts += [_unfinished(run) for run in paper.unfinished]
    return "\n".join(parts) + "\n"


def _overview(papers: Sequence[PaperSummary]) -> list[str]:
    head = [
        "| paper | reproduced | not reproduced | not run | judged on embedded stand-ins | runs |",
        "|---|---|---|---|---|---|",
    ]
    rows = []
    for paper in papers:
        counts = [paper.counts[verdict] for verdict in (REPRODUCED, NOT_REPRODUCED, NOT_RUN)]
        rows.append(_row([paper.title, *counts, paper.on_embedded, len(paper.finished)]))
    return head + rows


def _claims(paper: PaperSummary) -> list[str]:
    if not paper.claims:
        return ["No claims are written down for this paper."]
    head = [
        "| id | source | claim | published | measured | verdict | why | run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = []
    for verdict, run in paper.claims:
        where = (
            f"{verdict.experiment} {run.run.digest[:6]}{' (embedded)' if run.embedded else ''}" if run else ""
        )
        shown = [verdict.id, verdict.source, verdict.says, verdict.published, verdict.measured]
        rows.append(_row([*shown, f"**{verdict.verdict}**", verdict.why, where]))
    return head + rows


def _run(run: RunSummary, folder: Path) -> list[str]:
    lines = [f"### {run.run.experiment} ({run.run.digest})", ""]
    if run.embedded:
        lines += [f"> **{EMBEDDED}**", ""]
    facts = {
        "data": run.data,
        "model": run.model,
        "seed": run.seed,
        "commit": run.commit,
        "finished": run.date,
    }
    lines += ["; ".join(f"{name}: {text}" for name, text in facts.items() if text), ""]
    lines += [f"* {name}: {text}" for name, text in run.notes.items()]
    if run.scalars:
        lines += ["", "| scalar | value |", "|---|---|"]
        lines += [_row([name, show(value)]) for name, value in run.scalars.items()]
    for figure in run.figures:
        lines += ["", f"![{figure.stem}]({os.path.relpath(figure, folder).replace(' ', '%20')})"]
    return lines


def _unfinished(run: RunSummary) -> str:
    reason = f": {_cell(run.status.reason)}" if run.status.reason else ""
    return f"* {run.run.experiment} ({run.run.digest}) is {run.status.state}{reason}"


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
