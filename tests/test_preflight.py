from __future__ import annotations

import socket
from pathlib import Path

import pytest

from repro import preflight, slurm
from repro.errors import UserError
from repro.hardware import Hardware, minutes
from repro.slurm import Partition

HERE = socket.gethostname().split(".")[0]
CPU = Partition("cpu", 1440, "(null)", 64000, 32, ("n1", "n2"), True)
GPU = Partition("gpu", 2880, "gpu:a100:4(S:0-1),tmp:10G", 512000, 64, ("g1",), False)
ENDLESS = Partition("long", None, "gpu:2", 64000, 8, ("n3",), False)
THERE = [CPU, GPU, ENDLESS]


def profile(**values: object) -> Hardware:
    return Hardware.parse({"executor": "slurm", **values}, "hardware")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("10:30", 11), ("12:00:00", 720), ("0:01", 1), ("1-12", 2160), ("1-12:30", 2190),
     ("2-00:00:01", 2881), (" 7 ", 7)],
)  # fmt: skip
def test_times_in_every_form_of_slurm(text: str, expected: int) -> None:
    assert minutes(text) == expected == profile(timeout_min=text).timeout_min


@pytest.mark.parametrize("text", ["2h", "1d", "1-", "::", "1:2:3:4", "", "-5", "1.5", "infinite"])
def test_other_times_are_refused_with_the_valid_forms(text: str) -> None:
    with pytest.raises(UserError, match="D-HH:MM:SS"):
        profile(timeout_min=text)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"partition": "nope"}, "Valid: cpu, gpu, long"),
        ({"timeout_min": 1441}, "allows 1440"),
        ({"cpus": 33}, "more than 32"),
        ({"memory_gb": 63}, "more than 62.5 GB"),
        ({"nodes": 3}, "has 2"),
        ({"gpus": 1}, "no node of partition cpu has gpu:1. There is gpu: gpu:a100:4"),
        ({"partition": "gpu", "gpus": 5}, "has gpu:5"),
        ({"partition": "gpu", "gpus": 1, "gpu_type": "h100"}, "has gpu:h100:1"),
        ({"partition": "gpu", "gres": "gpu:1,tmp:11G"}, "has tmp:11G"),
    ],
)
def test_what_no_node_has_is_refused(values: dict, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        preflight.fits(profile(**values), THERE)
    assert expected in str(caught.value) and "hardware." in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"timeout_min": 1440, "cpus": 32, "memory_gb": 62.5, "nodes": 2},
        {"partition": "gpu", "gpus": 4, "gpu_type": "a100"},
        {"partition": "gpu", "gres": "gpu:2,tmp:10G"},
        {"partition": "long", "gpus": 2, "timeout_min": 10**6},
        {"partition": "cpu,long", "timeout_min": 1440},
    ],
)
def test_what_a_node_has_is_not_refused(values: dict) -> None:
    preflight.fits(profile(**values), THERE)


def test_no_default_partition_asks_for_one() -> None:
    with pytest.raises(UserError, match="no default. Valid: gpu, long"):
        preflight.fits(profile(), [GPU, ENDLESS])


MOUNTS = "/dev/sda / ext4 rw 0 0\ntmpfs /scratch tmpfs rw 0 0\nserver:/home /home nfs4 rw 0 0\n"


@pytest.mark.parametrize("place", ["/tmp/runs", "/var/tmp/a/b", "/dev/shm/x", "/scratch/me/runs"])
def test_folders_that_only_this_machine_sees_are_refused(place: str) -> None:
    with pytest.raises(UserError, match="compute nodes cannot see") as caught:
        preflight.visible(Path(place), profile(), THERE, MOUNTS)
    assert "shared: [" in str(caught.value)
    root = "/" + place.split("/")[1]
    preflight.visible(Path(place), profile(shared=[root]), THERE, MOUNTS)  # the site says otherwise


def test_folders_that_others_see_are_not_refused() -> None:
    preflight.visible(Path("/home/me/runs"), profile(), THERE, MOUNTS)
    mine = [Partition("cpu", None, "", 1, 1, (HERE,), True)]
    preflight.visible(Path("/tmp/runs"), profile(), mine, MOUNTS)  # jobs run on this machine
    shared = [Partition("cpu", None, "", 1, 1, (HERE, "other"), True)]
    with pytest.raises(UserError):
        preflight.visible(Path("/tmp/runs"), profile(), shared, MOUNTS)


def test_reading_sinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """cpu*|1-00:00:00|(null)|64000|32|n1
cpu*|1-00:00:00|(null)|64000|32|n2
gpu|infinite|gpu:a100:4(S:0-1)|512000+|64|g1
"""
    monkeypatch.setattr(slurm, "ask", lambda *_: text)
    assert slurm.partitions() == [
        CPU,
        Partition("gpu", None, "gpu:a100:4(S:0-1)", 512000, 64, ("g1",), False),
    ]


def test_slurm_that_hangs_is_an_error_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sinfo", "sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\nexec sleep 60\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(slurm.NoAnswer, match=r"sinfo did not answer within 0 s"):
        slurm.ask("sinfo", seconds=0.2)
    monkeypatch.setattr(slurm, "SECONDS", 0.2)
    monkeypatch.setattr(slurm.ask, "__kwdefaults__", {"seconds": 0.2})
    with pytest.raises(UserError, match="Is its controller up, and SLURM_CONF right"):
        preflight.check([])
