"""An analysis for tests that is a union and a sum over its examples, with answers known by algebra."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from repro.analyses.specs import Analysis
from repro.progress import progress
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join

asked: list[tuple[int, ...]] = []  # the examples of every part that was computed, for tests to look at
fails_at: set[int] = set()


class SplitSums(Analysis):
    """Squares of 0 .. examples - 1, their sum, and the largest."""

    module: ClassVar[str] = "tests.split_sums"
    kind: Literal["split_sums"] = "split_sums"
    splits_over: ClassVar[str | None] = "examples"
    examples: int = 7

    def items(self, of: Callable[[str], Mapping[str, Any]]) -> int | None:
        return self.examples


def run(subject: Any, data: Any, record: Any, directory: Path, spec: SplitSums) -> Result:
    """squares [example], sum [] and digits [digit], how many squares end with each."""
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(subject: Any, data: Any, directory: Path, spec: SplitSums, part: Part) -> Result:
    """Those of some examples."""
    examples = part.of(list(range(spec.examples)))
    asked.append(tuple(examples))
    if fails_at & set(examples):
        raise RuntimeError(f"cannot square {sorted(fails_at & set(examples))}")
    with progress(len(examples), "squares", "examples") as bar:
        squares = np.array(examples) ** 2
        bar.advance(len(examples))
    arrays = {
        "squares": NamedArray(squares, {"example": [*examples]}),
        "digits": NamedArray(np.bincount(squares % 10, minlength=10), {"digit": 10}),
        "sum": NamedArray(np.asarray(squares.sum(dtype=np.float64)), {}),
    }
    return Result({"examples": float(spec.examples)}, arrays, {"what": "squares"})


def merge(parts: Sequence[Result], spec: SplitSums) -> Result:
    """All examples."""
    result = join(parts, "example", add=("digits", "sum"))
    result.scalars["largest"] = float(result.arrays["squares"].values.max())
    result.scalars["sum"] = float(result.arrays["sum"].values)
    return result
