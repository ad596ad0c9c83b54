"""Which labels each head copies, with its own pattern and with a perfect one.

Source: arXiv 2404.07129, Fig. 16 and Table 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from repro.analyses.icl_cases import CASE, take, to_arrays
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
from repro.shards import WHOLE, Part, join
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
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(
    subject: Mapping[str, Trained], data: Features, directory: Path | None, spec: CopySpecificity, part: Part
) -> Result:  # fmt: skip
    """Some of the heads with one or both patterns, sequence by sequence, and the right label of each."""
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
    # All heads may attend perfectly at once: those that are not looked at add nothing.
    settings = {OWN: [], PERFECT: [InductionHeads(heads=names)]}
    cases = part.of([(setting, head) for setting in settings for head in range(model.heads)])
    measured = []
    for setting, manipulations in settings.items():
        alone = [mask(model, last, active=[head]) for name, head in cases if name == setting]
        if alone:
            says = f"heads alone, {setting} pattern"
            measured += MaskedMeasure(sequences, manipulations)(model, np.stack(alone), says)
    arrays = {
        "strength": NamedArray(strength[last], {"head": [*names]}),
        "target": NamedArray(sequences.labels[:, -1], {"sequence": len(sequences)}),
        **to_arrays([f"{setting}.{head}" for setting, head in cases], measured),
    }
    return Result({"reference": float(reference)}, arrays, {"reference": names[reference]})


def merge(parts: Sequence[Result], spec: CopySpecificity) -> Result:
    """Tables of all heads and labels, and who mends the mistakes of the reference."""
    result = join(parts, CASE)
    arrays, every = result.arrays, take(result)
    target, reference = arrays.pop("target").values, int(result.scalars["reference"])
    heads = arrays["strength"].axes
    count = len(arrays["strength"].values)
    measured = {setting: [every[f"{setting}.{head}"] for head in range(count)] for setting in (OWN, PERFECT)}
    labels = sorted({int(label) for label in target})
    axes: dict[str, Any] = {"setting": list(measured), **heads}
    by: dict[str, Any] = {**axes, "label": labels}
    tables = [by_label(some, target, labels) for some in measured.values()]
    rows = list(measured.values())
    mistakes = np.array([[np.sum(one.right == 0) for one in some] for some in rows])
    arrays.update(
        accuracy=NamedArray(np.array([[one.accuracy for one in some] for some in rows]), axes),
        loss=NamedArray(np.array([[one.mean_loss for one in some] for some in rows]), axes, "nat"),
        mistakes=NamedArray(mistakes, axes),
        accuracy_by_label=NamedArray(np.stack([table[0] for table in tables]), by),
        mistakes_by_label=NamedArray(np.stack([table[1] for table in tables]), by),
        perfect_accuracy=NamedArray(np.array([one.accuracy for one in measured[PERFECT]]), heads),
        mended=NamedArray(mended(measured[PERFECT], reference), heads),
    )
    best = measured[PERFECT][reference]
    result.scalars.update(
        {
            "reference.mistakes": float(np.sum(best.right == 0)),
            "reference.accuracy": best.accuracy,
            "reference.own_accuracy": measured[OWN][reference].accuracy,
        }
    )
    return result


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
