"""What a SLURM job does with the directory of its task, up to putting itself back into the queue.

All state is on disk and saved now and then, so nothing here has to succeed: a job that is killed at any
moment goes on from there when SLURM, or the same command, starts it again.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repro import provenance, slurm, stopping, tasks
from repro.config import ROOT
from repro.run_directory import RunDirectory, job_id, now
from repro.workers import LOG, mark_failed


def work(directory: Path) -> None:
    """Do the task that lies in a directory. Ends the process with another code than 0 if that fails."""
    run = RunDirectory(directory)
    job, restarts = run.job(), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    print(f"all that this job says is in {directory / LOG}", flush=True)
    _write_into(directory / LOG)
    allowed = int(job.get("max_requeues", 3))
    if difference := provenance.difference(job, provenance.code(ROOT)):
        print(f"warning: {difference}", flush=True)
    run.set_status("queued", note=difference)
    print(
        f"{now()} job {job_id()} on {socket.gethostname()}, restarted {restarts} of {allowed} times",
        flush=True,
    )
    if restarts > allowed:
        reason = f"restarted {restarts} times, and hardware.max_requeues={allowed}; the same command goes on"
        print(f"error: {reason}", flush=True)
        mark_failed(directory, reason)
        sys.exit(1)

    def again(end: Callable[[int], Any] = sys.exit) -> None:
        _stopped(run, restarts, allowed, end)

    signal.signal(signal.SIGCONT, signal.SIG_DFL)  # sent with every other signal; submitit would log it
    stopping.listen(
        is_cancelled=lambda: "cancelled" in run.job(),
        late=lambda: again(os._exit),
        patience=float(job.get("signal_delay_s", 120)) / 2,
    )
    try:
        # A requeued job goes on, only its first start was from scratch; and the process that it takes over
        # from may need a moment to end.
        code = tasks.execute(directory, **{"wait": True, **({"rerun": False} if restarts else {})})
    except stopping.Stopped:
        again()
    else:
        if code:
            sys.exit(code)  # so that SLURM, too, says FAILED


def _stopped(run: RunDirectory, restarts: int, allowed: int, end: Callable[[int], Any]) -> None:
    """The state is saved: back into the queue, or the end if this was cancelled or happened too often."""
    if "cancelled" in run.job():
        _fail(run, "cancelled; the same command goes on from what is saved")
        end(1)
    if restarts >= allowed:
        _fail(
            run,
            f"time limit reached, and restarted {restarts} times already (hardware.max_requeues={allowed});"
            " the same command goes on from what is saved. Give more time with hardware.timeout_min",
        )
        end(1)
    number = job_id()
    assert number is not None
    print(f"{now()} time limit reached: restart {restarts + 1} of {allowed}", flush=True)
    run.set_status("queued", reason=f"time limit reached, restart {restarts + 1} of {allowed}", eta=None)
    try:
        slurm.requeue(number)
    except slurm.NoAnswer as error:
        _fail(
            run, f"time limit reached, and SLURM did not requeue the job ({error}); the same command goes on"
        )
    end(stopping.CODE)


def _fail(run: RunDirectory, reason: str) -> None:
    print(f"error: {reason}", flush=True)
    run.set_status("failed", reason=reason, eta=None)


def _write_into(path: Path) -> None:
    """From here on everything this process and its children say goes to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
