"""Jobs that are stopped from outside go on from what is on disk, as the same W&B run, to the same weights.

The weights of a run that nothing stopped are the yardstick, compared byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from slurm.box import Box
from slurm.harness import PATIENCE, SHORT, Cluster, Undisturbed, final_weights, state_file, wandb_segments

from repro.run_directory import RunDirectory

TWO = "hardware.cpus=2"


@contextmanager
def own(tmp_path: Path, shared: dict[str, str], **settings: object) -> Iterator[Cluster]:
    """A cluster that may be broken: it has two CPUs, so one job of two at a time."""
    with Box(tmp_path / "box", cpus=2, **settings) as box:  # type: ignore[arg-type]
        yield Cluster(box, tmp_path / "runs", shared)


def submit_and_wait_for_a_save(cluster: Cluster, *words: str) -> RunDirectory:
    """With one CPU the job's own process trains, with two (`TWO`) another one that it starts."""
    [run] = cluster.submit(*SHORT, "hardware=slurm_cpu", *words)
    cluster.until(lambda: state_file(run), "a saved state")
    return run


def went_on(cluster: Cluster, run: RunDirectory, weights: bytes) -> None:
    """The job was started again, did not start over, and came to what it would have come to anyway."""
    status = cluster.ended(run, "COMPLETED")
    assert status.state == "done"
    restarts = int(cluster.box.job(cluster.job_id(run.path))["Restarts"])
    assert restarts >= 1
    assert len(run.provenance()["starts"]) == restarts + 1
    segments = wandb_segments(run)
    assert len(segments) == restarts + 1
    assert {name for name, _ in segments} <= {run.path.name, ""} and segments[-1] == (run.path.name, 0)
    assert final_weights(run) == weights


@pytest.mark.parametrize("cpus", [1, 2])
def test_warning_signal(cpus: int, cluster: Cluster, undisturbed: Undisturbed) -> None:
    """What SLURM sends some time before the limit: the run saves and puts itself back into the queue."""
    run = submit_and_wait_for_a_save(cluster, f"hardware.cpus={cpus}")
    cluster.box.ask("scancel", "--signal=USR2", cluster.job_id(run.path))
    went_on(cluster, run, undisturbed.weights())


@pytest.mark.parametrize("grace", [0, 2])
def test_preemption_by_partition_priority(
    grace: int, tmp_path: Path, shared: dict[str, str], undisturbed: Undisturbed
) -> None:
    with own(tmp_path, shared, grace=grace) as cluster:
        run = submit_and_wait_for_a_save(cluster, "hardware.partition=low", TWO)
        job = cluster.job_id(run.path)
        urgent = ["-p", "high", "-c", "2", "-o", "/dev/null", "--wrap", "sleep 1"]
        other = cluster.box.ask("sbatch", "--parsable", *urgent)
        cluster.until(lambda: cluster.box.job(other)["JobState"] == "COMPLETED", "the other job to be done")
        assert cluster.box.job(job)["Restarts"] == "1"
        went_on(cluster, run, undisturbed.weights())


def test_a_job_that_hears_no_signal(cluster: Cluster, undisturbed: Undisturbed) -> None:
    """Frozen, so that nothing can answer SIGTERM, then killed by a requeue."""
    run = submit_and_wait_for_a_save(cluster)
    job = cluster.job_id(run.path)
    cluster.box.ask("scancel", "--signal=STOP", job)
    cluster.box.ask("scontrol", "requeue", job)
    went_on(cluster, run, undisturbed.weights())


def test_node_failure(tmp_path: Path, shared: dict[str, str], undisturbed: Undisturbed) -> None:
    """The node loses power: the job is put back, and runs when the node is back."""
    with own(tmp_path, shared, options={"SlurmdTimeout": 5}) as cluster:
        run = submit_and_wait_for_a_save(cluster)
        cluster.box.tell("crash")
        cluster.until(lambda: cluster.state(run) == "PENDING", "the job to be back in the queue")
        assert run.status().state == "interrupted"
        cluster.box.tell("start slurmd")
        went_on(cluster, run, undisturbed.weights())


def test_slurmd_killed_and_started_again(
    tmp_path: Path, shared: dict[str, str], undisturbed: Undisturbed
) -> None:
    """Only SLURM's own process is killed: the job does not notice."""
    with own(tmp_path, shared) as cluster:
        run = submit_and_wait_for_a_save(cluster)
        cluster.box.tell("kill slurmd")
        cluster.until(lambda: run.is_done(), "the run to be done without slurmd")
        cluster.box.tell("start slurmd")
        cluster.ended(run, "COMPLETED")
        assert cluster.box.job(cluster.job_id(run.path))["Restarts"] == "0"
        assert wandb_segments(run) == [(run.path.name, 0)]
        assert final_weights(run) == undisturbed.weights()


def test_time_limit(undisturbed: Undisturbed) -> None:
    """A limit of two real minutes, which the run reached because it was frozen meanwhile."""
    cluster, run = undisturbed.limited.result(PATIENCE)
    went_on(cluster, run, undisturbed.weights())
