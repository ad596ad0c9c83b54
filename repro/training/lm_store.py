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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.utils import logging as library_logging

from repro.data.lm_tasks import Task
from repro.data.lm_tasks import build as build_task
from repro.errors import UserError
from repro.models import huggingface, organism
from repro.models.language_model import LanguageModel
from repro.models.specs import HuggingFace, Organism
from repro.progress import Pace, progress
from repro.results import read_json, write_atomic, write_json
from repro.run_directory import RunDirectory, now
from repro.training import lm_loop, lm_tokenizer
from repro.training.lm_loop import History

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
    run = RunDirectory(directory)
    with run.lock(wait=True):
        if is_done(directory):
            return
        here = {"pid": os.getpid(), "host": socket.gethostname(), "started": now()}
        run.set_status("running", step=None, total=spec.steps, eta=None, **here)
        try:
            _train(spec, directory, run)
        except Exception as error:
            run.set_status("failed", reason=f"{type(error).__name__}: {error}"[:2000], eta=None)
            raise
        run.set_status("done", eta=None)


def _train(spec: Organism, directory: Path, run: RunDirectory) -> None:
    task = build_task(spec.task)
    start = None if task.start is None else list(task.vocabulary).index(task.start)
    model = organism.build(spec, len(task.vocabulary), start, _initial_seed(spec.seed))
    pace = Pace()
    with progress(spec.steps, f"training a small {spec.architecture} on {spec.task.kind}", "steps") as bar:

        def show(history: History) -> None:
            step = history.step
            run.set_status("running", step=step, total=spec.steps, eta=pace.eta(step, spec.steps))
            bar.set(step, _note(spec, history))

        history = lm_loop.run(spec, model, task, directory, show)
    _save(spec, model, task, history, directory)
    (directory / lm_loop.STATE).unlink(missing_ok=True)


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


def _initial_seed(seed: int) -> int:
    """A number for PyTorch's generator; apart from the streams of the data, which have names."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)


def _note(spec: Organism, history: History) -> str:
    """How far training is: the metrics that end it, else the loss."""
    last = history.last
    if spec.until and last:
        return ", ".join(f"{name} {last[name]:.3f}" for name in spec.until)
    return f"loss {history.loss[-1]:.3f}" if history.loss else ""


def _save(spec: Organism, model: Any, task: Task, history: History, directory: Path) -> None:
    """Everything of the finished model; each file whole, organism.json last."""
    parts = directory / f".saving.{secrets.token_hex(4)}"
    try:
        with _quiet():
            model.eval().save_pretrained(parts)
        lm_tokenizer.build(task.vocabulary, task.start).save_pretrained(parts)
        for file in sorted(parts.iterdir()):
            os.replace(file, directory / file.name)
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    write_atomic(directory / HISTORY, lm_loop.history_bytes(history))
    facts = {
        "note": spec.embedded,
        "spec": spec.training_fingerprint(),
        "steps": history.step,
        "reached": lm_loop.reached(spec, history),
        "metrics": history.last,
        "cpu_seconds": round(history.cpu_seconds, 1),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    write_json(directory / FACTS, facts)
