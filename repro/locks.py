"""Only one process at a time: the kernel frees the lock with its process, even after `kill -9`."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from repro.errors import UserError

log = logging.getLogger(__name__)

_PATIENCE = 0.5  # seconds: whoever only looks whether a lock is free holds it for an instant


class Busy(UserError):
    """Another process holds the lock; the message tells which."""


def is_held(path: Path) -> bool:
    """Whether a process holds the lock `path` now."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False


@contextmanager
def exclusive(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, whose directory must exist.

    wait: wait for another process that holds it instead of raising Busy.
    """
    try:
        file = open(path, "a+b")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    with file:
        _acquire(file, path, wait)
        with suppress(OSError):  # a full disk costs only the name in the message for others
            file.truncate(0)
            holder = {"pid": os.getpid(), "host": socket.gethostname()}
            file.write(json.dumps({**holder, "since": _now()}).encode())
            file.flush()
        # Closing the file frees the lock. The file stays: removing it would race with the next process.
        yield


def _acquire(file: IO[bytes], path: Path, wait: bool) -> None:
    patience = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait and time.monotonic() > patience:
                raise Busy(_who(path)) from None
            time.sleep(0.05)
        except OSError as error:
            log.warning(
                "%s: this file system has no locks (%s); do not start the same run twice", path, error
            )
            return
        else:
            return


def _who(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        who = f"by process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError):
        who = "by another process"
    return f"{path.parent} is already being worked on {who}. Wait for it, or stop that process first."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
