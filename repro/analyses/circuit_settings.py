"""A trained model with parts of its circuit ablated, preserved or made perfect.

Source: arXiv 2404.07129, Table 1 (value ablations), Fig. 10 (progress measures), Fig. 12 (contributions).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from repro.analyses.icl_measures import (
    SequenceSet,
    condition,
    layer_heads,
    measure,
    parse,
    training_sequences,
)
from repro.analyses.specs import OTHER_HEADS, PREVIOUS_TOKEN_HEADS, CircuitSettings, with_groups
from repro.data.features import Features
from repro.errors import UserError
from repro.expressions import at
from repro.interventions.specs import Manipulation
from repro.progress import progress
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join
from repro.training.schedule import nearest
from repro.training.store import Trained


def run(
    subject: Mapping[str, Trained], data: Features, record: Any, directory: Path, spec: CircuitSettings
) -> Result:  # fmt: skip
    """Loss and accuracy over every training sequence, of each setting at each checkpoint.

    Arrays: loss, accuracy [setting, checkpoint]; checkpoint_sequences [checkpoint]; previous_token [head]
    of the first layer at the end; with a baseline also baseline_loss [checkpoint] and loss_increase
    [setting, checkpoint]. Scalars of each setting: .accuracy and .loss (and .loss_increase) at the last
    checkpoint, and .loss_at_<n>, .accuracy_at_<n>, .loss_increase_at_<n> (NaN beyond the checkpoints).
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(
    subject: Mapping[str, Trained], data: Features, directory: Path | None, spec: CircuitSettings, part: Part
) -> Result:  # fmt: skip
    """Loss and accuracy [cell] of some pairs of setting and checkpoint, one setting after the other."""
    trained = condition(subject, spec.condition)
    sequences = training_sequences(trained.plan.sequences, data, spec.sequences)
    saved = trained.checkpoints
    measured_at = saved[-1:] if spec.checkpoints == "last" else nearest(saved, spec.checkpoints)
    previous = _previous_token_scores(trained, sequences)
    groups = head_groups(previous, spec.previous_token_above, trained.plan.model.depth)
    settings = {
        name: None if items is None else _parsed(name, items, groups) for name, items in spec.settings.items()
    }
    along: dict[str, Any] = {"checkpoint": measured_at}
    heads: dict[str, Any] = {"head": layer_heads(len(previous), 0)}
    arrays = {
        "checkpoint_sequences": NamedArray(np.asarray(measured_at), along, "sequence"),
        "previous_token": NamedArray(previous, heads),
    }
    if spec.baseline is not None:
        baseline = _baseline(trained, spec.baseline, np.asarray(measured_at))
        arrays["baseline_loss"] = NamedArray(baseline, along, "nat")
    cells = part.of([(name, checkpoint) for name in settings for checkpoint in measured_at])
    loss, accuracy = _measured(trained, settings, sequences, cells)
    by_cell: dict[str, Any] = {"cell": [f"{name} at {checkpoint}" for name, checkpoint in cells]}
    arrays |= {"loss": NamedArray(loss, by_cell, "nat"), "accuracy": NamedArray(accuracy, by_cell)}
    scalars = {f"number_of_{PREVIOUS_TOKEN_HEADS}": float(len(groups[PREVIOUS_TOKEN_HEADS]))}
    return Result(scalars, arrays, _notes(settings, groups))


def merge(parts: Sequence[Result], spec: CircuitSettings) -> Result:
    """The cells as curves, compared with the baseline, and read off where the config asks."""
    result = join(parts, "cell")
    arrays, scalars = result.arrays, result.scalars
    measured_at = arrays["checkpoint_sequences"].values
    shape = (len(spec.settings), len(measured_at))
    curves = {name: arrays[name].values.reshape(shape) for name in ("loss", "accuracy")}
    if spec.baseline is not None:
        curves["loss_increase"] = curves["loss"] - arrays["baseline_loss"].values
    by_setting = {"setting": list(spec.settings), **arrays["checkpoint_sequences"].axes}
    for name, values in curves.items():
        arrays[name] = NamedArray(values, by_setting, "1" if name == "accuracy" else "nat")
    for row, setting in enumerate(spec.settings):
        for name, values in curves.items():
            scalars[f"{setting}.{name}"] = float(values[row, -1])
            for n in spec.report_at:
                scalars[f"{setting}.{name}_at_{n}"] = at(measured_at, values[row], n)
    return result


def head_groups(
    previous_token: Float[np.ndarray, " head"], above: float, depth: int
) -> dict[str, list[str]]:  # fmt: skip
    """The heads that names of groups stand for.

    previous_token_heads: heads of layer 0 whose score is greater than `above`; other_heads: the rest of
    layer 0; "1:*": all heads of layer 1, likewise for the other layers.
    """
    every = layer_heads(len(previous_token), 0)
    found = [head for head, score in zip(every, previous_token, strict=True) if score > above]
    groups = {PREVIOUS_TOKEN_HEADS: found, OTHER_HEADS: [head for head in every if head not in found]}
    return groups | {f"{layer}:*": layer_heads(len(every), layer) for layer in range(depth)}


def _parsed(name: str, items: list[dict[str, Any]], groups: dict[str, list[str]]) -> list[Manipulation]:
    return parse([with_groups(item, groups.get) for item in items], f"analysis.settings.{name}")


def _previous_token_scores(trained: Trained, sequences: SequenceSet) -> Float[np.ndarray, " head"]:
    """Of layer 0 at the end of training, under the manipulations of the training."""
    scores = measure(trained, None, sequences, scores=True)(trained.model()).previous_token
    assert scores is not None
    return scores[0]


def _measured(
    trained: Trained,
    settings: Mapping[str, list[Manipulation] | None],
    sequences: SequenceSet,
    cells: Sequence[tuple[str, int]],
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """Loss and accuracy of each pair of setting and checkpoint."""
    measures = {name: measure(trained, settings[name], sequences) for name, _ in cells}
    loss, accuracy = np.empty((2, len(cells)))
    with progress(len(cells), "circuit settings", "evaluations") as bar:
        for row, (name, checkpoint) in enumerate(cells):
            one = measures[name](trained.model(checkpoint))
            loss[row], accuracy[row] = one.mean_loss, one.accuracy
            bar.advance(1)
    return loss, accuracy


def _baseline(trained: Trained, evaluator: str, checkpoints: np.ndarray) -> Float[np.ndarray, " checkpoint"]:
    """Loss of an evaluator while training, straight lines between the evaluations."""
    if evaluator not in trained.plan.sequences.evaluate:
        known = ", ".join(trained.plan.sequences.evaluate)
        raise UserError(f"analysis.baseline: got {evaluator!r}. Valid choices: {known}, or null")
    evaluated = trained.history["points"] * trained.plan.training.batch
    return np.interp(checkpoints, evaluated, trained.history[f"eval_{evaluator}_loss"])


def _notes(
    settings: Mapping[str, list[Manipulation] | None], groups: Mapping[str, list[str]]
) -> dict[str, str]:  # fmt: skip
    notes = {name: ", ".join(groups[name]) or "none" for name in (PREVIOUS_TOKEN_HEADS, OTHER_HEADS)}
    for name, manipulations in settings.items():
        listed = "as trained" if manipulations is None else _said(manipulations)
        notes[f"setting.{name}"] = listed
    return notes


def _said(manipulations: list[Manipulation]) -> str:
    return "; ".join(one.model_dump_json() for one in manipulations) or "none"
