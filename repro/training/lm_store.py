"""Small language models by the hash of their spec, shared between experiments: trained once, then found.

<store>/<hash>/ is a folder that `from_pretrained` reads (config.json, model.safetensors, tokenizer.json),
with organism.json (what was trained, and what it can do) and history.npz; while training, state.safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.utils import logging as library_logging

from repro.data.lm_tasks import build as build_task
from repro.errors import UserError
from repro.models import huggingface, organism
from repro.models.language_model import LanguageModel
from repro.models.specs import HuggingFace, Organism
from repro.progress import Pace, progress
from repro.results import read_json, write_atomic, write_json
from repro.run_directory import RunDirectory, now
from repro.training import lm_loop, lm_tokenizer
from repro.training.lm_loop import History, Recipe, Source

FACTS = "organism.json"  # written last
HISTORY = "history.npz"
WEIGHTS = "model.safetensors"


def load(spec: Organism, hardware: Mapping[str, Any], store: Path) -> LanguageModel:
    """The trained model on the device of the hardware profile; if need be, it is trained first."""
    huggingface.device_of(hardware["device"])  # refused before it is trained
    path = str(ensure(spec, store))
    found = HuggingFace(path=path, dtype=spec.dtype, attention=spec.attention)
    return huggingface.load(found, hardware, store)


def ensure(spec: Organism, store: Path) -> Path:
    """The folder of the trained model. Another process that trains it is waited for.

    Raises `UserError` if training ended before the metrics of `until` were reached.
    """
    directory = folder(store, spec)
    if not is_done(directory):
        train(spec, directory)
    facts = read_json(directory / FACTS)
    if not facts["reached"]:
        wanted = ", ".join(f"{name} {facts['metrics'][name]:.4g} (asked for {least})" for name, least in
                           spec.until.items())  # fmt: skip
        raise UserError(
            f"model: after {facts['steps']} steps of training: {wanted}. Give more steps (model.steps="
            f"{2 * spec.steps}) or another model.seed, or take it as it is with model.until=null"
        )
    return directory


def folder(store: Path, spec: Organism) -> Path:
    """Where the model of a spec lies in the store."""
    text = json.dumps(spec.training_fingerprint(), sort_keys=True, separators=(",", ":"))
    return Path(store) / hashlib.sha256(text.encode()).hexdigest()[:12]


def is_done(directory: Path) -> bool:
    """Whether the model has been trained to its end."""
    return (directory / FACTS).exists() and (directory / WEIGHTS).exists()


def train(spec: Organism, directory: Path) -> None:
    """Train the model of a spec into its folder, or go on with it; nothing if it is done."""
    complete(directory, spec.steps, lambda: _organism(spec))


@dataclass(frozen=True)
class Training:
    """A model to be trained on `source` by `recipe`, with what is saved beside it.

    facts: for organism.json. title: of the progress bar. note: how far training is, in words.
    """

    recipe: Recipe
    model: Any
    source: Source
    tokenizer: Any
    title: str
    facts: Mapping[str, Any]
    note: Callable[[History], str]


def complete(directory: Path, steps: int | None, make: Callable[[], Training]) -> None:
    """Do a training into its folder, or go on with it; nothing if it is done.

    Another process that does it is waited for. steps: as far as known before the training is made.
    """
    run = RunDirectory(directory)
    with run.lock(wait=True):
        if is_done(directory):
            return
        here = {"pid": os.getpid(), "host": socket.gethostname(), "started": now()}
        run.set_status("running", step=None, total=steps, eta=None, **here)
        try:
            _complete(make(), directory, run)
        except Exception as error:
            run.set_status("failed", reason=f"{type(error).__name__}: {error}"[:2000], eta=None)
            raise
        run.set_status("done", eta=None)


def _complete(training: Training, directory: Path, run: RunDirectory) -> None:
    pace, steps = Pace(), training.recipe.steps
    with progress(steps, training.title, "steps") as bar:

        def show(history: History) -> None:
            step = history.step
            run.set_status("running", step=step, total=steps, eta=pace.eta(step, steps))
            bar.set(step, training.note(history))

        history = lm_loop.run(training.recipe, training.model, training.source, directory, show)
    _save(training, history, directory)
    (directory / lm_loop.STATE).unlink(missing_ok=True)


def _organism(spec: Organism) -> Training:
    task = build_task(spec.task)
    start = None if task.start is None else list(task.vocabulary).index(task.start)
    model = organism.build(spec, len(task.vocabulary), start, initial_seed(spec.seed))
    tokenizer = lm_tokenizer.build(task.vocabulary, task.start)
    title = f"training a small {spec.architecture} on {spec.task.kind}"
    facts = {"note": spec.embedded, "spec": spec.training_fingerprint()}
    return Training(spec, model, task, tokenizer, title, facts, lambda history: _note(spec, history))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bar, which takes longer to read than the file to write."""
    shown = library_logging.is_progress_bar_enabled()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library_logging.enable_progress_bar()


def initial_seed(seed: int) -> int:
    """A number for PyTorch's generator; apart from the streams of the data, which have names."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)


def _note(spec: Organism, history: History) -> str:
    """How far training is: the metrics that end it, else the loss."""
    last = history.last
    if spec.until and last:
        return ", ".join(f"{name} {last[name]:.3f}" for name in spec.until)
    return f"loss {history.loss[-1]:.3f}" if history.loss else ""


def _save(training: Training, history: History, directory: Path) -> None:
    """Everything of the finished model; each file whole, organism.json last."""
    parts = directory / f".saving.{secrets.token_hex(4)}"
    try:
        with _quiet():
            training.model.eval().save_pretrained(parts)
        if training.tokenizer is not None:
            training.tokenizer.save_pretrained(parts)
        for file in sorted(parts.iterdir()):
            os.replace(file, directory / file.name)
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    write_atomic(directory / HISTORY, lm_loop.history_bytes(history))
    facts = {
        **training.facts,
        "steps": history.step,
        "reached": lm_loop.reached(training.recipe, history),
        "metrics": history.last,
        "cpu_seconds": round(history.cpu_seconds, 1),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    write_json(directory / FACTS, facts)
