"""The walk: config, model, data, training, analysis, result, figures, claims, W&B. One line a stage.

Everything after the result reads saved files, so figures and verdicts can be made again without
the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from repro import aggregation, claims, planned, progress, results, root_specs, shards, tracking
from repro.config import CONFIG_JSON, Config
from repro.errors import NotApplicable, UserError
from repro.hardware import Hardware, cpu_share
from repro.recorder import Recorder, Silent
from repro.results import Result, write_atomic
from repro.run_directory import RunDirectory, follow_progress

NOT_APPLICABLE = "not_applicable"  # note of a result without numbers, and why
PAPERS = Path(__file__).resolve().parent.parent / "papers"


def run(config: Config) -> int:
    """Do one run, or one part of it, unless it is done; returns the exit code 0.

    What fails raises, and leaves what resumes.
    """
    if config.part:
        run_shard(config)
        return 0
    values, specs = config.values, root_specs.parse(config.values)
    directory = RunDirectory(config.directory)
    with directory.work(
        values, config.command, device=values["hardware"]["device"], seeds=values["seed"],
        rerun=values["rerun"], wait=values["wait"],
    ) as work:  # fmt: skip
        if not work:
            return 0
        plans = planned.plans(config, specs)
        with tracking.start(values, directory.path, last_step=_last_step(plans)) as tracker:
            listeners = [tracker.log_rows, follow_progress(directory, _total_steps(plans))]
            with Recorder(directory.path, listeners) as record:
                data = import_module(specs["data"].module).load(specs["data"])
                subject = functools.cache(lambda: _subject(config, specs, plans, record, data))
                with progress.heard(_shown_in(directory)):
                    if plans:
                        subject()  # its history is recorded also where only shards are merged
                    directory.note(**_facts(config, specs, data))
                    result = _answer(config, specs, subject, data, record)
            results.save(directory.path, result)
            tracker.scalars(result.scalars)
            tracker.figures(draw(config, [result]))
            verdicts = claims.judge_run(directory, PAPERS / config.slug / "claims.yaml")
            tracker.claims(verdicts)
            sent = tracker.finish(0)
        if sent and values["tracking"]["mode"] == "online":
            tracking.mark_published(directory.path, "online")
    _tell(config, result, verdicts)
    return 0


def run_shard(config: Config) -> None:
    """Compute and save one part of an analysis, unless it is done: no figures, claims or W&B run."""
    specs, directory = root_specs.parse(config.values), RunDirectory(config.directory)

    def load() -> tuple[Any, Any]:
        data = import_module(specs["data"].module).load(specs["data"])
        directory.note(**_facts(config, specs, data))
        return _subject(config, specs, planned.plans(config, specs), Silent(), data), data

    if config.values["rerun"] or shards.finished(config) is None:
        _compute_shard(config, specs, load)


def remake(config: Config) -> None:
    """Draw the figures and judge the claims of a finished run again, from its saved result."""
    directory = RunDirectory(config.directory)
    draw(config, [results.load(directory.path)])
    claims.judge_run(directory, PAPERS / config.slug / "claims.yaml")


def aggregate(configs: Sequence[Config]) -> Path:
    """One result and one set of figures, with bands, of finished runs that differ only in their seed."""
    together = [results.load(config.directory) for config in configs]
    seeds = [aggregation.seed_label(config.values["seed"]) for config in configs]
    directory = aggregation.save(configs, together, seeds)
    draw(configs[0], together, seeds, directory)
    print(f"{configs[0].slug}={configs[0].experiment} over seeds {', '.join(seeds)}: {directory}")
    return directory


def draw(
    config: Config, together: Sequence[Result], labels: Sequence[str] = (), directory: Path | None = None
) -> list[Path]:
    """Draw the experiment's figures from one result a seed; the PNG files."""
    specs = root_specs.parse(config.values)["figures"]
    folder = (directory or config.directory) / "figures"
    if not specs or any(NOT_APPLICABLE in result.notes for result in together):
        return []
    from repro.figures.draw import draw_all  # and with it Matplotlib

    facts = RunDirectory(config.directory).provenance().get("facts", {})
    notes = [str(facts["note"])] if facts.get("note") else []
    drawn = draw_all(specs, together, list(labels), folder, notes)
    return [path for path in drawn if path.suffix == ".png"]


def _answer(
    config: Config, specs: Mapping[str, Any], subject: Callable[[], Any], data: Any, record: Recorder
) -> Result:  # fmt: skip
    """What the analysis finds: in one piece, or merged from its parts, of which missing ones are computed.

    subject: called only if something is to be computed.
    """
    analysis = import_module(specs["analysis"].module)
    parts = shards.shard_configs(config)
    if not parts:
        try:
            asked = _asked(config, specs, subject(), data)
            return analysis.run(subject(), data, record, config.directory, asked)
        except NotApplicable as error:
            return Result({}, {}, {NOT_APPLICABLE: str(error)})
    since = shards.asked_for(config)
    found = [
        shards.finished(part, since) or _compute_shard(part, specs, lambda: (subject(), data))
        for part in parts
    ]
    return analysis.merge(found, specs["analysis"])


