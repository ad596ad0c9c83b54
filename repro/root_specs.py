"""What the whole config must look like: its root keys, and the parts that belong to no room.

`parse` turns the resolved mapping into specs, or raises one `UserError`. Nothing here imports PyTorch or JAX.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from repro import shards
from repro.errors import UserError
from repro.hardware import Hardware
from repro.specs import Family, Spec

Natural = Annotated[int, Field(ge=0)]


class Seeds(Spec):
    """Named streams: initialisation, training sequences, evaluation sequences."""

    init: Natural
    train: Natural
    eval: Natural

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({self.init, self.train, self.eval}) < 3:
            got = f"init={self.init}, train={self.train}, eval={self.eval}"
            raise UserError(
                f"seed: init, train and eval must differ, or training and evaluation would share random"
                f" numbers; got {got}. Give other ones, e.g. seed.init=5 seed.train=0 seed.eval=1"
            )
        return self


class Paper(Spec):
    """What is being reproduced. `headline` is the experiment `make reproduce` runs.

    `seeds` are the published ones where a paper has several; `seed=k` then shifts `init` by k.
    `models`: choices of model= that are the paper's own; null: it trains its own.
    """

    slug: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: str
    citation: str
    headline: str | None = None
    seeds: Seeds | None = None
    models: list[str] | None = None


class Tracking(Spec):
    """Weights & Biases: `offline` writes files that `make publish` sends later. Credentials stay outside.

    base_url: another server. max_points: of one series sent; our own files keep all.
    """

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "repro-harness"
    entity: str | None = None
    tags: list[str] = []
    base_url: str | None = None
    max_points: Annotated[int, Field(ge=1)] = 2000
    init_timeout_s: Annotated[float, Field(gt=0)] = 20
    finish_timeout_s: Annotated[float, Field(gt=0)] = 60


# What of a run is checked by which room. The rooms are imported when a config is checked, not before.
GROUPS = {
    "model": ("repro.models.specs", "Model"),
    "data": ("repro.data.specs", "Data"),
    "analysis": ("repro.analyses.specs", "Analysis"),
}
MAPPINGS = {
    "sequences": ("repro.data.specs", "Sequences"),
    "training": ("repro.training.specs", "Training"),
}
OWN: dict[str, type[Spec]] = {"paper": Paper, "hardware": Hardware, "tracking": Tracking}
LISTS = {"manipulations": ("repro.interventions.specs", "Manipulation")}
NAMED = {
    "conditions": ("repro.training.specs", "Condition"),
    "figures": ("repro.figures.specs", "Figure"),
}
SWITCHES = {"rerun": False, "dry_run": False, "verbose": False, "wait": True}
ROOT_KEYS = sorted([*OWN, *GROUPS, *MAPPINGS, *LISTS, *NAMED, *SWITCHES, "seed", "runs_dir", "shards"])
# What cannot change a number, and so is no part of the hash.
NOT_HASHED = {"hardware", "tracking", "figures", "runs_dir", "shards", *SWITCHES}


def suggest(word: str, choices: list[str]) -> str:
    """ " (did you mean 'x'?)" if one of the choices is close to the word, else nothing."""
    near = difflib.get_close_matches(word, choices, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def parse(values: Mapping[str, Any]) -> dict[str, Any]:
    """The checked config by root key: specs, and lists and mappings of specs where the config has such.

    Raises `UserError` naming key, expected, got and valid choices.
    """
    unknown = [str(key) for key in values if key not in ROOT_KEYS]
    if unknown:
        raise UserError(
            "\n".join(
                f"{key}: unknown key{suggest(key, ROOT_KEYS)}. Valid keys: {', '.join(ROOT_KEYS)}"
                for key in unknown
            )
        )
    parsed: dict[str, Any] = {}
    for key, own in OWN.items():
        parsed[key] = own.parse(_mapping(values, key, "a choice is required"), key)
    for key, place in {**GROUPS, **MAPPINGS}.items():
        part = values.get(key)
        parsed[key] = None if part is None else _one(place, _mapping(values, key, ""), key)
    _check_together(parsed["analysis"], parsed["model"])
    if parsed["data"] is not None:
        parsed["data"] = parsed["data"].for_model(parsed["model"])
    for key, place in LISTS.items():
        items = values.get(key) or []
        if not isinstance(items, list):
            raise UserError(f"{key}: expected a list, got {items!r}. Give e.g. '{key}=[{{kind: ...}}]'")
        parsed[key] = [
            _one(place, _as_mapping(item, f"{key}.{i}"), f"{key}.{i}") for i, item in enumerate(items)
        ]
    for key, place in NAMED.items():
        items = _mapping(values, key, "") if values.get(key) else {}
        parsed[key] = {
            str(name): _one(place, _as_mapping(item or {}, f"{key}.{name}"), f"{key}.{name}")
            for name, item in items.items()
        }
    parsed["seed"] = _seed(values.get("seed", 0), parsed["paper"].seeds)
    parsed["runs_dir"] = _runs_dir(values.get("runs_dir", "runs"))
    for key, default in SWITCHES.items():
        parsed[key] = _switch(key, values.get(key, default))
    for name, condition in parsed["conditions"].items():
        _check_condition(values, dump(condition), parsed["seed"], f"conditions.{name}")
    parsed["shards"] = _shards(values, parsed)
    return parsed


def _check_together(analysis: Any, model: Any) -> None:
    """Refuse a question that cannot be asked of this kind of model."""
    if analysis is None or model is None or model.kind in analysis.models:
        return
    choices = {
        "hf": "hf model.path=NAME_OR_FOLDER",
        "organism": "ioi_organism",
        "fine_tuned": "gpt2_wikitext",
    }
    valid = ", ".join(f"model={choices.get(kind, kind)}" for kind in analysis.models)
    raise UserError(
        f"analysis {analysis.kind} cannot be asked of model.kind={model.kind}. Choose e.g. {valid},"
        " or another analysis"
    )


def condition_values(values: Mapping[str, Any], condition: Mapping[str, Any]) -> dict[str, Any]:
    """The root values with what one condition says differently.

    Mappings are merged at every depth, anything else is replaced (a list as a whole; a value inside a
    mapping also by null). `manipulations: null` leaves those of the experiment.
    """
    said = {key: part for key, part in condition.items() if part is not None and part != {}}
    return _merged(values, said)


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, part in over.items():
        both = isinstance(part, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], part) if both else part
    return merged


def dump(part: Any) -> Any:
    """Plain values of a spec, or of a list or mapping of specs."""
    if isinstance(part, Spec):
        return part.model_dump(mode="json")
    if isinstance(part, dict):
        return {key: dump(item) for key, item in part.items()}
    if isinstance(part, list):
        return [dump(item) for item in part]
    return part


def _one(place: tuple[str, str], mapping: Mapping[str, Any], where: str) -> Spec:
    module, name = place
    spec = getattr(importlib.import_module(module), name)
    return spec.choose(mapping, where) if issubclass(spec, Family) else spec.parse(mapping, where)


def _check_condition(values: Mapping[str, Any], condition: dict[str, Any], seed: Any, where: str) -> None:
    """Refuse a condition whose merged values are wrong, naming the key in the condition."""
    merged = condition_values({**values, "seed": dump(seed)}, condition)
    for key, place in {**GROUPS, **MAPPINGS}.items():
        if condition.get(key):
            _one(place, _as_mapping(merged[key], f"{where}.{key}"), f"{where}.{key}")
    for i, item in enumerate(condition.get("manipulations") or []):
        _one(LISTS["manipulations"], _as_mapping(item, where), f"{where}.manipulations.{i}")
    if condition.get("seed"):
        if not isinstance(seed, Seeds):
            raise UserError(f"{where}.seed: this paper has one seed for all conditions. Leave it out")
        Seeds.parse(merged["seed"], f"{where}.seed")


def _mapping(values: Mapping[str, Any], key: str, missing: str) -> Mapping[str, Any]:
    if values.get(key) is None:
        raise UserError(f"{key}: {missing}. Give {key}=NAME; python launch.py lists what there is")
    return _as_mapping(values[key], key)


def _as_mapping(item: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise UserError(f"{where}: expected a mapping of keys to values, got {item!r}")
    return item


def _seed(seed: Any, published: Seeds | None) -> int | Seeds:
    """One integer, or three named seeds: the paper's own, shifted by an integer or replaced in part."""
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    if published is None:
        if whole and seed >= 0:
            return seed
        raise UserError(f"seed: expected one integer of at least 0, got {seed!r}. Give e.g. seed=1")
    if whole:
        return Seeds.parse({**published.model_dump(), "init": published.init + seed}, "seed")
    if isinstance(seed, Mapping):
        return Seeds.parse({**published.model_dump(), **seed}, "seed")
    raise UserError(
        f"seed: expected an integer k (initialisation seed {published.init} + k) or the keys init, train,"
        f" eval; got {seed!r}. Give e.g. seed=1 or seed.init=7"
    )


