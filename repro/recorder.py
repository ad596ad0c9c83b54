"""The per-step log of a run: our own files first, then whoever listens (a tracker).

`log.jsonl` grows while a run works, one JSON line a block of rows; `finish` turns it into `history.parquet`.
NaN means "no value at this step". A run that resumes replays everything from the start: the rows replace the
old ones in the log, and listeners hear only what they have not heard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from repro.errors import UserError
from repro.results import cannot_write, decode_number, encode_number, write_atomic

LOG = "log.jsonl"
HISTORY = "history.parquet"


class Listener(Protocol):
    """Told about every new block: steps [row], columns name -> [row] (NaN where there is no value)."""

    def __call__(self, steps: np.ndarray, columns: dict[str, np.ndarray], condition: str) -> None: ...


Series = tuple[np.ndarray, np.ndarray]  # steps [row] and values [row]


class Recorder:
    """Write rows of scalars to the log of a run directory, and pass the new ones on.

    directory: the run directory. listeners: called after the row is in the log.
    """

    def __init__(self, directory: str | Path, listeners: Sequence[Listener] = ()) -> None:
        self._directory = Path(directory)
        self._listeners = list(listeners)
        old = read_log(self._directory)
        self._heard = {key: int(steps.max()) for key, (steps, _) in old.items() if steps.size}
        if old:  # rewritten compactly, so that many restarts do not make the log grow
            write_atomic(self._directory / LOG, "".join(_line(*key, *series) for key, series in old.items()))
        try:
            self._file = open(self._directory / LOG, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise cannot_write(self._directory / LOG, error) from error

    def __call__(self, step: int, condition: str = "", **scalars: float) -> None:
        """Record one row."""
        self.many([step], {name: np.asarray([value]) for name, value in scalars.items()}, condition)

    def many(self, steps: Iterable[int], columns: Mapping[str, Any], condition: str = "") -> None:
        """Record a block of rows: steps [row], columns name -> [row], NaN where a scalar has no value."""
        at = np.asarray(steps if isinstance(steps, np.ndarray) else list(steps), dtype=np.int64)
        block = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
        for name, values in block.items():
            if values.shape != at.shape:
                raise ValueError(f"column {name!r} has shape {values.shape}, the steps have {at.shape}")
            if name in ("step", "condition"):
                raise ValueError(f"a column may not be called {name!r}")
        if not at.size or not block:
            return
        self._append(_block_lines(condition, at, block))
        fresh = self._not_heard(at, block, condition)
        if fresh is not None:
            for listener in self._listeners:
                listener(*fresh, condition)

    def finish(self) -> None:
        """Write history.parquet: step, condition (if there are any), one column a scalar, one row a step."""
        self._file.close()
        if table := read_log(self._directory):
            frame = _frame(table)
            write_atomic(self._directory / HISTORY, lambda file: frame.to_parquet(file, index=False))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self._file.close()

    def _append(self, lines: str) -> None:
        begin = self._file.tell()
        try:
            self._file.write(lines)
            self._file.flush()
        except OSError as error:
            # Whoever goes on after this must not continue a torn line.
            self._reopen_at(begin)
            raise cannot_write(self._directory / LOG, error) from error

    def _reopen_at(self, size: int) -> None:
        with open(self._directory / LOG, "r+b") as file:
            file.truncate(size)
        with suppress(OSError):  # closing tries to write once more what did not fit
            self._file.close()
        with open(self._directory / LOG, "r+b") as file:
            file.truncate(size)
        self._file = open(self._directory / LOG, "a", encoding="utf-8")  # noqa: SIM115

    def _not_heard(
        self, steps: np.ndarray, columns: dict[str, np.ndarray], condition: str
    ) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        if not any((condition, name) in self._heard for name in columns):
            return steps, columns
        fresh = {
            name: np.where(steps > self._heard.get((condition, name), np.iinfo(np.int64).min), values, np.nan)
            for name, values in columns.items()
        }
        rows = ~np.all([np.isnan(values) for values in fresh.values()], axis=0)
        if not rows.any():
            return None
        return steps[rows], {
            name: values[rows] for name, values in fresh.items() if not np.isnan(values[rows]).all()
        }


class Silent(Recorder):
    """Takes rows and keeps none: for a part of an analysis, whose run records the training itself."""

    def __init__(self) -> None:
        pass

    def many(self, steps: Iterable[int], columns: Mapping[str, Any], condition: str = "") -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


def _block_lines(condition: str, steps: np.ndarray, block: dict[str, np.ndarray]) -> str:
    """One line for each set of columns that have values at the same rows: a gap costs nothing."""
    groups: dict[bytes, dict[str, np.ndarray]] = {}
    for name, values in block.items():
        groups.setdefault(np.packbits(~np.isnan(values)).tobytes(), {})[name] = values
    lines = []
    for columns in groups.values():
        rows = ~np.isnan(next(iter(columns.values())))
        if len(steps) == 1:  # a single NaN is a fact (the loss diverged), not a gap
            rows[:] = True
        kept = {name: _numbers(values[rows]) for name, values in columns.items()}
        lines.append(_dump(condition, steps[rows].tolist(), kept))
    return "".join(lines)


def _line(condition: str, name: str, steps: np.ndarray, values: np.ndarray) -> str:
    return _dump(condition, steps.tolist(), {name: _numbers(values)})


def _dump(condition: str, steps: list[int], columns: dict[str, list[Any]]) -> str:
    block = {"condition": condition, "steps": steps, "columns": columns}
    return json.dumps(block, allow_nan=False, separators=(",", ":")) + "\n"


def _numbers(values: np.ndarray) -> list[Any]:
    if np.isfinite(values).all():
        return values.tolist()
    return [encode_number(value) for value in values.tolist()]


def read_log(directory: str | Path) -> dict[tuple[str, str], Series]:
    """(condition, column) -> (steps, values), steps rising; of a step recorded twice the last value counts.

    A line that a killed process left torn is ignored.
    """
    parts: dict[tuple[str, str], list[Series]] = {}
    for block in _blocks(Path(directory) / LOG):
        steps = np.asarray(block["steps"], dtype=np.int64)
        for name, values in block["columns"].items():
            numbers = np.asarray([decode_number(value) for value in values])
            parts.setdefault((block["condition"], name), []).append((steps, numbers))
    return {key: _last_wins(series) for key, series in parts.items()}


def _blocks(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue


class Tail:
    """Follow the log that another process writes: every call of `read` gives what is new since the last one.

    A run that resumes rewrites its log and replays it; what was given before is not given again.
    """

    def __init__(self, directory: str | Path) -> None:
        self._path = Path(directory) / LOG
        self._file: tuple[int, int] | None = None
        self._at = 0
        self._given: dict[tuple[str, str], int] = {}

    def read(self) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Blocks of rows: steps [row] and columns name -> [row]."""
        for line in self._new_lines():
            try:
                block = json.loads(line)
            except ValueError:
                continue
            steps, condition = np.asarray(block["steps"], np.int64), block["condition"]
            fresh: dict[int, dict[str, np.ndarray]] = {}
            for name, values in block["columns"].items():
                key = condition, name
                rows = steps > self._given.get(key, -1)
                if rows.any():
                    numbers = np.asarray([decode_number(one) for one in values])
                    fresh.setdefault(int(rows.sum()), {})[name] = numbers[rows]
                    self._given[key] = int(steps.max())
            for count, columns in fresh.items():  # steps rise, so what is new is at the end
                yield steps[-count:], columns

    def _new_lines(self) -> list[bytes]:
        """The whole lines that were not read yet; all of them if it is another file than last time."""
        try:
            with open(self._path, "rb") as file:
                facts = os.fstat(file.fileno())
                if self._file != (facts.st_dev, facts.st_ino) or facts.st_size < self._at:
                    self._file, self._at = (facts.st_dev, facts.st_ino), 0
                file.seek(self._at)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._at += len(whole) + len(newline)
        return whole.splitlines()


