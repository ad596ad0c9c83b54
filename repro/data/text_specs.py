"""Prompts and token batches for language models: the typed config. Imports no PyTorch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from repro.data.base_specs import Data, sha256_of
from repro.data.sequence_specs import Natural, Positive
from repro.errors import UserError

Order = Literal["BABA", "ABBA", "mixed"]
# What a flip may be called in a config; what each does is said in repro/data/ioi_flips.py.
FLIPS = (
    "IO", "S", "S1", "S2", "S2:IO", "order", "exchange", "S+1", "middle", "prefix",
    "punctuation", "final", "IO:animal", "S:animal", "ABC",
)  # fmt: skip
NOTEBOOK_FLIPS = ("IO", "S", "S1", "S2", "order", "exchange", "IO1", "IO2")


def _known_flips(chain: list[str], valid: tuple[str, ...], key: str) -> list[str]:
    unknown = [flip for flip in chain if flip not in valid]
    if unknown:
        raise UserError(
            f"{key}: got {', '.join(unknown)}. Valid flips: {', '.join(valid)}. Give e.g. {key}=[IO,S]"
        )
    return chain


class Prompts(Data):
    """What indirect-object prompts of any source share.

    bos: a start token before every prompt. target: the answer's token after every prompt (END stays
    the token before it). corruption: flips made one after another on the prompts to get the corrupt ones.
    """

    bos: bool = False
    target: bool = False
    corruption: list[str] = ["ABC"]

    @field_validator("corruption")
    @classmethod
    def _flips(cls, chain: list[str]) -> list[str]:
        return _known_flips(chain, FLIPS, "data.corruption")

    def for_model(self, model: Any) -> Data:
        """A model trained on the small world knows its words alone: as many prompts of that world."""
        task = getattr(model, "task", None)
        if getattr(task, "kind", None) != "ioi" or isinstance(self, IoiToy):
            return self
        if getattr(self, "words", None):
            raise UserError("data.words: this model knows the words of the small world alone. Leave it out")
        own = self.model_dump(include={"order", "n", "seed", "target", "corruption", "adversarial"})
        assert task is not None
        return IoiToy(**own, held_out_share=task.held_out_share, split_seed=task.split_seed)


class Ioi(Prompts):
    """Prompts of the published templates, or of the user's own words (`words`: a JSON or YAML file).

    templates: how many, or which numbers (null: all of one order; of `mixed`, half of the family in both
    orders). symmetric: each draw also emits the prompt with the two names exchanged. released: random
    names may coincide as in the published code (three independent flips); otherwise they are distinct.
    adversarial: two sentences about the indirect object or the subject after the first clause.
    """

    module: ClassVar[str] = "repro.data.ioi"
    kind: Literal["ioi"] = "ioi"
    family: Literal["standard", "long", "late", "early", "three_names"] = "standard"
    order: Order = "mixed"
    templates: Positive | list[Positive] | None = None
    n: Positive = 200
    seed: Natural = 0
    symmetric: bool = False
    released: bool = False
    adversarial: Literal["IO", "S"] | None = None
    words: str | None = None

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if self.symmetric and self.n % 2:
            raise UserError(
                f"data.n: symmetric draws emit two prompts each, so n must be even; got {self.n}."
                f" Give e.g. data.n={self.n + 1}"
            )
        if self.order == "mixed" and isinstance(self.templates, int) and self.templates % 2:
            raise UserError(
                "data.templates: order mixed takes half of them in each order, so the number must be even;"
                f" got {self.templates}. Give e.g. data.templates={self.templates + 1}"
            )
        return self

    def fingerprint(self) -> dict[str, Any]:
        return {**self._without_places(None), "words": sha256_of(self.words) if self.words else None}


class IoiRemix(Prompts):
    """Prompts of template 1 behind a start token, drawn with the random stream of the course's notebook.

    continues: whether the first flip continues the stream that drew the prompts; null: as in the
    notebook, where only the first flip made (IO alone) did, since making a dataset seeds the stream again.
    """

    module: ClassVar[str] = "repro.data.ioi"
    kind: Literal["ioi_remix"] = "ioi_remix"
    order: Literal["BABA", "ABBA"] = "BABA"
    n: Positive = 50
    seed: Natural = 42
    bos: bool = True
    corruption: list[str] = ["IO"]
    continues: bool | None = None

    @field_validator("corruption")
    @classmethod
    def _flips(cls, chain: list[str]) -> list[str]:
        return _known_flips(chain, NOTEBOOK_FLIPS, "data.corruption")


class IoiToy(Prompts):
    """Prompts of a small world of our own (111 words), for a model that is trained here.

    Some pairs of names never occur in training; split says which pairs the prompts are made of.
    """

    module: ClassVar[str] = "repro.data.ioi"
    kind: Literal["ioi_toy"] = "ioi_toy"
    order: Order = "mixed"
    n: Positive = 200
    seed: Natural = 0
    bos: bool = True
    split: Literal["held_out", "train", "all"] = "held_out"
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    split_seed: Natural = 0
    adversarial: Literal["IO", "S"] | None = None


class TokenPairs(Data):
    """The user's own clean and corrupt token ids, answers and positions: a JSON file."""

    module: ClassVar[str] = "repro.data.token_pairs"
    kind: Literal["token_pairs"] = "token_pairs"
    path: str | None = None

    @model_validator(mode="after")
    def _given(self) -> Self:
        if not self.path:
            raise UserError("data.path: a file is required. Give it with data.path=PAIRS.json")
        return self

    def fingerprint(self) -> dict[str, Any]:
        assert self.path is not None
        return self._without_places(sha256_of(self.path))


class RandomTokens(Data):
    """A block of random tokens, repeated. low, high: range of ids (high excluded; null: the vocabulary)."""

    module: ClassVar[str] = "repro.data.random_tokens"
    kind: Literal["random_tokens"] = "random_tokens"
    n: Positive = 4
    length: Annotated[int, Field(ge=2)] = 100
    repeats: Annotated[int, Field(ge=2)] = 2
    low: Natural = 0
    high: Positive | None = None
    distinct: bool = False
    bos: int | None = None
    seed: Natural = 0

    def for_model(self, model: Any) -> Data:
        """A small model of ours reads so many tokens only: as long a block as fits."""
        context = getattr(model, "context", None)
        room = None if context is None else (context - (self.bos is not None)) // self.repeats
        return self if room is None or self.length <= room else self.model_copy(update={"length": room})

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.high is not None and self.high <= self.low:
            raise UserError(
                f"data.low, data.high: expected low < high; got {self.low} and {self.high}."
                " Give e.g. data.low=1000 data.high=10000"
            )
        return self
