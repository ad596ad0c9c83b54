from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from repro import cluster, hardware, workers
from repro.config import Config, compose, compose_all
from repro.errors import UserError
from repro.hardware import Hardware
from repro.run_directory import RunDirectory

RUN = "paper/invented=first"

# Stands for repro.pipeline in worker processes, which import it on their own.
FAKE_PIPELINE = """\
import sys, types
def run(config):
    import os, signal
    from repro.run_directory import RunDirectory
    seed = config.values["seed"]
    print("seed", seed, os.environ.get("OMP_NUM_THREADS"))
    if seed == 1: raise RuntimeError("seed one is unlucky")
    if seed == 2: os.kill(os.getpid(), signal.SIGKILL)
    (config.directory / "scalars.json").write_text("{}")
    RunDirectory(config.directory).set_status("done")
fake = types.ModuleType("repro.pipeline")
fake.run = run
sys.modules["repro.pipeline"] = fake
"""


def profile(config: Config) -> Hardware:
    return Hardware.parse(config.values["hardware"], "hardware")


def text_of(project: Path, *overrides: str) -> list[str]:
    configs = compose_all([RUN, *overrides], True, project)
    return cluster.sbatch_text(configs, profile(configs[0])).splitlines()


def test_sbatch_text_of_one_run(project: Path) -> None:
    text = text_of(project, "hardware=slurm_a100", "hardware.partition=gpu", "hardware.account=lab")
    assert text[0] == "#!/bin/bash"
    expected = """--job-name=invented-first --time=720 --gres=gpu:a100:1 --partition=gpu --account=lab
        --cpus-per-task=8 --mem=98304M --nodes=1 --signal=USR2@120 --requeue"""
    assert [flag for flag in expected.split() if f"#SBATCH {flag}" not in text] == []
    assert not [line for line in text if "--array" in line or "--wckey" in line or "--qos" in line]
    assert "export JAX_PLATFORMS=cuda" in text and "export OMP_NUM_THREADS=8" in text
    assert "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in text


def test_sbatch_text_of_a_multirun_is_one_array(project: Path) -> None:
    text = text_of(project, "hardware=slurm_cpu", "seed=range(0,40)")
    assert "#SBATCH --array=0-39%32" in text
    assert not [line for line in text if "--gres" in line]
    assert "export JAX_PLATFORMS=cpu" in text
    assert len([line for line in text if line.startswith("# task ")]) == 40


@pytest.mark.parametrize(
    ("name", "gres", "minutes"),
    [("slurm_cpu", None, 240), ("slurm_gpu", "gpu:1", 480), ("slurm_a100", "gpu:a100:1", 720),
     ("slurm_8xa100", "gpu:a100:8", 1440)],
)  # fmt: skip
def test_every_slurm_profile(project: Path, name: str, gres: str | None, minutes: int) -> None:
    text = text_of(project, f"hardware={name}")
    assert [line for line in text if "--gres" in line] == ([f"#SBATCH --gres={gres}"] if gres else [])
    assert f"#SBATCH --time={minutes}" in text


def test_gres_and_further_options_can_be_given(project: Path) -> None:
    text = text_of(
        project, "hardware=slurm_gpu", "hardware.gres='gpu:h100:2,tmpfs:10G'", "hardware.options.nice=10"
    )
    assert "#SBATCH --gres=gpu:h100:2,tmpfs:10G" in text and "#SBATCH --nice=10" in text


def test_the_job_script_is_valid_shell(project: Path) -> None:
    text = "\n".join(text_of(project, "hardware=slurm_8xa100", "seed=0,1", "hardware.modules=[cuda/12 x]"))
    assert subprocess.run(["bash", "-n"], input=text, text=True, timeout=10).returncode == 0
    assert "module load 'cuda/12 x'" in text


