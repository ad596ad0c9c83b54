"""What became of submitted jobs: read from their directories and from squeue, never from accounting alone."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from repro import slurm, tasks
from repro.errors import UserError
from repro.results import write_json
from repro.run_directory import RunDirectory, now
from repro.slurm import JobState
from repro.workers import mark_failed

STATES = ("running", "queued", "failed", "done")
_PATTERNS = ("*/*/*/job.json", "*/*/*/shards/*/job.json", "trained/*/job.json")
_TAIL_BYTES = 65536
_WHY = {
    "TIMEOUT": "its time limit was reached before it could put itself back into the queue",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory: give more with hardware.memory_gb",
    "BOOT_FAIL": "its node did not start",
    "PREEMPTED": "preempted, and not put back into the queue",
    "DEADLINE": "its deadline passed",
    "COMPLETED": "it ended without a result: see its log",
}


@dataclass(frozen=True)
class View:
    """A job as one looks at it. state: one of `STATES`. line: why it waits or failed, or the last it said.

    over: the job is not in the queue any more, and has no result (yet). answered: whether SLURM was heard.
    """

    directory: Path
    title: str
    job_id: str
    state: str
    step: int | None = None
    total: int | None = None
    eta: float | None = None
    line: str = ""
    note: str = ""
    over: bool = False
    answered: bool = True


def find(runs_dir: Path) -> list[Path]:
    """Directories of everything that was ever submitted from a folder of runs."""
    return sorted(path.parent for pattern in _PATTERNS for path in runs_dir.glob(pattern))


def job_id_of(directory: Path) -> str | None:
    """The job a directory was last submitted as."""
    return RunDirectory(directory).job().get("job_id")


def views(directories: Sequence[Path], final: Collection[Path] = ()) -> list[View]:
    """How these stand now, with one call of squeue.

    final: those whose job has been over for so long that a result would be visible; without one they have
    failed, which is then written into their status.
    """
    open_ids = {
        directory: job_id
        for directory in directories
        if (job_id := job_id_of(directory)) and not tasks.is_done(directory)
    }
    known = slurm.states(list(open_ids.values()))
    found = {}
    for directory in _needs_first(directories):
        job_id = open_ids.get(directory)
        state = known.get(job_id) if known is not None and job_id else None
        found[directory] = _view(directory, state, known is not None, directory in final)
    return [found[directory] for directory in directories]


def _needs_first(directories: Sequence[Path]) -> list[Path]:
    """Each after what it needs, so that what is not started finds written why."""
    left, order = set(directories), []

    def add(directory: Path) -> None:
        if directory in left:
            left.remove(directory)
            for need in RunDirectory(directory).job().get("needs", []):
                add(Path(need))
            order.append(directory)

    for directory in directories:
        add(directory)
    return order


def _view(directory: Path, state: JobState | None, answered: bool, final: bool) -> View:
    run = RunDirectory(directory)
    job, status = run.job(), run.status()
    title, job_id = str(job.get("title", directory)), str(job.get("job_id") or "-")

    def view(name: str, line: str | None = "", over: bool = False) -> View:
        progress = status.step, status.total, status.eta
        return View(directory, title, job_id, name, *progress, line or "", status.note or "", over, answered)

    if tasks.is_done(directory):
        return view("done")
    if status.state == "failed":
        return view("failed", status.reason)
    if state is not None and state.is_waiting:
        return view("queued", _waits(state, status.state, status.reason))
    over = answered and (state is None or state.has_ended) and not run.is_locked()
    if over and final:
        mark_failed(directory, why(directory, state))
        return view("failed", run.status().reason)
    started = status.state in ("running", "interrupted") or (state is not None and not state.has_ended)
    return view("running" if started else "queued", last_line(directory) if started else "", over)


def _waits(state: JobState, status: str, reason: str | None) -> str:
    if status in ("running", "interrupted"):
        return "was interrupted (preempted, or its node failed); goes on from its last saved state"
    known = {
        "Dependency": "waits for what it needs",
        "Priority": "",
        "Resources": "",
        "None": "",
        "BeginTime": "",
    }
    said = known.get(state.reason, state.reason)
    return "; ".join(part for part in (reason, said) if part)


def why(directory: Path, state: JobState | None) -> str:
    """Why a job that is over has no result."""
    run = RunDirectory(directory)
    job = run.job()
    job_id = str(job.get("job_id"))
    state = state or slurm.last_word(job_id)
    for need in map(Path, job.get("needs", [])):
        status = RunDirectory(need).status()
        if status.state == "failed":
            title = RunDirectory(need).job().get("title", need)
            return f"not started: {title} failed: {status.reason}"
    if "cancelled" in job:
        return "cancelled; the same command goes on from what is saved"
    if state is None:
        return f"job {job_id} is gone without a result: see its log"
    if state.state.startswith("CANCELLED"):
        return f"job {job_id} was cancelled; the same command goes on from what is saved"
    said = _WHY.get(state.state, "see its log")
    return f"job {job_id} {state}: {said}"


def last_line(directory: Path) -> str:
    """The last line that a job has said."""
    lines = [line for line in tail(directory, 5) if line.strip()]
    return lines[-1].strip() if lines else ""


def tail(directory: Path, count: int) -> list[str]:
    """The last lines of a job's log."""
    log = Path(RunDirectory(directory).job().get("log", directory / "output.log"))
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rpartition("\r")[2] for line in text.splitlines()[-count:]]


