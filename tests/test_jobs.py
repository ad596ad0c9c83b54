"""How jobs are seen and ended, with squeue's answers given; tests/slurm/ has the real ones."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from repro import following, jobs, jobs_command, slurm
from repro.errors import UserError
from repro.results import write_json
from repro.run_directory import RunDirectory
from repro.slurm import JobState

Known = dict[str, JobState]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Known:
    """What SLURM knows, by job id."""
    told: Known = {}
    monkeypatch.setattr(slurm, "states", lambda ids: {one: told[one] for one in ids if one in told})
    monkeypatch.setattr(slurm, "last_word", lambda _: None)
    return told


def submitted(runs: Path, job_id: str, state: str = "queued", **status: Any) -> Path:
    directory = runs / "paper" / "experiment" / f"run{job_id}"
    directory.mkdir(parents=True)
    write_json(
        directory / "job.json",
        {"job_id": job_id, "title": f"run {job_id}", "log": str(directory / "output.log")},
    )
    RunDirectory(directory).set_status(state, **status)
    return directory


def look(directory: Path, *final: Path) -> jobs.View:
    [view] = jobs.views([directory], final)
    return view


def finish(directory: Path) -> None:
    (directory / "scalars.json").write_text("{}")
    RunDirectory(directory).set_status("done")


def test_a_job_from_the_queue_to_its_result(tmp_path: Path, known: Known) -> None:
    run = submitted(tmp_path, "41_0")
    known["41_0"] = JobState("41_0", "PENDING", "Dependency")
    assert (look(run).state, look(run).line) == ("queued", "waits for what it needs")
    known["41_0"] = JobState("41_0", "RUNNING", "None")
    RunDirectory(run).set_status("running", step=5, total=20, eta=61.0)
    (run / "output.log").write_text("begin\ntraining: 1\rtraining: 5 of 20\n\n")
    with RunDirectory(run).lock():
        view = look(run)
    assert (view.state, view.step, view.total, view.eta) == ("running", 5, 20, 61.0)
    assert view.line == "training: 5 of 20"
    finish(run)
    assert look(run).state == "done"


def test_a_running_job_on_another_node_is_running_even_if_its_lock_cannot_be_seen(
    tmp_path: Path, known: Known
) -> None:
    run = submitted(tmp_path, "41", "running")
    known["41"] = JobState("41", "RUNNING")
    assert RunDirectory(run).status().state == "interrupted" and look(run, run).state == "running"


def test_a_requeued_job_waits(tmp_path: Path, known: Known) -> None:
    known["41"] = JobState("41", "PENDING", "BeginTime")
    told = submitted(tmp_path, "41", reason="time limit reached, restart 1 of 3")
    assert (look(told).state, look(told).line) == ("queued", "time limit reached, restart 1 of 3")
    RunDirectory(told).set_status("running")
    assert look(told).state == "queued" and "preempted, or its node failed" in look(told).line


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("NODE_FAIL", "its node failed"),
        ("OUT_OF_MEMORY", "memory_gb"),
        ("TIMEOUT", "time limit"),
        ("CANCELLED", "was cancelled"),
        ("COMPLETED", "without a result"),
        (None, "is gone without a result"),
    ],
)
def test_a_dead_job_is_not_running_for_ever(
    tmp_path: Path, known: Known, state: str | None, expected: str
) -> None:
    run = submitted(tmp_path, "41", "running")
    if state:
        known["41"] = JobState("41", state)
    assert look(run).over and look(run).state == "running"  # its result may still be on its way
    assert look(run, run).state == "failed"
    status = RunDirectory(run).status()
    assert status.state == "failed" and expected in str(status.reason)


def test_slurm_that_does_not_answer_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(slurm, "states", lambda ids: None)
    run = submitted(tmp_path, "41", "running")
    assert look(run, run).state == "running" and not look(run).over
    assert jobs_command.main([], tmp_path) == 0
    shown = capsys.readouterr()
    assert "41" in shown.out and "SLURM does not answer" in shown.err


def test_what_is_not_started_says_what_failed(tmp_path: Path, known: Known) -> None:
    training = submitted(tmp_path, "40", "failed", reason="out of luck")
    run = submitted(tmp_path, "41")
    write_json(run / "job.json", {**RunDirectory(run).job(), "needs": [str(training)]})
    known["41"] = JobState("41", "CANCELLED", "DependencyNeverSatisfied")
    assert look(run).state == "queued"
    assert look(run, run).line == "not started: run 40 failed: out of luck"


def test_what_is_not_started_says_what_failed_in_whatever_order_they_are_found(
    tmp_path: Path, known: Known
) -> None:
    """A run's directory comes before those of its shards; both are seen to be over at the same time."""
    run, shard = submitted(tmp_path, "41"), submitted(tmp_path, "42")
    write_json(run / "job.json", {**RunDirectory(run).job(), "needs": [str(shard)]})
    known["41"] = JobState("41", "CANCELLED", "DependencyNeverSatisfied")
    known["42"] = JobState("42", "CANCELLED")
    first, second = jobs.views([run, shard], [run, shard])
    assert second.line.startswith("job 42 was cancelled")
    assert first.line == f"not started: run 42 failed: {second.line}"


