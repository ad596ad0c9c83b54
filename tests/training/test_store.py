"""The store of trained models: real processes, killed for real."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from repro import stopping
from repro.errors import UserError
from repro.models.weights import load_weights
from repro.recorder import read_history
from repro.run_directory import RunDirectory
from repro.training import loop, places, store
from repro.training.plans import Plan
from repro.training.store import Trained
from tests.training.small_runs import plan

ROOT = Path(store.__file__).parents[2]
# Saves at every stop, and takes its time over it, so that a kill falls in between.
TRAIN = """
import sys, time
from pathlib import Path
from repro.training import loop, places, store
save = loop._save
def slowly(*arguments):
    save(*arguments)
    time.sleep(float(sys.argv[2]))
loop.SAVE_SECONDS, loop._save = 0.0, slowly
store.train(Path(sys.argv[1]))
"""
LONG = {"sequences": 4000, "evaluate_at": [0, 1600], "checkpoint_every": 160}


def started(directory: Path, pause: float = 0.0) -> subprocess.Popen:
    """A process, in a group of its own, that trains the plan in a folder."""
    environment = {**os.environ, "NPROC": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", TRAIN, str(directory), str(pause)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)


def written(folder: Path, made: Plan) -> Path:
    directory = places.folder(folder, made)
    places.write_plan(directory, made)
    return directory


def weights(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / store.CHECKPOINTS).iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One plan, given to two processes at once."""
    folder = tmp_path_factory.mktemp("trained")
    directory = written(folder, plan(folder, training=LONG))
    processes = [started(directory), started(directory)]
    assert [process.wait(300) for process in processes] == [0, 0]
    return directory


def test_two_processes_leave_one_run(finished: Path) -> None:
    """The second waits, then finds everything done: every row is in the log once."""
    lines = (finished / "log.jsonl").read_text().splitlines()
    assert sum('"steps":[0]' in line for line in lines) == 1
    history = read_history(finished)
    assert history.step.tolist() == list(range(501))
    assert RunDirectory(finished).status().state == "done"
    before = (finished / loop.HISTORY).stat().st_mtime_ns
    store.train(finished)  # a third time, here: nothing to do
    assert (finished / loop.HISTORY).stat().st_mtime_ns == before


def test_asked_to_stop_it_saves_where_it_is_and_ends_with_the_same_bytes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No save is due by the clock; asked to save it goes on, asked to stop it ends there."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 1e9)
    directory = written(tmp_path, plan(tmp_path, training=LONG))
    saved: list[int] = []

    def ask(step: int, total: int) -> None:
        if step in (40, 120):
            stopping.ask("save" if step == 40 else "stop")
        state = directory / loop.STATE
        saved.append(int(loop.read_arrays(state)["state_step"]) if state.exists() else 0)

    try:
        with pytest.raises(stopping.Stopped):
            store.train(directory, ask)
    finally:
        stopping.forget()
    assert int(loop.read_arrays(directory / loop.STATE)["state_step"]) == 120
    assert saved[-1] == 40 and set(saved) == {0, 40}
    store.train(directory)
    assert weights(directory) == weights(finished)


def test_killed_and_started_again_it_ends_with_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    directory = written(tmp_path, plan(tmp_path, training=LONG))
    process = started(directory, pause=0.1)
    deadline = time.monotonic() + 200
    while not (directory / loop.STATE).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1.5))
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not places.is_done(directory)
    assert RunDirectory(directory).status().state == "interrupted"
    with pytest.raises(UserError, match="has not finished"):
        Trained.open(directory)
    at = int(loop.read_arrays(directory / loop.STATE)["state_step"])
    assert 0 < at < 500
    assert started(directory).wait(300) == 0
    assert weights(directory) == weights(finished)
    one, other = (loop.read_arrays(path / loop.HISTORY) for path in (directory, finished))
    assert one.keys() == other.keys()
    for name, values in other.items():
        assert np.array_equal(one[name], values), name
    assert read_history(directory).equals(read_history(finished))


def test_what_is_in_the_store_can_be_read(finished: Path, tmp_path: Path) -> None:
    trained = Trained.open(str(finished))
    assert trained.plan.digest() == finished.name
    assert trained.checkpoints == list(range(0, 4001, 160))
    last = trained.model()
    assert np.array_equal(last.unembed.weight, trained.model(4000).unembed.weight)
    assert not np.array_equal(last.unembed.weight, trained.model(160).unembed.weight)
    trained.copy_last(tmp_path / "deep" / "weights.safetensors")
    copied = load_weights(tmp_path / "deep" / "weights.safetensors", last)
    assert np.array_equal(copied.unembed.weight, last.unembed.weight)


def test_a_checkpoint_that_is_not_there_names_the_nearest(finished: Path) -> None:
    with pytest.raises(UserError, match=r"1000 .*nearest are 800, 960, 1120, the last is 4000 \(26 in all\)"):
        Trained.open(finished).model(1000)


def test_an_empty_folder_is_no_trained_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no trained model here \(expected plan.json\)"):
        Trained.open(tmp_path)


def test_features_that_changed_since_the_plan_are_refused(tmp_path: Path) -> None:
    directory = written(tmp_path, plan(tmp_path))
    moved = directory.rename(tmp_path / "0123456789ab")
    with pytest.raises(UserError, match="features changed since this training was planned"):
        store.train(moved)
    assert not (moved / loop.HISTORY).exists()


def test_splits_that_do_not_fit_the_features_are_refused(tmp_path: Path) -> None:
    directory = written(tmp_path, plan(tmp_path, sequences={"class_split": [20, 30, 5]}))
    with pytest.raises(UserError, match="class_split"):
        store.train(directory)
