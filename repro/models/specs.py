"""Which model: the typed config. Imports neither PyTorch nor JAX."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from repro.errors import UserError
from repro.specs import Family

Positive = Annotated[int, Field(ge=1)]


class Model(Family):
    """A choice of model. `module` has the `load` of models that are not trained here."""


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
        if self.width % self.heads:
            raise UserError(
                f"model.heads: must divide model.width; got {self.heads} heads and width {self.width}."
                f" Valid: {', '.join(str(n) for n in range(1, self.width + 1) if self.width % n == 0)}"
            )
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
