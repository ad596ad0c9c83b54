"""What a long analysis has found so far, on disk, so that an interrupted one goes on.

Items are numbered; their values are written in pieces, each to a temporary name and renamed. A piece that
cannot be read counts as not there.
"""

from __future__ import annotations

import shutil
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repro.results import write_atomic

SECONDS = 20.0  # between two pieces


class Partial:
    """Values [..] of items by number. directory: of the run; None: nothing is written."""

    def __init__(self, directory: Path | None, name: str, seconds: float = SECONDS) -> None:
        self._folder = None if directory is None else Path(directory) / "partial" / name
        self._seconds, self._since = seconds, time.monotonic()
        self.values: dict[int, np.ndarray] = {}
        self._new: list[int] = []
        for path in sorted(self._folder.glob("*.npz")) if self._folder and self._folder.exists() else ():
            try:
                with np.load(path, allow_pickle=False) as piece:
                    self.values.update(zip(piece["items"].tolist(), piece["values"], strict=True))
            except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
                path.unlink(missing_ok=True)

    def add(self, items: Sequence[int], values: np.ndarray) -> None:
        """Note values of further items; written if the last piece is some time ago."""
        self.values.update(zip(items, values, strict=True))
        self._new += items
        if time.monotonic() - self._since >= self._seconds:
            self.write()

    def write(self) -> None:
        """Write what is new as one piece."""
        self._since = time.monotonic()
        if self._folder is None or not self._new:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        items = np.array(self._new)
        values = np.stack([self.values[item] for item in self._new])
        path = self._folder / f"{items.min():09d}-{len(list(self._folder.iterdir())):06d}.npz"
        write_atomic(path, lambda file: np.savez(file, items=items, values=values))
        self._new = []

    def clear(self) -> None:
        """The whole result is there: the pieces are not needed any more."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
