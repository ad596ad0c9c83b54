from __future__ import annotations

import json
from pathlib import Path

import pytest

from repro import cluster, processes, tasks
from repro.config import Config, compose_all
from repro.hardware import Hardware
from repro.run_directory import RunDirectory
from repro.tasks import Task
from repro.training import places

SMALL = [
    "model.width=16", "model.heads=4", "data.classes=30", "data.exemplars=2", "data.dim=16",
    "sequences.class_split=[10,rest,10]", "training.sequences=640", "hardware=slurm_cpu",
]  # fmt: skip


def asked(tmp_path: Path, *words: str) -> list[Config]:
    return compose_all([*words, *SMALL, f"runs_dir={tmp_path}"], multirun=True)


def finish(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / places.HISTORY).write_bytes(b"")


def test_a_run_that_alone_needs_one_training_trains_in_its_own_job(tmp_path: Path) -> None:
    [task] = tasks.tasks(asked(tmp_path, "paper/induction_heads=formation"))
    assert (task.kind, task.needs) == ("run", ())


def test_seeds_of_one_experiment_do_not_share(tmp_path: Path) -> None:
    wanted = tasks.tasks(asked(tmp_path, "paper/induction_heads=formation", "seed=0,1,2"))
    assert [task.kind for task in wanted] == ["run"] * 3


def test_a_training_of_two_runs_is_a_task_that_both_need(tmp_path: Path) -> None:
    configs = asked(tmp_path, "paper/induction_heads=formation,wiring,copy_specificity")
    wanted = tasks.tasks(configs)
    trainings = [task for task in wanted if task.kind == "training"]
    assert len({task.directory for task in trainings}) == len(trainings)
    runs = {task.directory: task for task in wanted if task.kind == "run"}
    assert list(runs) == [config.directory for config in configs]
    shared = set(runs[configs[0].directory].needs)
    assert len(shared) == 1 and all(shared <= set(run.needs) for run in runs.values())
    assert {task.directory for task in trainings} >= shared
    [place] = shared
    finish(place)  # done ones are no tasks any more
    left = tasks.tasks(configs)
    assert place not in {task.directory for task in left} | {need for task in left for need in task.needs}


def test_grafts_come_after_what_they_take_layers_from(tmp_path: Path) -> None:
    wanted = tasks.tasks(asked(tmp_path, "paper/induction_heads=grafts"))
    place = {task.plan.name: task.directory for task in wanted if task.plan}
    needs = {task.plan.name: task.needs for task in wanted if task.plan}
    assert sorted(place) == [f"{what}_{seed}" for what in ("graft", "source") for seed in (5, 6, 7)]
    assert needs["source_5"] == () and needs["graft_6"] == (place["source_6"],)
    [run] = [task for task in wanted if task.kind == "run"]
    assert set(run.needs) == set(place.values())
    arrays = [[task.directory for task in part] for part, _ in cluster.groups(wanted, {})]
    assert sorted(map(len, arrays)) == [1, 1, 1, 1, 3] and arrays[-1] == [run.directory]


def test_dependencies_name_the_jobs_of_what_is_needed(tmp_path: Path) -> None:
    wanted = tasks.tasks(asked(tmp_path, "paper/induction_heads=grafts"))
    ids: dict[Path, str] = {}
    seen = {}
    for number, (part, after) in enumerate(cluster.groups(wanted, ids), 41):
        ids |= {task.directory: f"{number}_{index}" for index, task in enumerate(part)}
        seen[part[0].title.split()[1] if part[0].plan else "run"] = after
    assert seen["source_5"] is None and seen["graft_6"] == "afterok:41_1"
    assert str(seen["run"]).startswith("afterok:41_0:41_1:41_2:") and str(seen["run"]).count(":") == 6
    text = cluster.sbatch_text(wanted[-1:], seen["run"])
    assert f"#SBATCH --dependency={seen['run']}" in text and "#SBATCH --kill-on-invalid-dep=yes" in text
    assert "kill-on-invalid-dep" not in cluster.sbatch_text(wanted[:1])


