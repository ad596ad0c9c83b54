"""Which labels each head copies, with its own pattern and with a perfect one.

Source: arXiv 2404.07129, Fig. 16 and Table 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from repro.analyses.icl_masks import MaskedMeasure, mask
from repro.analyses.icl_measures import (
    Measured,
    condition,
    head_index,
    layer_heads,
    measure,
    mended,
    training_sequences,
)
from repro.analyses.specs import CopySpecificity
from repro.data.features import Features
from repro.interventions.specs import InductionHeads
from repro.results import NamedArray, Result
from repro.training.store import Trained

OWN, PERFECT = "own", "perfect"


def run(
    subject: Mapping[str, Trained], data: Features, record: Any, directory: Path, spec: CopySpecificity
) -> Result:  # fmt: skip
    """Every head of the last layer alone, attending as it does or perfectly to the right label.

    Arrays: accuracy, loss, mistakes [setting, head]; accuracy_by_label [setting, head, label];
    mistakes_by_label [setting, head, label], the share of that head's mistakes; strength [head];
    perfect_accuracy [head]; mended [head], of the reference head's mistakes with a perfect pattern the
    share that this head gets right with one (Table 3; NaN for the reference itself).
    Scalars: reference (its number), reference.mistakes, reference.accuracy, reference.own_accuracy.
    """
    trained = condition(subject, spec.condition)
    model = trained.model(spec.checkpoint)
    sequences = training_sequences(trained.plan.sequences, data, spec.sequences)
    last = len(model.blocks) - 1
    strength = measure(trained, [], sequences, scores=True)(model).induction
    assert strength is not None
    if spec.reference is None:
        reference = int(np.argmax(strength[last]))
    else:
        reference = head_index(spec.reference, last, model.heads, "analysis.reference")

    names = layer_heads(model.heads, last)
    alone = np.stack([mask(model, last, active=[head]) for head in range(model.heads)])
    # All heads may attend perfectly at once: those that are not looked at add nothing.
    settings = {OWN: [], PERFECT: [InductionHeads(heads=names)]}
    measured = {
        setting: MaskedMeasure(sequences, manipulations)(model, alone, f"heads alone, {setting} pattern")
        for setting, manipulations in settings.items()
    }
    target = sequences.labels[:, -1]
    labels = sorted({int(label) for label in target})
    heads: dict[str, Any] = {"head": names}
    axes: dict[str, Any] = {"setting": list(settings), **heads}
    by: dict[str, Any] = {**axes, "label": labels}
    tables = [by_label(some, target, labels) for some in measured.values()]
    arrays = {
        "accuracy": NamedArray(
            np.array([[one.accuracy for one in some] for some in measured.values()]), axes
        ),
        "loss": NamedArray(
            np.array([[one.mean_loss for one in some] for some in measured.values()]), axes, "nat"
        ),
        "mistakes": NamedArray(
            np.array([[np.sum(one.right == 0) for one in some] for some in measured.values()]), axes
        ),
        "accuracy_by_label": NamedArray(np.stack([table[0] for table in tables]), by),
        "mistakes_by_label": NamedArray(np.stack([table[1] for table in tables]), by),
        "strength": NamedArray(strength[last], heads),
        "perfect_accuracy": NamedArray(np.array([one.accuracy for one in measured[PERFECT]]), heads),
        "mended": NamedArray(mended(measured[PERFECT], reference), heads),
    }
    best = measured[PERFECT][reference]
    scalars = {
        "reference": float(reference),
        "reference.mistakes": float(np.sum(best.right == 0)),
        "reference.accuracy": best.accuracy,
        "reference.own_accuracy": measured[OWN][reference].accuracy,
    }
    return Result(scalars, arrays, {"reference": names[reference]})


def by_label(
    measured: Sequence[Measured], target: Int[np.ndarray, " sequence"], labels: Sequence[int]
) -> tuple[Float[np.ndarray, "case label"], Float[np.ndarray, "case label"]]:
    """Accuracy on sequences whose answer is a label, and the share of all mistakes that fall on it.

    Shares are NaN where there is no mistake.
    """
    right = np.stack([one.right for one in measured])
    is_label = (target[:, None] == np.asarray(labels)).astype(np.float64)
    counts, wrong = is_label.sum(axis=0), (1 - right) @ is_label
    total = wrong.sum(axis=1, keepdims=True)
    shares = np.divide(wrong, total, out=np.full_like(wrong, np.nan), where=total > 0)
    return 1 - wrong / counts, shares