def _runs_dir(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"runs_dir: expected a folder, got {value!r}. Give e.g. runs_dir=runs")
    return value


def _shards(values: Mapping[str, Any], parsed: Mapping[str, Any]) -> int:
    """Over how many jobs the analysis is shared out. Raises `UserError` if it cannot be shared out so."""
    count, analysis = values.get("shards", 1), parsed["analysis"]
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"shards: expected an integer of at least 1, got {count!r}. Give e.g. shards=4")
    if count == 1 or analysis is None:
        return count
    if analysis.splits_over is None:
        family = getattr(importlib.import_module(GROUPS["analysis"][0]), GROUPS["analysis"][1])
        over = {kind: one.splits_over for kind, one in sorted(family.kinds().items()) if one.splits_over}
        able = ", ".join(f"{kind} (over {what})" for kind, what in over.items())
        raise UserError(
            f"shards: analysis {analysis.kind} cannot be split. These can: {able}. Leave shards out"
        )
    items = analysis.items(lambda condition: _of_condition(values, parsed, condition))
    if items is not None and count > items:
        raise shards.too_many(count, items, analysis.splits_over)
    return count


def _of_condition(values: Mapping[str, Any], parsed: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The specs as one condition has them; those of all where there is none of this name."""
    condition = parsed["conditions"].get(name)
    if condition is None:
        return parsed
    merged = condition_values({**values, "seed": dump(parsed["seed"])}, dump(condition))
    places = {**GROUPS, **MAPPINGS}
    return {
        **parsed,
        **{key: _one(place, merged[key], key) for key, place in places.items() if merged.get(key)},
    }


def _switch(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{key}: expected true or false, got {value!r}")
    return value
