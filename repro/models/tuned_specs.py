"""Language models that are fine-tuned on the data of the run: the typed config. Imports no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_serializer, model_validator

from repro.data.base_specs import Data, sha256_of
from repro.errors import UserError
from repro.models.base_specs import Model, Positive, check_heads
from repro.specs import Spec

Natural = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]


class Pretraining(Spec):
    """AdamW at a constant rate on the data's text to pretrain on; epochs 0: random weights are the start."""

    epochs: Natural = 3
    batch: Positive = 16
    learning_rate: Rate = 2e-3
    weight_decay: Decay = 0.01


class Tuning(Spec):
    """The published recipe: AdamW (0.9, 0.999, 1e-8), decay of all parameters, constant rate, no clipping.

    Epochs are shuffled anew, the last incomplete batch is dropped, the loss is the mean over tokens.
    dropout: of every dropout module while training; null: as the checkpoint has it. seed: of order
    and dropout.
    """

    epochs: Positive = 3
    batch: Positive = 8
    learning_rate: Rate = 3e-5
    weight_decay: Decay = 0.01
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    seed: Natural = 1004


def _text(value: Any) -> Data:
    if isinstance(value, Data):
        return value
    if not isinstance(value, dict):
        raise UserError(
            f"model.text: expected the data that is trained on, got {value!r}. Give data=articles"
        )
    from repro.data.specs import Data as Known  # with all its kinds

    return Known.choose(value, "data")


class Tuned(Model):
    """What is common to models that start from some weights and are fine-tuned on the blocks of `text`.

    text: the run's data (`${data}`). dtype, attention: of the trained model when it is loaded.
    """

    module: ClassVar[str] = "repro.training.tuned_store"
    # Raised whenever the same spec gives other weights, so that models trained before are trained anew.
    trainer: ClassVar[int] = 1
    text: Annotated[Data, BeforeValidator(_text)]
    tuning: Tuning = Tuning()
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    attention: Literal["auto", "eager", "sdpa"] = "auto"

    @field_serializer("text")
    def _whole_text(self, text: Data) -> dict[str, Any]:
        return text.model_dump(mode="json")  # pydantic alone would write what all data have in common

    def start_fingerprint(self) -> dict[str, Any]:
        """Everything that can change a weight of the start, as plain values."""
        raise NotImplementedError

    def training_fingerprint(self) -> dict[str, Any]:
        """Everything that can change a weight of the tuned model, as plain values."""
        plain = self.tuning.model_dump(mode="json")
        start = self.start_fingerprint()
        return {"start": start, "tuning": plain, "text": self.text.fingerprint(), "trainer": self.trainer}

    def fingerprint(self) -> dict[str, Any]:
        """For the run's hash: what was trained, and how it is loaded."""
        return {**self.training_fingerprint(), "dtype": self.dtype, "attention": self.attention}


class TextOrganism(Tuned):
    """A small GPT-2 that the harness trains itself, in float32 on one core: once, and finds again afterwards.

    Its byte-level BPE vocabulary is trained on the text, too. seed: of initial weights and of the order in
    which blocks are pretrained on. Blocks are as long as its context.
    """

    embedded: ClassVar[str] = "Small model trained by the harness: not the paper's."
    kind: Literal["text_organism"] = "text_organism"
    depth: Positive = 2
    heads: Positive = 2
    width: Positive = 64
    vocabulary: Annotated[int, Field(ge=257)] = 1024
    init_range: Rate = 0.02
    seed: Natural = 0
    pretraining: Pretraining = Pretraining()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_heads(self.heads, self.width)
        return self

    def start_fingerprint(self) -> dict[str, Any]:
        plain = self.model_dump(mode="json", exclude={"text", "tuning", "dtype", "attention"})
        return {**plain, "text": self.text.fingerprint(), "trainer": self.trainer}


class FineTuned(Tuned):
    """A checkpoint of the hub or of a folder, fine-tuned on the run's data; on a GPU where there is one.

    path, revision: see `HuggingFace`.
    """

    kind: Literal["fine_tuned"] = "fine_tuned"
    path: str
    revision: str | None = None

    def start_fingerprint(self) -> dict[str, Any]:
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            return {"sha256": sha256_of(folder)}
        return {"path": self.path, "revision": self.revision}