def test_selecting_jobs(tmp_path: Path, known: Known) -> None:
    runs = [submitted(tmp_path, job_id) for job_id in ("41_0", "41_1", "5")]
    assert jobs.select(["all"], tmp_path) == runs
    assert jobs.select(["41"], tmp_path) == runs[:2]
    assert jobs.select(["41_1", str(runs[2])], tmp_path) == runs[1:]
    with pytest.raises(UserError, match="99 is neither a run directory with a job nor the id"):
        jobs.select(["99"], tmp_path)


def test_cancelling(tmp_path: Path, known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [submitted(tmp_path, job_id) for job_id in ("41_0", "41_1", "41_2", "7")]
    finish(runs[2])
    known |= {"41_0": JobState("41_0", "RUNNING"), "41_1": JobState("41_1", "PENDING")}
    ended: list[str] = []
    monkeypatch.setattr(slurm, "cancel", ended.extend)
    assert len(list(jobs.cancel(runs))) == 2 and ended == ["41_0", "41_1"]
    assert ["cancelled" in RunDirectory(run).job() for run in runs] == [True, True, False, False]
    assert (
        RunDirectory(runs[1]).status().state == "failed"
    )  # the running one says so itself, once it has saved
    assert RunDirectory(runs[0]).status().state == "queued"


def test_following_ends_with_the_last_job(
    tmp_path: Path, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = submitted(tmp_path, "41_0"), submitted(tmp_path, "41_1")
    known |= {name: JobState(name, "PENDING") for name in ("41_0", "41_1")}
    steps = [
        lambda: known.update({"41_0": JobState("41_0", "RUNNING")}),
        lambda: finish(first),
        lambda: known.pop("41_1"),
    ]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if steps:
            steps.pop(0)()

    monkeypatch.setattr(following.time, "sleep", sleep)
    out = io.StringIO()
    ended = following.follow([first, second], out)
    assert {view.title: view.state for view in ended.values()} == {"run 41_0": "done", "run 41_1": "failed"}
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["job 41_0 running: run 41_0", "job 41_0 done: run 41_0"]
    assert lines[2].startswith("job 41_1 failed: run 41_1: job 41_1 is gone")
    assert pauses == sorted(pauses) and pauses[0] == 0.5


def test_the_table_shows_as_much_as_fits() -> None:
    from rich.console import Console

    views = [jobs.View(Path(str(n)), f"run {n}", f"41_{n}", "queued") for n in range(20)]
    views[11] = jobs.View(
        Path("11"), "run 11", "41_11", "running", 500, 2000, 65.0, "loss 0.1", "code changed"
    )
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(following.table(views, height=4))
    lines = console.export_text().splitlines()
    assert lines[0].strip() == "20 jobs: 1 running, 19 queued"
    assert lines[2].split() == "41_11 run 11 running 500/2,000 1 min 05 s code changed; loss 0.1".split()
    assert lines[3].startswith("41_0 ") and lines[-1].split() == ["…", "and", "16", "more"]


def test_the_command(tmp_path: Path, known: Known, capsys: pytest.CaptureFixture) -> None:
    assert jobs_command.main([], tmp_path) == 0
    assert "nothing was submitted" in capsys.readouterr().out
    run = submitted(tmp_path, "41")
    known["41"] = JobState("41", "PENDING", "Priority")
    (run / "output.log").write_text("one\ntwo\n")
    write_json(run / "job.json", {**RunDirectory(run).job(), "slurm_log": str(tmp_path / "slurm.out")})
    (tmp_path / "slurm.out").write_text("submitit INFO begins\nslurmstepd: error: *** JOB 41 CANCELLED ***\n")
    assert jobs_command.main([], tmp_path) == 0
    assert "1 jobs: 1 queued" in capsys.readouterr().out
    assert jobs_command.main(["log", "41"], tmp_path) == 0
    out = capsys.readouterr().out
    assert "one\ntwo\n" in out and "JOB 41 CANCELLED" in out and "submitit INFO" not in out
    for words in (["cancel"], ["log"], ["nonsense"], ["log", "41", "42"]):
        with pytest.raises(UserError, match=r"expected nothing, or cancel all"):
            jobs_command.main(words, tmp_path)
