"""From configs to outcomes: what is done is reported, the rest runs where its hardware profile says."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from repro import estimate_text, estimates, tasks
from repro.config import Config, load
from repro.errors import UserError
from repro.hardware import Hardware, worker_count
from repro.run_directory import RunDirectory
from repro.tasks import Task
from repro.workers import Outcome, environment, execute, prepare, save_config

LOOK_AGAIN = "python launch.py jobs"


def dispatch(configs: Sequence[Config]) -> int:
    """Run or submit everything; returns the exit code. One failure stops only what needs it.

    Raises `UserError` before anything starts if a profile cannot be served here.
    """
    finished = [
        item for item in configs if RunDirectory(item.directory).is_done() and not item.values["rerun"]
    ]
    refuse_too_large([item for item in configs if item not in finished])
    outcomes = [Outcome(item, 0, "was done already (rerun=true computes it again)") for item in finished]
    outcomes += start([item for item in configs if item not in finished])
    for item in finished:
        _redraw_if_changed(item)
    for outcome in outcomes:
        if outcome.config in finished or (outcome.code == 0 and _executor(outcome.config) != "inline"):
            report(outcome.config)
    submitted = any(outcome.code is None for outcome in outcomes)  # then others of a family are still to come
    done = [outcome.config for outcome in outcomes if outcome.code == 0]
    code = 0 if submitted else _aggregate(done)
    order = {item.directory: number for number, item in enumerate(configs)}
    return max(_summary(sorted(outcomes, key=lambda outcome: order[outcome.config.directory])), code)


def start(configs: Sequence[Config]) -> list[Outcome]:
    """Do or submit configs that are not done. Submitted ones are followed, unless `wait` is false."""
    by = {
        name: [item for item in configs if _executor(item) == name]
        for name in ("slurm", "processes", "inline")
    }
    outcomes, followed = [], []
    if by["slurm"]:
        from repro import cluster

        followed = cluster.submit(tasks.tasks(by["slurm"]))
        for job in followed:
            print(f"{job.task.title}: {job.note}", flush=True)
    for hardware, group in by_profile(by["processes"]):
        from repro.processes import run_processes

        wanted = tasks.tasks(group)
        for task in wanted:
            tasks.prepare(task)
        outcomes += run_processes(wanted, hardware)
    for hardware, group in by_profile(by["inline"]):
        for config in group:
            prepare(config)
        os.environ.update(environment(hardware))
        outcomes += [Outcome(config, execute(config)) for config in group]
    return [*outcomes, *(_followed(followed, by["slurm"][0].values["wait"]) if followed else [])]


def _followed(submitted: Sequence, wait: bool) -> list[Outcome]:
    """What became of submitted jobs; of runs only, since what failed before a run is named in its reason."""
    from repro import following

    lost = {job.task.directory: job.note for job in submitted if job.job_id is None}
    places = [job.task.directory for job in submitted if job.job_id is not None]
    runs_dir = submitted[0].task.config.values["runs_dir"]
    again = f"{LOOK_AGAIN} runs_dir={runs_dir}"
    views = {}
    if wait and places:
        print(f"Ctrl-C leaves the jobs running; `{again}` shows them again", flush=True)
        try:
            views = following.follow(places)
        except KeyboardInterrupt:
            print(
                f"\nnot looking any more; the jobs go on. `{again}` shows them, the same command as before"
                f" follows them again, and `{LOOK_AGAIN} cancel all runs_dir={runs_dir}` ends them",
                file=sys.stderr,
            )
            raise SystemExit(130) from None
    elif places:
        print(
            f"{len(places)} jobs submitted. `{again}` shows them, and the same command reports them when done"
        )
    outcomes = []
    for job in submitted:
        view = views.get(job.task.directory)
        if job.task.kind != "run":
            continue
        if job.task.directory in lost:
            outcomes.append(Outcome(job.task.config, 1, f"failed: {lost[job.task.directory]}"))
        elif view is None:
            outcomes.append(Outcome(job.task.config, None, job.note))
        else:
            note = "done" if view.state == "done" else f"failed: {view.line}"
            outcomes.append(Outcome(job.task.config, int(view.state != "done"), note))
    return outcomes


def by_profile(configs: Sequence[Config]) -> list[tuple[Hardware, list[Config]]]:
    """Configs with the same hardware profile together."""
    groups: dict[str, list[Config]] = {}
    for item in configs:
        groups.setdefault(json.dumps(item.values["hardware"], sort_keys=True), []).append(item)
    return [(Hardware.parse(json.loads(text), "hardware"), group) for text, group in groups.items()]


def refuse_too_large(configs: Sequence[Config]) -> None:
    """Raise `UserError`, with what would fit, if a run needs more memory than its profile has."""
    on_slurm = [item for item in configs if _executor(item) == "slurm"]
    estimates.check_tasks_fit(tasks.tasks(on_slurm))
    for hardware, group in by_profile([item for item in configs if item not in on_slurm]):
        estimate_text.refuse(group, hardware)


def dry_run(configs: Sequence[Config]) -> int:
    """Say what would run where, with the job scripts; start nothing."""
    on_slurm = [item for item in configs if _executor(item) == "slurm"]
    if on_slurm:
        wanted = tasks.tasks(on_slurm)
        _show_jobs(wanted)
        print(estimate_text.jobs(wanted), flush=True)
    for hardware, group in by_profile([item for item in configs if item not in on_slurm]):
        where = (
            f"{worker_count(hardware)} processes at a time" if hardware.executor == "processes" else "here"
        )
        for item in group:
            print(f"would run {where} on {hardware.device}: {item.title} in {item.directory}")
        print(estimate_text.dry_run(group, hardware), flush=True)
    refuse_too_large(configs)
    print("dry_run=true: nothing was started", file=sys.stderr)
    return 0


def _show_jobs(wanted: Sequence[Task]) -> None:
    from repro import cluster

    # There are no job ids yet: what is to be done first is called by its place in the script before.
    names: dict[Path, str] = {}
    for number, (part, after) in enumerate(cluster.groups(wanted, names), 1):
        names |= {
            task.directory: f"JOB{number}" + (f"_{index}" if len(part) > 1 else "")
            for index, task in enumerate(part)
        }
        array = f", an array of {len(part)}" if len(part) > 1 else ""
        print(f"# job {number} (JOB{number}){array}: {part[0].kind}")
        print(cluster.sbatch_text(part, after))


def report(config: Config) -> None:
    """What a finished run came to: its directory and its claims."""
    from repro import claims

    print(f"{config.title}: {config.directory}")
    claims.show_table(claims.load(config.directory))


def _executor(config: Config) -> str:
    return config.values["hardware"]["executor"]


def _redraw_if_changed(config: Config) -> None:
    """Figures are no part of the hash: a finished run with other figures asked for has them drawn anew."""
    if load(config.directory).values["figures"] != config.values["figures"]:
        from repro import pipeline

        pipeline.remake(config)
        save_config(config)


def _aggregate(configs: Sequence[Config]) -> int:
    """Runs that differ only in seed become one figure with a band."""
    families: dict[str, list[Config]] = {}
    for item in configs:
        families.setdefault(item.family, []).append(item)
    repeats = [family for family in families.values() if len(family) > 1]
    if not repeats:
        return 0
    from repro import pipeline

    for family in repeats:
        try:
            pipeline.aggregate(family)
        except UserError as error:  # the runs themselves are saved
            print(f"error: {family[0].slug}={family[0].experiment} over seeds: {error}", file=sys.stderr)
            return 1
    return 0


def _summary(outcomes: Sequence[Outcome]) -> int:
    """Print what became of it all. One run answers with its own code, several with 1 if any failed."""
    if len(outcomes) == 1:
        outcome = outcomes[0]
        if outcome.note.startswith("failed"):
            print(f"error: {outcome.note}", file=sys.stderr)
        return outcome.code or 0
    failed = [outcome for outcome in outcomes if outcome.code]
    print(f"{len(outcomes)} runs: {sum(item.code == 0 for item in outcomes)} done, {len(failed)} failed, "
          f"{sum(item.code is None for item in outcomes)} submitted")  # fmt: skip
    for outcome in outcomes:
        if outcome.code is None:  # said already when it was submitted
            continue
        seed = outcome.config.values["seed"]
        name = f"  {outcome.config.title} seed={seed if isinstance(seed, int) else seed['init']}: "
        note = outcome.note or (f"failed with code {outcome.code}" if outcome.code else "done")
        print(name + note, file=sys.stderr if outcome.code else sys.stdout)
    return 1 if failed else 0
