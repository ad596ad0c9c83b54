"""Which GPU a process gets where there are several. (What processes do besides: tests/test_cluster.py.)"""

from __future__ import annotations

from pathlib import Path

from repro.processes import least_used, visible_gpus


def test_gpus_are_those_that_may_be_used(tmp_path: Path) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, 5,GPU-ab"}) == ["3", "5", "GPU-ab"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == ["0", "1"]


def test_processes_spread_over_gpus() -> None:
    used: list[str] = []
    for _ in range(5):
        gpu = least_used(["0", "1", "2"], used)
        assert gpu is not None
        used.append(gpu)
    assert used == ["0", "1", "2", "0", "1"]
    assert least_used(["0", "1", "2"], ["0", "2", "2"]) == "1"
    assert least_used(["4"], []) is None and least_used([], []) is None
