"""python launch.py jobs: look at submitted jobs, end them, read what they say."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from repro import jobs
from repro.errors import UserError
from repro.run_directory import RunDirectory

DONE_HOURS = 24  # done ones are shown so long
_LINES = 100


def main(words: Sequence[str], runs_dir: Path) -> int:
    """jobs | jobs cancel all|RUN_DIR|JOB_ID... | jobs log RUN_DIR|JOB_ID; returns the exit code."""
    verb, *rest = words or ["show"]
    if verb == "show" and not rest:
        return _show(runs_dir)
    if verb == "cancel" and rest:
        lines = list(jobs.cancel(jobs.select(rest, runs_dir)))
        print("\n".join(lines or ["none of these jobs is waiting or running"]))
        return 0
    if verb == "log" and len(rest) == 1:
        return _log(jobs.select(rest, runs_dir), rest[0])
    raise UserError(
        f"jobs {' '.join(words)}: expected nothing, or cancel all|RUN_DIR|JOB_ID..., or log RUN_DIR|JOB_ID;"
        " and runs_dir=DIR where it is not runs"
    )


def _show(runs_dir: Path) -> int:
    from rich.console import Console

    from repro import following

    views = jobs.show(runs_dir)
    old = [view for view in views if view.state == "done" and not _is_recent(view.directory)]
    shown = [view for view in views if view not in old]
    if not views:
        print(f"nothing was submitted from {runs_dir}")
        return 0
    if not views[0].answered:
        print("SLURM does not answer: this is what the run directories say", file=sys.stderr)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 200)  # for grep, not for eyes
    console.print(following.table(shown))
    if old:
        print(f"({len(old)} more were done over {DONE_HOURS} hours ago)")
    return 0


def _is_recent(directory: Path) -> bool:
    updated = RunDirectory(directory).status().updated
    return updated is None or datetime.now(UTC) - datetime.fromisoformat(updated) < timedelta(
        hours=DONE_HOURS
    )


def _log(chosen: Sequence[Path], word: str) -> int:
    if len(chosen) != 1:
        ids = ", ".join(str(jobs.job_id_of(one)) for one in chosen)
        raise UserError(f"jobs log: {word} means several jobs: {ids}. Give one")
    job = RunDirectory(chosen[0]).job()
    print(f"# {job.get('log')} (last {_LINES} lines; tail -f shows what comes)")
    print("\n".join(jobs.tail(chosen[0], _LINES)))
    if said := jobs.words_of_slurm(chosen[0]):
        print(f"# {job.get('slurm_log')}\n" + "\n".join(said))
    return 0
