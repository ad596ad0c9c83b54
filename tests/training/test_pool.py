"""Training runs side by side: all of them reach the recorder, and trouble in one stays there."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repro.data.specs import Gaussian
from repro.errors import UserError
from repro.models.weights import named
from repro.recorder import Recorder, read_history
from repro.training import places, store
from repro.training.plans import CONDITION, Plan, plans
from repro.training.pool import train_all
from tests.training.small_runs import DATA, config

BAD = {"class_split": [20, 30, 5]}  # of 60 classes


def graft(run: str, **changes: Any) -> dict[str, Any]:
    return config(manipulations=[{"kind": "graft_in", "run": CONDITION + run, "till_layer": 0}], **changes)


def planned(folder: Path, **conditions: dict[str, Any]) -> dict[str, Plan]:
    return plans(conditions, Gaussian(**DATA), folder)


class Heard:
    """A listener that remembers every value, and refuses to hear one twice."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, int], float] = {}

    def __call__(self, steps: np.ndarray, columns: dict[str, np.ndarray], condition: str) -> None:
        for name, values in columns.items():
            for step, value in zip(steps.tolist(), values.tolist(), strict=True):
                if not np.isnan(value):
                    assert (condition, name, step) not in self.values
                    self.values[condition, name, step] = value


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Plan], Heard]:
    """A plain run and its twin, one that fails, and one that takes its first layer from the plain one."""
    folder, run = tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("run")
    made = planned(folder, graft=graft("plain"), plain=config(), bad=config(sequences=BAD), twin=config())
    heard = Heard()
    with Recorder(run, [heard]) as recorder, pytest.raises(UserError) as error:
        train_all(made, folder, recorder, workers=2)
    text = str(error.value)
    assert "training of bad failed" in text and "class_split" in text and "the same command" in text
    assert "plain" not in text and "graft" not in text
    return folder, made, heard


def test_one_that_fails_does_not_stop_the_others(trained: tuple[Path, dict[str, Plan], Heard]) -> None:
    folder, made, heard = trained
    done = {name for name, plan in made.items() if places.is_done(places.folder(folder, plan))}
    assert done == {"plain", "graft", "twin"}
    for name in ("plain", "graft"):
        steps = [
            step for condition, column, step in heard.values if (condition, column) == (name, "train_loss")
        ]
        assert sorted(steps) == list(range(1, 51))
        points = [
            step for where, column, step in heard.values if (where, column) == (name, "eval_fsl_train_acc")
        ]
        assert sorted(points) == [13, 50]


def test_again_gives_what_is_there_and_all_rows(
    trained: tuple[Path, dict[str, Plan], Heard], tmp_path: Path
) -> None:
    """Nothing is trained again: `plain` and its twin are one run, and both have their rows."""
    folder, made, heard = trained
    wanted = {name: plan for name, plan in made.items() if name != "bad"}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    with Recorder(tmp_path) as recorder:
        found = train_all(wanted, folder, recorder, workers=2)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")} == before
    assert found.keys() == wanted.keys()
    assert found["plain"].directory == found["twin"].directory != found["graft"].directory
    history = read_history(tmp_path)
    assert set(history.condition) == {"graft", "plain", "twin"}
    losses = {
        name: history[history.condition == name].set_index("step").train_loss
        for name in set(history.condition)
    }
    assert losses["plain"].equals(losses["twin"])
    for name in ("plain", "graft"):
        for step in range(1, 51):
            assert losses[name][step] == heard.values[name, "train_loss", step]


def test_a_graft_waits_and_what_it_takes_stays_as_it_was(
    trained: tuple[Path, dict[str, Plan], Heard],
) -> None:
    """Its embedding and first block get no gradient: they end as they began, bit for bit; the rest moves."""
    folder, made, _ = trained
    own = store.Trained.open(places.folder(folder, made["graft"]))
    begun, ended = named(own._template), named(own.model())
    for name, value in begun.items():
        frozen = name.startswith(("example_embed", "label_embed", "blocks.0."))
        assert np.array_equal(value, ended[name]) == frozen, name
    plain = store.Trained.open(places.folder(folder, made["plain"]))
    loss = own.history["train_loss"]
    assert not np.array_equal(loss, plain.history["train_loss"])


def test_a_failure_reaches_everything_that_needs_it(tmp_path: Path) -> None:
    """A chain of three: the last does not need the first directly, and must not wait for ever."""
    made = planned(tmp_path, first=config(sequences=BAD), second=graft("first"), third=graft("second"))
    with Recorder(tmp_path) as recorder, pytest.raises(UserError) as error:
        train_all(made, tmp_path / "trained", recorder, workers=2)
    text = str(error.value)
    assert "training of first failed: sequences.class_split" in text
    for name in ("second", "third"):
        assert f"training of {name} failed: a run that it takes layers from failed" in text


def test_a_killed_worker_is_reported_and_replaced(tmp_path: Path) -> None:
    """One worker, two plans, the longer one first: that one is killed, the other is trained all the same."""
    made = planned(tmp_path, long=config(training={"sequences": 408}), short=config())
    directory = places.folder(tmp_path, made["long"])
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and not killed:
            try:
                pid = json.loads((directory / ".lock").read_text())["pid"]
            except (OSError, ValueError):
                time.sleep(0.02)
                continue
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    with Recorder(tmp_path) as recorder, pytest.raises(UserError) as error:
        train_all(made, tmp_path, recorder, workers=1)
    killer.join()
    assert killed and killed[0] != os.getpid()
    assert "training of long failed: its process ended with signal 9" in str(error.value)
    assert "short" not in str(error.value)
    assert places.is_done(places.folder(tmp_path, made["short"])) and not places.is_done(directory)
    assert set(read_history(tmp_path).condition) == {"short"}


def test_in_this_process(trained: tuple[Path, dict[str, Plan], Heard], tmp_path: Path) -> None:
    """workers=0: the same numbers, up to the order in which several threads add."""
    folder, made, heard = trained
    with Recorder(tmp_path) as recorder:
        here = train_all({"plain": made["plain"]}, tmp_path / "here", recorder, workers=0)["plain"]
    there = store.Trained.open(places.folder(folder, made["plain"]))
    np.testing.assert_allclose(here.history["train_loss"], there.history["train_loss"], rtol=1e-4)
    history = read_history(tmp_path)
    assert set(history.condition) == {"plain"} and history.train_loss.notna().sum() == 50
