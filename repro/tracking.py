"""Weights & Biases, the only place that imports it.

`start` opens a run beside the work and `publish` sends finished runs afterwards; both talk to `serve`, which
runs in a process of its own (`repro/tracker.py` says why).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from repro import claims, recorder, results
from repro.run_directory import RunDirectory, find_runs, now
from repro.tracker import NoTracker, Tracker

log = logging.getLogger(__name__)

_LINGER = (
    0.3  # seconds to wait for rows of other conditions at the same steps: one W&B call then takes them all
)
PUBLISHED = "published.json"


def start(
    config: Mapping[str, Any], directory: Path, last_step: int | None = None, **changes: Any
) -> NoTracker:
    """Open the W&B run of a run directory; a context manager that closes it.

    config: the whole resolved config; its `tracking` part says mode (offline, online, disabled), project,
        entity, tags, init_timeout_s, finish_timeout_s, and if wanted base_url and max_points (of one series).
    directory: the run directory; its name, the hash, is the id of the W&B run, so a resumed run continues it.
    last_step: the last step that will be logged, for thinning evenly.
    changes: replace parts of `tracking`.
    """
    wish = {**config.get("tracking", {}), **changes}
    if wish.get("mode", "offline") == "disabled":
        return NoTracker()
    run = RunDirectory(Path(directory).resolve())
    home = run.path / "wandb"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("W&B: cannot write in %s (%s); the run goes on without it", home, error.strerror)
        return NoTracker()
    settings = {
        "mode": wish.get("mode", "offline"),
        "id": run.digest,
        "name": f"{run.experiment}-{run.digest[:6]}",
        "project": wish.get("project", "repro-harness"),
        "entity": wish.get("entity"),
        "base_url": wish.get("base_url"),
        "group": run.slug,
        "job_type": run.experiment,
        "tags": list(dict.fromkeys([run.slug, run.experiment, *wish.get("tags", [])])),
        "config": dict(config),
        "directory": str(run.path),
        "init_timeout": float(wish.get("init_timeout_s", 20)),
        "finish_timeout": float(wish.get("finish_timeout_s", 60)),
    }
    return Tracker(
        settings, _environment(home, settings["mode"]), int(wish.get("max_points", 2000)), last_step
    )


def _environment(home: Path, mode: str) -> dict[str, str]:
    """Everything W&B keeps goes below the run directory, not into the user's home."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("WANDB_SERVICE", "WANDB_RUN_ID")
    }
    environment |= {"WANDB_DATA_DIR": str(home / "data"), "WANDB_CACHE_DIR": str(home / "cache")}
    environment |= {"WANDB_ERROR_REPORTING": "false", "PYTHONUNBUFFERED": "1"}
    if mode == "offline":  # online, the user's settings there tell which server to use
        environment["WANDB_CONFIG_DIR"] = str(home / "config")
    return environment


def publish(
    runs_dir: Path, mode: str = "online", force: bool = False, **changes: Any
) -> dict[str, list[Path]]:
    """Send every finished run below `runs_dir` to W&B, from our own files and under the same ids.

    Idempotent: what published.json says was sent in this mode and has not changed since is skipped, except
    with `force`. Returns the directories: sent, skipped, failed.
    """
    outcome: dict[str, list[Path]] = {"sent": [], "skipped": [], "failed": []}
    for run in find_runs(runs_dir):
        if not run.is_done():
            continue
        mark = _fingerprint(run)
        known = _published(run).get(mode, {})
        if known.get("fingerprint") == mark and not force:
            outcome["skipped"].append(run.path)
            continue
        sent = _send(run, mode, with_history=force or not known, changes=changes)
        outcome["sent" if sent else "failed"].append(run.path)
        if sent:
            _remember(run, mode, mark)
    return outcome


def mark_published(directory: Path, mode: str) -> None:
    """Remember that the run was sent while it worked, so that `publish` need not."""
    run = RunDirectory(directory)
    _remember(run, mode, _fingerprint(run))


def _send(run: RunDirectory, mode: str, with_history: bool, changes: Mapping[str, Any]) -> bool:
    history = recorder.read_history(run.path)
    last_step = int(history["step"].max()) if len(history) else None
    tracker = start(run.config(), run.path, last_step, mode=mode, **changes)
    with tracker:
        if with_history:
            conditions = history["condition"] if "condition" in history else np.full(len(history), "")
            columns = [name for name in history.columns if name not in ("step", "condition")]
            for condition in dict.fromkeys(conditions):
                part = history[conditions == condition].dropna(axis="columns", how="all")
                values = {name: part[name].to_numpy(float) for name in columns if name in part}
                tracker.log_rows(part["step"].to_numpy(int), values, condition)
        tracker.figures(run.figures)
        tracker.claims(claims.load(run.path))
        tracker.scalars(results.load(run.path).scalars)
        return tracker.finish()