def words_of_slurm(directory: Path) -> list[str]:
    """What SLURM itself, or a job that could not begin, says beside the log."""
    path = RunDirectory(directory).job().get("slurm_log")
    try:
        lines = Path(path).read_text(errors="replace").splitlines() if path else []
    except OSError:
        return []
    return [
        line for line in lines if re.match(r"(slurmstepd|srun|sbatch|Traceback|\w*Error|/.*: line \d+)", line)
    ]


# commands


def show(runs_dir: Path, settle_seconds: float = 2.0) -> list[View]:
    """How everything submitted stands. What ended without a word is looked at twice, then it has failed."""
    found = find(runs_dir)
    seen = views(found)
    over = [view.directory for view in seen if view.over]
    if over:
        time.sleep(settle_seconds)
        seen = views(found, over)
    return seen


def select(words: Sequence[str], runs_dir: Path) -> list[Path]:
    """The directories that are meant by `all`, run directories, and ids of jobs or whole arrays.

    Raises `UserError` for a word that means none.
    """
    found = find(runs_dir)
    chosen: list[Path] = []
    for word in words:
        place = Path(word).absolute()
        meant = [one for one in found if word == "all" or one.absolute() == place or _has_id(one, word)]
        if not meant and (place / "job.json").exists():
            meant = [place]
        if not meant and word != "all":
            raise UserError(
                f"jobs: {word} is neither a run directory with a job nor the id of a job in {runs_dir}."
                " python launch.py jobs lists them; runs in another folder need runs_dir="
            )
        chosen += [one for one in meant if one not in chosen]
    return chosen


def _has_id(directory: Path, word: str) -> bool:
    job_id = job_id_of(directory)
    return job_id is not None and word in (job_id, slurm.base_id(job_id))


def cancel(directories: Sequence[Path]) -> Iterator[str]:
    """End the jobs of these directories; says of each what was done. A running one saves its state first."""
    ids = {one: job_id for one in directories if (job_id := job_id_of(one)) and not tasks.is_done(one)}
    known = slurm.states(list(ids.values()))
    if known is None:
        raise UserError("jobs cancel: SLURM does not answer. Nothing was cancelled")
    active = {one: job_id for one, job_id in ids.items() if job_id in known and not known[job_id].has_ended}
    for directory in active:
        run = RunDirectory(directory)
        write_json(directory / "job.json", {**run.job(), "cancelled": now()})
    if active:
        slurm.cancel(list(active.values()))
    for directory, job_id in active.items():
        if known[job_id].is_waiting:
            mark_failed(directory, "cancelled; the same command goes on from what is saved")
        yield f"cancelled job {job_id}: {directory}"