def _last_wins(series: list[Series]) -> Series:
    steps = np.concatenate([steps for steps, _ in series])
    values = np.concatenate([values for _, values in series])
    unique, where = np.unique(steps[::-1], return_index=True)
    return unique, values[::-1][where]


def _frame(table: Mapping[tuple[str, str], Series]) -> Any:
    import pandas as pd  # takes half a second, and only the end of a run needs it

    conditions = list(dict.fromkeys(condition for condition, _ in table))
    frames = []
    for condition in conditions:
        columns = {
            name: pd.Series(values, index=steps)
            for (own, name), (steps, values) in table.items()
            if own == condition
        }
        frame = pd.DataFrame(columns).sort_index().rename_axis("step").reset_index()
        if conditions != [""]:
            frame.insert(1, "condition", condition)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def read_history(directory: str | Path) -> Any:
    """The history as a pandas DataFrame; of a run that is not finished, what its log has so far."""
    import pandas as pd

    directory = Path(directory)
    if (directory / HISTORY).exists():
        try:
            return pd.read_parquet(directory / HISTORY)
        except Exception as error:
            raise UserError(
                f"{directory / HISTORY} cannot be read ({error}). Run again with rerun=true."
            ) from error
    table = read_log(directory)
    return _frame(table) if table else pd.DataFrame({"step": []})
