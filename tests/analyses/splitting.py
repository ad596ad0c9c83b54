"""Comparing an analysis in parts, saved and read again, with the whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repro import results
from repro.errors import UserError
from repro.results import Result
from repro.shards import Part


def assert_split_equals_whole(
    analysis: Any, subject: Any, data: Any, spec: Any, items: int, folder: Path, counts: Sequence[int]
) -> None:  # fmt: skip
    """Whole and merged give the same files, byte for byte; `items` is what can be shared out.

    Parts are computed in reverse and read from disk, as parts of several jobs are.
    """
    whole = analysis.run(subject, data, None, folder, spec)
    results.save(made(folder / "whole"), whole)
    for count in counts:
        places = [made(folder / f"{index}-of-{count}") for index in range(count)]
        for index in reversed(range(count)):
            found = analysis.run_part(subject, data, places[index], spec, Part(index, count))
            results.save(places[index], found)
        merged = analysis.merge([results.load(place) for place in places], spec)
        assert_same(merged, whole)
        results.save(made(folder / f"merged-{count}"), merged)
        for name in ("scalars.json", "arrays.npz", "arrays.json", "notes.json"):
            expected = (folder / "whole" / name).read_bytes()
            assert (folder / f"merged-{count}" / name).read_bytes() == expected, (count, name)
    with pytest.raises(UserError, match=f"got {items + 1}, and there are only {items} "):
        analysis.run_part(subject, data, folder, spec, Part(0, items + 1))


def assert_same(left: Result, right: Result) -> None:
    """Bit for bit; says which name differs."""
    assert left.scalars.keys() == right.scalars.keys() and left.notes == right.notes
    for name, value in right.scalars.items():
        np.testing.assert_array_equal(left.scalars[name], value, err_msg=name)
    assert list(left.arrays) == list(right.arrays)
    for name, array in right.arrays.items():
        assert (left.arrays[name].axes, left.arrays[name].unit) == (array.axes, array.unit), name
        assert left.arrays[name].values.dtype == array.values.dtype, name
        np.testing.assert_array_equal(left.arrays[name].values, array.values, err_msg=name)


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
