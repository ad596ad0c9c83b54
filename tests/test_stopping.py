"""Each case in a process of its own: handlers belong to the whole process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "import os, signal, sys, time, subprocess; from repro import stopping\n"


def run(code: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code],
        cwd=ROOT, capture_output=True, text=True, timeout=30, env={"PATH": "/usr/bin:/bin", **environment},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


WAIT = "\nwhile not stopping.asked(): time.sleep(0.01)\n"


@pytest.mark.parametrize(
    ("listen", "signal", "expected"),
    [
        ("listen()", "USR2", "stop"),
        ("listen()", "TERM", "save"),
        ("listen(is_cancelled=lambda: True)", "TERM", "stop"),
    ],
)
def test_what_a_signal_asks_for(listen: str, signal: str, expected: str) -> None:
    code, out = run(
        f"stopping.{listen}; assert stopping.asked() is None; os.kill(os.getpid(), signal.SIG{signal})"
        f"{WAIT}print(stopping.asked()); stopping.saved(); print(stopping.asked())"
    )
    assert (code, out.split()) == (0, [expected, "stop" if expected == "stop" else "None"])


def test_stop_is_not_taken_back() -> None:
    code, out = run("stopping.ask('stop'); stopping.ask('save'); stopping.saved(); print(stopping.asked())")
    assert (code, out.strip()) == (0, "stop")


def test_work_that_cannot_stop_is_ended_after_a_while() -> None:
    """A thread does it: the main thread is deep in compiled code, here in sleep's place."""
    code, out = run(
        "stopping.listen(late=lambda: os._exit(5), patience=0.2); os.kill(os.getpid(), signal.SIGUSR2)\n"
        "time.sleep(20)"
    )
    assert code == 5, out


def test_stopped_is_no_failure() -> None:
    code, out = run("try:\n    raise stopping.Stopped\nexcept Exception:\n    pass")
    assert code == 77 and not out


def test_a_child_does_not_hear_before_it_listens() -> None:
    child = "import time; from repro import stopping; time.sleep(0.5); stopping.listen_as_child()" + WAIT
    code, out = run(
        "stopping.listen()\nwith stopping.held():\n"
        f"    child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "child.send_signal(signal.SIGUSR2); sys.exit(child.wait())"
    )
    assert code == 0, out
    ends = "import time; from repro import stopping; stopping.listen_as_child(); time.sleep(20)"
    code, out = run(  # whoever starts it does not listen, so signals do what they always do
        f"with stopping.held():\n    child = subprocess.Popen([sys.executable, '-c', {ends!r}])\n"
        "child.send_signal(signal.SIGTERM); sys.exit(-child.wait())"
    )
    assert code == 15, out
