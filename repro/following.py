"""Staying with submitted jobs until the last has ended: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from repro import jobs
from repro.jobs import View
from repro.progress import duration

if TYPE_CHECKING:
    from rich.table import Table

FIRST_POLL, LAST_POLL = 0.5, 5.0  # seconds between two looks: short at first, for jobs that end at once
GRACE = 3  # looks; a shared file system may show a result a little after its job has ended
LINE_SECONDS = 60.0  # a line about all, where there is no terminal


def follow(directories: Sequence[Path], stream: TextIO | None = None) -> dict[Path, View]:
    """Look at jobs until all are done or failed; how they ended. Ctrl-C ends only the looking."""
    shown_on = stream or sys.stdout
    screen = _Live() if shown_on.isatty() else _Lines(shown_on)
    gone: Counter[Path] = Counter()
    ended: dict[Path, View] = {}
    pause, seen = FIRST_POLL, []
    with screen:
        while True:
            waiting = [one for one in directories if one not in ended]
            final = [one for one in waiting if gone[one] >= GRACE]
            now = {view.directory: view for view in jobs.views(waiting, final)}
            ended |= {one: view for one, view in now.items() if view.state in ("done", "failed")}
            for one, view in now.items():
                gone[one] = gone[one] + 1 if view.over else 0
            seen = [ended.get(one) or now[one] for one in directories]
            screen.show(seen)
            if len(ended) == len(directories):
                return ended
            time.sleep(pause)
            pause = min(pause * 1.2, LAST_POLL)


class _Lines:
    """A line whenever a job's state changes, and one about all now and then."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last, self._told = stream, {}, time.monotonic()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, views: Sequence[View]) -> None:
        for view in views:
            before = self._last.get(view.directory)
            self._last[view.directory] = view.state
            if view.state != before and not (before is None and view.state == "queued"):
                text = f": {view.line}" if view.state == "failed" and view.line else ""
                print(f"job {view.job_id} {view.state}: {view.title}{text}", file=self._stream, flush=True)
        if time.monotonic() - self._told > LINE_SECONDS:
            self._told = time.monotonic()
            print(summary(views), file=self._stream, flush=True)


class _Live:
    """The table, drawn anew in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False)

    def __enter__(self) -> _Live:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(*error)  # type: ignore[arg-type]

    def show(self, views: Sequence[View]) -> None:
        self._live.update(table(views, self._console.height - 6), refresh=True)


def summary(views: Sequence[View]) -> str:
    """ "5 jobs: 2 running, 1 queued, 2 done"."""
    count = Counter(view.state for view in views)
    return f"{len(views)} jobs: " + ", ".join(f"{count[name]} {name}" for name in jobs.STATES if count[name])


def table(views: Sequence[View], height: int | None = None) -> Table:
    """A row a job: running ones first, then queued, failed and done; as many as fit."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=summary(views), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("job", "run", "state", "step", "left"):
        drawn.add_column(name, no_wrap=True)
    drawn.add_column("last line", no_wrap=height is not None, overflow="ellipsis" if height else "fold")
    colours = {"running": "cyan", "failed": "red", "done": "green", "queued": "dim"}
    rows = sorted(views, key=lambda view: (jobs.STATES.index(view.state), _numbers(view.job_id)))
    shown = rows if height is None else rows[: max(height, 3)]
    for view in shown:
        line = f"{view.note}; {view.line}".strip("; ") if view.note else view.line
        state = Text(view.state, style=colours[view.state])
        drawn.add_row(view.job_id, Text(view.title), state, _step(view), _left(view), Text(line))
    if len(shown) < len(rows):
        drawn.add_row("…", f"and {len(rows) - len(shown)} more")
    return drawn


def _numbers(job_id: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", job_id)]


def _step(view: View) -> str:
    if view.total is None or view.state == "done":
        return ""
    return f"{view.step or 0:,}/{view.total:,}"


def _left(view: View) -> str:
    return duration(view.eta) if view.eta is not None and view.state == "running" else ""
