"""Which model: the typed config. Imports neither PyTorch nor JAX."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_serializer, model_validator

from repro.data.lm_task_specs import Task
from repro.errors import UserError
from repro.models.base_specs import Model as Model
from repro.models.base_specs import Positive, check_heads
from repro.models.tuned_specs import FineTuned as FineTuned
from repro.models.tuned_specs import TextOrganism as TextOrganism


class NoModel(Model):
    """An experiment that defines its own model (a toy model)."""

    kind: Literal["none"] = "none"


class IclTransformer(Model):
    """A small causal transformer on (exemplar, label, …, query) sequences, trained from scratch.

    `mlp_ratio: null` makes it attention-only; otherwise the MLP has `mlp_ratio * width` hidden
    units. `outputs: null` takes the number of labels of the sequences. `positions`: rotary with
    base `position_base`, sinusoidal (added) with the same base, or learned (added).
    """

    kind: Literal["icl_transformer"] = "icl_transformer"
    depth: Positive = 2
    heads: Positive = 8
    width: Positive = 64
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None
    positions: Literal["rope", "sinusoidal", "learned"] = "rope"
    position_base: Annotated[float, Field(gt=0)] = 10_000.0
    init_rescale: Annotated[float, Field(gt=0)] = 1.0
    outputs: Positive | None = None

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        check_heads(self.heads, self.width)
        if self.positions == "rope" and (self.width // self.heads) % 2:
            raise UserError(
                f"model.positions: rope needs an even head width; got {self.width}/{self.heads} ="
                f" {self.width // self.heads}. Choose other heads, or positions=sinusoidal"
            )
        return self


class HuggingFace(Model):
    """A causal language model of the Hugging Face hub, or of a folder written by `save_pretrained`.

    path: hub name ("gpt2") or folder with config.json and safetensors. dtype: of weights and computation.
    attention: `auto` is sdpa where the family has it, else eager. revision: of a hub name.
    """

    module: ClassVar[str] = "repro.models.huggingface"
    kind: Literal["hf"] = "hf"
    path: str
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    revision: str | None = None


def _task(value: Any) -> Task:
    if isinstance(value, Task):
        return value
    if not isinstance(value, dict):
        raise UserError(f"model.task: expected a mapping, got {value!r}. Give model.task.kind=NAME")
    return Task.choose(value, "model.task")


class Organism(Model):
    """A small language model that the harness trains itself, once, and finds again afterwards.

    mlp_width: null is 4 * width. local_layers, window: GPT-Neo only; so many of the first layers see the
    last `window` tokens, the others all. init_range: standard deviation of initial weights.
    task: what it is trained on. Training is AdamW on the CPU, in float32, on one thread: the learning rate
    rises in `warmup_steps` and falls along a cosine to a tenth in `steps`; it ends as soon as all metrics of
    `until` are at least what it says, measured every `evaluate_every` steps, and fails if they never are
    (null: all steps, whatever comes out).
    dtype, attention: of the trained model when it is loaded; no part of the training.
    """

    module: ClassVar[str] = "repro.training.lm_store"
    embedded: ClassVar[str] = "Small model trained by the harness: not the paper's."
    # Raised whenever the same spec gives other weights, so that models trained before are trained anew.
    trainer: ClassVar[int] = 1
    kind: Literal["organism"] = "organism"
    architecture: Literal["gpt2", "gpt_neo", "opt"] = "gpt2"
    depth: Positive = 2
    heads: Positive = 4
    width: Positive = 64
    mlp_width: Positive | None = None
    context: Positive = 64
    local_layers: Annotated[int, Field(ge=0)] = 0
    window: Positive = 2
    init_range: Annotated[float, Field(gt=0)] = 0.02
    task: Annotated[Task, BeforeValidator(_task)]
    steps: Positive = 800
    batch: Positive = 64
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    evaluate_every: Positive = 50
    until: Annotated[dict[str, float], BeforeValidator(lambda value: value or {})] = {}
    seed: Annotated[int, Field(ge=0)] = 0
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    attention: Literal["auto", "eager", "sdpa"] = "eager"

    @field_serializer("task")
    def _whole_task(self, task: Task) -> dict[str, Any]:
        return task.model_dump(mode="json")  # pydantic alone would write what all tasks have in common

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_heads(self.heads, self.width)
        if self.context < self.task.longest:
            raise UserError(
                f"model.context: sequences of task {self.task.kind} have up to {self.task.longest} tokens;"
                f" got {self.context}. Give model.context={self.task.longest} or more"
            )
        if self.local_layers > (self.depth if self.architecture == "gpt_neo" else 0):
            raise UserError(
                f"model.local_layers: got {self.local_layers}; gpt_neo may have up to {self.depth} (all),"
                f" others 0; this is {self.architecture}. Give model.local_layers=0"
            )
        unknown = [name for name in self.until if name not in self.task.metrics]
        if unknown:
            raise UserError(
                f"model.until: {', '.join(unknown)} is not measured on task {self.task.kind}."
                f" Valid: {', '.join(self.task.metrics)}"
            )
        return self

    # The rest of its recipe, which is the same for all.

    @property
    def betas(self) -> tuple[float, float]:
        """Of AdamW."""
        return (0.9, 0.99)

    @property
    def clip(self) -> float | None:
        """Largest norm of a gradient."""
        return 1.0

    @property
    def decays(self) -> bool:
        """The learning rate falls."""
        return True

    @property
    def drops(self) -> bool:
        """There is dropout."""
        return False

    def training_fingerprint(self) -> dict[str, Any]:
        """Everything that can change a weight, as plain values."""
        plain = self.model_dump(mode="json", exclude={"task", "dtype", "attention"})
        return {**plain, "task": self.task.fingerprint(), "trainer": self.trainer}

    def fingerprint(self) -> dict[str, Any]:
        """For the run's hash: what was trained, and how it is loaded."""
        return {**self.training_fingerprint(), "dtype": self.dtype, "attention": self.attention}
