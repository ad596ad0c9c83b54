"""Where a training run lies in the store, and whether it is done: known without loading JAX."""

from __future__ import annotations

from pathlib import Path

from repro.results import write_atomic
from repro.run_directory import RunDirectory
from repro.training.plans import Plan

PLAN = "plan.json"
HISTORY = "history.npz"  # written last


def folder(store: Path, plan: Plan) -> Path:
    """Where a plan's weights lie in the store."""
    return store / plan.digest()


def is_done(directory: Path) -> bool:
    """Whether a plan has been trained to its end."""
    return (directory / HISTORY).exists()


def write_plan(directory: Path, plan: Plan) -> None:
    """Prepare the folder of a plan, so that it can be trained by a process that is told its path alone."""
    RunDirectory(directory).prepare()
    write_atomic(directory / PLAN, plan.to_json())