def _fingerprint(run: RunDirectory) -> str:
    digest = hashlib.sha256()
    for path in [
        run.path / "scalars.json",
        run.path / "claims.json",
        run.path / recorder.HISTORY,
        *run.figures,
    ]:
        digest.update(path.name.encode() + (path.read_bytes() if path.exists() else b""))
    return digest.hexdigest()


def _published(run: RunDirectory) -> dict[str, Any]:
    path = run.path / PUBLISHED
    return results.read_json(path) if path.exists() else {}


def _remember(run: RunDirectory, mode: str, mark: str) -> None:
    results.write_json(run.path / PUBLISHED, {**_published(run), mode: {"fingerprint": mark, "time": now()}})


# What follows runs in the tracker's own process.


def serve() -> None:
    """Read messages, one JSON object a line, and do what they say with W&B; end at the end of the input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what W&B prints must not mix with the answers
    session = _Session(answers)
    for message in _messages(session.flush):
        session.handle(message)
    if not session.closed:  # the run was killed
        session.handle({"finish": 1})
    os._exit(0)  # the exit hooks of W&B may wait for ever


def _messages(idle: Any) -> Any:
    waiting, descriptor = b"", sys.stdin.fileno()
    while True:
        if not select.select([descriptor], [], [], _LINGER)[0]:
            idle()
            continue
        piece = os.read(descriptor, 1 << 20)
        if not piece:
            return
        *lines, waiting = (waiting + piece).split(b"\n")
        yield from (json.loads(line) for line in lines)


class _Session:
    """One W&B run. The first failure is reported, and everything after it ignored."""

    def __init__(self, answers: Any) -> None:
        self.closed = False
        self._answers = answers
        self._run: Any = None
        self._failed = False
        self._rows: dict[int, dict[str, float]] = {}
        self._since = time.monotonic()
        self._step = 0
        self._timeout = 60.0

    def handle(self, message: dict[str, Any]) -> None:
        """Do one thing, whatever W&B makes of it."""
        if self._failed and "finish" not in message:
            return
        try:
            if "rows" in message:
                self._take(message)
            else:
                self.flush()
                self._do(message)
        except BaseException as error:
            self._fail(error)

    def flush(self) -> None:
        """Send the rows that were gathered."""
        try:
            for step in sorted(self._rows):
                self._run.log({"step": step, **self._rows[step]})
                self._step = max(self._step, step)
        except BaseException as error:
            self._fail(error)
        self._rows, self._since = {}, time.monotonic()

    def _take(self, message: dict[str, Any]) -> None:
        prefix = f"{message['condition']}/" if message["condition"] else ""
        for name, values in message["rows"].items():
            for step, value in zip(message["steps"], values, strict=True):
                if value is not None:
                    self._rows.setdefault(step, {})[prefix + name] = float(value)
        if time.monotonic() - self._since > 5 * _LINGER:
            self.flush()

    def _do(self, message: dict[str, Any]) -> None:
        import wandb

        if "open" in message:
            self._open(message["open"])
        elif "summary" in message:
            summary = {name: results.decode_number(value) for name, value in message["summary"].items()}
            self._run.summary.update(summary)
        elif "figures" in message:
            images = {f"figures/{Path(path).stem}": wandb.Image(path) for path in message["figures"]}
            if images:
                self._run.log({"step": self._step, **images})
        elif "claims" in message:
            if message["claims"]:
                table = wandb.Table(columns=message["columns"], data=message["claims"])
                self._run.log({"step": self._step, "claims": table})
        elif "preempting" in message:
            self._run.mark_preempting()
        elif "finish" in message:
            self._finish(int(message["finish"]))

    def _open(self, wish: dict[str, Any]) -> None:
        import wandb

        self._timeout = wish["finish_timeout"]
        settings = wandb.Settings(
            init_timeout=wish["init_timeout"],
            finish_timeout=wish["finish_timeout"],
            console="off",
            quiet=True,
            silent=True,
            x_disable_stats=True,
            x_transaction_log_flush_interval=0.5,
            **({"base_url": wish["base_url"]} if wish["base_url"] else {}),
        )
        names = ("id", "name", "project", "entity", "group", "job_type", "tags", "config")
        common = {"dir": wish["directory"], "resume": "allow", **{name: wish[name] for name in names}}
        self._run = wandb.init(mode=wish["mode"], settings=settings, **common)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        if wish["mode"] == "online":
            self._tell(note=self._run.url)

    def _finish(self, code: int) -> None:
        self.closed = True
        # finish() has a timeout of its own, which some failures get around.
        watch = threading.Timer(self._timeout + 5, os._exit, args=(1,))
        watch.daemon = True
        watch.start()
        if self._run is not None and not self._failed:
            self._run.finish(exit_code=code)
            self._tell(finished=True)

    def _fail(self, error: BaseException) -> None:
        if not self._failed:
            self._failed = True
            self._tell(problem=f"{type(error).__name__}: {error}")

    def _tell(self, **event: Any) -> None:
        try:
            self._answers.write(json.dumps(event) + "\n")
            self._answers.flush()
        except OSError:  # the run is gone
            pass
