"""What is to be done for some runs: trainings, parts of analyses and runs, each in a directory of its own.

A directory says by itself what it is: a training has plan.json, anything else config.json. So a worker
process or a job is told a path, and a requeued one needs nothing but the disk:

    python -m repro.tasks DIRECTORY
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from repro import planned, root_specs, shards, stopping, workers
from repro.config import Config, load
from repro.errors import UserError
from repro.hardware import Hardware
from repro.locks import Busy
from repro.run_directory import RunDirectory
from repro.training import places

if TYPE_CHECKING:
    from repro.training.plans import Plan

Kind = Literal["training", "shard", "run"]


@dataclass(frozen=True)
class Task:
    """A piece of work. directory: of the run, shard or trained model. config: whose profile it goes by.

    needs: directories of tasks that must be done before it; one that is no task of this submission is done.
    """

    kind: Kind
    directory: Path
    title: str
    config: Config
    needs: tuple[Path, ...] = ()
    plan: Plan | None = None

    @property
    def hardware(self) -> Hardware:
        """The profile; a training on the CPU takes one of its CPUs, since more threads make it no faster."""
        hardware = Hardware.parse(self.config.values["hardware"], "hardware")
        if self.kind == "training" and hardware.device == "cpu":
            return hardware.model_copy(update={"cpus": 1, "threads": 1, "nodes": 1})
        return hardware


def tasks(configs: Sequence[Config]) -> list[Task]:
    """Everything that is not finished, each task after those it needs. Writes nothing.

    A training is a task of its own if several runs or shards need it, or if its run needs more than one.
    """
    asked = {config.directory: _missing(config) for config in configs}
    parts = {config.directory: shards.shard_configs(config) for config in configs}
    users = Counter(place for plans in asked.values() for place in plans)
    trainings: dict[Path, Task] = {}
    others: list[Task] = []
    for config in configs:
        plans, split = asked[config.directory], parts[config.directory]
        own = [place for place in plans if users[place] > 1 or len(plans) > 1 or split]
        for place in own:
            trainings.setdefault(place, _training(config, place, plans))
        waiting = [part for part in split if config.values["rerun"] or shards.finished(part) is None]
        others += [Task("shard", part.directory, part.title, part, tuple(own)) for part in waiting]
        needs = (*own, *(part.directory for part in waiting))
        others.append(Task("run", config.directory, config.title, config, needs))
    kinds = ("training", "shard", "run")
    return sorted([*trainings.values(), *others], key=lambda task: kinds.index(task.kind))


def _missing(config: Config) -> dict[Path, Plan]:
    """The trainings a run needs that are not done, in an order in which each comes after those it needs."""
    plans = planned.plans(config, root_specs.parse(config.values))
    placed = {places.folder(planned.store(config), plan): plan for plan in plans.values()}
    return {place: plan for place, plan in placed.items() if not places.is_done(place)}


def _training(config: Config, place: Path, plans: dict[Path, Plan]) -> Task:
    plan = plans[place]
    needs = tuple(other for other, needed in plans.items() if needed.name in plan.needs)
    name = f" {plan.name}" if plan.name else ""
    return Task("training", place, f"training{name} {place.name} of {config.slug}={config.experiment}",
                config, needs, plan)  # fmt: skip


def prepare(task: Task) -> None:
    """Make the directory, so that `execute` can be called with its path alone, with status `queued`.

    A directory in which another process works keeps its status. Raises `UserError` if it cannot be written.
    """
    if task.plan is None:
        workers.prepare(task.config)
        return
    run = RunDirectory(task.directory)
    places.write_plan(task.directory, task.plan)
    if not run.is_locked():
        run.set_status("queued", step=None, total=task.plan.steps, eta=None)


def is_done(directory: Path) -> bool:
    """Whether a task's directory holds what it was to make."""
    if (directory / places.PLAN).exists():
        return places.is_done(directory)
    return RunDirectory(directory).is_done()


def execute(directory: Path, **values: Any) -> int:
    """Do what lies in a directory, in this process: exit code 0 done, 2 bad input, 1 anything else.

    values: replace root values of a run's config, such as rerun=False. What fails leaves its reason in
    status.json.
    Raises `stopping.Stopped` if the process is asked to stop; the state is saved then.
    """
    if (directory / places.PLAN).exists():
        return _train(directory)
    return workers.execute(load(directory).replaced(**values))


def _train(directory: Path) -> int:
    try:
        from repro.training.store import train

        train(directory)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        workers.mark_failed(directory, str(error), busy=isinstance(error, Busy))
        return 2
    except Exception as error:
        traceback.print_exc()
        workers.mark_failed(directory, f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    stopping.listen_as_child()
    sys.exit(execute(Path(sys.argv[1])))
