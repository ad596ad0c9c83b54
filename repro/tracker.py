"""Sending a run to Weights & Biases from a process of its own, which may hang, fail or be killed.

Nothing here waits for that process except `Tracker.finish`, and that only so long. Whatever goes wrong costs
one warning: the run directory has everything, and `publish` can send it later.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from repro import stopping
from repro.claims import Verdict
from repro.results import encode_number
from repro.thinning import Thinner

log = logging.getLogger(__name__)

_QUEUE = 2000  # blocks that may wait for a process that does not read; then it counts as stuck
_ROOT = Path(__file__).resolve().parents[1]
_CHILD = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from repro.tracking import serve; serve()"


class NoTracker:
    """`tracking=disabled`: the calls of a Tracker, doing nothing."""

    pid: int | None = None
    problem: str | None = None

    def log_rows(self, steps: np.ndarray, columns: dict[str, np.ndarray], condition: str) -> None: ...

    def scalars(self, values: Mapping[str, float]) -> None: ...

    def figures(self, paths: Sequence[Path]) -> None: ...

    def claims(self, verdicts: Sequence[Verdict]) -> None: ...

    def preempting(self) -> None: ...

    def finish(self, exit_code: int = 0) -> bool:
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...


class Tracker(NoTracker):
    """A W&B run, as far as W&B can be reached. No method raises, and only `finish` waits."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        environment: Mapping[str, str],
        max_points: int,
        last_step: int | None,
    ) -> None:
        """settings: what the process needs to open the run (see `repro.tracking.serve`)."""
        self.problem = None
        self.mode = settings["mode"]
        self._patience = settings["init_timeout"] + settings["finish_timeout"]
        self._thin = Thinner(max_points, last_step)
        self._queue: queue.Queue[str | None] = queue.Queue(_QUEUE)
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        self._complete = False
        try:
            # SLURM signals every process of a job, and W&B would lose what it has not yet written.
            with open(Path(settings["directory"]) / "wandb" / "process.log", "ab") as words, stopping.held():
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _CHILD],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=words,
                    env=dict(environment),
                    start_new_session=True,  # Ctrl-C is for the run, which then closes this process
                )
        except OSError as error:
            self._give_up(str(error))
            return
        self.pid = self._process.pid
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._writer.start()
        self._reader.start()
        self._send({"open": dict(settings)})

    def log_rows(self, steps: np.ndarray, columns: dict[str, np.ndarray], condition: str) -> None:
        """Send rows: a listener of `repro.recorder.Recorder`. Long series are thinned."""
        if self.problem is None:
            for block in self._thin(steps, columns, condition):
                self._send_block(*block)

    def scalars(self, values: Mapping[str, float]) -> None:
        """The final numbers: the summary of the run."""
        self._send({"summary": {name: encode_number(value) for name, value in values.items()}})

    def figures(self, paths: Sequence[Path]) -> None:
        """PNG files, which must be in the run directory already."""
        self._send({"figures": [str(Path(path).resolve()) for path in paths]})

    def claims(self, verdicts: Sequence[Verdict]) -> None:
        """The table of claims."""
        columns = ["id", "source", "says", "published", "measured", "tolerance", "verdict", "why"]
        self._send(
            {"claims": [[getattr(one, name) for name in columns] for one in verdicts], "columns": columns}
        )

    def preempting(self) -> None:
        """Tell W&B that the run will be requeued and go on under the same id."""
        self._send({"preempting": True})

    def finish(self, exit_code: int = 0) -> bool:
        """Close the run; whether W&B took everything. Waits at most init_timeout + finish_timeout seconds."""
        if self._ended or self._process is None:
            return self._complete
        self._ended = True
        for block in self._thin.rest():
            self._send_block(*block)
        deadline = time.monotonic() + self._patience
        if self.problem is None:
            self._send({"finish": exit_code})
        with suppress(queue.Full):
            self._queue.put(None, timeout=1)
        self._reader.join(max(deadline - time.monotonic(), 0.1) if self.problem is None else 5)
        if not self._complete and self.problem is None:
            self._give_up(f"no answer within {self._patience:g} s")
        self._end_process()
        return self._complete

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, stopping.Stopped):
            self.preempting()
        code = (
            error.code
            if isinstance(error, SystemExit) and isinstance(error.code, int)
            else int(kind is not None)
        )
        self.finish(code)

    def _send_block(self, steps: np.ndarray, columns: dict[str, np.ndarray], condition: str) -> None:
        values = {
            name: [None if np.isnan(value) else encode_number(value) for value in column.tolist()]
            for name, column in columns.items()
        }
        self._send({"rows": values, "steps": steps.tolist(), "condition": condition})

    def _send(self, message: dict[str, Any]) -> None:
        if self.problem is not None or self._process is None:
            return
        try:
            self._queue.put_nowait(json.dumps(message, default=str))
        except queue.Full:
            self._give_up("it does not take any more data")

    def _write(self) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            while (line := self._queue.get()) is not None:
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()
            self._process.stdin.close()
        except (OSError, ValueError) as error:
            self._give_up(str(error))

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):
                event = json.loads(line)
                if "problem" in event:
                    self._give_up(event["problem"])
                elif "note" in event:
                    log.info("W&B: %s", event["note"])
                elif event.get("finished"):
                    self._complete = self.problem is None
                    return
        if not self._complete:
            self._give_up("its process ended")

    def _give_up(self, why: str) -> None:
        if self.problem is None and not self._complete:
            self.problem = why
            log.warning(
                "W&B: %s. The run goes on; its directory has everything, and `make publish` sends it later.",
                why,
            )

    def _end_process(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(2 if self._complete else 0.2)
        except subprocess.TimeoutExpired:
            # The process leads a group in which wandb-core is too; a plain kill would leave that behind.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
