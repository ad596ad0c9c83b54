"""The hardware profiles that come with the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from repro import cluster, machines
from repro.config import compose_all
from repro.hardware import Hardware
from repro.tasks import tasks

FOLDER = Path(__file__).resolve().parent.parent / "conf" / "hardware"
PROFILES = {
    path.stem: Hardware.parse(yaml.safe_load(path.read_text()), path.stem) for path in FOLDER.glob("*.yaml")
}


def test_those_that_papers_need_are_there() -> None:
    wanted = {"slurm_cpu", "slurm_gpu", "slurm_a100", "slurm_8xa100", "slurm_h200", "multi_node"}
    assert wanted <= PROFILES.keys()


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_say_what_estimates_and_sbatch_need(name: str) -> None:
    profile = PROFILES[name]
    if profile.executor == "slurm":
        assert profile.memory_gb is not None
        assert (profile.device == "cuda") == (profile.gpus > 0)
    if profile.gpus:
        assert profile.gpu_memory_gb is not None
        known = machines.gpu_of(profile)
        assert known is None or known[1].memory_gb == profile.gpu_memory_gb
    if profile.gpus > 1:
        assert profile.device_map is not None, "several GPUs without a device map: all but one stay idle"


def test_several_nodes_are_filled_by_an_array_of_runs(tmp_path: Path) -> None:
    configs = compose_all(
        ["paper/induction_heads=formation", "seed=range(0,6)", "hardware=multi_node", f"runs_dir={tmp_path}"],
        True,
    )
    lines = cluster.sbatch_text(tasks(configs)).splitlines()
    assert "#SBATCH --array=0-5%2" in lines and "#SBATCH --nodes=1" in lines
    assert "#SBATCH --exclusive" in lines
