"""Texts whose log-probability is asked for, as token ids: the typed config. Imports no PyTorch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from repro.data.base_specs import Data, sha256_of
from repro.errors import UserError


class _ScoredFile(Data):
    """A JSON file with a list of records, one a line (JSONL), or {"name of a task": [records], ...}."""

    module: ClassVar[str] = "repro.data.scored_texts"
    path: str | None = None

    @model_validator(mode="after")
    def _given(self) -> Self:
        if not self.path:
            raise UserError("data.path: a file is required. Give it with data.path=FILE.json")
        return self

    def fingerprint(self) -> dict[str, Any]:
        assert self.path is not None
        return self._without_places(sha256_of(self.path))


class TokenExamples(_ScoredFile):
    """Contexts with their right continuation: {"context": [ids], "continuation": [ids]}."""

    kind: Literal["token_examples"] = "token_examples"


class TokenChoices(_ScoredFile):
    """Questions with choices: {"context": [ids], "choices": [[ids], ...], "gold": 0}.

    gold may be a list, where several choices are right. With "group" (a number) in every record, a group is
    right if all its questions are. examples_path: contexts with right continuations (as in `token_examples`)
    that heads are ranked on; null: the questions themselves, with their first right choice.
    """

    kind: Literal["token_choices"] = "token_choices"
    examples_path: str | None = None

    def fingerprint(self) -> dict[str, Any]:
        plain = super().fingerprint()
        plain.pop("examples_path")
        return {**plain, "examples": sha256_of(self.examples_path) if self.examples_path else None}
