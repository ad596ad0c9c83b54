"""The first process of a cluster's namespace: starts both daemons, takes orders, and collects the dead.

    keeper.py DIR on|off        started by box.py, in a process namespace of its own

When it ends, the kernel kills all else in the namespace: daemons and jobs.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path


def keep(directory: Path, attached: bool) -> None:
    """Run until killed. Orders come through DIR/orders.

    attached: ends when whoever holds the other end of its standard input does.
    """
    daemons: dict[str, subprocess.Popen] = {}

    def start(name: str) -> None:
        command = [name, "-D", *(["-N", socket.gethostname().split(".")[0]] if name == "slurmd" else [])]
        with open(directory / f"{name}.log", "ab") as log:
            daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def obey(order: str) -> None:
        verb, _, name = order.partition(" ")
        if verb == "start":
            start(name)
        elif verb == "kill":
            daemons[name].kill()
        elif verb == "crash":  # what runs on the node, but not the controller
            spared = {1, daemons["slurmctld"].pid}
            for pid in {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()} - spared:
                os.kill(pid, signal.SIGKILL)

    start("slurmctld")
    start("slurmd")
    orders = os.open(directory / "orders", os.O_RDWR)  # for writing, too, so that it never ends
    while True:
        ready, _, _ = select.select([orders, *([0] if attached else [])], [], [], 0.2)
        if 0 in ready and not os.read(0, 1):
            return
        if orders in ready:
            for order in os.read(orders, 4096).decode().splitlines():
                obey(order)
        while reap():
            pass


def reap() -> bool:
    """Collect one child that has ended: orphans come to the first process of a namespace."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2] == "on")