def _compute_shard(
    config: Config, specs: Mapping[str, Any], load: Callable[[], tuple[Any, Any]]
) -> Result:  # fmt: skip
    """One part, saved in its directory. load: gives what the analysis looks at, and the data."""
    values, directory = config.values, RunDirectory(config.directory)
    with directory.work(
        values, config.command, device=values["hardware"]["device"], seeds=values["seed"],
        rerun=directory.is_done(), wait=values["wait"],
    ) as work:  # fmt: skip
        if work:
            write_atomic(directory.path / CONFIG_JSON, config.to_json())
            with progress.heard(_shown_in(directory)):
                subject, data = load()
                analysis = import_module(specs["analysis"].module)
                part = shards.part_of(config)
                asked = _asked(config, specs, subject, data)
                result = analysis.run_part(subject, data, directory.path, asked, part)
            results.save(directory.path, result)
    return results.load(directory.path)


def _asked(config: Config, specs: Mapping[str, Any], subject: Any, data: Any) -> Any:
    """The question in terms of this model; what names in it stand for is noted, and said under figures."""
    asked, named = specs["analysis"].for_subject(subject, data)
    if named:
        directory = RunDirectory(config.directory)
        facts = directory.provenance().get("facts", {})
        words = "; ".join(f"{name}: {meaning}" for name, meaning in named.items())
        note = " ".join(part for part in (str(facts.get("note") or ""), f"Here {words}.") if part)
        directory.note(names=named, facts={**facts, "note": note} if facts.get("note") else facts)
    return asked


def _shown_in(directory: RunDirectory) -> Callable[[progress.Progress], None]:
    """Keeps step, total and time left of status.json true."""
    shown = RunDirectory(directory.path)  # not held back by what else writes the status
    return lambda bar: shown.set_status("running", step=bar.done, total=bar.total, eta=bar.eta)


def _subject(
    config: Config, specs: Mapping[str, Any], plans: Mapping[str, Any], record: Recorder, data: Any
) -> Any:  # fmt: skip
    """What the analysis looks at: trained models by condition, a loaded model, or nothing."""
    if plans:
        from repro.training.pool import train_all

        if data is None:
            raise UserError("data: training needs features, got data=none. Valid choices: data=gaussian, ...")
        workers = _training_workers(Hardware.parse(config.values["hardware"], "hardware"))
        trained = train_all(plans, planned.store(config), record, workers, data)
        directory = RunDirectory(config.directory)
        directory.note(trained={name: str(run.directory) for name, run in trained.items()})
        for name, run in trained.items():
            if not config.part:
                run.copy_last(directory.path / "checkpoints" / f"{name or 'model'}.safetensors")
        return trained
    module = specs["model"].module if specs["model"] is not None else ""
    if not module:
        return None
    return import_module(module).load(specs["model"], config.values["hardware"], planned.store(config))


def _training_workers(hardware: Hardware) -> int:
    """Processes that train side by side: one a CPU; none beside this one on a GPU or with one thread."""
    threads = cpu_share(hardware)
    return 0 if hardware.device == "cuda" or threads == 1 else threads


def _last_step(plans: Mapping[str, Any]) -> int | None:
    return max((plan.steps for plan in plans.values()), default=None)


def _total_steps(plans: Mapping[str, Any]) -> int:
    return sum(plan.steps for plan in plans.values())


def _facts(config: Config, specs: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """What the verdicts and the report must know of model and data: the paper's own, embedded, or other."""
    changed = {"changed": config.changed} if config.changed else {}
    stand_in = specs["model"].embedded if specs["model"] is not None else ""
    if data is None:
        subject = {"subject": "paper" if _published_model(config) else "other"}
        stand_ins = {"subject": "embedded", "note": stand_in} if stand_in else {}
        return {"facts": {**subject, **stand_ins, "data": "none", **changed}}
    kind, subject = specs["data"].kind, {"subject": "other"}
    published = config.values["paper"].get("seeds")
    if stand_in:
        subject = {"subject": "embedded", "note": stand_in}
    elif data.is_published and _published_model(config) and published in (None, config.values["seed"]):
        subject = {"subject": "paper"}
    elif kind == "gaussian":
        subject = {"subject": "embedded", "note": "Synthetic stand-in data: not the paper's."}
    facts = {**subject, **changed, "data": kind, "source": data.source}
    return {"facts": facts, "checksums": {"data": data.sha256}}


def _published_model(config: Config) -> bool:
    """Whether the model is one of the paper's own, as far as it does not train its own."""
    models = config.values["paper"].get("models")
    return models is None or (config.choices or {}).get("model") in models


def _tell(config: Config, result: Result, verdicts: Sequence[Any]) -> None:
    """The end of a run for people: where it lies, and its claims as a table."""
    print(f"\n{config.title}: {config.directory}")
    if NOT_APPLICABLE in result.notes:
        print(f"  not applicable: {result.notes[NOT_APPLICABLE]}")
    for path in sorted((config.directory / "figures").glob("*.png")):
        print(f"  figure {path}")
    claims.show_table(verdicts)
