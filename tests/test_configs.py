"""Every experiment of every paper composes, can be planned, and its figures and claims name what there is.

Models are not trained: each analysis runs on small untrained stand-ins, with an invented history if need be.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repro import claims_file, config, expressions, listing, root_specs
from repro.figures import draw
from repro.results import Result
from repro.training.plans import Plan, plans

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = [
    f"{paper.slug}={experiment}" for paper in listing.papers(ROOT) for experiment in paper.experiments
]
CLAIMS = [
    pytest.param(path.parent.name, claim, id=f"{path.parent.name}-{claim.id}")
    for path in sorted((ROOT / "papers").glob("*/claims.yaml"))
    for claim in claims_file.read(path).claims
]
# No experiment has more classes; and of all sequences and checkpoints a few are enough.
SMALL = {
    "data": {"classes": 320, "exemplars": 2, "dim": 8},
    "model": {"width": 16},
    "analysis": {"sequences": 48, "checkpoints": 3, "samples": 20, "random_sets": 3, "per_template": 3},
}
# Language models have the shape that the paper speaks of, so that its heads are there, but are narrow.
SMALL_LM = {
    "data": {"n": 8, "examples": 8, "questions": 4},
    "model": {"depth": 12, "heads": 12, "width": 24, "local_layers": 0},
    "analysis": {**SMALL["analysis"], "greedy": {"candidates": 2, "steps": 1, "runs": 1, "keep": 1}},
}
# Models that are tuned on a text are trained, on very little of it.
SMALL_TEXT = {
    "data": {"block": 16, "train": 40, "query": 6, "words": 400, "pretraining_words": 1500},
    "model": {"depth": 1, "width": 16, "vocabulary": 300},
    "analysis": {"masks": 4, "repeats": 2, "removed": [0, 32]},
}
SMALLER = {"organism": SMALL_LM, "text_organism": SMALL_TEXT}


@cache
def composed(experiment: str) -> config.Config:
    return config.compose([f"paper/{experiment}"])


def file_of(experiment: str) -> Path:
    slug, name = experiment.split("=")
    return ROOT / "conf" / "paper" / slug / f"{name}.yaml"


def small(experiment: str) -> dict[str, Any]:
    """The values of an experiment with less data and a narrower model, all names as they are."""
    values = dict(composed(experiment).values)
    for key, said in SMALLER.get(values["model"]["kind"], SMALL).items():
        known = values[key]
        wanted = {name: value for name, value in said.items() if name in known}
        if known.get("checkpoints") == "last":
            wanted.pop("checkpoints")
        values[key] = {**known, **wanted}
    if values["analysis"].get("given"):
        values["analysis"] |= files_of_others(values["data"])
    if "text" in values["model"]:
        values["model"] = {**values["model"], "text": values["data"]}
    return values


def files_of_others(data: Mapping[str, Any]) -> dict[str, str]:
    """Masks and losses of retrainings, as an analysis is given them."""
    random = np.random.default_rng(0)
    arrays = {
        "masks_path": random.integers(0, 2, (4, data["train"])),
        "losses_path": random.random((4, data["query"])),
    }  # fmt: skip
    paths = {key: str(shared_store() / f"{key}.npy") for key in arrays}
    for key, array in arrays.items():
        np.save(paths[key], array)
    return paths


def planned(values: Mapping[str, Any], specs: Mapping[str, Any], store: Path) -> dict[str, Plan]:
    named = values["conditions"] or {"": {}}
    whole = {name: root_specs.condition_values(values, one or {}) for name, one in named.items()}
    return plans(whole, specs["data"], store)


def invented_history(plan: Plan) -> dict[str, np.ndarray]:
    """Falling curves of the length that training would give, each run's somewhat different."""
    from repro.training.metrics import UNITS
    from repro.training.schedule import evaluation_steps, step_count

    points, steps = evaluation_steps(plan.training), step_count(plan.training)
    names = [f"eval_{evaluator}_{metric}" for evaluator in plan.sequences.evaluate for metric in UNITS]
    end = 1e-3 * (1 + int(plan.digest(), 16) % 50)
    falling = np.geomspace(1.6, end, len(points))
    return {
        "points": points,
        "train_loss": np.geomspace(1.6, 1e-3, steps),
        "train_grad_norm": np.ones(steps),
        **{name: falling for name in names},
    }


