"""Which points of a long series are worth sending to a tracker. Our own log always has all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

Block = tuple[np.ndarray, dict[str, np.ndarray], str]  # steps [row], columns name -> [row], condition


@dataclass
class _Series:
    seen: int = 0
    kept: int = 0
    width: float = 0.0  # one point is kept in each stretch of this many steps; 0 keeps all
    last_bin: float = -1.0
    withheld: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)


class Thinner:
    """Pass on at most about `max_points` of each series, evenly, as the points come in.

    A series that turns out to have at most `max_points` points is passed on whole: `rest` gives what was held
    back of it. Rows where only some columns have values are evaluations, and are always passed on.

    last_step: where the series will end. Without it every point is passed on until there are `max_points`,
    then half as many in each stretch that doubles the length.
    """

    def __init__(self, max_points: int = 2000, last_step: int | None = None) -> None:
        self._most = max_points
        self._width = last_step / max_points if last_step else 0.0
        self._bounded = last_step is not None
        self._series: dict[tuple[str, str], _Series] = {}

    def __call__(self, steps: np.ndarray, columns: dict[str, np.ndarray], condition: str) -> Iterator[Block]:
        """The points of a block worth passing on; NaN marks those left out."""
        size = max(self._most // 4, 1)
        for begin in range(0, len(steps), size):  # so that an unknown end is noticed within a long block
            rows = slice(begin, begin + size)
            part = {name: values[rows] for name, values in columns.items()}
            yield from self._chunk(steps[rows], part, condition)

    def rest(self) -> Iterator[Block]:
        """What was held back of series that are short after all."""
        for (condition, name), series in self._series.items():
            if series.seen <= self._most:
                for steps, values in series.withheld:
                    yield steps, {name: values}, condition
            series.withheld = []

    def _chunk(self, steps: np.ndarray, columns: dict[str, np.ndarray], condition: str) -> Iterator[Block]:
        there = {name: ~np.isnan(values) for name, values in columns.items()}
        most = max((mask.sum() for mask in there.values()), default=0)
        evaluated = np.zeros(len(steps), dtype=bool)
        for mask in there.values():
            if mask.sum() < most:
                evaluated |= mask
        chosen = {}
        for name, values in columns.items():
            series = self._series.setdefault((condition, name), _Series(width=self._width))
            keep = self._choose(series, steps, values, there[name], evaluated)
            chosen[name] = np.where(keep, values, np.nan)
        rows = ~np.all([np.isnan(values) for values in chosen.values()], axis=0)
        if rows.any():
            yield steps[rows], {name: values[rows] for name, values in chosen.items()}, condition

    def _choose(
        self, series: _Series, steps: np.ndarray, values: np.ndarray, there: np.ndarray, evaluated: np.ndarray
    ) -> np.ndarray:
        keep = there & evaluated
        at = np.flatnonzero(there)
        if series.width and at.size:
            bins = np.floor(steps[at] / series.width)
            keep[at[np.diff(bins, prepend=series.last_bin) != 0]] = True
            series.last_bin = float(bins[-1])
        else:
            keep[at] = True
        series.seen += at.size
        series.kept += int(keep.sum())
        left_out = there & ~keep
        if series.seen > self._most:
            series.withheld = []
        elif left_out.any():
            series.withheld.append((steps[left_out], values[left_out]))
        if not self._bounded and series.kept >= self._most and at.size:
            series.width = max(2 * series.width, 2 * float(steps[at[-1]]) / self._most)
            series.kept = self._most // 2
        return keep
