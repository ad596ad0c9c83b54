"""One training run: evaluations, checkpoints, a log, and a state on disk from which it goes on.

The program between two events of the schedule is the same whether or not the run was interrupted,
so a run that is killed and started again ends with the same weights, bit for bit.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from repro import stopping
from repro.results import write_atomic
from repro.training import optimizer
from repro.training.places import HISTORY
from repro.training.program import Program, State
from repro.training.schedule import checkpoint_steps, evaluation_steps, step_count
from repro.training.specs import Training

STATE = "state.npz"
SAVE_SECONDS = float(os.environ.get("REPRO_SAVE_SECONDS") or 15.0)
# So that a run without evaluations still shows its progress, and drawn batches stay small in memory.
LONGEST_STRETCH = 512

Columns = dict[str, np.ndarray]
Log = Callable[[np.ndarray, Columns], None]


def stretches(training: Training) -> list[int]:
    """Steps at which the compiled loop stops: events of the schedule, and never too far apart."""
    events = {0, *evaluation_steps(training).tolist(), *checkpoint_steps(training).tolist()}
    stops = sorted(events)
    for begin, end in zip(sorted(events), sorted(events)[1:], strict=False):
        stops += range(begin + LONGEST_STRETCH, end, LONGEST_STRETCH)
    return sorted(stops)


def longest_stretch(training: Training) -> int:
    """Steps of the longest stretch between two stops."""
    return int(np.diff(stretches(training)).max())


def run(
    program: Program,
    training: Training,
    directory: Path,
    log: Log,
    save_checkpoint: Callable[[int, Any], None],
    progress: Callable[[int, int], None] = lambda step, total: None,
) -> None:
    """Train to the end, or go on from the saved state, and write history.npz.

    log: is told every row (steps; columns, NaN where there is no value), from the start also when
    the run goes on. save_checkpoint: takes sequences seen and the weights vector.
    Raises `stopping.Stopped` after saving when the process is asked to stop.
    """
    state, history, step = _restore(program, directory)
    log_history(history, log, training.batch)
    evaluations, checkpoints = (
        set(evaluation_steps(training).tolist()),
        set(checkpoint_steps(training).tolist()),
    )
    stops, total, saved = stretches(training), step_count(training), time.monotonic()
    while True:
        if step in evaluations and history.points[-1:] != [step]:
            means = jax.device_get(program.evaluate(state.weights))
            history.add_evaluation(step, means)
            log(np.array([step]), history.evaluation_columns(len(history.points) - 1, training.batch))
        if step in checkpoints or step == total:  # the end is always kept: analyses need it
            save_checkpoint(step * training.batch, state.weights)
        if step == total:
            break
        count = next(stop for stop in stops if stop > step) - step
        state, record = program.advance(state, count)
        loss, norm = np.asarray(record.loss)[:count], np.asarray(record.grad_norm)[:count]
        history.add_steps(loss, norm)
        log(np.arange(step + 1, step + count + 1), _step_columns(step, loss, norm, training.batch))
        step += count
        progress(step, total)
        if stopping.asked() or time.monotonic() - saved > SAVE_SECONDS:
            _save(directory / STATE, history, state, step)
            saved = time.monotonic()
            stopping.saved()
            if stopping.asked() == "stop":
                raise stopping.Stopped
    _save(directory / HISTORY, history)
    (directory / STATE).unlink(missing_ok=True)


class History:
    """What was measured: loss and gradient norm of every step, and the evaluations."""

    def __init__(self) -> None:
        self.loss: list[np.ndarray] = []
        self.norm: list[np.ndarray] = []
        self.points: list[int] = []
        self.means: dict[str, list[float]] = {}

    def add_steps(self, loss: np.ndarray, norm: np.ndarray) -> None:
        """Append a stretch of steps."""
        self.loss.append(loss)
        self.norm.append(norm)

    def add_evaluation(self, step: int, means: dict[str, dict[str, Any]]) -> None:
        """Append the means of every evaluator and metric before step `step`."""
        self.points.append(step)
        for evaluator, metrics in means.items():
            for metric, value in metrics.items():
                self.means.setdefault(f"eval_{evaluator}_{metric}", []).append(float(value))

    def evaluation_columns(self, index: int, batch: int) -> Columns:
        """The row of one evaluation."""
        row = {name: np.array([values[index]]) for name, values in self.means.items()}
        return {"sequences": np.array([float(self.points[index] * batch)]), **row}

    def arrays(self) -> dict[str, np.ndarray]:
        """As named arrays: train_loss and train_grad_norm [step], points [point], eval_* [point]."""
        return {
            "train_loss": np.concatenate([*self.loss, np.zeros(0, np.float32)]),
            "train_grad_norm": np.concatenate([*self.norm, np.zeros(0, np.float32)]),
            "points": np.asarray(self.points, np.int64),
            **{name: np.asarray(values, np.float32) for name, values in self.means.items()},
        }

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> History:
        """The history that `arrays` describes."""
        history = cls()
        history.add_steps(arrays["train_loss"], arrays["train_grad_norm"])
        history.points = arrays["points"].tolist()
        history.means = {name: arrays[name].tolist() for name in arrays if name.startswith("eval_")}
        return history


def log_history(history: History, log: Log, batch: int) -> None:
    """Tell a log everything in a history, as a few blocks."""
    arrays = history.arrays()
    loss, points = arrays["train_loss"], arrays["points"]
    if loss.size:
        log(np.arange(1, loss.size + 1), _step_columns(0, loss, arrays["train_grad_norm"], batch))
    if points.size:
        means = {name: arrays[name] for name in history.means}
        log(points, {"sequences": (points * batch).astype(float), **means})


def _step_columns(step: int, loss: np.ndarray, norm: np.ndarray, batch: int) -> Columns:
    sequences = (np.arange(step + 1, step + loss.size + 1) * batch).astype(float)
    return {"sequences": sequences, "train_loss": loss, "train_grad_norm": norm}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _save(path: Path, history: History, state: State | None = None, step: int = 0) -> None:
    arrays = history.arrays()
    if state is not None:
        arrays |= {
            "state_weights": np.asarray(state.weights),
            "state_first": np.asarray(state.adam.first),
            "state_second": np.asarray(state.adam.second),
            "state_updates": np.asarray(state.adam.updates),
            "state_data_key": np.asarray(state.data_key),
            "state_step": np.asarray(step),
        }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def _restore(program: Program, directory: Path) -> tuple[State, History, int]:
    path = directory / STATE
    if not path.exists():
        return program.start(), History(), 0
    arrays = read_arrays(path)
    saved = {
        name: jax.numpy.asarray(arrays[f"state_{name}"])
        for name in ("weights", "first", "second", "data_key")
    }
    updates = jax.numpy.asarray(arrays["state_updates"])
    state = State(
        saved["weights"], optimizer.Adam(saved["first"], saved["second"], updates), saved["data_key"]
    )
    return state, History.of(arrays), int(arrays["state_step"])
