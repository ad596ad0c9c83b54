"""What a run produced: scalars and named arrays, and how they lie on disk.

Files in a run directory, each written to a temporary name and renamed:

    scalars.json   {"name": number}; NaN is written as null, infinities as "inf" and "-inf"
    arrays.npz     the arrays by name, without pickles
    arrays.json    {"name": {"unit": "1", "axes": {"prompt": 8, "set": ["subject", "last"]}}}; axes in order,
                   an integer is a length, a list gives one label for each index
    notes.json     {"name": "a short text shown in reports"}
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from repro.errors import UserError

Label = str | int | float | bool
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+=-]*")


@dataclass(frozen=True, eq=False)
class NamedArray:
    """An array whose every axis has a name, and a length or one label for each index.

    values: array with as many dimensions as `axes` has entries.
    axes: in order, name -> length (int) or labels (a list of texts or numbers).
    unit: "1" for pure numbers, otherwise for example "nat" or "s".

    Raises ValueError when shape and axes disagree, or when the type could only be saved as a pickle.
    """

    values: np.ndarray
    axes: dict[str, int | list[Label]]
    unit: str = "1"

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        if values.dtype.kind not in "biufcU":
            raise ValueError(
                f"type {values.dtype} cannot be saved without pickle: convert it, e.g. to float32"
            )
        axes = {str(name): _axis(extent) for name, extent in self.axes.items()}
        lengths = tuple(extent if isinstance(extent, int) else len(extent) for extent in axes.values())
        if lengths != values.shape:
            said = ", ".join(f"{name} {length}" for name, length in zip(axes, lengths, strict=True))
            raise ValueError(f"the axes say ({said}) and the array has shape {values.shape}")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "axes", axes)

    def labels(self, axis: str) -> list[Label]:
        """The labels along `axis`; 0, 1, 2, ... where only a length is known."""
        if axis not in self.axes:
            raise ValueError(f"no axis {axis!r}. Axes: {', '.join(self.axes)}")
        extent = self.axes[axis]
        return list(range(extent)) if isinstance(extent, int) else list(extent)

    def select(self, **labels: Label) -> NamedArray:
        """The part with these labels, without the axes named: `a.select(layer=1, set="subject")`."""
        index: list[Any] = [slice(None)] * self.values.ndim
        rest = dict(self.axes)
        for axis, label in labels.items():
            known = self.labels(axis)
            if label not in known:
                raise ValueError(f"axis {axis!r} has no label {label!r}. Labels: {_short(known)}")
            index[list(self.axes).index(axis)] = known.index(label)
            del rest[axis]
        return NamedArray(self.values[tuple(index)], rest, self.unit)


@dataclass(frozen=True, eq=False)
class Result:
    """What an analysis found.

    scalars: the numbers that claims and summaries name.
    arrays: everything figures are drawn from.
    notes: short texts shown in reports, such as which checkpoint was used.
    """

    scalars: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, NamedArray] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in [*self.scalars, *self.arrays, *self.notes]:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name for a result: use letters, digits and _ . : + = -")
        scalars = {}
        for name, value in self.scalars.items():
            if np.ndim(value) != 0 or isinstance(value, str):
                raise ValueError(f"scalar {name!r} must be one number, got {value!r:.80}: put it into arrays")
            scalars[name] = float(value)
        for name, array in self.arrays.items():
            if not isinstance(array, NamedArray):
                raise ValueError(f"array {name!r} must be a NamedArray, got {type(array).__name__}")
        object.__setattr__(self, "scalars", scalars)


def _axis(extent: Any) -> int | list[Label]:
    if isinstance(extent, bool | str):
        raise ValueError(f"an axis is a length or a list of texts or numbers, got {extent!r:.80}")
    if isinstance(extent, int | np.integer):
        return int(extent)
    labels = [label.item() if isinstance(label, np.generic) else label for label in extent]
    wrong = [label for label in labels if not isinstance(label, str | int | float)]
    if wrong:
        raise ValueError(f"labels are texts or numbers, got {wrong[0]!r:.80}")
    return labels


def _short(items: list[Any], most: int = 12) -> str:
    shown = ", ".join(str(item) for item in items[:most])
    return shown + (f", ... ({len(items)} in all)" if len(items) > most else "")


def write_atomic(path: Path, content: bytes | str | Callable[[IO[bytes]], Any], durable: bool = True) -> None:
    """Write a file so that readers see the old one or the whole new one, never a part.

    content: the bytes or text, or a function that writes into the binary file it is given.
    durable: wait until the disk has it (leave out for progress that is rewritten every second).

    Raises UserError when the disk is full or the place cannot be written; the old file is left as it was.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def cannot_write(path: Path, error: OSError) -> UserError:
    """The message for a full disk or a forbidden place."""
    return UserError(
        f"cannot write {path}: {error.strerror or error}. Nothing already saved was lost. "
        "Make room (or choose another place with runs_dir=DIR) and run the same command again to go on."
    )


def encode_number(value: float) -> float | str | None:
    """A float as strict JSON can hold it."""
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else ("inf" if value > 0 else "-inf")


def decode_number(value: Any) -> float:
    """The inverse of `encode_number`."""
    return math.nan if value is None else float(value)


def write_json(path: Path, content: Any, durable: bool = True) -> None:
    """Write readable JSON, atomically; NaN must have been encoded before."""
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", durable)


def save(directory: Path, result: Result) -> None:
    """Write scalars.json, arrays.npz, arrays.json and notes.json. Raises UserError on a full disk."""
    directory = Path(directory)
    values = {name: array.values for name, array in result.arrays.items()}
    manifest = {name: {"unit": array.unit, "axes": array.axes} for name, array in result.arrays.items()}
    write_atomic(directory / "arrays.npz", lambda file: _write_arrays(file, values))
    write_json(directory / "arrays.json", manifest)
    write_json(directory / "notes.json", result.notes)
    write_json(
        directory / "scalars.json", {name: encode_number(value) for name, value in result.scalars.items()}
    )


def _write_arrays(file: IO[bytes], values: Mapping[str, np.ndarray]) -> None:
    # np.savez takes names as keyword arguments and so refuses an array called "file"; the format is the same.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in values.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(
                    entry, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False
                )


def load(directory: Path) -> Result:
    """Read what `save` wrote. Raises UserError naming the file that is missing or damaged."""
    directory = Path(directory)
    scalars = {name: decode_number(value) for name, value in read_json(directory / "scalars.json").items()}
    manifest = read_json(directory / "arrays.json")
    notes = read_json(directory / "notes.json") if (directory / "notes.json").exists() else {}
    arrays = {}
    try:
        with np.load(directory / "arrays.npz", allow_pickle=False) as archive:
            for name, entry in manifest.items():
                arrays[name] = NamedArray(archive[name], entry["axes"], entry["unit"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(directory / "arrays.npz", error) from error
    return Result(scalars, arrays, notes)


def read_json(path: Path) -> Any:
    """Read a JSON file of a run directory. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    return UserError(f"{path} {what}. Run the experiment again with rerun=true to make it anew.")
