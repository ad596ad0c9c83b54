"""The phase change of one run, and the heads that form with it (sheet A: C1 to C4; Fig. 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from repro.analyses.icl_measures import measure, training_sequences
from repro.analyses.learning_curves import curves
from repro.analyses.specs import IclFormation
from repro.data.features import Features
from repro.errors import UserError
from repro.progress import progress
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join
from repro.training.schedule import nearest
from repro.training.store import Trained

PLATEAU = 0.05
STRONG, NOTICEABLE = 0.4, 0.25
EARLY = 100_000
WINDOW = (50_000, 150_000)


def run(
    subject: Mapping[str, Trained], data: Features, record: Any, directory: Path, spec: IclFormation
) -> Result:  # fmt: skip
    """Learning curves, and strengths of all heads along the checkpoints.

    Adds to the arrays of `learning_curves`: checkpoint_sequences [checkpoint], checkpoint_loss and
    checkpoint_accuracy [checkpoint] (over every training sequence), induction_strength and
    previous_token_score [checkpoint, layer, head], and the last ones of the last and the first layer,
    final_induction_strength and final_previous_token_score [head].
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(
    subject: Mapping[str, Trained], data: Features, directory: Path | None, spec: IclFormation, part: Part
) -> Result:  # fmt: skip
    """What `run` finds at some of the checkpoints, in order of training."""
    if len(subject) != 1:
        raise UserError(f"analysis: icl_formation follows one run, got conditions {', '.join(subject)}")
    (trained,) = subject.values()
    result = curves(trained, spec.thresholds, PLATEAU)
    sequences = training_sequences(trained.plan.sequences, data, spec.sequences)
    every_saved = nearest(trained.checkpoints, spec.checkpoints)
    saved = part.of(every_saved)
    # As for all of them, so that a part is measured in the same way as the whole.
    measured, take = [], measure(trained, None, sequences, scores=True, models=len(every_saved))
    with progress(len(saved), "head strengths", "checkpoints") as bar:
        for at in saved:
            measured.append(take(trained.model(at)))
            bar.advance(1)
    strength = np.stack([one.induction for one in measured])  # type: ignore[misc]
    previous = np.stack([one.previous_token for one in measured])  # type: ignore[misc]
    layers, heads = range(strength.shape[1]), range(strength.shape[2])
    along: dict[str, Any] = {"checkpoint": saved}
    every: dict[str, Any] = {**along, "layer": list(layers), "head": list(heads)}
    result.arrays.update(
        checkpoint_sequences=NamedArray(np.asarray(saved), along, "sequence"),
        checkpoint_loss=NamedArray(np.array([one.mean_loss for one in measured]), along, "nat"),
        checkpoint_accuracy=NamedArray(np.array([one.accuracy for one in measured]), along),
        induction_strength=NamedArray(strength, every),
        previous_token_score=NamedArray(previous, every),
    )
    return result


def merge(parts: Sequence[Result], spec: IclFormation) -> Result:
    """All checkpoints together, and how heads form and where they end."""
    result = join(parts, "checkpoint")
    arrays = result.arrays
    saved, strength = arrays["checkpoint_sequences"].values, arrays["induction_strength"].values
    previous = arrays["previous_token_score"].values
    final = strength.shape[1] - 1
    scores = {("strength", final): strength[-1, final], ("previous_token", 0): previous[-1, 0]}
    names = [[f"{layer}:{head}" for head in range(strength.shape[2])] for layer in (final, 0)]
    arrays["final_induction_strength"] = NamedArray(strength[-1, final], {"head": [*names[0]]})
    arrays["final_previous_token_score"] = NamedArray(previous[-1, 0], {"head": [*names[1]]})
    result.scalars.update(plateau_range(result))
    result.scalars.update(strength_summary(saved, strength[:, final]))
    for (name, layer), values in scores.items():
        result.scalars.update({f"{name}.{layer}:{head}": float(one) for head, one in enumerate(values)})
    return result


def plateau_range(result: Result) -> dict[str, float]:
    """Least and greatest fsl_train loss of the evaluations between 5e4 and 1.5e5 sequences (claim C1)."""
    name = "eval_fsl_train_loss"
    if name not in result.arrays:
        return {}
    at, loss = result.arrays["eval_sequences"].values, result.arrays[name].values
    inside = loss[(at >= WINDOW[0]) & (at <= WINDOW[1])]
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (math.nan, math.nan)
    return {f"loss_min_{WINDOW[0]}_{WINDOW[1]}": low, f"loss_max_{WINDOW[0]}_{WINDOW[1]}": high}


def strength_summary(
    sequences: Int[np.ndarray, " checkpoint"], strength: Float[np.ndarray, "checkpoint head"]
) -> dict[str, float]:
    """How strong the heads become, how many, and whether together (claims C3 and C4).

    half_time.<head>: sequences at which a head first has half of its final strength, interpolated
    between checkpoints; half_time_ratio: the latest over the earliest among heads above 0.25 at the end.
    """
    final = strength[-1]
    early = np.abs(strength[sequences < EARLY])
    half = {head: half_time(sequences, strength[:, head]) for head in range(len(final))}
    noticed = [half[head] for head in half if final[head] > NOTICEABLE]
    return {
        "strength.max": float(final.max()),
        "strength.heads_above_0_4": float(np.sum(final > STRONG)),
        "strength.max_abs_before_100000": float(early.max()) if early.size else math.nan,
        "half_time_ratio": max(noticed) / min(noticed) if noticed and min(noticed) > 0 else math.nan,
        **{f"half_time.{head}": at for head, at in half.items()},
    }


def half_time(sequences: Int[np.ndarray, " checkpoint"], strength: Float[np.ndarray, " checkpoint"]) -> float:
    """Sequences at which a curve first reaches half of its last value; NaN if that is not positive."""
    half = strength[-1] / 2
    if not half > 0:
        return math.nan
    after = int(np.argmax(strength >= half))
    if after == 0:
        return float(sequences[0])
    before = after - 1
    share = (half - strength[before]) / (strength[after] - strength[before])
    return float(sequences[before] + share * (sequences[after] - sequences[before]))
