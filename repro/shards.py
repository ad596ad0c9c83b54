"""One analysis shared out over several processes or jobs, and put together again.

An analysis can be split when it is a union or a sum over items: checkpoints, heads, layers, prompts, seeds.
Its spec says so (`Analysis.splits_over`, `Analysis.items`), and its module has, besides `run`,

    run_part(subject, data, directory, spec, part) -> Result    what the items of one part give
    merge(parts, spec) -> Result                                the whole, of all parts in order
    run(...) = merge([run_part(..., WHOLE)], spec)              so that whole and split cannot differ

A part has in its arrays what belongs to its own items, `part.of(items)`, along a named axis or as terms of a
sum. Everything else in it must be the same in every part. What is read off the whole (ranks, maxima, fits)
is the work of `merge`, which sees neither model nor data: it starts with `join` or `add` and goes on.

A part is a run of its own, without figures and claims, in <run>/shards/<index>-of-<count>/.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from repro import results
from repro.errors import UserError
from repro.results import NamedArray, Result, read_json
from repro.run_directory import RunDirectory

if TYPE_CHECKING:
    from repro.config import Config

log = logging.getLogger(__name__)
Item = TypeVar("Item")
FOLDER = "shards"
# What parts have in common may come from several kinds of machine, whose float32 sums differ by rounding.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Part:
    """Which of `count` parts: `index` from 0."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"part: expected 0 <= index < count, got index {self.index}, count {self.count}")

    def of(self, items: Sequence[Item]) -> list[Item]:
        """The items of this part: neighbours, their number the same in all parts or one less.

        Raises `UserError` if there are fewer items than parts.
        """
        if self.count > max(len(items), 1):
            raise too_many(self.count, len(items), "items to share out")
        begin, end = (at * len(items) // self.count for at in (self.index, self.index + 1))
        return list(items[begin:end])

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


WHOLE = Part(0, 1)


def too_many(shards: int, items: int, what: str) -> UserError:
    """The message for more parts than items."""
    return UserError(f"shards: got {shards}, and there are only {items} {what}. Give shards={items} or less")


def join(parts: Sequence[Result], axis: str, add: Collection[str] = ()) -> Result:
    """One result of several: arrays with `axis` one after the other, those named in `add` summed.

    parts: in order of their index. A sum is exact for integers; for float64 (which floats must be) the sums
    over n parts and over one differ by at most n * 2.2e-16 of the sum of absolute values. What is neither
    joined nor summed must be the same in all parts (floats to a relative 1e-5). Raises `UserError` if it is
    not, or if a part lacks an array.
    """
    first = parts[0]
    for index, part in enumerate(parts):
        for kind in ("scalars", "arrays", "notes"):
            if getattr(part, kind).keys() != getattr(first, kind).keys():
                odd = sorted(getattr(part, kind).keys() ^ getattr(first, kind).keys())
                raise _disagree(index, f"which {kind} there are ({', '.join(odd)})")
    arrays = {}
    for name in first.arrays:
        together = [part.arrays[name] for part in parts]
        if name in add:
            arrays[name] = _sum(together, name)
        elif axis in together[0].axes:
            arrays[name] = _joined(together, axis, name)
        else:
            arrays[name] = _common(together, name)
    for name in first.scalars:
        _common([NamedArray(np.asarray(part.scalars[name]), {}) for part in parts], name)
    for index, part in enumerate(parts):
        if odd := [name for name in first.notes if part.notes[name] != first.notes[name]]:
            raise _disagree(index, odd[0])
    return Result(dict(first.scalars), arrays, dict(first.notes))


def add(parts: Sequence[Result], names: Collection[str]) -> Result:
    """One result of several whose arrays `names` are terms of a sum; see `join`."""
    return join(parts, "", names)


def _joined(together: Sequence[NamedArray], axis: str, name: str) -> NamedArray:
    first, at = together[0], list(together[0].axes).index(axis)
    for index, array in enumerate(together):
        if _but(array, axis) != _but(first, axis) or type(array.axes[axis]) is not type(first.axes[axis]):
            raise _disagree(index, f"the axes of {name}")
    extents: list[Any] = [array.axes[axis] for array in together]
    length = reduce(lambda left, right: left + right, extents)  # of lengths the sum, of labels one list
    values = np.concatenate([array.values for array in together], axis=at)
    return NamedArray(values, {**first.axes, axis: length}, first.unit)


def _but(array: NamedArray, axis: str) -> Any:
    return [(one, None if one == axis else extent) for one, extent in array.axes.items()], array.unit


def _sum(together: Sequence[NamedArray], name: str) -> NamedArray:
    first = together[0]
    if first.values.dtype.kind == "f" and first.values.dtype != np.float64:
        raise ValueError(f"{name}: sums over parts are taken in float64, got {first.values.dtype}")
    for index, array in enumerate(together):
        if (array.axes, array.unit) != (first.axes, first.unit):
            raise _disagree(index, f"the axes of {name}")
    return NamedArray(reduce(np.add, [array.values for array in together]), first.axes, first.unit)


def _common(together: Sequence[NamedArray], name: str) -> NamedArray:
    """What is the same in all parts. Exactly that of the first, so that one part changes nothing."""
    first = together[0]
    for index, array in enumerate(together):
        same = (array.axes, array.unit) == (first.axes, first.unit)
        if not same or not _equal(array.values, first.values):
            raise _disagree(index, name)
    return first


def _equal(left: np.ndarray, right: np.ndarray) -> bool:
    if left.dtype.kind not in "fc":
        return np.array_equal(left, right)
    scale = float(np.max(np.abs(right), initial=0, where=np.isfinite(right)))
    return np.allclose(left, right, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True)


def _disagree(index: int, what: str) -> UserError:
    return UserError(
        f"shards: shards 0 and {index} disagree in {what}, which all must have in common. Were they computed"
        " from other weights or data? Compute them again with rerun=true"
    )


def part_of(config: Config) -> Part:
    """Which part a config is of; the whole if it is none."""
    return WHOLE if config.part is None else Part(*config.part)


def shard_configs(config: Config) -> list[Config]:
    """A config for each part of a run with shards > 1; none if it is not split, or a part itself."""
    count = config.values.get("shards", 1)
    if count == 1 or config.part is not None:
        return []
    parts = [Part(index, count) for index in range(count)]
    return [
        replace(config, part=(part.index, part.count), directory=config.directory / FOLDER / str(part))
        for part in parts
    ]


def asked_for(config: Config) -> float:
    """From when on parts count: with rerun=true only those since the run was prepared, else any (seconds)."""
    saved = config.directory / "config.json"
    if not config.values["rerun"]:
        return 0.0
    return saved.stat().st_mtime if saved.exists() else math.inf


def finished(config: Config, since: float = 0.0) -> Result | None:
    """What a part gave; None if it is not done, of another config, or damaged, and so to be computed.

    since: a time in seconds; what is older does not count.
    """
    run = RunDirectory(config.directory)
    if not run.is_done() or (run.path / "scalars.json").stat().st_mtime < since:
        return None
    try:
        saved = read_json(run.path / "config.json")
        if (saved["hash"], saved["part"]) == (config.hash, list(config.part or ())):
            return results.load(run.path)
        why = f"it belongs to {saved['hash']}, part {saved['part']}"
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        why = str(error)
    log.warning("%s is computed again: %s", run.path, why)
    return None
