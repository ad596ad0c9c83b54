"""What one training run is, down to the last thing that can change a weight; its hash is its name.

A figure may need many runs (conditions), and figures share them: every experiment that asks for the
same plan gets the same weights, trained once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.data.specs import Data, Sequences
from repro.errors import UserError
from repro.interventions.compatibility import resolve
from repro.interventions.specs import Manipulation, fingerprint
from repro.models.specs import IclTransformer, Model
from repro.training.schedule import step_count
from repro.training.specs import Training

# A graft names the condition that it takes its layers from.
CONDITION = "condition:"


@dataclass(frozen=True)
class Plan:
    """One training run. `needs`: names of the conditions whose trained weights it is given."""

    name: str
    model: IclTransformer
    data: Data
    sequences: Sequences
    training: Training
    manipulations: tuple[Manipulation, ...]
    seed: dict[str, int]
    needs: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return step_count(self.training)

    def content(self) -> dict[str, Any]:
        """Everything that can change a weight, as plain values."""
        return {
            "model": self.model.model_dump(mode="json"),
            "data": self.data.fingerprint(),
            "sequences": self.sequences.fingerprint(),
            "training": self.training.model_dump(mode="json"),
            "manipulations": [fingerprint(item) for item in self.manipulations],
            "seed": self.seed,
        }

    def digest(self) -> str:
        """Name of the run in the store of trained models."""
        text = json.dumps(self.content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Text from which `Plan.from_json` makes the same plan, in a worker process."""
        written = {
            **self.content(),
            "data": self.data.model_dump(mode="json"),
            "sequences": self.sequences.model_dump(mode="json"),
            "manipulations": [item.model_dump(mode="json") for item in self.manipulations],
        }
        return json.dumps({**written, "name": self.name, "needs": list(self.needs)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote."""
        plain = json.loads(text)
        return cls(
            plain["name"],
            IclTransformer.parse(plain["model"], "model"),
            Data.choose(plain["data"], "data"),
            Sequences.parse(plain["sequences"], "sequences"),
            Training.parse(plain["training"], "training"),
            tuple(Manipulation.choose(item, "manipulations") for item in plain["manipulations"]),
            plain["seed"],
            tuple(plain["needs"]),
        )


def plans(conditions: Mapping[str, Mapping[str, Any]], data: Data, store: Path) -> dict[str, Plan]:
    """The plan of every condition, in an order in which each comes after those it needs.

    conditions: name -> the whole config of that condition (keys model, sequences, training,
    manipulations, seed), as plain values. store: folder of trained models, in which grafts find the
    weights of other conditions. Raises `UserError` for impossible combinations.
    """
    made: dict[str, Plan] = {}
    waiting = dict(conditions)
    while waiting:
        ready = [name for name, values in waiting.items() if _needs(values) <= made.keys()]
        if not ready:
            missing = sorted({need for values in waiting.values() for need in _needs(values)} - made.keys())
            raise UserError(
                f"conditions: {', '.join(waiting)} take layers from {', '.join(missing)}, which cannot be"
                f" trained before them. Valid: {', '.join(conditions)}, without a circle"
            )
        for name in ready:
            made[name] = _plan(name, waiting.pop(name), data, made, store)
    return made


def _plan(name: str, values: Mapping[str, Any], data: Data, made: Mapping[str, Plan], store: Path) -> Plan:
    where = f"conditions.{name}." if name else ""
    model = Model.choose(values["model"], f"{where}model")
    if not isinstance(model, IclTransformer):
        raise UserError(
            f"{where}model.kind: only icl_transformer is trained from scratch, got {values['model']}"
        )
    sequences = Sequences.parse(values["sequences"], f"{where}sequences")
    listed = [
        Manipulation.choose(_resolved(item, made, store), f"{where}manipulations")
        for item in values["manipulations"] or []
    ]
    manipulations = resolve(listed, model, sequences.context, f"{where}manipulations")
    training = Training.parse(values["training"], f"{where}training")
    needs = tuple(sorted(_needs(values)))
    return Plan(name, model, data, sequences, training, manipulations, _seeds(values["seed"]), needs)


def _needs(values: Mapping[str, Any]) -> set[str]:
    """Names of the conditions that a condition's grafts refer to."""
    runs = [str(item.get("run", "")) for item in values["manipulations"] or []]
    return {run.removeprefix(CONDITION) for run in runs if run.startswith(CONDITION)}


def _resolved(item: Mapping[str, Any], made: Mapping[str, Plan], store: Path) -> dict[str, Any]:
    """A manipulation with the name of another condition replaced by where that one's weights lie."""
    run = str(item.get("run", ""))
    if not run.startswith(CONDITION):
        return dict(item)
    return {**item, "run": str(store / made[run.removeprefix(CONDITION)].digest())}


def _seeds(seed: Mapping[str, int]) -> dict[str, int]:
    if len(set(seed.values())) < len(seed):
        raise UserError(
            "seed: the seeds of weights (init), training data (train) and evaluation data (eval) must differ,"
            f" or their random streams coincide; got {dict(seed)}. Change one, e.g."
            f" seed.init={max(seed.values()) + 1}"
        )
    return dict(seed)
