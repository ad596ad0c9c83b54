"""Where the time goes: seconds of each stage, as in the published table."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from repro.errors import UserError
from repro.results import read_json, write_json

STAGES = (
    "pairwise_score", "self_score", "fit_lambda", "fit_covariance", "eigendecomposition",
    "save_eigendecomposition", "save_covariance", "save_lambda", "load_covariance", "save_pairwise_score",
    "load_eigendecomposition", "load_lambda",
)  # fmt: skip
PROFILE = "profile.json"


class Profile:
    """Wall-clock and processor seconds, and calls, by stage; kept in a folder over interruptions."""

    def __init__(self, folder: Path | None = None) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.processor: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.calls: dict[str, int] = dict.fromkeys(STAGES, 0)
        self._path = None if folder is None else folder / PROFILE
        if self._path is not None and self._path.exists():
            try:
                for name, (wall, processor, calls) in read_json(self._path).items():
                    self.seconds[name], self.processor[name], self.calls[name] = wall, processor, int(calls)
            except (UserError, ValueError, TypeError, AttributeError):
                pass  # a damaged table costs the times of what was done before, and nothing else

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What runs within counts for `name`; a GPU is waited for before and after."""
        _wait()
        wall, processor = time.perf_counter(), time.process_time()
        yield
        _wait()
        self.seconds[name] += time.perf_counter() - wall
        self.processor[name] += time.process_time() - processor
        self.calls[name] += 1
        if self._path is not None:
            rows = {one: (self.seconds[one], self.processor[one], self.calls[one]) for one in STAGES}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, json.loads(json.dumps(rows)), durable=False)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
