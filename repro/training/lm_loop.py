"""One training run of a small language model, and a state on disk from which it goes on.

On the CPU, in float32, on one thread: the same recipe gives the same weights bit for bit (on one kind of
machine), also when the run is killed at any step and started again.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from repro import stopping
from repro.data.lm_tasks import Scored
from repro.errors import UserError
from repro.results import write_atomic
from repro.training import lm_evaluation

STATE = "state.safetensors"
SAVE_SECONDS = 15.0
LAST_SHARE = 0.1


class Recipe(Protocol):
    """How a model is trained; the spec of an organism is one.

    clip: largest norm of a gradient; None: any. decays: the rate falls along a cosine after `warmup_steps`.
    drops: there is dropout, whose random numbers belong to seed and step.
    """

    @property
    def seed(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def evaluate_every(self) -> int: ...
    @property
    def until(self) -> Mapping[str, float]: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def decays(self) -> bool: ...
    @property
    def drops(self) -> bool: ...


class Source(Protocol):
    """Where batches and probes come from: a `Task`, or blocks of a text."""

    def batch(self, seed: int, step: int, size: int) -> Scored: ...

    def probes(self) -> dict[str, Scored]: ...


@dataclass
class History:
    """loss, norm: of the batch and its gradient (before clipping), one a step. points: steps of evaluations.

    cpu_seconds: of this process, of all stretches that were saved.
    """

    loss: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    points: list[int] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    cpu_seconds: float = 0.0

    @property
    def step(self) -> int:
        """Steps made."""
        return len(self.loss)

    @property
    def last(self) -> dict[str, float]:
        """The metrics of the last evaluation."""
        return {name: values[-1] for name, values in self.metrics.items()}

    def add_evaluation(self, metrics: Mapping[str, float]) -> None:
        """What was measured after the steps so far."""
        self.points.append(self.step)
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """train_loss and train_grad_norm [step], points [point], eval_* [point]."""
        return {
            "train_loss": np.asarray(self.loss, np.float64),
            "train_grad_norm": np.asarray(self.norm, np.float64),
            "points": np.asarray(self.points, np.int64),
            **{f"eval_{name}": np.asarray(values, np.float64) for name, values in self.metrics.items()},
        }


def run(
    spec: Recipe,
    model: Any,
    task: Source,
    directory: Path,
    progress: Callable[[History], None] = lambda history: None,
) -> History:
    """Train `model` in place until `until` holds or `steps` are over, from the state in `directory` if any.

    The state is saved now and then, and stays there. Raises `UserError` when the loss is no number, and
    `stopping.Stopped` after saving when the process is asked to stop.
    """
    optimizer = _optimizer(spec, model)
    history = _restore(directory / STATE, model, optimizer)
    probes, saved, clock = task.probes(), time.monotonic(), time.process_time()
    with one_thread():
        while True:
            if _is_due(spec, history):
                history.add_evaluation(lm_evaluation.measure_all(model, probes))
            progress(history)
            before, clock = clock, time.process_time()
            history.cpu_seconds += clock - before
            if history.step >= spec.steps or (
                history.points[-1:] == [history.step] and _reached(spec, history)
            ):
                return history
            _advance(spec, model, optimizer, task.batch(spec.seed, history.step, spec.batch), history)
            if stopping.asked() or time.monotonic() - saved > SAVE_SECONDS:
                _save(directory / STATE, model, optimizer, history)
                saved = time.monotonic()
                stopping.saved()
                if stopping.asked() == "stop":
                    raise stopping.Stopped


def reached(spec: Recipe, history: History) -> bool:
    """Whether the last evaluation satisfies `until`; always if nothing was asked for."""
    return all(history.last[name] >= least for name, least in spec.until.items())


def learning_rate(spec: Recipe, step: int) -> float:
    """Of step 0, 1, ...: a linear rise, then constant, or a cosine from the peak to a tenth at the end."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    if not spec.decays:
        return spec.learning_rate
    share = (step - spec.warmup_steps) / max(1, spec.steps - spec.warmup_steps)
    return spec.learning_rate * (LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * share)))


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on one thread: sums have one order, and small models are fastest so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _reached(spec: Recipe, history: History) -> bool:
    return bool(spec.until) and reached(spec, history)


def _is_due(spec: Recipe, history: History) -> bool:
    """Evaluations are at fixed steps, so that when training ends does not depend on interruptions."""
    at = history.step
    return history.points[-1:] != [at] and (at % spec.evaluate_every == 0 or at == spec.steps)


def _optimizer(spec: Recipe, model: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(),
        lr=spec.learning_rate,
        betas=spec.betas,
        weight_decay=spec.weight_decay,
        foreach=False,
    )


def _advance(spec: Recipe, model: Any, optimizer: torch.optim.AdamW, batch: Scored, history: History) -> None:
    """One step of training."""
    model.train()
    with _dropout_of(spec, history.step, model):
        loss = lm_evaluation.loss(model, batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    most = math.inf if spec.clip is None else spec.clip
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), most, foreach=False))
    value = float(loss.detach())
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise UserError(
            f"model: the loss is {value} and its gradient's norm {norm} at step {history.step}: training"
            f" diverged. Give a smaller model.learning_rate (now {spec.learning_rate})"
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(spec, history.step)
    optimizer.step()
    history.loss.append(value)
    history.norm.append(norm)


@contextmanager
def _dropout_of(spec: Recipe, step: int, model: Any) -> Iterator[None]:
    """Random numbers of this step, so that a run that was interrupted drops the same."""
    if not spec.drops:
        yield
        return
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence([spec.seed, step]).generate_state(1)[0]))
        yield


def _save(path: Path, model: Any, optimizer: torch.optim.AdamW, history: History) -> None:
    """Weights and the two moments of each, and the history in the header: one file, so never half."""
    tensors = {}
    for name, weight in model.named_parameters():
        state = optimizer.state[weight]
        tensors[f"weight.{name}"] = weight.detach().contiguous()
        tensors[f"first.{name}"] = state["exp_avg"].contiguous()
        tensors[f"second.{name}"] = state["exp_avg_sq"].contiguous()
    write_atomic(path, save(tensors, {"history": json.dumps(asdict(history))}))


def _restore(path: Path, model: Any, optimizer: torch.optim.AdamW) -> History:
    """The saved history, with weights and moments put in place; a new one where nothing was saved."""
    if not path.exists():
        return History()
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            history = History(**json.loads(file.metadata()["history"]))
            for name, weight in model.named_parameters():
                weight.copy_(file.get_tensor(f"weight.{name}"))
                optimizer.state[weight] = {
                    "step": torch.tensor(float(history.step)),
                    # Copies in memory of PyTorch's own, aligned as those of a run that goes through.
                    "exp_avg": torch.empty_like(weight).copy_(file.get_tensor(f"first.{name}")),
                    "exp_avg_sq": torch.empty_like(weight).copy_(file.get_tensor(f"second.{name}")),
                }
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: the saved training cannot be read ({error}). Remove it to start again"
        ) from None
    return history


def history_bytes(history: History) -> bytes:
    """The history as the content of an npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **history.arrays())  # type: ignore[arg-type]
    return buffer.getvalue()
