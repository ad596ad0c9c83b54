"""What dry_run prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from repro import estimate_text
from repro.config import compose, compose_all
from repro.hardware import Hardware
from repro.tasks import tasks


@pytest.mark.parametrize(
    ("flops", "said"), [(12, "12 FLOP"), (2.5e6, "2.5 MFLOP"), (1.31e12, "1.31 TFLOP"), (5.2e21, "5.2 ZFLOP")]
)
def test_operations_in_words(flops: float, said: str) -> None:
    assert estimate_text.flops_text(flops) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(59, "59 s"), (119, "119 s"), (120, "2.0 min"), (9e3, "2.5 h"), (9e5, "10.4 days")],
)
def test_times_in_words(seconds: float, said: str) -> None:
    assert estimate_text.time_text(seconds) == said


def test_a_sweep_says_each_job_and_all_together(tmp_path: Path) -> None:
    configs = compose_all(
        ["paper/induction_heads=formation", "seed=range(0,6)", "hardware=multi_node", f"runs_dir={tmp_path}"],
        True,
    )
    lines = estimate_text.jobs(tasks(configs)).splitlines()
    assert sum(line.startswith("# induction_heads=formation") for line in lines) == 6
    # Said once, since the repeats come about alike.
    assert sum("31,250 steps of 32 sequences of 5 tokens" in line for line in lines) == 1
    assert sum("GFLOP/s each, 10 s to start; rough" in line for line in lines) == 1
    # 6 x 56 s, two at a time.
    assert "total: 6 jobs, at most 2 at a time: about 2.8 min without queueing" in lines[-1]
    assert "11 TFLOP, 5.6 min, 0.00 GPU-hours, 1.49 core-hours" in lines[-1]


def test_jobs_that_wait_for_others_add_up(tmp_path: Path) -> None:
    config = compose(
        ["paper/induction_heads=formation", "shards=2", "hardware=slurm_cpu", f"runs_dir={tmp_path}"]
    )
    text = estimate_text.jobs(tasks([config]))
    assert "# training 9eb" not in text and text.count("shard ") >= 2
    # Training 41 s, half of the analysis 17 s, figures 10 s.
    assert "total: 4 jobs, at most 4 at a time: about 68 s without queueing" in text.splitlines()[-1]


def test_what_does_not_fit_and_what_takes_too_long_is_marked(tmp_path: Path) -> None:
    config = compose(["paper/induction_heads=formation", "training.sequences=200000000", "hardware=slurm_cpu",
                      "hardware.memory_gb=1", f"runs_dir={tmp_path}"])  # fmt: skip
    said = estimate_text.dry_run([config], Hardware.parse(config.values["hardware"], "hardware"))
    assert "DOES NOT FIT: hardware.memory_gb has 1 GiB" in said
    config = compose(["paper/induction_heads=formation", "hardware=slurm_cpu", "hardware.timeout_min=1",
                      "training.sequences=9000000", f"runs_dir={tmp_path}"])  # fmt: skip
    said = estimate_text.dry_run([config], Hardware.parse(config.values["hardware"], "hardware"))
    assert "longer than the time limit of 60 s: it would go on in up to 3 requeued jobs" in said


def test_dry_run_shows_the_estimate_and_refuses_what_cannot_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import launch

    words = ["paper/induction_heads=formation", "hardware=slurm_cpu", "dry_run=true", f"runs_dir={tmp_path}"]
    assert launch.main(words) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --mem=8192M" in out and "# total: 1 job; memory 1.8 GiB, 1.83 TFLOP" in out
    assert launch.main([*words, "hardware.memory_gb=1"]) == 2
    said = capsys.readouterr()
    assert "DOES NOT FIT" in said.out
    assert "hardware.memory_gb has 1 GiB" in said.err and "hardware.memory_gb=2" in said.err
    assert not list(tmp_path.iterdir())
