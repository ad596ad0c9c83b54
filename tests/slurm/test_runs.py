"""Runs on a real SLURM that nothing interrupts: one, an array, a failing one, one that is done already."""

from __future__ import annotations

import json

from slurm.harness import TOY, TOY_RUNS, Cluster, wandb_segments
from wandb_reader import read_run

from repro.run_directory import RunDirectory


def test_one_run(cluster: Cluster) -> None:
    [run] = cluster.submit(*TOY, "hardware=slurm_cpu")
    status = cluster.ended(run, "COMPLETED")
    assert status.state == "done" and run.is_done()
    assert status.job_id == cluster.job_id(run.path)
    [(name, code)] = wandb_segments(run)
    assert (name, code) == (run.path.name, 0)
    tracked = read_run(run.path / "wandb")
    scalars = json.loads((run.path / "scalars.json").read_text())
    assert scalars and set(scalars) <= set(tracked["summary"])
    assert tracked["config"]["hardware"]["executor"] == "slurm"


def test_a_failing_run(cluster: Cluster) -> None:
    """SLURM, too, says FAILED; the status, and whoever follows the job, say why."""
    broken = "hardware.setup=['export MPLBACKEND=broken']"  # found when figures are drawn, at the very end
    figures = [word for word in TOY if word != "figures=null"]
    done = cluster.launch(*figures, "hardware=slurm_cpu", broken)
    assert done.returncode == 1 and "broken" in done.stderr
    run = RunDirectory(next(cluster.runs.rglob("job.json")).parent)
    status = cluster.ended(run, "FAILED")
    assert status.state == "failed" and status.reason and "broken" in status.reason
    assert "Traceback" in cluster.log(run) and status.reason.splitlines()[0] in cluster.log(run)
    assert wandb_segments(run) == [(run.path.name, 1)]
    assert not run.is_locked() and cluster.box.job(cluster.job_id(run.path))["Restarts"] == "0"


def test_four_seeds_are_one_array_with_one_aggregate(cluster: Cluster) -> None:
    done = cluster.launch("-m", *TOY, "seed=0,1,2,3", "hardware=slurm_cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [RunDirectory(path.parent) for path in sorted((cluster.runs / TOY_RUNS).glob("*/job.json"))]
    assert len(runs) == 4 and all(run.is_done() for run in runs)
    jobs = [cluster.job_id(run.path) for run in runs]
    assert {job.split("_")[0] for job in jobs} == {jobs[0].split("_")[0]}  # one array
    assert {job.split("_")[1] for job in jobs} == set("0123")
    for run in runs:
        cluster.ended(run, "COMPLETED")  # the launcher is back as soon as it sees the result
        assert wandb_segments(run) == [(run.path.name, 0)]
    aggregates = list(cluster.runs.rglob("*seeds*"))
    assert len(aggregates) == 1, aggregates
    # Again: nothing is submitted, the same summary.
    again = cluster.launch("-m", *TOY, "seed=0,1,2,3", "hardware=slurm_cpu")
    assert again.returncode == 0 and "4 done" in again.stdout
    assert [cluster.job_id(run.path) for run in runs] == jobs