def test_arrays_have_a_limit(tmp_path: Path) -> None:
    wanted = tasks.tasks(asked(tmp_path, "paper/induction_heads=formation", "seed=range(0,7)"))
    assert [len(part) for part, _ in cluster.groups(wanted, {}, limit=3)] == [3, 3, 1]


def test_shards_need_the_trainings_and_the_run_needs_the_shards(tmp_path: Path) -> None:
    [config] = asked(tmp_path, "paper/induction_heads=formation", "shards=2")
    wanted = tasks.tasks([config])
    assert [task.kind for task in wanted] == ["training", "shard", "shard", "run"]
    training, *parts, run = wanted
    assert all(part.needs == (training.directory,) for part in parts)
    assert set(run.needs) == {training.directory, *(part.directory for part in parts)}
    assert {part.directory.parent.parent for part in parts} == {config.directory}


def test_a_training_on_the_cpu_takes_one(tmp_path: Path) -> None:
    wanted = tasks.tasks(asked(tmp_path, "paper/induction_heads=grafts", "hardware.cpus=8"))
    assert wanted[0].hardware.cpus == 1 and wanted[-1].hardware.cpus == 8
    assert "#SBATCH --cpus-per-task=1" in cluster.sbatch_text(wanted[:1])


def test_a_prepared_training_is_done_by_its_path_alone(tmp_path: Path) -> None:
    training = tasks.tasks(asked(tmp_path, "paper/induction_heads=grafts"))[0]
    tasks.prepare(training)
    run = RunDirectory(training.directory)
    assert (run.status().state, run.status().total) == ("queued", 20)
    assert not tasks.is_done(training.directory)
    assert tasks.execute(training.directory) == 0
    assert tasks.is_done(training.directory) and run.status().state == "done"


def test_a_failing_training_says_why(tmp_path: Path) -> None:
    training = tasks.tasks(asked(tmp_path, "paper/induction_heads=grafts"))[0]
    tasks.prepare(training)
    plan = json.loads((training.directory / places.PLAN).read_text())
    (training.directory / places.PLAN).write_text(json.dumps({**plan, "seed": {**plan["seed"], "init": 99}}))
    assert tasks.execute(training.directory) == 2
    status = RunDirectory(training.directory).status()
    assert status.state == "failed" and "changed since this training was planned" in str(status.reason)


@pytest.mark.parametrize("bad", ["a", "c"])
def test_processes_stop_only_what_needs_the_failed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    """a -> c, b -> d: c is not started if a fails; d is done in any case."""
    [config] = asked(tmp_path, "paper/induction_heads=formation")
    needs = {"a": (), "b": (), "c": ("a",), "d": ("b",)}
    made = {}
    for name, given in needs.items():
        kind = "run" if given else "training"
        made[name] = Task(kind, tmp_path / name, name, config, tuple(tmp_path / need for need in given))
    order: list[str] = []

    def start(self: object, task: Task) -> object:
        order.append(task.title)
        code = int(task.title == bad)
        if code:
            RunDirectory(task.directory).set_status("failed", reason="no luck")
        return type("Process", (), {"poll": lambda self: code, "returncode": code})()

    for task in made.values():
        task.directory.mkdir()
    monkeypatch.setattr(processes._Processes, "_start", start)
    outcomes = processes.run_processes(list(made.values()), Hardware(executor="processes", workers=2))
    assert [outcome.code for outcome in outcomes] == [1, 0]
    assert "no luck" in outcomes[0].note
    assert order == (["a", "b", "d"] if bad == "a" else ["a", "b", "c", "d"])
    if bad == "a":
        assert "not started: a failed: no luck" in outcomes[0].note
        assert "not started" in str(RunDirectory(tmp_path / "c").status().reason)
