"""Any saved checkpoint under any manipulations: loss, accuracy and head strengths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from repro.analyses.icl_measures import condition, measure, parse, training_sequences
from repro.analyses.specs import Inspect
from repro.data.features import Features
from repro.errors import UserError
from repro.interventions.compatibility import resolve
from repro.results import NamedArray, Result, read_json
from repro.training.places import PLAN
from repro.training.store import Trained


def run(
    subject: Mapping[str, Trained] | None, data: Features, record: Any, directory: Path, spec: Inspect
) -> Result:  # fmt: skip
    """Scalars loss (nat), accuracy; arrays induction_strength and previous_token_score [layer, head],
    accuracy_by_label and loss_by_label [label], and per_sequence_loss, per_sequence_right [sequence]."""
    trained = opened(spec) if spec.run else condition(subject or {}, spec.condition)
    listed = None
    if spec.manipulations is not None:
        asked = parse(spec.manipulations, "analysis.manipulations")
        listed = resolve(asked, trained.plan.model, trained.plan.sequences.context, "analysis.manipulations")
    sequences = training_sequences(trained.plan.sequences, trained.features, spec.sequences)
    measured = measure(trained, listed, sequences, scores=True)(trained.model(spec.checkpoint))
    targets = sequences.labels[:, -1]
    labels = sorted(set(targets.tolist()))
    by_label: dict[str, Any] = {"label": labels}
    assert measured.induction is not None and measured.previous_token is not None
    depth, heads = measured.induction.shape
    places: dict[str, Any] = {"layer": list(range(depth)), "head": list(range(heads))}
    used = trained.plan.manipulations if listed is None else listed
    return Result(
        {
            "loss": measured.mean_loss,
            "accuracy": measured.accuracy,
            "sequences": float(len(sequences)),
            "checkpoint": float(trained.checkpoints[-1] if spec.checkpoint == "last" else spec.checkpoint),
            **{
                f"strength.{layer}:{head}": float(measured.induction[layer, head])
                for layer in range(depth)
                for head in range(heads)
            },
        },
        {
            "induction_strength": NamedArray(measured.induction, places),
            "previous_token_score": NamedArray(measured.previous_token, places),
            "loss_by_label": NamedArray(
                np.array([measured.loss[targets == label].mean() for label in labels]), by_label, "nat"
            ),
            "accuracy_by_label": NamedArray(
                np.array([measured.right[targets == label].mean() for label in labels]), by_label
            ),
            "per_sequence_loss": NamedArray(measured.loss, {"sequence": len(sequences)}, "nat"),
            "per_sequence_right": NamedArray(measured.right, {"sequence": len(sequences)}),
        },
        {
            "trained": str(trained.directory),
            "manipulations": "; ".join(one.model_dump_json() for one in used) or "none",
        },
    )


def opened(spec: Inspect) -> Trained:
    """The trained model in a folder of the store, or the one that a run directory used."""
    directory = Path(str(spec.run)).expanduser()
    if (directory / PLAN).exists() or not (directory / "provenance.json").exists():
        return Trained.open(directory)
    known = read_json(directory / "provenance.json").get("trained", {})
    if spec.condition not in known:
        raise UserError(
            f"analysis.condition: {directory} has no condition {spec.condition!r}."
            f" Valid choices: {', '.join(map(repr, known)) or 'none, it trained no model'}"
        )
    return Trained.open(known[spec.condition])
