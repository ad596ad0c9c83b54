"""All training runs of a figure: those not yet in the store are trained, side by side."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import numpy as np

from repro import stopping
from repro.data.features import Features
from repro.data.splits import class_ranges, exemplar_ranges
from repro.errors import UserError
from repro.models import jax_device
from repro.progress import Progress, progress
from repro.recorder import Recorder, Tail
from repro.training import loop, places, store
from repro.training.plans import Plan
from repro.training.schedule import step_count
from repro.training.store import Trained
from repro.training.worker import DONE

_POLL_SECONDS = 1.0


def train_all(
    plans: Mapping[str, Plan],
    folder: Path,
    recorder: Recorder,
    workers: int,
    features: Features | None = None,
) -> dict[str, Trained]:
    """The finished training run of every condition; those missing in the store `folder` are trained.

    Rows of every condition go to `recorder` as they come (whole, if it was trained before).
    workers: processes at a time; 0 trains in this process. One that fails does not stop the others;
    then `UserError` names it, and the same command goes on with what is missing.
    """
    jax_device.check()
    for plan in plans.values():
        _check_splits(plan, features)
    directories = {name: places.folder(folder, plan) for name, plan in plans.items()}
    # Conditions that come to the same plan are trained once, under the name of the first of them.
    first: dict[Path, str] = {}
    for name, directory in directories.items():
        first.setdefault(directory, name)
    missing = {name: plans[name] for directory, name in first.items() if not places.is_done(directory)}
    for name, plan in missing.items():
        places.write_plan(directories[name], plan)
    if missing:
        if workers:
            _Pool(missing, directories, recorder, min(workers, len(missing))).run()
        else:
            _train_here(missing, directories)
    trained = {name: Trained(directories[name], plan, features) for name, plan in plans.items()}
    for name, run in trained.items():
        if name not in missing or not workers:
            _replay(run, recorder, name)
    return trained


def _train_here(plans: Mapping[str, Plan], directories: Mapping[str, Path]) -> None:
    """One after the other in this process: where there is one thread, or one GPU."""
    with progress(sum(plan.steps for plan in plans.values()), "training", "steps") as bar:
        before = 0
        for name, plan in plans.items():
            store.train(directories[name], lambda step, _, before=before: bar.set(before + step))
            before += plan.steps


def _check_splits(plan: Plan, features: Features | None) -> None:
    """Refuse splits that do not fit the features before any training starts."""
    if features is not None:
        classes, exemplars, _ = features.values.shape
        class_ranges(plan.sequences, classes)
        exemplar_ranges(plan.sequences, exemplars)


def _replay(run: Trained, recorder: Recorder, name: str) -> None:
    def log(steps: np.ndarray, columns: loop.Columns) -> None:
        recorder.many(steps, columns, name)

    loop.log_history(loop.History.of(run.history), log, run.plan.training.batch)


class _Pool:
    """Worker processes and the plans they have, the longest plans first."""

    def __init__(
        self, plans: Mapping[str, Plan], directories: Mapping[str, Path], recorder: Recorder, workers: int
    ) -> None:
        self._plans, self._directories, self._recorder = dict(plans), directories, recorder
        self._waiting = sorted(plans, key=lambda name: -step_count(plans[name].training))
        self._tails = {name: Tail(directories[name]) for name in plans}
        self._at = {name: 0 for name in plans}
        self._failed: dict[str, str] = {}
        self._done: set[str] = set()
        self._processes: list[subprocess.Popen] = []
        self._workers = workers

    def run(self) -> None:
        """Train all; raises `UserError` at the end if some could not be."""
        total = sum(step_count(plan.training) for plan in self._plans.values())
        with selectors.DefaultSelector() as selector, progress(total, "training", "steps") as bar:
            try:
                for _ in range(self._workers):
                    self._start(selector)
                self._serve(selector, bar)
            finally:
                for process in self._processes:
                    if self._unfinished:
                        process.kill()
                    with suppress(BrokenPipeError):
                        process.stdin.close()  # type: ignore[union-attr]
                    process.wait()
        if self._failed:
            lines = [f"training of {name or 'the model'} failed: {why}" for name, why in self._failed.items()]
            raise UserError(
                "\n".join([*lines, "what was trained is saved; the same command goes on from there"])
            )

    @property
    def _unfinished(self) -> bool:
        return len(self._done) + len(self._failed) < len(self._plans)

    def _start(self, selector: selectors.BaseSelector) -> None:
        # NPROC is how XLA learns how many threads to make; one is fastest for models this small.
        environment = {
            **os.environ,
            "NPROC": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        with stopping.held():  # until it listens itself, a signal would end it
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "repro.training.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
                bufsize=1,
            )
        self._processes.append(process)
        self._give(selector.register(process.stdout, selectors.EVENT_READ, [process, None]))  # type: ignore[arg-type]

    def _serve(self, selector: selectors.BaseSelector, bar: Progress) -> None:
        while self._unfinished:
            if stopping.asked() == "stop":
                self._stop()
            for key, _ in selector.select(_POLL_SECONDS):
                self._hear(key, selector)
            if self._waiting and not selector.get_map():
                self._start(selector)
            self._follow(bar)
        self._follow(bar)

    def _stop(self) -> NoReturn:
        """Let every worker save, then stop, too."""
        for process in self._processes:
            process.send_signal(stopping.WARNING)
        for process in self._processes:
            process.wait()
        raise stopping.Stopped

    def _give(self, key: selectors.SelectorKey) -> None:
        """Give a worker the next plan whose needs are met."""
        process, _ = key.data
        ready = next((name for name in self._waiting if self._met(name)), None)
        key.data[1] = ready
        if ready is not None:
            self._waiting.remove(ready)
            with suppress(BrokenPipeError):  # it has just ended, which will be heard in a moment
                process.stdin.write(f"{self._directories[ready]}\n")

    def _met(self, name: str) -> bool:
        return not self._pending & {self._directories[need] for need in self._plans[name].needs}

    @property
    def _pending(self) -> set[Path]:
        """Where training has not succeeded (yet)."""
        return {self._directories[name] for name in self._plans.keys() - self._done}

    def _fail(self, name: str, why: str) -> None:
        """Note a failure, and those of all plans that take layers from it."""
        self._failed[name] = why
        for waiting in list(self._waiting):
            needs = {self._directories[need] for need in self._plans[waiting].needs}
            if waiting in self._waiting and self._directories[name] in needs:
                self._waiting.remove(waiting)
                self._fail(waiting, "a run that it takes layers from failed")

    def _hear(self, key: selectors.SelectorKey, selector: selectors.BaseSelector) -> None:
        process, name = key.data
        line = key.fileobj.readline()  # type: ignore[union-attr]
        key.data[1] = None
        if not line:
            selector.unregister(key.fileobj)
            code = process.wait()
            if code == stopping.CODE:
                self._stop()
            if name is not None:
                self._fail(
                    name, f"its process ended with {f'signal {-code}' if code < 0 else f'code {code}'}"
                )
                if self._waiting:
                    self._start(selector)
        elif name is not None:
            word, _, *why = line.rstrip("\n").split("\t")
            if word == DONE:
                self._done.add(name)
            else:
                self._fail(name, why[0] if why else "unknown")
        for other in list(selector.get_map().values()):
            if other.data[1] is None:
                self._give(other)

    def _follow(self, bar: Progress) -> None:
        """Pass new rows of the workers' logs on, and move the bar."""
        for name, tail in self._tails.items():
            for steps, columns in tail.read():
                self._recorder.many(steps, columns, name)
                at = int(steps.max()) if len(steps) else 0
                if at > self._at[name]:
                    bar.advance(at - self._at[name])
                    self._at[name] = at
