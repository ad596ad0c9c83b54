"""One directory a configuration: its lock, its status, and where its numbers came from.

    <runs_dir>/<slug>/<experiment>/<hash>/

The lock is held by the kernel for the process that works, so it disappears with the process, even after
`kill -9`. A status that says `running` while nobody holds the lock therefore means: interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from repro import locks, provenance
from repro.errors import UserError
from repro.progress import Pace
from repro.results import cannot_write, read_json, write_atomic, write_json

log = logging.getLogger(__name__)

_LOCK = ".lock"
# What a waiting or restarted job needs, and what it has said so far, is older than its results.
_KEPT = (_LOCK, "config.json", "job.json", "output.log", "shards")


@dataclass(frozen=True)
class Status:
    """How far a run is: `new`, `queued`, `running`, `interrupted`, `done` or `failed`.

    `new` (nothing there yet) and `interrupted` (running, but its process is gone) are never
    written, only found. Times are ISO 8601 in UTC; `eta` is in seconds. note: what one should know besides.
    """

    state: str = "new"
    reason: str | None = None
    job_id: str | None = None
    pid: int | None = None
    host: str | None = None
    started: str | None = None
    updated: str | None = None
    step: int | None = None
    total: int | None = None
    eta: float | None = None
    note: str | None = None


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._last_progress = 0.0

    @classmethod
    def of(cls, runs_dir: str | Path, slug: str, experiment: str, digest: str) -> RunDirectory:
        """The directory of the configuration with this hash."""
        return cls(Path(runs_dir) / slug / experiment / digest)

    @property
    def slug(self) -> str:
        return self.path.parent.parent.name

    @property
    def experiment(self) -> str:
        return self.path.parent.name

    @property
    def digest(self) -> str:
        return self.path.name

    @property
    def figures(self) -> list[Path]:
        """The drawn figures, as PNG."""
        return sorted((self.path / "figures").glob("*.png"))

    def config(self) -> dict[str, Any]:
        """The resolved configuration that was saved with the run."""
        try:
            return yaml.safe_load((self.path / "config.yaml").read_text())
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{self.path / 'config.yaml'} cannot be read: {error}") from error

    def provenance(self) -> dict[str, Any]:
        """Commit, versions, device, seeds, command, times and checksums; empty before the first start."""
        path = self.path / "provenance.json"
        return read_json(path) if path.exists() else {}

    def job(self) -> dict[str, Any]:
        """How it was last submitted to SLURM: job id, log, time, code; empty if it never was."""
        path = self.path / "job.json"
        return read_json(path) if path.exists() else {}

    def prepare(self) -> None:
        """Make the directory. Raises UserError at once if nothing can be written there."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe.{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"runs_dir: cannot write in {self.path}: {error.strerror}. "
                "Choose another place with runs_dir=DIR."
            ) from error

    # status

    def status(self) -> Status:
        """What status.json says, corrected where the process that wrote it is gone."""
        status = self._written()
        if status.state == "running" and not self.is_locked():
            return replace(status, state="interrupted")
        return status

    def is_done(self) -> bool:
        """Whether the run finished, so that its numbers can be used."""
        return self._written().state == "done" and (self.path / "scalars.json").exists()

    def set_status(self, state: str, *, reason: str | None = None, **changes: Any) -> None:
        """Write status.json; what is not given (job_id, step, total, eta, ...) stays as it was.

        Calls that only move `step` write at most once a second, so a training loop may call this freely.
        """
        before = self._written()
        only_progress = (
            state == before.state and not (set(changes) - {"step", "total", "eta"}) and reason is None
        )
        if only_progress and time.monotonic() - self._last_progress < 1.0:
            return
        self._last_progress = time.monotonic()
        status = replace(before, state=state, reason=reason, updated=now(), **changes)
        write_json(self.path / "status.json", asdict(status), durable=not only_progress)

    def _written(self) -> Status:
        try:
            content = json.loads((self.path / "status.json").read_text())
        except FileNotFoundError:
            return Status()
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s): taken as not run", self.path / "status.json", error)
            return Status()
        return Status(**{key: content[key] for key in content if key in Status.__dataclass_fields__})

    def is_locked(self) -> bool:
        """Whether a process works here now."""
        return locks.is_held(self.path / _LOCK)

    @contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Be the only process that works here.

        wait: wait for the other process instead of raising `locks.Busy`, a UserError that tells who it is.
        """
        self.prepare()
        with locks.exclusive(self.path / _LOCK, wait):
            yield

    # a stretch of work

    @contextmanager
    def work(
        self,
        config: Mapping[str, Any],
        command: Sequence[str],
        *,
        device: str = "cpu",
        seeds: Mapping[str, int] | int | None = None,
        checksums: Mapping[str, str] | None = None,
        rerun: bool = False,
        wait: bool = False,
    ) -> Iterator[bool]:
        """Hold the lock, write config.yaml and provenance.json, and keep status.json true.

        Yields whether there is work to do: not if the run is done (perhaps by the process waited for).
        An exception sets `failed` with its text; being stopped from outside leaves a run that resumes.
        rerun: forget everything saved before. Other arguments: see `provenance.collect`.
        """
        with self.lock(wait):
            if self.is_done() and not rerun:
                yield False
                return
            if rerun:
                self.clear()
            self.open(config, command, device=device, seeds=seeds, checksums=checksums)
            try:
                yield True
            except (KeyboardInterrupt, SystemExit, GeneratorExit):
                raise
            except BaseException as error:
                self._fail(error)
                raise
            self.note(finished=now())
            self.set_status("done", eta=None)

    def open(
        self,
        config: Mapping[str, Any],
        command: Sequence[str],
        *,
        device: str = "cpu",
        seeds: Mapping[str, int] | int | None = None,
        checksums: Mapping[str, str] | None = None,
    ) -> None:
        """Write config.yaml, provenance.json and the status `running`. The lock must be held."""
        write_atomic(
            self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        )
        facts = provenance.collect(command, device=device, seeds=seeds, checksums=checksums)
        earlier = self.provenance()
        starts = [
            *earlier.get("starts", []),
            {"time": now(), "host": facts["host"], "commit": facts["commit"]},
        ]
        job = self.job()
        submitted = {"submitted": {key: job.get(key) for key in (*provenance.CODE, "time")}} if job else {}
        saved = {**earlier, **facts, **submitted, "starts": starts, "finished": None}
        write_json(self.path / "provenance.json", saved)
        started = self._written().started if len(starts) > 1 else None
        self.set_status(
            "running",
            pid=os.getpid(),
            host=facts["host"],
            started=started or now(),
            step=None,
            total=None,
            eta=None,
            job_id=job_id(),
            note=provenance.difference(job, facts) if job_id() else None,
        )

    def note(self, **facts: Any) -> None:
        """Add facts to provenance.json, such as the checksums of data that had to be downloaded first."""
        write_json(self.path / "provenance.json", {**self.provenance(), **facts})

    def clear(self) -> None:
        """Remove everything that was saved, but not the lock and what the dispatcher put here."""
        for path in self.path.iterdir():
            if path.name in _KEPT:
                continue
            try:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            except OSError as error:
                raise cannot_write(path, error) from error

    def _fail(self, error: BaseException) -> None:
        text = str(error).strip() or type(error).__name__
        reason = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
        try:
            self.note(finished=now())
            self.set_status("failed", reason=reason[:2000], eta=None)
        except UserError as second:  # the disk may be full: the first error is the one to report
            log.warning("%s", second)


def follow_progress(run: RunDirectory, total: int) -> Callable[..., None]:
    """A recorder's listener that keeps step, total and ETA of status.json true, summed over conditions."""
    at: dict[str, int] = {}
    pace = Pace()

    def listen(steps: Any, columns: Mapping[str, Any], condition: str) -> None:
        at[condition] = max(at.get(condition, 0), int(max(steps)))
        step = min(sum(at.values()), total) if total else None
        eta = None if step is None else pace.eta(step, total)
        run.set_status("running", step=step, total=total or None, eta=eta)

    return listen


def find_runs(runs_dir: str | Path) -> list[RunDirectory]:
    """All run directories below `runs_dir`, by paper, experiment and time of the last change."""
    found = [RunDirectory(path.parent) for path in Path(runs_dir).glob("*/*/*/config.yaml")]
    found = [run for run in found if run.slug != "trained"]  # models that several experiments share
    return sorted(
        found, key=lambda run: (run.slug, run.experiment, (run.path / "config.yaml").stat().st_mtime)
    )


def job_id(environment: Mapping[str, str] = os.environ) -> str | None:
    """The SLURM job this process is in, such as "41" or "41_3" of an array; None outside."""
    array, number = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{number}" if array and number else environment.get("SLURM_JOB_ID")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
