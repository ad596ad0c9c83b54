"""Several processes at a time on this machine: the executor `processes`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from repro.hardware import Hardware, worker_count
from repro.run_directory import RunDirectory
from repro.tasks import Task
from repro.workers import LOG, Outcome, environment, mark_failed, python_path


def run_processes(tasks: Sequence[Task], hardware: Hardware) -> list[Outcome]:
    """Do prepared tasks in worker processes, some at a time; the outcomes of the runs among them.

    One that fails or is killed stops only what needs it.
    """
    return _Processes(tasks, hardware).run()


def visible_gpus(variables: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; else all of the machine."""
    given = variables.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in (part.strip() for part in given.split(",")) if name]
    numbers = [path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*")]
    return [str(index) for index in range(len(numbers))]


def least_used(gpus: Sequence[str], used: Sequence[str]) -> str | None:
    """The GPU that fewest processes are on, the first of several; None where one GPU or none is to be had."""
    return min(gpus, key=used.count) if len(gpus) > 1 else None


class _Processes:
    def __init__(self, tasks: Sequence[Task], hardware: Hardware) -> None:
        self._tasks, self._waiting, self._limit = list(tasks), list(tasks), worker_count(hardware)
        self._variables = {**os.environ, **environment(hardware), "PYTHONPATH": python_path()}
        alone = hardware.device != "cpu" and hardware.device_map is None  # each process has one GPU
        self._gpus = visible_gpus(self._variables) if alone else []
        self._running: dict[subprocess.Popen, Task] = {}
        self._on: dict[subprocess.Popen, str] = {}
        self._ended: dict[Path, Outcome] = {}
        self._started = time.monotonic()

    def run(self) -> list[Outcome]:
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers are stopped, too
        try:
            while self._waiting or self._running:
                self._start_some()
                for process in [process for process in self._running if process.poll() is not None]:
                    task = self._running.pop(process)
                    self._note(task, _outcome(task, process.returncode))
                time.sleep(0.05)
        finally:
            self._stop()
            signal.signal(signal.SIGTERM, before)
        return [self._ended[task.directory] for task in self._tasks if task.kind == "run"]

    def _start_some(self) -> None:
        for task in list(self._waiting):
            needs = [other for other in self._tasks if other.directory in task.needs]
            outcomes = {need.title: self._ended.get(need.directory) for need in needs}
            failed = [f"{title} {ended.note}" for title, ended in outcomes.items() if ended and ended.code]
            if failed:
                self._waiting.remove(task)
                self._note(task, _not_started(task, failed[0]))
            elif all(outcomes.values()) and len(self._running) < self._limit:
                self._waiting.remove(task)
                self._running[self._start(task)] = task

    def _start(self, task: Task) -> subprocess.Popen:
        command = [sys.executable, "-m", "repro.tasks", str(task.directory)]
        gpu = least_used(self._gpus, [self._on[one] for one in self._running if one in self._on])
        variables = self._variables if gpu is None else {**self._variables, "CUDA_VISIBLE_DEVICES": gpu}
        with open(task.directory / LOG, "ab") as log:
            started = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables
            )
        if gpu is not None:
            self._on[started] = gpu
        return started

    def _note(self, task: Task, outcome: Outcome) -> None:
        self._ended[task.directory] = outcome
        seconds, ended, total = time.monotonic() - self._started, len(self._ended), len(self._tasks)
        left = f", about {seconds / ended * (total - ended):.0f} s left" if ended < total else ""
        print(f"[{ended}/{total}{left}] {task.title}: {outcome.note}", flush=True)

    def _stop(self) -> None:
        for process in self._running:
            process.terminate()
        for process in self._running:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def _not_started(task: Task, why: str) -> Outcome:
    """The outcome of a task one of whose needs failed; written into its status, too."""
    mark_failed(task.directory, f"not started: {why}")
    return Outcome(task.config, 1, f"failed: not started: {why}")


def _outcome(task: Task, code: int) -> Outcome:
    if code == 0:
        return Outcome(task.config, 0, "done")
    log = task.directory / LOG
    reason = f"killed by signal {-code}" if code < 0 else RunDirectory(task.directory).status().reason
    if code < 0:
        mark_failed(task.directory, f"the process was {reason}; the same command resumes it")
    return Outcome(
        task.config, 1 if code < 0 else code, f"failed: {reason or f'exit code {code}'} (log: {log})"
    )
