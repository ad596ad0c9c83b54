"""Processes and ports of this machine, as a throw-away cluster needs them. Linux only."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

CLIENT_SECONDS = 30.0  # a SLURM client that meets a wrong configuration hangs for a minute


class BoxError(RuntimeError):
    """The cluster cannot be started, or does not answer."""


def namespace() -> list[str] | None:
    """The command that puts what follows it into a process namespace of its own; None if there is no way."""
    flags = ["--pid", "--fork", "--kill-child", "--mount-proc"]
    ways = [["unshare", *flags], ["unshare", "--user", "--map-current-user", *flags]]
    for way in ways if os.geteuid() == 0 else ways[1:]:
        try:
            if subprocess.run([*way, "true"], capture_output=True, timeout=CLIENT_SECONDS).returncode == 0:
                return way
        except (OSError, subprocess.TimeoutExpired):
            return None
    return None


def free_ports() -> int:
    """The first of two free ports, below those that the kernel gives to whoever asks."""
    for _ in range(1000):
        port = random.randrange(20000, 32000, 2)
        if not is_open(port) and not is_open(port + 1):
            return port
    raise BoxError("no two free ports")


def is_open(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def birth(pid: int) -> str:
    """When a process started, in ticks since boot: with its number, a name that is never given twice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "?"


def is_alive(pid: int) -> bool:
    """Whether a process runs; a child of ours that has ended is collected."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except OSError:
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float, complaint: str) -> None:
    """Raises `BoxError` with the complaint if the condition is not met in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise BoxError(complaint)
        time.sleep(0.05)


def inside(command: list[str]) -> int:
    """Run a command in a process namespace of its own, which ends when this process does; its exit code."""
    way = namespace() or ["env"]  # where there is no way no cluster can be started either, and tests skip

    def die_with_parent() -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    process = subprocess.Popen([*way, *command], preexec_fn=die_with_parent)
    signal.signal(signal.SIGTERM, lambda *_: process.kill())  # unshare itself ignores it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command
    code = process.wait()
    return code if code >= 0 else 128 - code
