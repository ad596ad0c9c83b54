"""Nothing is left behind: no process, no file, no port, however a cluster comes to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm.box import Box
from slurm.processes import BoxError, is_open, wait_until

BOX = Path(__file__).with_name("box.py")


def processes(directory: Path) -> list[str]:
    """Command lines of all processes that have to do with a box, by a descriptor, argument or variable."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if os.fsencode(directory) in words:
                found.append(words.split(b"\0PATH")[0].decode(errors="replace"))
        except OSError:
            continue  # it has just ended
    return found


def call(verb: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """What `make slurm-up` and `make slurm-down` call."""
    return subprocess.run(
        [sys.executable, str(BOX), verb, str(directory)], capture_output=True, text=True, timeout=60
    )


def ends(directory: Path, ports: list[int]) -> None:
    """Stop it as a user does; then nothing may be left."""
    down = call("down", directory)
    assert down.returncode == 0, down.stderr
    wait_until(lambda: not processes(directory), 5, f"still there: {processes(directory)}")
    assert not directory.exists()
    assert ports and not any(is_open(port) for port in ports)


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Box]:
    """A cluster started as by `make slurm-up`, with a job that runs."""
    box = Box(tmp_path / "box")
    started = call("up", box.directory)
    assert started.returncode == 0, started.stderr
    assert f"SLURM_CONF={box.directory}/slurm.conf" in started.stdout
    job = box.ask("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 1000")
    wait_until(lambda: box.job(job)["JobState"] == "RUNNING", 30, "the job does not start")
    assert len(processes(box.directory)) >= 4  # keeper, two daemons, the job
    assert all(is_open(port) for port in box.ports()) and len(box.ports()) == 2
    yield box
    box.down()


def test_up_and_down(busy: Box) -> None:
    keeper = busy.keeper()
    assert call("up", busy.directory).returncode == 0 and busy.keeper() == keeper  # up already
    ends(busy.directory, busy.ports())
    ends_again = call("down", busy.directory)
    assert ends_again.returncode == 0


def test_the_keeper_is_killed(busy: Box) -> None:
    """The kernel ends daemons and jobs with it, without any help."""
    pid, ports = busy.keeper(), busy.ports()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes(busy.directory), 10, "daemons or jobs outlive their keeper")
    wait_until(lambda: not any(is_open(port) for port in ports), 10, "ports stay open")
    ends(busy.directory, ports)


@pytest.mark.parametrize("order", ["kill slurmctld", "kill slurmd", "crash"])
def test_daemons_are_killed(busy: Box, order: str) -> None:
    busy.tell(order)
    ends(busy.directory, busy.ports())


def test_up_clears_what_a_crash_left(busy: Box) -> None:
    pid, ports = busy.keeper(), busy.ports()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert call("up", busy.directory).returncode == 0
    assert busy.ask("squeue", "-h") == ""  # a new cluster, which knows nothing of the old job
    ends(busy.directory, [*ports, *busy.ports()])


def test_whoever_uses_it_is_killed(tmp_path: Path) -> None:
    """As a test runner that is killed: the cluster it had started ends with it."""
    code = (
        "import sys, time; from slurm.box import Box\n"
        "with Box(sys.argv[1]) as box:\n"
        "    box.ask('sbatch', '--wrap', 'sleep 1000', '-o', '/dev/null')\n"
        "    print('up', flush=True); time.sleep(1000)\n"
    )
    box = Box(tmp_path / "box")
    user = subprocess.Popen(
        [sys.executable, "-c", code, str(box.directory)], cwd=BOX.parent.parent, stdout=subprocess.PIPE
    )
    assert user.stdout is not None and user.stdout.readline() == b"up\n"
    ports = box.ports()
    user.kill()
    user.wait()
    wait_until(lambda: not processes(box.directory), 10, "it outlives its user")
    ends(box.directory, ports)


def test_two_at_once(busy: Box, tmp_path: Path) -> None:
    with Box(tmp_path / "other") as other:
        assert not set(busy.ports()) & set(other.ports())
        assert other.ask("squeue", "-h") == "" and busy.ask("squeue", "-h") != ""
    ends(busy.directory, busy.ports())


def test_only_its_own_directory_is_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(BoxError, match="not removed"):
        Box(tmp_path).down()
    (tmp_path / "slurm.conf").write_text("ClusterName=real\n")
    with pytest.raises(BoxError, match="not removed"):
        Box(tmp_path).up()
    assert (tmp_path / "precious").exists()
