from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from repro import cluster, dispatch, following, hardware, jobs, provenance, slurm_job, tasks, workers
from repro.config import ROOT, Config, compose, compose_all
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
    return cluster.sbatch_text(tasks.tasks(compose_all([RUN, *overrides], True, project))).splitlines()


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
        (f"setup: ['wandb login {'0123456789' * 4}']\n", "looks like a secret"),
        ("options: {export: 'ALL,HF_TOKEN=abc'}\n", "options: a line sets"),
        ("profiles: {slurm_a1000: {partition: x}}\n", "no hardware=slurm_a1000. Valid names: "),
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
    shared = workers.environment(Hardware(executor="processes", device="auto", threads=3))
    assert shared["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false" and shared["OMP_NUM_THREADS"] == "3"


def test_threads_are_divided_among_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    divided = workers.environment(Hardware(executor="processes", workers=3))
    assert divided["OMP_NUM_THREADS"] == divided["NPROC"] == "2"
    assert workers.environment(Hardware(executor="processes"))["OMP_NUM_THREADS"] == "1"
    assert workers.environment(Hardware(executor="slurm", cpus=6))["OMP_NUM_THREADS"] == "6"


def test_worker_count_fits_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert hardware.worker_count(Hardware(executor="processes", threads=3)) == 2
    assert hardware.worker_count(Hardware(executor="processes", threads=99)) == 1
    assert hardware.worker_count(Hardware(executor="processes", threads=1, workers=3)) == 3


def test_processes_survive_an_exception_and_a_kill(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAKE_PIPELINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    configs = compose_all(
        [RUN, "seed=0,1,2,3", "hardware=local_parallel", "hardware.workers=2"], True, project
    )
    outcomes = dispatch.start(configs)
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


HOST = socket.gethostname().split(".")[0]
NODES = f"""cpu*|1-00:00:00|(null)|64000|32|{HOST}
gpu|2-00:00:00|gpu:a100:8(S:0-1)|900000|128|{HOST}
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for SLURM's clients: sbatch keeps its scripts and counts from 41, squeue knows no job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nodes").write_text(NODES)
    count = f"n=$(cat {folder}/count 2>/dev/null || echo 41); echo $((n + 1)) > {folder}/count"
    stub(folder, "sbatch", f'{count}; cp "$1" {folder}/script$n.sh; echo "Submitted batch job $n"')
    stub(folder, "srun", "exit 0")
    stub(folder, "sinfo", f"cat {folder}/nodes")
    stub(folder, "scontrol", "exit 1")
    stub(folder, "sacct", "exit 1")
    knows(folder)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(following, "FIRST_POLL", 0.01)
    return folder


def knows(folder: Path, *lines: str) -> None:
    """What squeue answers: ID|STATE|REASON."""
    text = "\n".join(lines)
    stub(folder, "squeue", f"cat <<'END'\n{text}\nEND" if lines else "echo Invalid job id >&2; exit 1")


def start(configs: list[Config], **values: object) -> list[workers.Outcome]:
    return dispatch.start([config.replaced(**{"wait": False, **values}) for config in configs])


def test_submitting_an_array(project: Path, programs: Path) -> None:
    configs = compose_all([RUN, "seed=0,1", "hardware=slurm_cpu"], True, project)
    outcomes = start(configs)
    assert [outcome.code for outcome in outcomes] == [None, None]
    for number, config in enumerate(configs):
        run = RunDirectory(config.directory)
        assert (run.status().state, run.status().job_id) == ("queued", f"41_{number}")
        assert run.job()["job_id"] == f"41_{number}" == jobs.job_id_of(config.directory)
        assert run.job()["commit"] == provenance.code(ROOT)["commit"]
    shown = cluster.sbatch_text(tasks.tasks(configs)).splitlines()
    script = (programs / "script41.sh").read_text().splitlines()
    assert script == shown[: len(script)]  # dry_run shows what is submitted


def test_arrays_are_as_long_as_the_cluster_allows(project: Path, programs: Path) -> None:
    stub(programs, "scontrol", 'echo "MaxArraySize            = 3"')
    start(compose_all([RUN, "seed=range(0,5)", "hardware=slurm_cpu"], True, project))
    arrays = [
        [line for line in (programs / f"script{job}.sh").read_text().splitlines() if "--array" in line]
        for job in (41, 42, 43)
    ]
    assert arrays == [["#SBATCH --array=0-1%2"], ["#SBATCH --array=0-1%2"], []]


def test_a_job_of_other_code_says_so(
    project: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = compose([RUN, "hardware=slurm_cpu"], project)
    start([config])
    run = RunDirectory(config.directory)
    workers.write_atomic(run.path / "job.json", json.dumps({**run.job(), "commit": "0" * 40}))
    monkeypatch.setattr(slurm_job, "_write_into", lambda path: None)
    monkeypatch.setattr(slurm_job.stopping, "listen", lambda **_: None)
    monkeypatch.setattr(slurm_job.tasks, "execute", lambda directory, **_: 0)
    slurm_job.work(config.directory)
    expected = "the code changed after submission: 0000000000"
    assert f"warning: {expected}" in capsys.readouterr().out
    assert str(run.status().note).startswith(expected)
    knows(programs, "41|RUNNING|None")
    assert jobs.views([run.path])[0].note == run.status().note
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    run.open(config.values, ["launch.py"])
    assert run.provenance()["submitted"]["commit"] == "0" * 40 != run.provenance()["commit"]
    assert str(run.status().note).startswith(expected)


def test_a_refused_job_is_bad_input(project: Path, programs: Path) -> None:
    stub(programs, "sbatch", 'echo "sbatch: error: Invalid account" >&2; exit 1')
    config = compose([RUN, "hardware=slurm_cpu", "hardware.account=nope"], project)
    with pytest.raises(UserError, match="sbatch refused the job: Invalid account"):
        start([config])
    assert RunDirectory(config.directory).status().state == "failed"


def test_following_a_job_that_vanishes(project: Path, programs: Path) -> None:
    config = compose([RUN, "hardware=slurm_cpu"], project)
    [outcome] = start([config], wait=True)
    assert outcome.code == 1 and "job 41 is gone without a result" in outcome.note
    status = RunDirectory(config.directory).status()
    assert status.state == "failed" and status.reason == outcome.note.removeprefix("failed: ")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("TIMEOUT|TimeLimit", "TIMEOUT (TimeLimit): its time limit was reached"),
        ("NODE_FAIL|None", "NODE_FAIL: its node failed"),
        ("OUT_OF_MEMORY|OutOfMemory", "hardware.memory_gb"),
        ("CANCELLED|None", "job 41 was cancelled"),
        ("COMPLETED|None", "ended without a result"),
    ],
)
def test_what_squeue_says_of_a_dead_job_is_its_reason(
    project: Path, programs: Path, state: str, expected: str
) -> None:
    knows(programs, f"41|{state}")
    config = compose([RUN, "hardware=slurm_cpu"], project)
    [outcome] = start([config], wait=True)
    assert outcome.code == 1 and expected in outcome.note


def test_a_queued_job_is_not_submitted_twice(project: Path, programs: Path) -> None:
    config = compose([RUN, "hardware=slurm_cpu"], project)
    start([config])
    knows(programs, "41|PENDING|Priority")
    [outcome] = start([config])
    assert outcome.code is None and "already in the queue as job 41" in outcome.note
    knows(programs)
    [outcome] = start([config])
    assert "job 42" in outcome.note


def test_another_config_than_the_one_in_the_queue_is_refused(project: Path, programs: Path) -> None:
    start([compose([RUN, "hardware=slurm_cpu"], project)])
    knows(programs, "41|RUNNING|None")
    other = compose([RUN, "hardware=slurm_cpu", "hardware.timeout_min=30", "tracking.tags=[x]"], project)
    with pytest.raises(UserError) as caught:
        start([other])
    assert "hardware.timeout_min: 240 in the queue, 30 now" in str(caught.value)
    assert "jobs cancel 41" in str(caught.value) and "tags" not in str(caught.value)


def test_a_full_queue_keeps_what_was_submitted(
    project: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying"
    first = f'[ -e {programs}/full ] && {{ echo "{full}" >&2; sleep 9; }}; touch {programs}/full'
    stub(programs, "sbatch", f'{first}; echo "Submitted batch job 41"')
    monkeypatch.setattr(cluster, "SBATCH_SECONDS", 0.5)
    configs = compose_all([RUN, "hardware=slurm_cpu", "hardware.timeout_min=30,40"], True, project)
    configs += compose_all([RUN, "seed=1", "hardware=slurm_cpu", "hardware.timeout_min=40"], True, project)
    outcomes = start([configs[0], configs[2]])
    assert [outcome.code for outcome in outcomes] == [None, 1]
    assert "queue is full" in outcomes[1].note and "the same command submits these" in outcomes[1].note
    assert RunDirectory(configs[0].directory).status().state == "queued"
    assert RunDirectory(configs[2].directory).status().state == "failed"


def test_a_failing_job_ends_so_that_slurm_says_failed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(config: Config) -> int:
        seen.append((config.values["rerun"], config.values["wait"]))
        raise ValueError("no")

    fake = SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, "repro.pipeline", fake)  # type: ignore[arg-type]
    monkeypatch.setattr("repro.pipeline", fake, raising=False)
    monkeypatch.setattr(slurm_job, "_write_into", lambda path: None)
    monkeypatch.setattr(slurm_job.stopping, "listen", lambda **_: None)
    config = compose([RUN, "rerun=true", "wait=false"], project)
    workers.prepare(config)
    for restarts in ("0", "1"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        with pytest.raises(SystemExit) as caught:
            cluster.Run()(str(config.directory))
        assert caught.value.code == 1
    assert seen == [(True, True), (False, True)]  # a requeued job goes on instead of starting over
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    RunDirectory(config.directory).set_status("queued")
    with pytest.raises(SystemExit):
        cluster.Run()(str(config.directory))
    assert len(seen) == 2
    assert "max_requeues=3" in str(RunDirectory(config.directory).status().reason)


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


def test_the_example_of_a_site_file_is_valid_and_used(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = ROOT / "docs" / "site.example.yaml"
    named = set(hardware.read_site(example, required=True).model_fields_set)
    assert named == set(hardware.SiteFile.model_fields) - {"gpu_type"}  # each key is explained there
    monkeypatch.setenv("REPRO_SITE", str(example))
    text = text_of(project, "hardware=slurm_a100")
    for line in ["#SBATCH --partition=gpu", "#SBATCH --account=my-group", "#SBATCH --gres=gpu:a100_80gb:1"]:
        assert line in text
    wanted = [
        "module load python/3.11",
        "export REPRO_SCRATCH=/scratch/$USER",
        'export TMPDIR="$REPRO_SCRATCH/job-$SLURM_JOB_ID"',
        "trap 'rm -rf \"$TMPDIR\"' EXIT",
    ]
    assert [line for line in text if line in wanted] == wanted


@pytest.mark.parametrize("kind", ["venv", "conda"])
def test_the_environment_of_the_site_runs_the_job(project: Path, tmp_path: Path, kind: str) -> None:
    name = "science"
    if kind == "venv":
        (tmp_path / "venv" / "bin").mkdir(parents=True)
        (tmp_path / "venv" / "bin" / "activate").write_text("")
        name = str(tmp_path / "venv")
    text = text_of(project, "hardware=slurm_cpu", f"hardware.activate={name}")
    expected = f"source {name}/bin/activate" if kind == "venv" else "conda activate science"
    assert expected in text
    assert [line for line in text if "submitit.core._submit" in line and " python -IS -c" in line]


def test_the_warning_waits_until_the_job_listens(project: Path, tmp_path: Path) -> None:
    """It is sent to the job's Python, started as the job script does, before anything is there to take it."""
    [line] = [line for line in text_of(project, "hardware=slurm_cpu") if "submitit.core._submit" in line]
    python = line[line.index(sys.executable) : line.index(" -m submitit")]
    started, told = tmp_path / "started", tmp_path / "told"
    code = f"""
import pathlib, time
from repro import stopping
pathlib.Path({str(started)!r}).touch()
while not pathlib.Path({str(told)!r}).exists(): time.sleep(0.01)
stopping.listen()
while stopping.asked() is None: time.sleep(0.01)
print(stopping.asked())
"""
    job = subprocess.Popen(
        ["bash", "-c", f"exec {python} -c {shlex.quote(code)}"],
        env={**os.environ, "PYTHONPATH": workers.python_path()},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        while not started.exists():
            assert job.poll() is None
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR2)
        told.touch()
        assert job.communicate(timeout=60)[0] == "stop\n"
        assert job.returncode == 0
    finally:
        job.kill()