SITE = """\
partition: main
account: lab
modules: [python/3.11]
setup: [source /opt/env.sh]
profiles:
  slurm_a100: {partition: big, gpu_type: a100_80gb}
"""


def test_the_site_file_names_partition_and_account(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site.yaml").write_text(SITE)
    monkeypatch.setenv("REPRO_SITE", str(tmp_path / "site.yaml"))
    general = text_of(project, "hardware=slurm_cpu")
    assert "#SBATCH --partition=main" in general and "#SBATCH --account=lab" in general
    assert "module load python/3.11" in general and "source /opt/env.sh" in general
    special = text_of(project, "hardware=slurm_a100")
    assert "#SBATCH --partition=big" in special and "#SBATCH --gres=gpu:a100_80gb:1" in special
    told = text_of(project, "hardware=slurm_a100", "hardware.partition=mine")
    assert "#SBATCH --partition=mine" in told and "#SBATCH --account=lab" in told
    assert compose([RUN, "hardware=local"], project).values["hardware"]["partition"] is None


def test_the_site_file_in_the_home_directory(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config" / "repro").mkdir(parents=True)
    (tmp_path / "config" / "repro" / "site.yaml").write_text("partition: home\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert "#SBATCH --partition=home" in text_of(project, "hardware=slurm_cpu")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("partitoin: x\n", "did you mean 'partition'"),
        ("- x\n", "expected keys and values"),
        ("a: [\n", "cannot be read"),
        ("setup: ['export WANDB_API_KEY=abc']\n", "looks like a secret"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_site_file_is_refused(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / "site.yaml").write_text(content)
    monkeypatch.setenv("REPRO_SITE", str(tmp_path / "site.yaml"))
    with pytest.raises(UserError) as caught:
        compose([RUN, "hardware=slurm_cpu"], project)
    assert expected in str(caught.value)
    assert compose([RUN, "hardware=local"], project)  # nothing to do with SLURM


def test_environment_of_a_profile() -> None:
    cpu = workers.environment(Hardware(executor="inline", device="cpu", threads=2))
    assert (
        cpu["JAX_PLATFORMS"] == "cpu" and cpu["CUDA_VISIBLE_DEVICES"] == "" and cpu["OMP_NUM_THREADS"] == "2"
    )
    assert workers.environment(Hardware(executor="inline", device="auto")) == {}
    shared = workers.environment(Hardware(executor="processes", device="auto"))
    assert shared == {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def test_worker_count_fits_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert workers.worker_count(Hardware(executor="processes", threads=3)) == 2
    assert workers.worker_count(Hardware(executor="processes", threads=99)) == 1
    assert workers.worker_count(Hardware(executor="processes", threads=1, workers=3)) == 3


def test_processes_survive_an_exception_and_a_kill(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAKE_PIPELINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    configs = compose_all(
        [RUN, "seed=0,1,2,3", "hardware=local_parallel", "hardware.workers=2"], True, project
    )
    outcomes = cluster.dispatch(configs, profile(configs[0]))
    assert [outcome.config for outcome in outcomes] == configs
    assert [outcome.code for outcome in outcomes] == [0, 1, 1, 0]
    states = [RunDirectory(config.directory).status() for config in configs]
    assert [status.state for status in states] == ["done", "failed", "failed", "done"]
    assert states[1].reason == "RuntimeError: seed one is unlucky"
    assert states[2].reason is not None and "signal 9" in states[2].reason
    assert "seed 0 1" in (configs[0].directory / "output.log").read_text()
    assert "RuntimeError: seed one is unlucky" in (configs[1].directory / "output.log").read_text()
    assert "[4/4" in capsys.readouterr().out


def test_prepare_leaves_the_status_of_a_run_at_work(project: Path) -> None:
    config = compose([RUN], project)
    workers.prepare(config)
    run = RunDirectory(config.directory)
    assert run.status().state == "queued"
    with run.lock():
        run.set_status("running")
        workers.prepare(config)
        assert run.status().state == "running"


def stub(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for SLURM's clients: sbatch keeps the script and says job 41, squeue knows no job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stub(folder, "sbatch", f'cp "$1" {folder}/script.sh; echo "Submitted batch job 41"')
    stub(folder, "srun", "exit 0")
    stub(folder, "squeue", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_submitting_an_array(project: Path, slurm: Path) -> None:
    configs = compose_all([RUN, "seed=0,1", "hardware=slurm_cpu"], True, project)
    outcomes = cluster.dispatch(configs, profile(configs[0]))
    assert [outcome.code for outcome in outcomes] == [None, None]
    for number, config in enumerate(configs):
        status = RunDirectory(config.directory).status()
        assert (status.state, status.job_id) == ("queued", f"41_{number}")
        assert cluster.job_of(config) == f"41_{number}"
    shown = cluster.sbatch_text(configs, profile(configs[0])).splitlines()
    script = (slurm / "script.sh").read_text().splitlines()
    assert script == shown[: len(script)]  # dry_run shows what is submitted


def test_a_refused_job_is_bad_input(project: Path, slurm: Path) -> None:
    stub(slurm, "sbatch", 'echo "sbatch: error: invalid partition specified: nope" >&2; exit 1')
    config = compose([RUN, "hardware=slurm_cpu", "hardware.partition=nope"], project)
    with pytest.raises(UserError, match="invalid partition specified: nope"):
        cluster.dispatch([config], profile(config))
    assert RunDirectory(config.directory).status().state == "failed"


def test_waiting_for_a_job_that_vanishes(project: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.01)
    config = compose([RUN, "hardware=slurm_cpu", "hardware.wait=true"], project)
    [outcome] = cluster.dispatch([config], profile(config))
    assert outcome.code == 1 and "job 41 ended without a result" in outcome.note


def test_a_queued_job_is_not_submitted_twice(project: Path, slurm: Path) -> None:
    config = compose([RUN, "hardware=slurm_cpu"], project)
    cluster.dispatch([config], profile(config))
    stub(slurm, "squeue", "echo PENDING")
    stub(slurm, "sbatch", 'echo "Submitted batch job 42"')
    [outcome] = cluster.dispatch([config], profile(config))
    assert outcome.code is None and "already in the queue as job 41" in outcome.note
    stub(slurm, "squeue", "exit 0")
    [outcome] = cluster.dispatch([config], profile(config))
    assert "job 42" in outcome.note


def test_a_failing_job_raises_so_that_slurm_says_failed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def run(config: Config) -> int:
        seen.append(config.values["rerun"])
        raise ValueError("no")

    fake = SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, "repro.pipeline", fake)  # type: ignore[arg-type]
    monkeypatch.setattr("repro.pipeline", fake, raising=False)
    config = compose([RUN, "rerun=true"], project)
    workers.prepare(config)
    with pytest.raises(RuntimeError, match="failed with code 1"):
        cluster.Run()(str(config.directory))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(RuntimeError):
        cluster.Run()(str(config.directory))
    assert seen == [True, False]  # a requeued job goes on instead of starting over


def test_checkpoint_is_the_same_again() -> None:
    again = cluster.Run().checkpoint("/somewhere/run")
    assert isinstance(again.function, cluster.Run) and again.args == ("/somewhere/run",)


def test_every_profile_in_conf_is_valid(project: Path) -> None:
    for path in (project / "conf" / "hardware").glob("*.yaml"):
        assert profile(compose([RUN, f"hardware={path.stem}"], project)).executor in (
            "inline",
            "processes",
            "slurm",
        )


def test_site_path_prefers_the_environment() -> None:
    assert hardware.site_path({"REPRO_SITE": "/a/b.yaml"}) == Path("/a/b.yaml")
    assert hardware.site_path({"XDG_CONFIG_HOME": "/c"}) == Path("/c/repro/site.yaml")
