"""From the name of an array in a figure's spec to numbers, with the seeds stacked in front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from repro.errors import UserError
from repro.figures.specs import BarSeries, Column, Label, Pick
from repro.results import NamedArray, Result


@dataclass(frozen=True)
class Stack:
    """values: (seed, *axes); labels: axis -> its labels, in order; unit of the values."""

    values: np.ndarray
    labels: dict[str, list[Label]]
    unit: str = "1"

    @property
    def mean(self) -> np.ndarray:
        """Over seeds."""
        return self.values.mean(axis=0)

    @property
    def lowest(self) -> np.ndarray:
        """Over seeds."""
        return self.values.min(axis=0)

    @property
    def highest(self) -> np.ndarray:
        """Over seeds."""
        return self.values.max(axis=0)

    def along(self, axis: str, label: Label) -> Stack:
        """The part with this label, without the axis."""
        position = list(self.labels).index(axis)
        index = self.labels[axis].index(label)
        rest = {name: known for name, known in self.labels.items() if name != axis}
        return Stack(np.take(self.values, index, axis=position + 1), rest, self.unit)


def stack(results: Sequence[Result], pick: Pick, axes: int | None = None) -> Stack:
    """The part of an array that `pick` names, of every result.

    axes: how many axes must be left. Raises UserError, naming what there is, when the array, an axis or a
    label is missing, when the wrong number of axes is left, or when the results differ in shape.
    """
    parts = [_select(_array(result, pick.array), pick) for result in results]
    if pick.minus is not None:
        others = [_select(_array(result, pick.minus), pick) for result in results]
        parts = [_subtract(part, other, pick) for part, other in zip(parts, others, strict=True)]
    shapes = {part.values.shape for part in parts}
    if len(shapes) > 1:
        raise UserError(
            f"array {pick.array}: the runs have different shapes, {sorted(shapes)}: draw them apart"
        )
    first = parts[0]
    if axes is not None and len(first.axes) != axes:
        left = ", ".join(first.axes) or "none"
        raise UserError(
            f"array {pick.array}: {axes} axis must be left and there are {len(first.axes)}: {left}. "
            "Use select or average_over for the others (or fan_out for one line a label)."
        )
    values = np.stack([np.asarray(part.values, dtype=float) for part in parts])
    return Stack(values, {name: first.labels(name) for name in first.axes}, first.unit)


def scalars(results: Sequence[Result], name: str) -> np.ndarray:
    """A scalar of every result, (seed,). Raises UserError naming the scalars there are."""
    for result in results:
        if name not in result.scalars:
            raise UserError(
                f"there is no scalar {name!r}. Scalars: {', '.join(sorted(result.scalars)) or 'none'}"
            )
    return np.array([result.scalars[name] for result in results])


def published_at(spec: BarSeries | Column, labels: Sequence[Label]) -> list[float | None]:
    """The published value for each label, None where there is none."""
    given = spec.published
    if not given:
        return [None] * len(labels)
    name = spec.label or spec.array
    if isinstance(given, dict):
        known = {str(label): label for label in labels}
        given = {str(label): value for label, value in given.items()}
        wrong = [label for label in given if label not in known]
        if wrong:
            raise UserError(f"{name}: published names {wrong}, and the labels are {', '.join(known)}")
        return [given.get(str(label)) for label in labels]
    if len(given) != len(labels):
        raise UserError(f"{name}: {len(given)} published values for {len(labels)} labels ({labels})")
    return list(given)


def _array(result: Result, name: str) -> NamedArray:
    if name not in result.arrays:
        raise UserError(f"there is no array {name!r}. Arrays: {', '.join(sorted(result.arrays)) or 'none'}")
    return result.arrays[name]


def _select(array: NamedArray, pick: Pick) -> NamedArray:
    values, axes = np.asarray(array.values), {name: array.labels(name) for name in array.axes}
    for axis, wanted in pick.select.items():
        position = _position(axes, axis, pick)
        known = axes[axis]
        many = wanted if isinstance(wanted, list) else [wanted]
        indices = [_index(known, label, axis, pick) for label in many]
        if isinstance(wanted, list):
            values, axes[axis] = np.take(values, indices, axis=position), [known[index] for index in indices]
        else:
            values = np.take(values, indices[0], axis=position)
            del axes[axis]
    for axis in pick.average_over:
        values = values.mean(axis=_position(axes, axis, pick))
        del axes[axis]
    return NamedArray(values, dict(axes), array.unit)


def _position(axes: dict[str, list[Label]], axis: str, pick: Pick) -> int:
    if axis not in axes:
        raise UserError(f"array {pick.array} has no axis {axis!r}. Axes: {', '.join(axes) or 'none'}")
    return list(axes).index(axis)


def _index(known: list[Label], label: Label, axis: str, pick: Pick) -> int:
    # YAML reads 3 as a number and arrays.json may hold "3": what looks the same is meant to be the same.
    if isinstance(label, int) and label == -1 and -1 not in known:
        return len(known) - 1
    matches = [index for index, other in enumerate(known) if other == label or str(other) == str(label)]
    if not matches and isinstance(label, int) and all(isinstance(other, str) for other in known):
        if 0 <= label < len(known):
            return label  # words have no number of their own, so this one counts them
    if not matches:
        shown = ", ".join(str(other) for other in known[:12]) + (", ..." if len(known) > 12 else "")
        raise UserError(f"array {pick.array}: axis {axis!r} has no label {label!r}. Labels: {shown}")
    return matches[0]


def _subtract(part: NamedArray, other: NamedArray, pick: Pick) -> NamedArray:
    if part.values.shape != other.values.shape:
        raise UserError(
            f"{pick.array} minus {pick.minus}: shapes {part.values.shape} and {other.values.shape} differ"
        )
    return NamedArray(part.values - other.values, part.axes, part.unit)
