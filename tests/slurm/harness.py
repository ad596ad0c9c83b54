"""What the cluster tests share: `launch.py` as a user calls it, and looks at what comes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurm.box import Box
from slurm.processes import BoxError
from wandb_reader import records

from repro.run_directory import RunDirectory, Status

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 300.0  # seconds: CI machines have two cores, and several jobs share them

# Seconds each: no training, no figure.
TOY = ["paper/induction_heads=toy_model", "analysis.iterations=20", "figures=null"]
# A toy run that works until it is stopped.
ENDLESS = ["paper/induction_heads=toy_model", "analysis.iterations=100000000", "figures=null"]
SMALL_JOB = {"hardware.cpus": 1, "hardware.memory_gb": 2}
TOY_RUNS = "induction_heads/toy_model"


def trained(steps: int) -> list[str]:
    """Overrides of a run that trains so many steps (about 8,000 a second) of the tiny model."""
    sequences = 32 * steps
    return [
        "paper/induction_heads=smoke",
        f"training.sequences={sequences}",
        f"training.evaluate_every={sequences // 8}",
        f"training.checkpoint_every={sequences // 4}",
        "analysis.checkpoints=2",
        "analysis.sequences=50",
        "analysis.thresholds={}",
        "figures=null",
    ]


# Some seven seconds of training, after starting and compiling.
SHORT = trained(60_000)


@dataclass
class Cluster:
    """A box, a place for runs, and the environment of a user who works there."""

    box: Box
    runs: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """What the user's shell has set."""
        return self.box.env | {"COLUMNS": "250"} | self.environment

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`python launch.py WORDS...` with the tests' directory, offline W&B and one CPU a job."""
        return subprocess.Popen(
            [sys.executable, "launch.py", *self._complete(words)],
            cwd=ROOT, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def launch(self, *words: str, seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """The same to its end."""
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(
                f"still not back after {seconds:.0f} s:\n{out}\n{err}\n{self.seen()}"
            ) from None
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def submit(self, *words: str) -> list[RunDirectory]:
        """Submit and return at once; the directories of the runs whose jobs are new."""
        before = set(self.runs.rglob("job.json"))
        done = self.launch(*words, "wait=false", seconds=60)
        assert done.returncode == 0, done.stdout + done.stderr
        new = sorted(set(self.runs.rglob("job.json")) - before, key=lambda path: self.job_id(path.parent))
        return [RunDirectory(path.parent) for path in new]

    def _complete(self, words: tuple[str, ...]) -> list[str]:
        given = [f"runs_dir={self.runs}"]
        if any(word.startswith("paper/") for word in words):
            given += ["tracking=offline"]
        if "hardware=slurm_cpu" in words:
            given += [f"{name}={value}" for name, value in SMALL_JOB.items() if not self._has(words, name)]
        return [*words, *given]

    @staticmethod
    def _has(words: tuple[str, ...], name: str) -> bool:
        return any(word.startswith(f"{name}=") for word in words)

    def job_id(self, run: Path) -> str:
        """The job a run was last submitted as."""
        return str(json.loads((run / "job.json").read_text())["job_id"])

    def state(self, run: RunDirectory) -> str:
        """What the controller says of a run's job: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, ..."""
        return self.box.job(self.job_id(run.path))["JobState"]

    def until(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """The condition's value once it is true; fails with what the cluster looks like if it stays false."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}\n{self.seen()}"
            time.sleep(0.1)
        return value

    def ended(self, run: RunDirectory, state: str, seconds: float = PATIENCE) -> Status:
        """Wait until the controller says that the run's job ended so; the run's own status then."""
        self.until(lambda: self.state(run) == state, f"{self.job_id(run.path)} to be {state}", seconds)
        return run.status()

    def log(self, run: RunDirectory) -> str:
        """Everything the run's job has said, over all its starts."""
        path = run.path / "output.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def seen(self) -> str:
        """The cluster and all runs, for a failed test."""
        lines = [self.box.ask("squeue", "--states=all", "-o", "%i %T %r %M %l %S")]
        for path in sorted(self.runs.rglob("job.json")):
            run = RunDirectory(path.parent)
            lines += [f"{run.path}: {run.status()}", self.log(run)[-3000:]]
        return "\n".join(lines)


@dataclass
class Undisturbed:
    """The yardstick of all runs of `SHORT` that are stopped on their way: one that nothing stops.

    limited: the same with a time limit of two minutes, in a directory of its own, after its warning has come.
    """

    cluster: Cluster
    run: RunDirectory
    limited: Future[tuple[Cluster, RunDirectory]]

    def weights(self) -> bytes:
        """What it ended with."""
        self.cluster.ended(self.run, "COMPLETED")
        assert self.cluster.box.job(self.cluster.job_id(self.run.path))["Restarts"] == "0"
        return final_weights(self.run)


def frozen_until_its_warning(cluster: Cluster) -> tuple[Cluster, RunDirectory]:
    """Submit a run with a time limit of two minutes, and stop its clock until it is warned of it.

    SLURM may warn a minute early: 20 to 80 s after a start, if it is asked to 40 s before the end, so that
    every start gets further, on a busy machine, too. One so busy that the warning comes before the first
    state is saved needs no frozen clock.
    """
    limits = ["hardware.timeout_min=2", "hardware.signal_delay_s=40", "hardware.max_requeues=20"]
    [run] = cluster.submit(*SHORT, "hardware=slurm_cpu", *limits)
    job = cluster.job_id(run.path)

    def has_restarted() -> bool:
        return cluster.box.job(job)["Restarts"] != "0"

    def has_saved() -> bool:
        return state_file(run) is not None and cluster.state(run) == "RUNNING"

    cluster.until(lambda: has_restarted() or has_saved(), "a saved state")
    if has_restarted():
        return cluster, run
    cluster.box.ask("scancel", "--signal=STOP", job)
    end = time.monotonic() + 80
    while not has_restarted() and time.monotonic() < end:
        time.sleep(1)  # the warning itself wakes it
    with suppress(BoxError):  # a job that is back in the queue takes no signal
        cluster.box.ask("scancel", "--signal=CONT", job)
    return cluster, run


def state_file(run: RunDirectory) -> Path | None:
    """The saved state of a training of this tests' directory, None as long as there is none."""
    return next((run.path.parents[2] / "trained").glob("*/state.npz"), None)


def final_weights(run: RunDirectory) -> bytes:
    """The weights a run ended with, byte for byte."""
    [path] = (run.path / "checkpoints").glob("*.safetensors")
    return path.read_bytes()


def wandb_segments(run: RunDirectory) -> list[tuple[str, int | None]]:
    """Id and exit code of every W&B run that was opened for a run, in the order of opening."""
    segments = []
    for path in sorted((run.path / "wandb").glob("offline-run-*/*.wandb")):
        name, code = "", None
        for record in records(path):
            if record.WhichOneof("record_type") == "run":
                name = record.run.run_id
            elif record.WhichOneof("record_type") == "exit":
                code = record.exit.exit_code
        segments.append((name, code))
    return segments


def variables(cache: Path) -> dict[str, str]:
    """Compiled programs are kept between jobs, and training states are saved every second."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "REPRO_SAVE_SECONDS": "1",
        "PYTHONDONTWRITEBYTECODE": os.environ.get("PYTHONDONTWRITEBYTECODE", ""),
    }
