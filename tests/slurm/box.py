"""A throw-away SLURM on this machine: one node, loopback only, fake GPUs, no root and no systemd needed.

    python tests/slurm/box.py up [DIR]        start it; prints the line that makes this shell use it
    python tests/slurm/box.py status [DIR]
    python tests/slurm/box.py down [DIR]      stop it, with all its jobs, and remove DIR
    python tests/slurm/box.py inside COMMAND  run a command so that nothing it starts can outlive it

Both daemons and all jobs live in a process namespace of their own, whose first process is keeper.py.
The kernel kills whatever is in a namespace when its first process ends, so one `kill -9` ends it all.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # as a script it has no package

from slurm.processes import (  # noqa: E402
    CLIENT_SECONDS,
    BoxError,
    birth,
    free_ports,
    inside,
    is_alive,
    is_open,
    namespace,
    wait_until,
)  # fmt: skip

DEFAULT = HERE.parent.parent / ".slurm"
MARK = "# made by tests/slurm/box.py\n"
SYSTEM_PATH = "/usr/sbin:/usr/local/sbin:/sbin"
NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "unshare")

# One line a GPU; only a character device gives CUDA_VISIBLE_DEVICES its number.
GRES = "AutoDetect=off\nName=gpu Type=a100 File=/dev/null\nName=gpu Type=a100 File=/dev/zero\n"

# There is no accounting here, and submitit learns of killed jobs from sacct alone: its three columns.
SACCT = """\
#!/bin/sh
ids=
while [ $# -gt 0 ]; do case "$1" in -j) ids="$ids,$2"; shift 2;; *) shift;; esac; done
echo "JobID|State|NodeList"
exec squeue -h --states=all -o '%i|%T|%N' -j "${ids#,}" 2>/dev/null
"""


def missing() -> str | None:
    """What this machine lacks for a box, in words; None if nothing."""
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
    absent = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm"
    if namespace() is None:
        return "the kernel refuses process namespaces here (unshare --pid), also with --user"
    return None


class Box:
    """A cluster in a directory. `with Box(directory) as box:` ends it with the block, or with this process.

    options: replace lines of slurm.conf, such as {"MaxJobCount": 2}. cpus: what the node claims to have.
    grace: seconds that a preempted job in partition `low` has between SIGTERM and SIGKILL.
    Partitions: cpu (the default), gpu, and `high`, whose jobs throw those of `low` out.
    """

    def __init__(
        self,
        directory: str | Path = DEFAULT,
        options: Mapping[str, object] | None = None,
        cpus: int = 8,
        grace: int = 0,
    ) -> None:
        self.directory = Path(directory).resolve()
        self._options, self._cpus, self._grace = dict(options or {}), cpus, grace
        self._lifeline: int | None = None

    def __enter__(self) -> Box:
        self.up(attached=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that make SLURM's clients talk to this cluster."""
        own, path = str(self.directory / "bin"), os.environ.get("PATH", "/usr/bin:/bin").split(":")
        path = [part for part in path if part != own]
        path += [part for part in SYSTEM_PATH.split(":") if part not in path]
        return {"SLURM_CONF": str(self.directory / "slurm.conf"), "PATH": ":".join([own, *path])}

    @property
    def env(self) -> dict[str, str]:
        """This process's environment with them, and without those of a job that this process may be."""
        return {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")} | (
            self.variables
        )

    def up(self, attached: bool = False, ceiling: float = 30.0) -> None:
        """Start it and wait until its node is idle; nothing if it is up already.

        attached: it ends with this process, however that ends. Else it stays until `down`.
        Raises `BoxError` with the daemons' last words if it is not ready after `ceiling` seconds.
        """
        if self.is_up():
            return
        if lack := missing():
            raise BoxError(lack)
        for attempt in range(3):
            self.down()  # what a crash left
            self._write(port=free_ports())
            self._start_keeper(attached)
            if self._ready(ceiling):
                return
            words = self.last_words()
            if "in use" not in words or attempt == 2:  # else somebody took the port in between
                self.down()
                raise BoxError(f"SLURM did not start in {ceiling:.0f} s:\n{words}")

    def down(self) -> None:
        """End it with everything that runs in it, and remove its directory. Also after any kind of crash."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        pid = self.keeper()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not is_alive(pid), 10, f"process {pid} does not end")
        conf = self.directory / "slurm.conf"
        if not self.directory.exists():
            return
        if conf.exists() and not conf.read_text().startswith(MARK):
            raise BoxError(f"{conf} was not made here: not removed")
        if not conf.exists() and any(self.directory.iterdir()):
            raise BoxError(f"{self.directory} is no cluster's directory and not empty: not removed")
        wait_until(lambda: not any(map(is_open, self.ports())), 10, f"ports {self.ports()} stay open")
        shutil.rmtree(self.directory)

    def is_up(self) -> bool:
        """Whether its keeper lives and its controller answers."""
        if self.keeper() is None:
            return False
        try:
            return self.ask("sinfo", "-h", "-o", "%T", seconds=10) != ""
        except BoxError:
            return False

    def keeper(self) -> int | None:
        """The process on which everything hangs, None if it is gone."""
        try:
            pid, started = (self.directory / "keeper.pid").read_text().split()
        except (OSError, ValueError):
            return None
        return int(pid) if is_alive(int(pid)) and birth(int(pid)) == started else None

    def ports(self) -> list[int]:
        """The ports its daemons listen on."""
        try:
            text = (self.directory / "slurm.conf").read_text()
        except OSError:
            return []
        return [int(port) for port in re.findall(r"^Slurm(?:ctld|d)Port=(\d+)", text, re.MULTILINE)]

    def ask(self, *command: str, seconds: float = CLIENT_SECONDS) -> str:
        """Run a SLURM client and return what it says. Raises `BoxError` if it fails or hangs."""
        try:
            done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise BoxError(f"{shlex.join(command)} hangs") from None
        if done.returncode:
            raise BoxError(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    def job(self, job_id: str) -> dict[str, str]:
        """What the controller knows of a job: JobState, Reason, Restarts, ExitCode, TimeLimit, ..."""
        fields = self.ask("scontrol", "--oneliner", "show", "job", job_id).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def tell(self, order: str) -> None:
        """Give the keeper an order: `start slurmd`, `kill slurmctld`, ... or `crash` (no more power)."""
        with open(self.directory / "orders", "w") as orders:
            orders.write(f"{order}\n")

    def cpu_seconds(self) -> float:
        """Processor time of the daemons and of all jobs that have ended, which were collected by them."""
        first = Path(f"/proc/{self.keeper()}/task/{self.keeper()}/children").read_text().split()
        below = [Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in first]
        total = 0.0
        for pid in (*first, *(child for children in below for child in children)):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))  # own and collected children's, user and system
        return total / os.sysconf("SC_CLK_TCK")

    def last_words(self) -> str:
        """The ends of the daemons' logs."""
        logs = sorted(self.directory.glob("*.log"))
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in logs)

    def _write(self, port: int) -> None:
        for name in ("state", "spool", "bin"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        host = socket.gethostname().split(".")[0]
        text = (HERE / "slurm.conf.in").read_text().format(
            host=host, user=getpass.getuser(), directory=self.directory, port=port, next_port=port + 1,
            cpus=self._cpus, grace=self._grace,
        )  # fmt: skip
        lines = [line for line in text.splitlines() if line.split("=")[0] not in self._options]
        added = [f"{key}={value}" for key, value in self._options.items()]
        (self.directory / "slurm.conf").write_text(MARK + "\n".join([*added, *lines, ""]))
        (self.directory / "gres.conf").write_text(GRES)
        (self.directory / "bin" / "sacct").write_text(SACCT)
        (self.directory / "bin" / "sacct").chmod(0o755)
        os.mkfifo(self.directory / "orders")

    def _start_keeper(self, attached: bool) -> None:
        way = namespace()
        assert way is not None
        ours, theirs = os.pipe() if attached else (os.open(os.devnull, os.O_RDONLY), None)
        keeper = [sys.executable, str(HERE / "keeper.py"), str(self.directory), "on" if attached else "off"]
        with open(self.directory / "keeper.log", "ab") as log:
            process = subprocess.Popen(
                [*way, *keeper], stdin=ours, stdout=log, stderr=log, env=self.env, start_new_session=True
            )
        os.close(ours)
        self._lifeline = theirs
        (self.directory / "keeper.pid").write_text(f"{process.pid} {birth(process.pid)}")

    def _ready(self, ceiling: float) -> bool:
        end = time.monotonic() + ceiling
        while time.monotonic() < end and self.keeper() is not None:
            try:
                if "idle" in self.ask("sinfo", "-h", "-o", "%T", seconds=10):
                    return True
            except BoxError:
                pass
            if "in use" in self.last_words():
                return False
            time.sleep(0.05)
        return False


def main(words: list[str]) -> int:
    """The command line; returns the exit code."""
    verb, *rest = words or [""]
    try:
        if verb == "inside" and rest:
            return inside(rest)
        box = Box(rest[0] if rest else DEFAULT)
        if verb == "up":
            box.up()
            print('# SLURM is up. A shell uses it after eval "$(make -s slurm-up)"; make slurm-down ends it')
            own = {name: shlex.quote(str(box.directory / name)) for name in ("slurm.conf", "bin")}
            print(f"export SLURM_CONF={own['slurm.conf']} PATH={own['bin']}:$PATH:{SYSTEM_PATH}")
        elif verb == "down":
            box.down()
        elif verb == "status":
            print(f"{box.directory}: {'up' if box.is_up() else 'down'}")
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except BoxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
