"""The training runs that a config asks for, and where their weights lie: known before any work starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro import root_specs
from repro.config import Config

if TYPE_CHECKING:
    from repro.training.plans import Plan

TRAINED = "trained"


def plans(config: Config, specs: Mapping[str, Any]) -> dict[str, Plan]:
    """The training run of every condition, in an order in which each comes after those it needs.

    Empty where the model is loaded or the experiment has its own. specs: what `root_specs.parse` makes of the
    config. Raises `UserError` for impossible combinations.
    """
    if specs["training"] is None or not specs["analysis"].trains:
        return {}
    from repro.training.plans import plans

    named = specs["conditions"] and config.values["conditions"]
    wanted = {
        name: root_specs.condition_values(config.values, condition or {})
        for name, condition in (named or {"": {}}).items()
    }
    return plans(wanted, specs["data"], store(config))


def store(config: Config) -> Path:
    """The folder of trained models, one a plan."""
    return Path(config.values["runs_dir"], TRAINED)
