"""What Weights & Biases is told, read back from the files of real offline runs."""

import math
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from repro import claims, tracking
from repro.claims import Verdict
from repro.recorder import Recorder
from repro.results import Result, save
from repro.run_directory import RunDirectory
from tests.wandb_reader import read_run

matplotlib.use("Agg")
OFFLINE = {"tracking": {"mode": "offline", "project": "test", "tags": ["sweep-1"]}, "seed": 3}
VERDICT = Verdict("IH-C1", "Fig. 1", "it works", "0.5", "loss = 0.4", "loss < 1", "reproduced", "")


def directory_of(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.of(tmp_path, "demo", "curve", "0123456789ab")
    run.prepare()
    return run


def draw(run: RunDirectory) -> Path:
    from matplotlib import pyplot

    path = run.path / "figures" / "loss.png"
    path.parent.mkdir(exist_ok=True)
    figure = pyplot.figure(figsize=(1, 1))
    figure.savefig(path)
    pyplot.close(figure)
    return path


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """One run through a Recorder, as the pipeline does it, and what W&B holds of it."""
    run = directory_of(tmp_path_factory.mktemp("runs"))
    figure = draw(run)
    steps = np.arange(3000)
    with tracking.start(OFFLINE, run.path, last_step=3000, max_points=100) as tracker:
        with Recorder(run.path, [tracker.log_rows]) as record:
            for part in np.array_split(steps, 3):
                accuracy = np.where(part % 300 == 0, part / 3000, np.nan)
                record.many(part, {"loss": 1.0 / (1 + part), "accuracy": accuracy}, condition="clamp")
            record(7, note=math.inf)
        tracker.figures([figure])
        tracker.claims([VERDICT])
        tracker.scalars({"final_loss": 0.25, "never": math.nan})
        assert tracker.finish() is True
    assert tracker.problem is None
    return run, read_run(run.path / "wandb")


def test_identity(offline):
    run, seen = offline
    assert (seen["id"], seen["group"], seen["job_type"], seen["project"]) == (
        run.digest,
        "demo",
        "curve",
        "test",
    )
    assert seen["tags"] == ["demo", "curve", "sweep-1"]
    assert seen["config"]["seed"] == 3 and seen["config"]["tracking"]["project"] == "test"
    assert seen["exit"] == 0


def test_metrics_carry_their_own_step(offline):
    rows = {row["step"]: row for row in offline[1]["rows"] if "clamp/loss" in row}
    assert 100 <= len(rows) <= 120
    assert all(row["clamp/loss"] == pytest.approx(1 / (1 + step)) for step, row in rows.items())
    accuracy = {step: row["clamp/accuracy"] for step, row in rows.items() if "clamp/accuracy" in row}
    assert accuracy == {step: step / 3000 for step in range(0, 3000, 300)}


def test_summary_figures_and_claims(offline):
    run, seen = offline
    assert seen["summary"]["final_loss"] == 0.25
    images = [row for row in seen["rows"] if "figures/loss/path" in row]
    assert len(images) == 1
    stored = list((run.path / "wandb").rglob(images[0]["figures/loss/path"]))
    assert stored and stored[0].read_bytes() == (run.path / "figures" / "loss.png").read_bytes()
    tables = list((run.path / "wandb").rglob("claims_*.table.json"))
    assert tables and "IH-C1" in tables[0].read_text() and "reproduced" in tables[0].read_text()


def test_a_failed_run_and_a_preempted_one(tmp_path):
    run = directory_of(tmp_path)
    with pytest.raises(RuntimeError), tracking.start(OFFLINE, run.path) as tracker:
        tracker.log_rows(np.array([5]), {"loss": np.array([0.5])}, "")
        tracker.preempting()
        raise RuntimeError
    seen = read_run(run.path / "wandb")
    assert seen["exit"] == 1 and seen["preempting"] is True
    assert [row["loss"] for row in seen["rows"]] == [0.5]


def finished_run(tmp_path):
    run = directory_of(tmp_path)
    with run.work(OFFLINE, ["launch.py"]):
        with Recorder(run.path) as record:
            record.many([0, 10, 20], {"loss": [3.0, 2.0, 1.0]}, "a")
            record.many([0, 20], {"loss": [6.0, 5.0], "only_b": [0.1, 0.2]}, "b")
        draw(run)
        claims.save(run.path, [VERDICT])
        save(run.path, Result({"final_loss": 1.0}))
    return run


def test_publishing_from_our_own_files(tmp_path):
    run = finished_run(tmp_path)
    RunDirectory.of(tmp_path, "demo", "curve", "unfinished").prepare()
    assert tracking.publish(tmp_path, mode="offline") == {"sent": [run.path], "skipped": [], "failed": []}
    seen = read_run(run.path / "wandb")
    assert seen["id"] == run.digest and seen["summary"]["final_loss"] == 1.0
    rows = {row["step"]: row for row in seen["rows"] if "a/loss" in row}
    assert {step: row["a/loss"] for step, row in rows.items()} == {0: 3.0, 10: 2.0, 20: 1.0}
    assert rows[20]["b/loss"] == 5.0 and rows[20]["b/only_b"] == 0.2 and "b/loss" not in rows[10]
    assert any("claims/path" in row for row in seen["rows"]) and any(
        "figures/loss/path" in row for row in seen["rows"]
    )

    assert tracking.publish(tmp_path, mode="offline")["skipped"] == [run.path]
    claims.save(run.path, [])  # judged anew: the table must go out again
    assert tracking.publish(tmp_path, mode="offline")["sent"] == [run.path]


def test_disabled_changes_nothing_and_imports_no_wandb(tmp_path):
    script = (
        "import sys\nfrom repro import tracking\nfrom repro.recorder import Recorder\n"
        "with tracking.start({'tracking': {'mode': sys.argv[2]}}, sys.argv[1]) as tracker:\n"
        "    with Recorder(sys.argv[1], [tracker.log_rows]) as record:\n        record(1, loss=0.5)\n"
        "    tracker.scalars({'loss': 0.5})\n"
        "assert 'wandb' not in sys.modules\n"
    )
    logs = []
    for mode in ("disabled", "offline"):
        run = RunDirectory.of(tmp_path / mode, "demo", "curve", "0123456789ab")
        run.prepare()
        subprocess.run([sys.executable, "-c", script, run.path, mode], check=True, timeout=60)
        assert (run.path / "wandb").exists() is (mode == "offline")
        logs.append(((run.path / "log.jsonl").read_bytes(), (run.path / "history.parquet").read_bytes()))
    assert logs[0] == logs[1]


def test_nothing_is_written_into_the_home_and_no_key_is_kept(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_API_KEY", "sesame" * 7)
    run = directory_of(tmp_path / "runs")
    with tracking.start(OFFLINE, run.path) as tracker:
        tracker.scalars({"a": 1.0})
    assert list(home.iterdir()) == []
    for path in run.path.rglob("*"):
        assert not path.is_file() or b"sesame" not in path.read_bytes(), path
