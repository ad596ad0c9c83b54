"""The loop around the compiled program: interrupted anywhere, it ends where an uninterrupted one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repro.training import loop
from repro.training.program import Program
from repro.training.specs import Training
from tests.training.small_runs import EVALUATE, program

# Evaluations before steps 0, 13, 26, ..., checkpoints before 0, 25, 26, 27, and the end at 50.
TRAINING = Training(
    sequences=400, batch=8, learning_rate=0.003, evaluate_every=100, checkpoint_at=[0, 200, 201, 210]
)


class Killed(Exception):
    pass


class Watcher:
    """Everything that a loop tells, and an interruption at the `die_at`-th thing told."""

    def __init__(self, die_at: int | None = None) -> None:
        self.left = die_at
        self.rows: dict[tuple[str, int], float] = {}
        self.checkpoints: dict[int, np.ndarray] = {}
        self.progress: list[int] = []

    def tick(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed

    def log(self, steps: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        self.tick()
        for name, values in columns.items():
            assert values.shape == steps.shape
            self.rows |= {(name, int(step)): float(v) for step, v in zip(steps, values, strict=True)}

    def save(self, sequences: int, weights: Any) -> None:
        self.tick()
        self.checkpoints[sequences] = np.asarray(weights)

    def went(self, step: int, total: int) -> None:
        assert total == 50
        self.progress.append(step)


@pytest.fixture(scope="module")
def made() -> Program:
    return program()


@pytest.fixture(autouse=True)
def _save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)


def run(made: Program, directory: Path, watcher: Watcher) -> None:
    loop.run(made, TRAINING, directory, watcher.log, watcher.save, watcher.went)


@pytest.fixture(scope="module")
def whole(made: Program, tmp_path_factory: pytest.TempPathFactory) -> tuple[Watcher, dict[str, np.ndarray]]:
    """An uninterrupted run."""
    directory, watcher = tmp_path_factory.mktemp("whole"), Watcher()
    run(made, directory, watcher)
    assert not (directory / loop.STATE).exists()
    return watcher, loop.read_arrays(directory / loop.HISTORY)


def test_what_a_run_leaves(whole: tuple[Watcher, dict[str, np.ndarray]]) -> None:
    watcher, history = whole
    assert list(watcher.checkpoints) == [0, 200, 208, 216, 400]
    assert watcher.progress[-1] == 50 and watcher.progress == sorted(watcher.progress)
    assert history["points"].tolist() == [0, 13, 25, 38, 50]
    assert history["train_loss"].shape == history["train_grad_norm"].shape == (50,)
    assert {name.split("_")[0] for name in history} == {"train", "points", "eval"}
    for evaluator in EVALUATE:
        assert history[f"eval_{evaluator}_in_context_acc"].shape == (5,)


def test_what_is_logged_is_the_history(whole: tuple[Watcher, dict[str, np.ndarray]]) -> None:
    watcher, history = whole
    for step in range(1, 51):
        assert watcher.rows["train_loss", step] == history["train_loss"][step - 1]
        assert watcher.rows["sequences", step] == 8 * step
    for index, step in enumerate(history["points"].tolist()):
        assert watcher.rows["eval_fsl_val_rl_loss", step] == history["eval_fsl_val_rl_loss"][index]
    assert ("train_loss", 0) not in watcher.rows and watcher.rows["sequences", 0] == 0


def test_interrupted_anywhere_it_ends_with_the_same_bits(
    made: Program, whole: tuple[Watcher, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    expected, history = whole
    resumed = 0
    for die_at in range(0, 16):
        directory = tmp_path / str(die_at)
        directory.mkdir()
        first, second = Watcher(die_at), Watcher()
        try:
            run(made, directory, first)
        except Killed:
            resumed += (directory / loop.STATE).exists()
        assert not (directory / loop.HISTORY).exists()
        run(made, directory, second)
        again = loop.read_arrays(directory / loop.HISTORY)
        assert again.keys() == history.keys()
        for name in history:
            assert np.array_equal(again[name], history[name]), (name, die_at)
        assert second.rows == expected.rows, "the whole log is told again"
        kept = {**first.checkpoints, **second.checkpoints}
        assert kept.keys() == expected.checkpoints.keys()
        for sequences, weights in expected.checkpoints.items():
            assert np.array_equal(kept[sequences], weights), (sequences, die_at)
    assert resumed > 8


def test_interrupted_again_and_again_it_still_ends(
    made: Program, whole: tuple[Watcher, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """Every attempt is told one thing more than the last; each gets further."""
    watcher = Watcher()
    for die_at in range(2, 30):
        watcher = Watcher(die_at)
        try:
            run(made, tmp_path, watcher)
            break
        except Killed:
            continue
    assert (tmp_path / loop.HISTORY).exists()
    assert np.array_equal(watcher.checkpoints[400], whole[0].checkpoints[400])


def test_a_state_that_cannot_be_written_whole_is_not_written(
    made: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A death in the middle of saving leaves the state before it."""
    with pytest.raises(Killed):
        run(made, tmp_path, Watcher(6))
    before = (tmp_path / loop.STATE).read_bytes()

    def die(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr("os.replace", die)
    with pytest.raises(Killed):
        run(made, tmp_path, Watcher())
    assert (tmp_path / loop.STATE).read_bytes() == before


def test_without_any_schedule_there_is_the_end(made: Program, tmp_path: Path) -> None:
    training, watcher = Training(sequences=400, batch=8), Watcher()
    loop.run(made, training, tmp_path, watcher.log, watcher.save)
    assert list(watcher.checkpoints) == [400]
    assert loop.read_arrays(tmp_path / loop.HISTORY)["points"].tolist() == [50]
