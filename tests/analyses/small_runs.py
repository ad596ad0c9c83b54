"""Trained runs for tests without training: a circuit written by hand, and random weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from repro.data.features import Features
from repro.data.specs import Gaussian, Sequences
from repro.interventions.specs import Manipulation
from repro.models.icl_init import init
from repro.models.icl_transformer import IclTransformerModel
from repro.models.specs import IclTransformer
from repro.training.plans import Plan
from repro.training.specs import Training
from tests.models.small_models import from_weights, named, small

CLASSES, LABELS = 4, 3
SPEC = IclTransformer(depth=2, heads=2, width=20, positions="learned")
SEQUENCES = Sequences.parse(
    {
        "class_split": [CLASSES, "rest", 0],
        "exemplar_split": [1, "rest", 0],
        "labels": LABELS,
        "evaluate": {"fsl_train": {}},
    },
    "sequences",
)
# 4 * 3 pairs of classes, 3 pairs of labels in 2 orders, and 2 queries.
COUNT = 12 * 6 * 2
# Channels of the hand-written model.
CONTENT, LABEL, POSITION, PREVIOUS, OUT, EMPTY = 0, 4, 7, 12, 16, 19


def features() -> Features:
    """One-hot features for exemplar 0; another exemplar and another class that nothing may read."""
    values = np.full((CLASSES + 1, 2, CLASSES), 1e3, np.float32)
    values[:CLASSES, 0] = np.eye(CLASSES)
    return Features(values, "made up", "0" * 64, "gaussian")


def circuit(
    copies: Sequence[Collection[int]] = ((0, 1, 2), ()), connected: bool = True
) -> IclTransformerModel:
    """A model that is right by construction.

    Head 0:0 attends to the previous token and writes its class; head 1:0 attends to the label whose
    previous token has the query's class; head `i` of layer 1 writes the labels `copies[i]`. Heads 0:1 and
    1:1 attend evenly, and 0:1 writes nothing. Without anything written, label 0 is predicted.
    connected: False leaves what head 0:0 writes out.
    """
    size = 10
    like = init(SPEC, CLASSES, LABELS, 0)
    weights = {name: np.zeros_like(value) for name, value in named(like).items()}
    for norm in ("blocks.0.attn_norm", "blocks.1.attn_norm", "final_norm"):
        weights[f"{norm}.weight"] += 1
    for index in range(CLASSES):
        weights["example_embed.weight"][CONTENT + index, index] = 1
    for label in range(LABELS):
        weights["label_embed.weight"][LABEL + label, label] = 1
        weights["unembed.weight"][label, OUT + label] = 10
    weights["unembed.bias"][0] = 1e-3
    query, key, value = (slice(part * 20, part * 20 + size) for part in range(3))
    first, second = weights["blocks.0.attn.qkv.weight"], weights["blocks.1.attn.qkv.weight"]
    for at in range(5):
        weights["learned_positions.weight"][POSITION + at, at] = 1
        first[query][at, POSITION + at] = 4
    for at in range(1, 5):
        first[key][at, POSITION + at - 1] = 4
    for index in range(CLASSES):
        first[value][index, CONTENT + index] = 1
        weights["blocks.0.attn.out.weight"][PREVIOUS + index, index] = connected
        second[query][index, CONTENT + index] = 10
        second[key][index, PREVIOUS + index] = 10
        # The first token attends to itself and so has its own class as the previous one.
        second[key][index, POSITION] = -20
    for head, labels in enumerate(copies):
        for label in labels:
            # Relative to a channel that is always empty, so that an absent label is 0 after normalisation.
            second[40 + size * head + label, [LABEL + label, EMPTY]] = 1, -1
            weights["blocks.1.attn.out.weight"][OUT + label, size * head + label] = 1
    return from_weights(weights, "", like)


@dataclass
class Run:
    """What analyses ask of a trained run, for given weights."""

    models: Mapping[int, IclTransformerModel]
    history: Mapping[str, np.ndarray] = field(default_factory=dict)
    manipulations: Sequence[Manipulation] = ()
    spec: IclTransformer = SPEC
    sequences: Sequences = SEQUENCES

    @property
    def plan(self) -> Plan:
        training = Training(sequences=320, batch=32)
        seed = {"init": 5, "train": 0, "eval": 1}
        return Plan("", self.spec, Gaussian(), self.sequences, training, tuple(self.manipulations), seed)

    @property
    def checkpoints(self) -> list[int]:
        return sorted(self.models)

    def model(self, checkpoint: int | str = "last") -> IclTransformerModel:
        return self.models[self.checkpoints[-1] if checkpoint == "last" else int(checkpoint)]


def circuit_run(**kwargs: Any) -> Any:
    """A finished run whose weights are the circuit."""
    return Run({320: circuit(**kwargs)})


def random_run(seed: int = 0, heads: int = 2) -> Any:
    """A finished run with random weights, with four channels a head."""
    spec = IclTransformer(depth=2, heads=heads, width=4 * heads)
    return Run({320: small(seed, CLASSES, LABELS, heads=heads, width=4 * heads)}, spec=spec)
