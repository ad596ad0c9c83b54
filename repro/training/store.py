"""Trained models by the hash of their plan, shared between experiments: trained once, then found.

<store>/<hash>/ has plan.json, history.npz when done, checkpoints/<sequences>.safetensors, and
log.jsonl and state.npz while training.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repro.data.features import Features, load
from repro.errors import UserError
from repro.interventions import icl_manipulations
from repro.interventions.icl_manipulations import Forward
from repro.models import jax_device
from repro.models.icl_init import init
from repro.models.icl_transformer import IclTransformerModel
from repro.models.weights import load_weights, save_weights
from repro.progress import Pace
from repro.recorder import Recorder
from repro.results import write_atomic
from repro.run_directory import RunDirectory, job_id, now
from repro.training import loop
from repro.training.places import HISTORY, PLAN, is_done
from repro.training.plans import Plan
from repro.training.program import Seeds, build, outputs_of
from repro.training.schedule import step_count

CHECKPOINTS = "checkpoints"


class Trained:
    """A finished training run: its plan, its history and its weights."""

    def __init__(self, directory: Path, plan: Plan, features: Features | None = None) -> None:
        self.directory, self.plan, self._features = directory, plan, features
        self.history = loop.read_arrays(directory / HISTORY)

    @classmethod
    def open(cls, directory: str | Path) -> Trained:
        """The training run in a folder of the store. Raises `UserError` if there is none that finished."""
        directory = Path(directory)
        if not (directory / PLAN).exists():
            raise UserError(
                f"{directory}: no trained model here (expected {PLAN}). Give a folder RUNS_DIR/trained/HASH;"
                " the provenance.json of a run names those it used"
            )
        if not (directory / HISTORY).exists():
            raise UserError(
                f"{directory}: its training has not finished. Run the same command again to go on"
            )
        return cls(directory, Plan.from_json((directory / PLAN).read_text()))

    @property
    def features(self) -> Features:
        """The features it was trained on, loaded when first asked for."""
        if self._features is None:
            self._features = load(self.plan.data)
        assert self._features is not None
        return self._features

    @property
    def checkpoints(self) -> list[int]:
        """Sequences seen at each saved checkpoint, rising; the end of training is always among them."""
        return sorted(int(path.stem) for path in (self.directory / CHECKPOINTS).glob("*.safetensors"))

    def model(self, checkpoint: int | str = "last") -> IclTransformerModel:
        """The weights after `checkpoint` sequences. Raises `UserError` naming the saved ones."""
        saved = self.checkpoints
        at = saved[-1] if checkpoint == "last" else int(checkpoint)
        if at not in saved:
            near = sorted(saved, key=lambda one: abs(one - at))[:3]
            raise UserError(
                f"checkpoint: {at} sequences were not saved in {self.directory}; the nearest are"
                f" {', '.join(map(str, sorted(near)))}, the last is {saved[-1]} ({len(saved)} in all)"
            )
        return load_weights(checkpoint_path(self.directory, at), self._template)

    @functools.cached_property
    def _template(self) -> IclTransformerModel:
        plan = self.plan
        outputs = outputs_of(plan.model, plan.sequences, self.features)
        return init(plan.model, self.features.values.shape[-1], outputs, plan.seed["init"])

    def copy_last(self, path: Path) -> None:
        """Put a copy of the last weights somewhere, such as into the directory of the run that wants them."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, checkpoint_path(self.directory, self.checkpoints[-1]).read_bytes())

    def forward(self) -> Forward:
        """The model's forward pass under the manipulations it was trained with."""
        return icl_manipulations.build(self.plan.manipulations, load_frozen)


def load_frozen(run: str, checkpoint: int | str) -> tuple[IclTransformerModel, Forward]:
    """What a graft needs of a trained model: its weights and its forward pass."""
    trained = Trained.open(run)
    return trained.model(checkpoint), trained.forward()


def checkpoint_path(directory: Path, sequences: int) -> Path:
    """Where the weights after so many sequences are saved."""
    return directory / CHECKPOINTS / f"{sequences:011d}.safetensors"


def train(directory: Path, progress: Callable[[int, int], None] = lambda step, total: None) -> None:
    """Train the plan that is written in a folder of the store, or go on with it; nothing if it is done.

    Another process that trains it is waited for. progress: told the step and the number of steps.
    """
    jax_device.check()
    plan = Plan.from_json((directory / PLAN).read_text())
    run = RunDirectory(directory)
    with run.lock(wait=True):
        if is_done(directory):
            return
        (directory / CHECKPOINTS).mkdir(exist_ok=True)
        here = {"pid": os.getpid(), "host": socket.gethostname(), "started": now(), "job_id": job_id()}
        run.set_status("running", step=None, total=plan.steps, eta=None, **here)
        features = load(plan.data)
        if features is None:
            raise UserError("data: in-context sequences need features. Choose another data=")
        program = build(
            plan.model,
            plan.sequences,
            plan.training,
            Seeds(**plan.seed),
            features,
            icl_manipulations.build(plan.manipulations, load_frozen),
            loop.longest_stretch(plan.training),
        )
        end = step_count(plan.training) * plan.training.batch
        digest = plan.digest()  # once: it may have to read a whole file of features
        if digest != directory.name:
            raise UserError(
                f"data: the features changed since this training was planned ({directory} was asked for, they"
                f" give {digest}). Run the same command again"
            )

        def save_checkpoint(sequences: int, weights: Any) -> None:
            # A power cut may cost checkpoints between two saved states; they are then written again.
            facts = {"sequences": str(sequences), "plan": digest}
            path = checkpoint_path(directory, sequences)
            save_weights(path, program.model(weights), facts, durable=sequences == end)

        pace = Pace()

        def show(step: int, total: int) -> None:
            run.set_status("running", step=step, total=total, eta=pace.eta(step, total))
            progress(step, total)

        with Recorder(directory) as recorder:
            loop.run(
                program,
                plan.training,
                directory,
                lambda steps, columns: recorder.many(steps, columns),
                save_checkpoint,
                show,
            )
        run.set_status("done", eta=None)
