"""Runs on this machine: one in this process, or several processes at a time.

A worker process gets one thing, the path of a prepared run directory, and reads everything else from its
config.json.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from repro.config import CONFIG_JSON, ROOT, Config, load
from repro.errors import UserError
from repro.hardware import Hardware
from repro.locks import Busy
from repro.results import write_atomic
from repro.run_directory import RunDirectory

LOG = "output.log"


@dataclass(frozen=True)
class Outcome:
    """What became of one run: exit code (None: submitted, not awaited) and a word for people."""

    config: Config
    code: int | None
    note: str = ""


def prepare(config: Config) -> None:
    """Make the run directory with config.yaml and config.json, status `queued`.

    A directory in which another process works keeps its status. Raises `UserError` if it cannot be written.
    """
    run = RunDirectory(config.directory)
    run.prepare()
    save_config(config)
    if not run.is_locked():
        run.set_status("queued", reason=None)


def save_config(config: Config) -> None:
    """Write config.json, from which a job reads everything, and config.yaml for people."""
    write_atomic(config.directory / CONFIG_JSON, config.to_json())
    text = yaml.safe_dump(config.values, sort_keys=False, allow_unicode=True)
    write_atomic(config.directory / "config.yaml", text)


def execute(config: Config) -> int:
    """Do one run in this process. Exit code 0: done; 2: bad input; 1: anything else, with its traceback."""
    try:
        from repro import pipeline

        return pipeline.run(config) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        mark_failed(config, str(error), busy=isinstance(error, Busy))
        return 2
    except Exception as error:
        traceback.print_exc()
        mark_failed(config, f"{type(error).__name__}: {error}")
        return 1


def environment(hardware: Hardware) -> dict[str, str]:
    """Environment variables that hold a process to the profile; to be set before JAX or PyTorch loads."""
    variables = {}
    if hardware.device == "cpu":
        variables |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if hardware.device == "cuda":
        variables |= {"JAX_PLATFORMS": "cuda"}
    threads = hardware.threads or (hardware.cpus if hardware.executor == "slurm" else None)
    if threads:
        # NPROC is what XLA reads.
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
        variables |= {name: str(threads) for name in names}
    if hardware.executor == "processes" and hardware.device != "cpu":
        variables |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several processes share the GPU
    return variables


def worker_count(hardware: Hardware) -> int:
    """How many processes work at a time: as the profile says, else as many as the CPUs here have room for."""
    return hardware.workers or max(1, len(os.sched_getaffinity(0)) // (hardware.threads or 1))


def run_processes(configs: Sequence[Config], hardware: Hardware) -> list[Outcome]:
    """Run configs in worker processes, some at a time; one that fails or is killed stops no other."""
    waiting, running, outcomes = list(configs), {}, {}
    variables = {**os.environ, **environment(hardware), "PYTHONPATH": python_path()}
    started = time.monotonic()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers are stopped, too
    try:
        while waiting or running:
            while waiting and len(running) < worker_count(hardware):
                config = waiting.pop(0)
                running[_start(config, variables)] = config
            for process in [process for process in running if process.poll() is not None]:
                config = running.pop(process)
                outcomes[config.directory] = outcome = _ended(config, process.returncode)
                print(_progress(outcome, len(outcomes), len(configs), time.monotonic() - started), flush=True)
            time.sleep(0.05)
    finally:
        _stop(running)
        signal.signal(signal.SIGTERM, before)
    return [outcomes[config.directory] for config in configs]


def _start(config: Config, variables: Mapping[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "repro.workers", str(config.directory)]
    with open(config.directory / LOG, "ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(variables)
        )


def _ended(config: Config, code: int) -> Outcome:
    if code == 0:
        return Outcome(config, 0, "done")
    log = config.directory / LOG
    reason = f"killed by signal {-code}" if code < 0 else RunDirectory(config.directory).status().reason
    if code < 0:
        mark_failed(config, f"the process was {reason}; the same command resumes it")
    return Outcome(config, 1 if code < 0 else code, f"failed: {reason or f'exit code {code}'} (log: {log})")


def _progress(outcome: Outcome, ended: int, total: int, seconds: float) -> str:
    left = seconds / ended * (total - ended)
    return f"[{ended}/{total}, about {left:.0f} s left] {outcome.config.title}: {outcome.note}"


def _stop(running: Mapping[subprocess.Popen, Config]) -> None:
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()


def python_path() -> str:
    """PYTHONPATH with this repository first: a job finds this code wherever it starts, installed or not."""
    return os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)


def mark_failed(config: Config, reason: str, busy: bool = False) -> None:
    """Set the status `failed`, unless it is set already, or another process is at work (`busy`)."""
    run = RunDirectory(config.directory)
    if busy or run.status().state == "failed" or run.is_locked() or not run.path.is_dir():
        return
    try:
        run.set_status("failed", reason=reason[:2000])
    except UserError as second:  # the disk may be full; the first error is the one that counts
        print(f"error: {second}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(execute(load(sys.argv[1])))
