"""One run in this process, and what a process needs for it: its directory, and its share of the machine."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import yaml

from repro.config import CONFIG_JSON, ROOT, Config
from repro.errors import UserError
from repro.hardware import Hardware, cpu_share
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
        mark_failed(config.directory, str(error), busy=isinstance(error, Busy))
        return 2
    except Exception as error:
        traceback.print_exc()
        mark_failed(config.directory, f"{type(error).__name__}: {error}")
        return 1


def environment(hardware: Hardware) -> dict[str, str]:
    """Environment variables that hold a process to the profile; to be set before JAX or PyTorch loads."""
    variables = {}
    if hardware.device == "cpu":
        variables |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if hardware.device == "cuda":
        variables |= {"JAX_PLATFORMS": "cuda"}
    if hardware.threads or hardware.executor != "inline":
        threads = cpu_share(hardware)
        # NPROC is what XLA reads.
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
        variables |= {name: str(threads) for name in names}
    if hardware.executor == "processes" and hardware.device != "cpu":
        variables |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several processes share the GPU
    return variables


def python_path() -> str:
    """PYTHONPATH with this repository first: a job finds this code wherever it starts, installed or not."""
    return os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)


def mark_failed(directory: Path, reason: str, busy: bool = False) -> None:
    """Set the status `failed`, unless it is set already, or another process is at work (`busy`)."""
    run = RunDirectory(directory)
    if busy or run.status().state == "failed" or run.is_locked() or not run.path.is_dir():
        return
    try:
        run.set_status("failed", reason=reason[:2000], eta=None)
    except UserError as second:  # the disk may be full; the first error is the one that counts
        print(f"error: {second}", file=sys.stderr)
