"""What the launcher says and does while jobs wait, run, are cancelled or cannot start."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from slurm.box import Box
from slurm.harness import ENDLESS, TOY, Cluster, state_file, trained, wandb_segments

from repro.run_directory import RunDirectory

SMALL = trained(5_000)


def test_wait_false_returns_at_once_with_job_ids(cluster: Cluster) -> None:
    begin = time.monotonic()
    done = cluster.launch("-m", *ENDLESS, "seed=0,1", "hardware=slurm_cpu", "wait=false")
    assert done.returncode == 0 and time.monotonic() - begin < 20
    jobs = {cluster.job_id(path.parent) for path in cluster.runs.rglob("job.json")}
    assert len(jobs) == 2
    for job in jobs:
        assert job in done.stdout
        assert cluster.box.job(job)["JobState"] in ("PENDING", "CONFIGURING", "RUNNING")
    # The same again: they are in the queue already, and are not submitted twice.
    again = cluster.launch("-m", *ENDLESS, "seed=0,1", "hardware=slurm_cpu", "wait=false")
    assert again.returncode == 0 and "already in the queue" in again.stdout
    assert {cluster.job_id(path.parent) for path in cluster.runs.rglob("job.json")} == jobs


def test_interrupting_the_launcher_leaves_the_job_running(cluster: Cluster) -> None:
    """Ctrl-C, then `jobs` shows it, `jobs log` what it said, and `jobs cancel` ends it for good."""
    launcher = cluster.start(*ENDLESS, "hardware=slurm_cpu")
    run = RunDirectory(cluster.until(lambda: next(cluster.runs.rglob("job.json"), None), "a job").parent)
    cluster.until(lambda: run.status().state == "running", "the run to start")
    launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=30)
    assert launcher.returncode == 130 and "launch.py jobs" in said
    assert cluster.state(run) == "RUNNING" and run.is_locked()

    shown = cluster.launch("jobs")
    [row] = [line for line in shown.stdout.splitlines() if run.path.name in line]
    assert cluster.job_id(run.path) in row and "running" in row
    assert "restarted 0 of" in cluster.launch("jobs", "log", str(run.path)).stdout

    cancelled = cluster.launch("jobs", "cancel", str(run.path))
    assert cancelled.returncode == 0, cancelled.stderr
    cluster.until(lambda: cluster.state(run) in ("CANCELLED", "FAILED"), "the job to end")
    cluster.until(lambda: not run.is_locked(), "the process to end")
    assert cluster.box.job(cluster.job_id(run.path))["Restarts"] == "0"
    [row] = [line for line in cluster.launch("jobs").stdout.splitlines() if run.path.name in line]
    assert "failed" in row and "cancelled" in row
    [(name, code)] = wandb_segments(run)
    assert name in (run.path.name, "") and code != 0  # W&B, too, knows no end, or none that is good


def test_a_job_cancelled_by_somebody_else(cluster: Cluster) -> None:
    """By scancel, which says nothing to us: whoever follows is told, and the run can be resumed."""
    launcher = cluster.start(*ENDLESS, "hardware=slurm_cpu")
    run = RunDirectory(cluster.until(lambda: next(cluster.runs.rglob("job.json"), None), "a job").parent)
    cluster.until(lambda: run.status().state == "running", "the run to start")
    cluster.box.ask("scancel", cluster.job_id(run.path))
    _, said = launcher.communicate(timeout=90)
    assert launcher.returncode == 1 and "cancelled" in said
    assert cluster.state(run) == "CANCELLED"
    assert run.status().state == "failed" and not run.is_done()


def test_a_killed_process_is_a_failed_job(cluster: Cluster) -> None:
    """As when it runs out of memory: no handler runs, no status is written by it."""
    launcher = cluster.start(*ENDLESS, "hardware=slurm_cpu")
    run = RunDirectory(cluster.until(lambda: next(cluster.runs.rglob("job.json"), None), "a job").parent)
    cluster.until(lambda: run.status().state == "running", "the run to start")
    cluster.box.ask("scancel", "--signal=KILL", cluster.job_id(run.path))
    _, said = launcher.communicate(timeout=90)
    assert launcher.returncode == 1 and cluster.job_id(run.path) in said
    assert cluster.state(run) in ("FAILED", "CANCELLED")
    assert run.status().state == "failed"


def test_training_comes_before_what_needs_it(cluster: Cluster) -> None:
    """Two runs that look at one model: it is trained in one job, on which theirs depend."""
    done = cluster.launch("-m", *SMALL, "analysis.sequences=50,60", "hardware=slurm_cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    [training] = (cluster.runs / "trained").glob("*/job.json")
    runs = sorted(cluster.runs.glob("*/smoke/*/job.json"))
    assert len(runs) == 2
    first = cluster.box.job(cluster.job_id(training.parent))
    assert first["JobState"] == "COMPLETED"
    for path in runs:
        cluster.ended(RunDirectory(path.parent), "COMPLETED")
        job = cluster.box.job(cluster.job_id(path.parent))
        assert job["StartTime"] >= first["EndTime"]
        assert RunDirectory(path.parent).is_done()
        assert RunDirectory(path.parent).provenance()["trained"][""] == str(training.parent)


def test_what_needs_a_failed_training_is_not_started(cluster: Cluster) -> None:
    broken = ["hardware=slurm_cpu", "hardware.setup=['export REPRO_SAVE_SECONDS=never']"]
    done = cluster.launch("-m", *SMALL, "analysis.sequences=50,60", *broken)
    assert done.returncode == 1
    assert done.stderr.count("not started") == 2 and "never" in done.stderr
    [training] = (cluster.runs / "trained").glob("*/job.json")
    assert cluster.box.job(cluster.job_id(training.parent))["JobState"] == "FAILED"
    for path in cluster.runs.glob("*/smoke/*/job.json"):
        assert cluster.box.job(cluster.job_id(path.parent))["JobState"] == "CANCELLED"
        assert not (path.parent / "wandb").exists()


def test_shards_are_merged_and_a_failed_one_is_run_again_alone(cluster: Cluster) -> None:
    split = [*SMALL, "hardware=slurm_cpu", "shards=2"]
    done = cluster.launch(*split)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = cluster.runs.glob("*/smoke/*/job.json")
    run = RunDirectory(path.parent)
    parts = sorted((run.path / "shards").glob("*/job.json"))
    assert len(parts) == 2
    assert {cluster.box.job(cluster.job_id(part.parent))["JobState"] for part in parts} == {"COMPLETED"}
    assert wandb_segments(run) == [(run.path.name, 0)]
    split_numbers = (run.path / "scalars.json").read_text()

    whole = Cluster(cluster.box, cluster.runs.parent / "whole", cluster.environment)
    assert whole.launch(*SMALL, "hardware=debug").returncode == 0
    [same] = whole.runs.glob("*/smoke/*/scalars.json")
    assert same.parent.name == run.path.name and same.read_text() == split_numbers

    # As if the second part had failed: only it, and the merging, are done again.
    before = {part: cluster.job_id(part.parent) for part in parts}
    (parts[1].parent / "scalars.json").unlink()
    (run.path / "scalars.json").unlink()
    assert cluster.launch(*split).returncode == 0
    assert cluster.job_id(parts[0].parent) == before[parts[0]]
    assert cluster.job_id(parts[1].parent) != before[parts[1]]
    assert (run.path / "scalars.json").read_text() == split_numbers


def test_requeueing_ends(cluster: Cluster) -> None:
    """A job that was put back as often as allowed fails, and says how to go on."""
    [run] = cluster.submit(*trained(200_000), "hardware=slurm_cpu", "hardware.max_requeues=0")
    cluster.until(lambda: state_file(run), "a saved state")
    cluster.box.ask("scancel", "--signal=USR2", cluster.job_id(run.path))
    status = cluster.ended(run, "FAILED")
    assert status.state == "failed" and status.reason and "max_requeues=0" in status.reason
    assert state_file(run) is not None


def test_another_config_in_the_directory_of_a_queued_run(cluster: Cluster) -> None:
    [run] = cluster.submit(*ENDLESS, "hardware=slurm_cpu")
    other = cluster.launch(*ENDLESS, "hardware=slurm_cpu", "hardware.timeout_min=30", "wait=false")
    assert other.returncode == 2
    assert "hardware.timeout_min" in other.stderr and cluster.job_id(run.path) in other.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["hardware.partition=nowhere"], "Valid: cpu, gpu, low, high"),
        (["hardware.gres=gpu:h100:1"], "gpu:a100:2"),
        (["hardware.timeout_min=100000"], "hardware.timeout_min"),
        (["hardware.memory_gb=4000"], "hardware.memory_gb"),
    ],
)
def test_what_no_node_can_serve_is_refused(cluster: Cluster, words: list[str], expected: str) -> None:
    refused = cluster.launch(*TOY, "hardware=slurm_cpu", *words)
    assert refused.returncode == 2 and expected in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list(cluster.runs.rglob("job.json"))


def test_a_full_queue(tmp_path: Path, shared: dict[str, str]) -> None:
    """sbatch tries again for a while; then what could not be submitted is reported."""
    with Box(tmp_path / "box", options={"MaxJobCount": 3}) as box:
        cluster = Cluster(box, tmp_path / "runs", shared | {"REPRO_SBATCH_SECONDS": "5"})
        [first] = cluster.submit(*ENDLESS, "hardware=slurm_cpu")
        refused = cluster.launch("-m", *TOY, "seed=1,2,3,4", "hardware=slurm_cpu", "wait=false")
        assert refused.returncode != 0 and "queue is full" in refused.stderr
        assert "Traceback" not in refused.stderr
        states = [RunDirectory(path.parent).status().state for path in cluster.runs.rglob("status.json")]
        assert sorted(states) in (["failed"] * 4 + ["queued"], ["failed"] * 4 + ["running"])
        assert cluster.state(first) in ("PENDING", "RUNNING")


def test_no_controller(tmp_path: Path, shared: dict[str, str]) -> None:
    with Box(tmp_path / "box") as box:
        cluster = Cluster(box, tmp_path / "runs", shared)
        [run] = cluster.submit(*ENDLESS, "hardware=slurm_cpu")
        cluster.until(lambda: run.status().state == "running", "the run to start")
        box.tell("kill slurmctld")
        refused = cluster.launch(*TOY, "hardware=slurm_cpu")
        assert refused.returncode == 2 and "does not answer" in refused.stderr
        shown = cluster.launch("jobs")  # what the disk says is shown all the same
        assert shown.returncode == 0 and run.path.name in shown.stdout and "running" in shown.stdout
