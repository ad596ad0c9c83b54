"""Texts whose log-probability is asked for, as token ids: the typed config. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from repro.data.base_specs import Data, sha256_of
from repro.errors import UserError


@dataclass(frozen=True)
class Workload:
    """How much there is to score in one task set, for estimates; means where numbers differ.

    examples, example_tokens: that heads are ranked on, and input tokens of one. questions, choices: of the
    evaluation, and of one question. context_tokens, choice_tokens: of one question, and of one choice.
    """

    label: str
    examples: float
    example_tokens: float
    questions: float
    choices: float
    context_tokens: float
    choice_tokens: float


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

    def workload(self) -> list[Workload]:
        """What the file holds. Raises `UserError` for a file that cannot be read."""
        from repro.data.scored_texts import load  # which reads these specs

        return [one.workload() for one in load(self).sets]  # type: ignore[arg-type]


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
