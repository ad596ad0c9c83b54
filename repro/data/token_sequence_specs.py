"""Sequences on which induction and copying are read: the typed config. Imports no PyTorch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from repro.data.base_specs import Data, sha256_of
from repro.data.sequence_specs import Natural, Positive
from repro.errors import UserError


class InductionSequences(Data):
    """Random distinct tokens behind a start token; in repeated copies for prefix matching, once for copying.

    Sequence s = 0, 1, ... has blocks of first + step * s tokens, `repeats` copies of one block, or as many
    distinct tokens. count: of sequences. Tokens are drawn from the merged tokens of the tokenizer in order of
    their merges, without the share `excluded` at each end (vocabulary: merges), or from all ids that are not
    special, in their order (ids; also where a tokenizer has no merges). bos: id of the start token; null: the
    tokenizer's own, if it has one. seed: of numpy's RandomState, anew for each of the two kinds.
    """

    module: ClassVar[str] = "repro.data.token_sequences"
    kind: Literal["induction_sequences"] = "induction_sequences"
    count: Positive = 100
    first: Annotated[int, Field(ge=2)] = 25
    step: Natural = 2
    repeats: Annotated[int, Field(ge=2)] = 4
    excluded: Annotated[float, Field(ge=0, lt=0.5)] = 0.04
    vocabulary: Literal["merges", "ids"] = "merges"
    bos: Natural | None = None
    seed: Natural = 0

    @property
    def lengths(self) -> list[int]:
        """Tokens of one block of each sequence."""
        return [self.first + self.step * place for place in range(self.count)]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, start token included."""
        return 1 + self.repeats * max(self.lengths)

    def for_model(self, model: Any) -> Data:
        """A model trained here has a small context and few words: shorter blocks, as many as fit."""
        return self.within(getattr(model, "context", None))

    def within(self, context: int | None) -> InductionSequences:
        """The same sequences, or shorter ones where they are longer than the context."""
        if context is None or self.longest <= context:
            return self
        # Copying draws as many different words as the context is long, of a vocabulary not much larger.
        most = (context * 9 // 10) // self.repeats
        first = min(self.first, max(2, most // 3))
        return self.model_copy(update={"first": first, "step": 1, "count": most - first + 1})


class TokenSequences(Data):
    """The user's own token ids, a JSON file: a list of sequences, or of {"tokens": [ids], "block": 25}.

    block: length of what is repeated; without it the smallest period of the ids is taken, behind the first
    one if that is no part of it (a start token). start: columns before the first copy (0 or 1).
    """

    module: ClassVar[str] = "repro.data.token_sequences"
    kind: Literal["token_sequences"] = "token_sequences"
    path: str | None = None

    @model_validator(mode="after")
    def _given(self) -> Self:
        if not self.path:
            raise UserError("data.path: a file is required. Give it with data.path=SEQUENCES.json")
        return self

    def fingerprint(self) -> dict[str, Any]:
        assert self.path is not None
        return self._without_places(sha256_of(self.path))
