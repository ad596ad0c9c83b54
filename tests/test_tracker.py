"""Whatever happens to W&B, the run goes on, and does not wait for long."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from repro import tracking
from repro.run_directory import RunDirectory
from tests.wandb_reader import read_run


@pytest.fixture
def run(tmp_path):
    run = RunDirectory.of(tmp_path, "demo", "curve", "0123456789ab")
    run.prepare()
    return run


def config(**changes):
    return {"tracking": {"mode": "offline", "init_timeout_s": 20, "finish_timeout_s": 20, **changes}}


def children(pid: int) -> dict[int, str]:
    """The processes below `pid`, and their command lines."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            command = (entry / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid:
            found |= {int(entry.name): command, **children(int(entry.name))}
    return found


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def log_some(tracker, begin, end):
    steps = np.arange(begin, end)
    tracker.log_rows(steps, {"loss": steps * 0.5}, "")


def test_killing_wandb_core_costs_one_warning(run, caplog):
    with caplog.at_level(logging.WARNING), tracking.start(config(), run.path) as tracker:
        log_some(tracker, 0, 10)
        wait_for(lambda: read_run(run.path / "wandb")["rows"])
        cores = [pid for pid, command in children(tracker.pid).items() if "wandb-core" in command]
        assert cores
        for pid in cores:
            os.kill(pid, signal.SIGKILL)
        for begin in range(10, 100, 10):
            log_some(tracker, begin, begin + 10)
            time.sleep(0.1)
        tracker.scalars({"loss": 1.0})
        began = time.monotonic()
        assert tracker.finish() is False
        assert time.monotonic() - began < 40
    assert len([record for record in caplog.records if "make publish" in record.message]) == 1


def test_killing_the_whole_process_costs_one_warning(run, caplog):
    with caplog.at_level(logging.WARNING), tracking.start(config(), run.path) as tracker:
        os.kill(tracker.pid, signal.SIGKILL)
        wait_for(lambda: tracker.problem is not None)
        began = time.monotonic()
        log_some(tracker, 0, 1000)
        assert tracker.finish() is False
        assert time.monotonic() - began < 10
    assert len(caplog.records) == 1


def test_a_process_that_hangs_is_given_up(run):
    with tracking.start(config(init_timeout_s=1, finish_timeout_s=1), run.path) as tracker:
        os.kill(tracker.pid, signal.SIGSTOP)
        began = time.monotonic()
        for begin in range(0, 200_000, 1000):  # more than pipe and queue can hold
            log_some(tracker, begin, begin + 1000)
        assert tracker.finish() is False
        assert time.monotonic() - began < 15
    assert tracker.problem is not None
    wait_for(lambda: not Path(f"/proc/{tracker.pid}").exists())


def test_no_server(run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    wish = config(mode="online", base_url="http://127.0.0.1:9", init_timeout_s=1, finish_timeout_s=1)
    began = time.monotonic()
    with tracking.start(wish, run.path) as tracker:
        log_some(tracker, 0, 10)
    assert tracker.problem is not None
    assert time.monotonic() - began < 20


def test_a_killed_run_leaves_no_process_and_a_readable_file(run):
    script = (
        "import sys, time, numpy as np\nfrom repro import tracking\n"
        "tracker = tracking.start({'tracking': {'mode': 'offline'}}, sys.argv[1])\n"
        "tracker.log_rows(np.arange(5), {'loss': np.arange(5) * 1.0}, '')\n"
        "print(tracker.pid, flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, run.path], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    wait_for(lambda: len(read_run(run.path / "wandb")["rows"]) == 5)
    process.kill()
    process.wait()
    wait_for(
        lambda: (
            not Path(f"/proc/{child}").exists() or "\nState:\tZ" in Path(f"/proc/{child}/status").read_text()
        )
    )
    assert read_run(run.path / "wandb")["exit"] == 1


def test_python_that_cannot_start(run, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with tracking.start(config(), run.path) as tracker:
        log_some(tracker, 0, 10)
    assert "No such file" in tracker.problem
