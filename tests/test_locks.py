"""Locks: one holder at a time, gone with its process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from repro.errors import UserError
from repro.locks import Busy, exclusive, is_held

ROOT = Path(__file__).resolve().parent.parent
KILLED_HOLDER = """
import os, signal, sys
from pathlib import Path
from repro.locks import exclusive

with exclusive(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_one_holder_at_a_time(tmp_path):
    path = tmp_path / ".lock"
    assert not is_held(path)
    with exclusive(path):
        assert is_held(path)
        with pytest.raises(Busy, match=f"by process {os.getpid()} on"), exclusive(path):
            raise AssertionError("two holders")
        assert is_held(path)
    assert not is_held(path)
    with exclusive(path):
        pass


def test_a_killed_holder_frees_the_lock(tmp_path):
    path = tmp_path / ".lock"
    # A process of its own rather than a fork: other tests may have left threads here.
    child = subprocess.run([sys.executable, "-c", KILLED_HOLDER, str(path)], cwd=ROOT)
    assert child.returncode == -signal.SIGKILL
    assert not is_held(path)
    with exclusive(path):
        assert is_held(path)


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="cannot write"), exclusive(tmp_path / "none" / ".lock"):
        pass
