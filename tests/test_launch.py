from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import launch
from repro import listing
from repro.config import Config
from repro.errors import UserError
from repro.run_directory import RunDirectory

REPOSITORY = Path(__file__).resolve().parent.parent
RUN = "paper/invented=first"
CLAIM = {
    **{"id": "C1", "source": "Fig. 1", "says": "it begins", "published": "1"},
    **{"measured": "0.5", "tolerance": "> 0", "verdict": "reproduced", "why": ""},
}


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In place of repro.pipeline: notes what it is asked for, and fails for the seeds in `failing`."""

    def run(config: Config) -> int:
        fake.ran.append(config)
        if config.values["seed"] in fake.failing:
            raise fake.failing[config.values["seed"]]
        (config.directory / "scalars.json").write_text("{}")
        (config.directory / "claims.json").write_text(json.dumps([CLAIM]))
        RunDirectory(config.directory).set_status("done")
        return 0

    fake = SimpleNamespace(run=run, ran=[], failing={}, aggregated=[], remade=[])
    fake.aggregate = fake.aggregated.append
    fake.remake = fake.remade.append
    monkeypatch.setitem(sys.modules, "repro.pipeline", fake)  # type: ignore[arg-type]
    monkeypatch.setattr("repro.pipeline", fake, raising=False)
    return fake


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_alone_it_lists_papers_experiments_and_how_to_run_them(
    project: Path, capsys: pytest.CaptureFixture, words: list[str]
) -> None:
    assert launch.main(words, project) == 0
    out = capsys.readouterr().out
    assert "invented   A paper that does not exist" in out
    assert " * paper/invented=first    Figure 1: how it begins" in out
    assert "   paper/invented=second   Figure 2: other values" in out
    assert "base" not in out
    assert "slurm_a100" in out and "gaussian" in out


def test_listing_imports_nothing_heavy(project: Path) -> None:
    code = (
        "import sys, pathlib, launch; launch.main([], pathlib.Path(sys.argv[1]));"
        "heavy = {'hydra', 'jax', 'torch', 'wandb', 'matplotlib', 'numpy', 'pydantic'};"
        "print('IMPORTED', *heavy & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(project)], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1].split() == ["IMPORTED"], done.stdout + done.stderr


def test_a_typo_is_found_before_anything_heavy_is_imported(project: Path) -> None:
    code = (
        "import sys, pathlib, launch; code = launch.main(sys.argv[2:], pathlib.Path(sys.argv[1]));"
        "print('IMPORTED', code, *{'jax', 'torch', 'wandb', 'matplotlib', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(project), RUN, "data=gaussian", "data.classes=few"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1].split() == ["IMPORTED", "2"], done.stdout + done.stderr
    assert done.stderr.startswith("error: data.classes: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["paper/invented=frist"], "did you mean 'first'"),
        (["seed=1"], "no paper given"),
        ([RUN, "nonsense"], "nonsense: expected KEY=VALUE"),
        ([RUN, "--nonsense"], "--nonsense: expected KEY=VALUE"),
        (["reprot"], "reprot: expected KEY=VALUE"),
        (["publish", "now"], "Valid choices: online, offline"),
        (["claims", "runs=x"], "Valid options: runs_dir="),
        (["remake"], "which run?"),
        (["remake", "nowhere"], "config.json cannot be read"),
    ],
)
def test_bad_input_is_one_message_and_code_2(
    project: Path, walk: SimpleNamespace, capsys: pytest.CaptureFixture, words: list[str], expected: str
) -> None:
    assert launch.main(words, project) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and expected in err
    assert walk.ran == []


def test_one_run_leaves_only_its_run_directory(project: Path, walk: SimpleNamespace) -> None:
    assert launch.main([RUN, "seed=3"], project) == 0
    [ran] = walk.ran
    assert ran.values["seed"] == 3
    assert sorted(path.name for path in project.iterdir()) == ["conf", "runs"]
    assert (ran.directory / "config.yaml").exists() and (ran.directory / "config.json").exists()


def test_a_finished_run_is_reported_and_not_computed_again(
    project: Path, walk: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    launch.main([RUN], project)
    capsys.readouterr()
    assert launch.main([RUN, "tracking=offline"], project) == 0
    assert len(walk.ran) == 1
    out = capsys.readouterr().out
    assert "C1" in out and "reproduced" in out and str(walk.ran[0].directory) in out
    assert launch.main([RUN, "rerun=true"], project) == 0
    assert len(walk.ran) == 2


def test_other_figures_of_a_finished_run_are_drawn_without_computing_it_again(
    project: Path, walk: SimpleNamespace
) -> None:
    launch.main([RUN], project)
    launch.main([RUN], project)
    assert walk.remade == []
    figure = "figures={loss: {kind: table, rows: {x: {scalar: x}}}}"
    for _ in range(2):
        assert launch.main([RUN, figure], project) == 0
    assert len(walk.ran) == 1
    assert [list(config.values["figures"]) for config in walk.remade] == [["loss"]]
    assert launch.main(["remake", str(walk.ran[0].directory)], project) == 0
    assert walk.remade[1].values["figures"] == walk.remade[0].values["figures"]


def test_one_failing_seed_does_not_stop_the_others(
    project: Path, walk: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    walk.failing = {1: RuntimeError("out of luck")}
    assert launch.main(["-m", RUN, "seed=0,1,2"], project) == 1
    assert [config.values["seed"] for config in walk.ran] == [0, 1, 2]
    captured = capsys.readouterr()
    assert "3 runs: 2 done, 1 failed" in captured.out
    assert "seed=1" in captured.err and "RuntimeError: out of luck" in captured.err
    assert RunDirectory(walk.ran[1].directory).status().reason == "RuntimeError: out of luck"


def test_bad_input_found_late_is_code_2_without_traceback(
    project: Path, walk: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    walk.failing = {0: UserError("head 9 does not exist")}
    assert launch.main([RUN], project) == 2
    err = capsys.readouterr().err
    assert "error: head 9 does not exist" in err and "Traceback" not in err


def test_nothing_starts_if_one_run_of_many_is_wrong(project: Path, walk: SimpleNamespace) -> None:
    assert launch.main(["-m", RUN, "analysis.iterations=3,-3"], project) == 2
    assert walk.ran == [] and not (project / "runs").exists()


def test_repeats_over_seeds_are_aggregated_once_per_experiment(project: Path, walk: SimpleNamespace) -> None:
    launch.main(["-m", "paper/invented=first,second", "seed=0,1"], project)
    got = [[(config.experiment, config.values["seed"]) for config in family] for family in walk.aggregated]
    assert got == [[("first", 0), ("first", 1)], [("second", 0), ("second", 1)]]
    launch.main([RUN, "seed=7"], project)
    assert len(walk.aggregated) == 2


def test_runs_done_before_count_in_the_aggregate_and_failed_ones_do_not(
    project: Path, walk: SimpleNamespace
) -> None:
    launch.main([RUN, "seed=0"], project)
    walk.failing = {2: RuntimeError("no")}
    launch.main(["-m", RUN, "seed=0,1,2"], project)
    assert [sorted(config.values["seed"] for config in family) for family in walk.aggregated] == [[0, 1]]


def test_the_same_run_twice_in_a_multirun_is_one_run(project: Path, walk: SimpleNamespace) -> None:
    assert launch.main(["-m", RUN, "analysis.learning_rate=0.1,1e-1"], project) == 0
    assert len(walk.ran) == 1


def test_dry_run_starts_nothing(project: Path, walk: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
    assert launch.main(["-m", RUN, "seed=0,1", "dry_run=true"], project) == 0
    assert capsys.readouterr().out.count("would run here on cpu: invented=first") == 2
    assert launch.main(["-m", RUN, "seed=0,1", "dry_run=true", "hardware=local_parallel"], project) == 0
    assert "processes at a time" in capsys.readouterr().out
    assert launch.main(["-m", RUN, "seed=0,1", "dry_run=true", "hardware=slurm_cpu"], project) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --array=0-1%2" in out
    assert walk.ran == [] and not (project / "runs").exists()


def test_slurm_without_slurm_is_refused_and_never_runs_here(
    project: Path, walk: SimpleNamespace, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(project))
    assert launch.main([RUN, "hardware=slurm_cpu"], project) == 2
    assert "sbatch and srun cannot be found" in capsys.readouterr().err
    assert walk.ran == [] and not (project / "runs").exists()


def test_cfg_shows_the_resolved_config(
    project: Path, walk: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    import yaml

    assert launch.main([RUN, "--cfg", "job", "analysis.iterations=5"], project) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["analysis"]["iterations"] == 5 and shown["paper"]["slug"] == "invented"
    assert walk.ran == []


def test_claims_of_everything_run_so_far(
    project: Path, walk: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    launch.main([RUN], project)
    capsys.readouterr()
    assert launch.main(["claims", "invented"], project) == 0
    out = capsys.readouterr().out
    assert f"invented=first {walk.ran[0].hash}: done" in out and "C1" in out
    assert launch.main(["claims", "seeded"], project) == 0
    assert "nothing run yet" in capsys.readouterr().out


def test_headline_runs_one_experiment_a_paper_and_goes_on_after_a_failure(
    project: Path, walk: SimpleNamespace
) -> None:
    walk.failing = {0: RuntimeError("no")}
    assert launch.main(["headline"], project) == 1
    assert [(config.slug, config.experiment) for config in walk.ran] == [
        ("invented", "first"),
        ("seeded", "first"),
    ]


def test_headers_are_the_first_comment_line(project: Path) -> None:
    [invented, _] = listing.papers(project)
    assert invented.experiments == {"first": "Figure 1: how it begins", "second": "Figure 2: other values"}
    (project / "conf" / "paper" / "invented" / "base.yaml").write_text("paper: [")
    with pytest.raises(UserError, match="no valid YAML"):
        listing.papers(project)
