"""The small training run that several tests share, and its parts as config values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from repro.data.features import Features, load
from repro.data.specs import Gaussian, Sequences
from repro.interventions import icl_manipulations
from repro.interventions.specs import Manipulation
from repro.models.specs import IclTransformer
from repro.training.plans import Plan, plans
from repro.training.program import Program, Seeds, build
from repro.training.specs import Training

SEED = {"init": 5, "train": 0, "eval": 1}
MODEL = {"kind": "icl_transformer", "width": 16, "heads": 2}
DATA = {"kind": "gaussian", "classes": 60, "exemplars": 5, "dim": 32}
EVALUATE = {
    "fsl_train": {"relabel": "train"},
    "fsl_val_rl": {"relabel": "val"},
    "fsl_train_valex": {"exemplars": "val"},
    "fsl_test_class": {"classes": "test"},
}
SEQUENCES = {
    "class_split": [20, "rest", 10],
    "exemplar_split": [1, "rest", 0],
    "label_pair_split": [8, 2, 0],
    "evaluate": EVALUATE,
    "evaluation_sequences": 40,
}
TRAINING = {"sequences": 400, "batch": 8, "learning_rate": 0.003, "evaluate_at": [100]}


def features(**changes: Any) -> Features:
    """60 classes, 5 exemplars, 32 dimensions of i.i.d. noise, unless `changes` says otherwise."""
    loaded = load(Gaussian(**{**DATA, **changes}))
    assert loaded is not None
    return loaded


def program(
    manipulations: list[Mapping[str, Any]] | None = None,
    training: Mapping[str, Any] | None = None,
    sequences: Mapping[str, Any] | None = None,
    longest: int = 50,
    **model: Any,
) -> Program:
    """The compiled functions of the small run with these changes."""
    chosen = [Manipulation.choose(one, "manipulations") for one in manipulations or []]
    return build(
        IclTransformer(**{**MODEL, **model}),
        Sequences.parse({**SEQUENCES, **(sequences or {})}, "sequences"),
        Training(**{**TRAINING, **(training or {})}),
        Seeds(**SEED),
        features(),
        icl_manipulations.build(chosen),
        longest,
    )


def config(**changes: Any) -> dict[str, Any]:
    """The config of one condition, as plain values; training and sequences are merged, the rest is not."""
    base: dict[str, Any] = {
        "model": MODEL,
        "sequences": SEQUENCES,
        "training": TRAINING,
        "manipulations": [],
        "seed": SEED,
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if key in ("training", "sequences") else value
    return base


def plan(store: Path, **changes: Any) -> Plan:
    """The plan of one run of the small config with these changes."""
    return plans({"": config(**changes)}, Gaussian(**DATA), store)[""]


def equal(one: Any, other: Any) -> bool:
    """Whether all arrays of two states are the same, bit for bit."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
