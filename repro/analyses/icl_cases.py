"""What was measured of many cases, such as ablations, as arrays that can be joined and read again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repro.analyses.icl_measures import Measured
from repro.results import NamedArray, Result

CASE = "case"
_LOSS, _PREDICTED, _RIGHT = "case_loss", "case_predicted", "case_right"


def to_arrays(names: Sequence[str], measured: Sequence[Measured]) -> dict[str, NamedArray]:
    """Loss (nat), predicted label and whether it is right, each [case, sequence]; a name for each case."""
    axes = {CASE: list(names), "sequence": len(measured[0].loss)}
    return {
        _LOSS: NamedArray(np.stack([one.loss for one in measured]), axes, "nat"),
        _PREDICTED: NamedArray(np.stack([one.predicted for one in measured]), axes),
        _RIGHT: NamedArray(np.stack([one.right != 0 for one in measured]), axes),
    }


def take(result: Result) -> dict[str, Measured]:
    """What `to_arrays` was given, by name and in order; its arrays are taken out of the result."""
    loss, predicted, right = (result.arrays.pop(name) for name in (_LOSS, _PREDICTED, _RIGHT))
    rows = zip(loss.values, right.values.astype(np.float64), predicted.values, strict=True)
    return dict(zip(map(str, loss.labels(CASE)), (Measured(*row) for row in rows), strict=True))