def stand_in(plan: Plan, store: Path, data: Any) -> Any:
    """A run as if trained: an invented history, and the weights of initialisation at three checkpoints."""
    from repro.models.icl_init import init
    from repro.models.weights import save_weights
    from repro.training import loop
    from repro.training.places import folder, write_plan
    from repro.training.program import outputs_of
    from repro.training.schedule import checkpoint_steps
    from repro.training.store import Trained, checkpoint_path

    directory = folder(store, plan)
    write_plan(directory, plan)
    np.savez(directory / loop.HISTORY, **invented_history(plan))  # pyright: ignore[reportArgumentType]
    model = init(plan.model, SMALL["data"]["dim"], outputs_of(plan.model, plan.sequences, data), 5)
    saved = checkpoint_steps(plan.training)
    for step in {saved[0], saved[len(saved) // 2], saved[-1]} if len(saved) else ():
        path = checkpoint_path(directory, int(step) * plan.training.batch)
        path.parent.mkdir(exist_ok=True)
        save_weights(path, model, {}, durable=False)
    return Trained(directory, plan, data)


def untrained(spec: Any) -> Any:
    """A small language model as the harness would train it, with the weights of initialisation."""
    from repro.data.lm_tasks import build as task_of
    from repro.models.huggingface import wrap
    from repro.models.organism import build
    from repro.training import lm_tokenizer

    task = task_of(spec.task)
    return wrap(build(spec, len(task.vocabulary), 0, 0), lm_tokenizer.build(task.vocabulary, task.start))


@cache
def shared_store() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp())


def tuned(spec: Any) -> Any:
    """A very small model that is tuned on a text, trained for a moment."""
    from repro.training import tuned_store

    return tuned_store.load(spec, {"executor": "inline", "device": "cpu", "threads": 1}, shared_store())


@cache
def result_of(experiment: str) -> Result:
    """What the analysis of an experiment gives, of stand-ins."""
    import tempfile

    store = Path(tempfile.mkdtemp())
    values = small(experiment)
    specs = root_specs.parse(values)
    data = import_module(specs["data"].module).load(specs["data"])
    subject = None
    if specs["training"] is not None:
        subject = {name: stand_in(plan, store, data) for name, plan in planned(values, specs, store).items()}
    elif specs["model"].kind == "organism":
        subject = untrained(specs["model"])
    elif specs["model"].kind == "text_organism":
        subject = tuned(specs["model"])
    asked, _ = specs["analysis"].for_subject(subject, data)
    return import_module(asked.module).run(subject, data, None, store, asked)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_composes_and_plans(experiment: str, tmp_path: Path) -> None:
    values = composed(experiment).values
    specs = root_specs.parse(values)
    assert specs["analysis"] is not None and specs["data"] is not None
    if specs["training"] is not None:
        assert list(planned(values, specs, tmp_path)) != []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_file_opens_with_what_a_reader_needs(experiment: str) -> None:
    lines = file_of(experiment).read_text().splitlines()
    assert lines[0] == "# @package _global_"
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    header = lines[1:end]
    assert 10 < len(header[0]) <= 120, "the first line is what `python launch.py` lists"
    text = "\n".join(header)
    assert f"python launch.py paper/{experiment}" in text
    for word in ("Run:", "Hardware:", "Time:", "Expect:"):
        assert word in text, f"the header of {experiment} lacks {word}"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_figures_draw_what_the_analysis_gives(experiment: str) -> None:
    specs = root_specs.parse(composed(experiment).values)["figures"]
    for name, spec in specs.items():
        for seeds in (1, 2):
            labels = [f"seed {seed}" for seed in range(seeds)]
            canvas = draw.figure(spec, [result_of(experiment)] * seeds, labels)
            empty = [place for place in canvas.axes if place.axison and not place.has_data()]
            assert not empty, f"{name}: {len(empty)} of its panels are empty"


@pytest.mark.parametrize(("slug", "claim"), CLAIMS)
def test_claims_measure_what_the_analysis_gives(slug: str, claim: claims_file.Claim) -> None:
    criteria = {
        claim.criterion(subject)[0]: claim.criterion(subject)[1] for subject in ("paper", "other", "embedded")
    }
    assert criteria["on_embedded"] or claim.reason, "without a criterion there must be a reason"
    for experiment in claim.experiments:
        result = result_of(f"{slug}={experiment}")
        for check in [check for checks in criteria.values() for check in checks]:
            values = [check.value] if isinstance(check.value, str) else []
            for formula in [*check.measures, *values]:
                assert np.size(expressions.evaluate(formula, result)) > 0


@pytest.mark.parametrize("slug", sorted({str(param.values[0]) for param in CLAIMS}))
def test_claims_name_experiments_that_exist(slug: str) -> None:
    file = claims_file.read(ROOT / "papers" / slug / "claims.yaml")
    named = {f"{slug}={experiment}" for claim in file.claims for experiment in claim.experiments}
    assert named <= set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_readme_of_the_paper_names_the_experiment(experiment: str) -> None:
    slug, name = experiment.split("=")
    assert f"`{name}`" in (ROOT / "papers" / slug / "README.md").read_text()
