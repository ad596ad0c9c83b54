"""The run directory: one process at a time, and a status that stays true when a process is killed."""

import json
import signal
import subprocess
import sys
import time

import pytest

from repro import run_directory
from repro.errors import UserError
from repro.locks import Busy
from repro.results import Result, save
from repro.run_directory import RunDirectory, find_runs

CONFIG = {"paper": {"slug": "demo"}, "seed": 0}


@pytest.fixture
def run(tmp_path):
    return RunDirectory.of(tmp_path, "demo", "curve", "0123456789ab")


def finish(run, **options):
    with run.work(CONFIG, ["launch.py"], **options) as to_do:
        if to_do:
            save(run.path, Result({"loss": 1.0}))
    return to_do


def hold_in_another_process(run):
    """A process that works in the run directory until it is killed."""
    script = (
        "import sys, time\nfrom repro.run_directory import RunDirectory\n"
        "with RunDirectory(sys.argv[1]).work({}, ['x']):\n    print('in', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "in\n"
    return process


def test_a_finished_run_is_not_done_again(run):
    assert run.status().state == "new"
    assert finish(run) is True
    assert run.status().state == "done" and run.is_done()
    assert finish(run) is False
    (run.path / "stale.txt").write_text("old")
    assert finish(run, rerun=True) is True
    assert not (run.path / "stale.txt").exists()


def test_files_of_a_run(run):
    finish(run, seeds={"init": 5}, device="cpu", checksums={"features.h5": "ab"})
    assert run.config() == CONFIG
    facts = run.provenance()
    assert facts["seeds"] == {"init": 5} and facts["checksums"] == {"features.h5": "ab"}
    assert facts["device"] == "cpu" and facts["finished"] and len(facts["starts"]) == 1
    assert "numpy" in facts["packages"]
    assert (run.slug, run.experiment, run.digest) == ("demo", "curve", "0123456789ab")
    assert [found.path for found in find_runs(run.path.parents[2])] == [run.path]


def test_a_failure_is_recorded_and_passed_on(run):
    with pytest.raises(RuntimeError), run.work(CONFIG, ["launch.py"]):
        raise RuntimeError("out of luck")
    status = run.status()
    assert (status.state, status.reason) == ("failed", "RuntimeError: out of luck")
    assert not run.is_done()
    assert finish(run) is True  # a failed run may be tried again
    assert len(run.provenance()["starts"]) == 2


def test_ctrl_c_leaves_an_interrupted_run(run):
    with pytest.raises(KeyboardInterrupt), run.work(CONFIG, ["launch.py"]):
        raise KeyboardInterrupt
    assert run.status().state == "interrupted"


def test_a_second_process_is_told_who_runs(run):
    process = hold_in_another_process(run)
    try:
        before = (run.path / "status.json").read_text()
        with pytest.raises(Busy, match=f"by process {process.pid} on .* since "):
            finish(run)
        assert (run.path / "status.json").read_text() == before
        assert run.status().state == "running"
    finally:
        process.kill()
        process.wait()


def test_a_killed_process_leaves_an_interrupted_run_that_can_go_on(run):
    process = hold_in_another_process(run)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run.status().state == "interrupted"
    assert finish(run) is True


def test_waiting_for_the_other_process(run):
    process = hold_in_another_process(run)
    killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {process.pid}"])
    began = time.monotonic()
    assert finish(run, wait=True) is True
    assert time.monotonic() - began > 0.5
    killer.wait()
    process.wait()


def test_an_unwritable_place_is_refused_before_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(UserError, match="runs_dir=DIR"),
        RunDirectory.of(tmp_path / "file", "a", "b", "c").work({}, []),
    ):
        raise AssertionError("must not start")


def test_progress_is_written_at_most_once_a_second(run, monkeypatch):
    run.prepare()
    run.set_status("running", pid=1)
    writes = []
    monkeypatch.setattr(
        run_directory, "write_json", lambda path, content, durable=True: writes.append(content)
    )
    run._last_progress = 0.0
    for step in range(50):
        run.set_status("running", step=step, total=50)
    assert [content["step"] for content in writes] == [0]
    run.set_status("failed", reason="x", step=50)
    assert writes[-1]["state"] == "failed"


def test_a_damaged_status_counts_as_not_run(run):
    run.prepare()
    (run.path / "status.json").write_text('{"state": "do')
    assert run.status().state == "new"


def test_status_names_the_job_that_works_not_the_one_that_was_queued(run, monkeypatch):
    run.prepare()
    run.set_status("queued", job_id="17_3")
    run.set_status("queued", step=0)
    assert run.status().job_id == "17_3"
    monkeypatch.setenv("SLURM_JOB_ID", "20")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "19")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    with run.work(CONFIG, ["launch.py"]):
        assert run.status().job_id == "19_2"
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name)
    with run.work(CONFIG, ["launch.py"], rerun=True):
        assert run.status().job_id is None, "done here, outside of SLURM"


def test_provenance_keeps_no_secret_and_no_environment(run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "sesame-1234")
    with run.work(CONFIG, ["launch.py", "tracking.api_key=sesame-1234", "seed=3"]):
        save(run.path, Result())
    for path in run.path.iterdir():
        assert "sesame" not in path.read_text(errors="replace"), path
    assert json.loads((run.path / "provenance.json").read_text())["command"][2] == "seed=3"
