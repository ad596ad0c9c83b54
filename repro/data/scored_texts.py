"""Texts whose log-probability is asked for: examples with one continuation, questions with several choices.

What analyses of in-context learning take, wherever it comes from: a data object has

    task_sets(model) -> list[TaskSet]       as token ids of this model

Here are the values, and the user's own token ids from JSON files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from repro.data.base_specs import sha256_of
from repro.data.facts_records import objects
from repro.data.scored_specs import TokenChoices, TokenExamples, Workload
from repro.errors import UserError

Ids = tuple[int, ...]
# accuracy: share of questions whose likeliest choice is right. grouped_accuracy: share of groups all of whose
# questions are. greedy_match: every token of the first choice is the model's own likeliest. em: accuracy,
# where several choices can be right.
Metric = Literal["accuracy", "grouped_accuracy", "greedy_match", "em"]
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A context (demonstrations and query) and the right continuation, which heads are ranked on."""

    context: Ids
    continuation: Ids

    @property
    def tokens(self) -> Ids:
        return self.context + self.continuation


@dataclass(frozen=True)
class Question:
    """Choices, of which the one with the highest sum of log-probabilities is the answer; ties: the lower.

    contexts: one that all choices share, or one for each. right: numbers of the right choices. group:
    questions with one number are right or wrong together, where the metric says so.
    """

    contexts: tuple[Ids, ...]
    choices: tuple[Ids, ...]
    right: tuple[int, ...]
    group: int = 0

    def __post_init__(self) -> None:
        if len(self.contexts) not in (1, len(self.choices)):
            raise ValueError(f"{len(self.contexts)} contexts for {len(self.choices)} choices")

    @property
    def shared(self) -> bool:
        """Whether all choices have one context."""
        return len(self.contexts) == 1

    def context(self, choice: int) -> Ids:
        """The context of a choice."""
        return self.contexts[0 if self.shared else choice]


@dataclass(frozen=True)
class TaskSet:
    """One task with so many demonstrations (`shot`) in every context.

    examples: of the training split, for rankings of heads; empty where the task has none. questions: of the
    evaluation split; empty where only examples were given. importance_of_evaluation: examples are made of
    the evaluation questions themselves, which reports must say. held_out: it counts in no mean over tasks.
    """

    name: str
    shot: int
    examples: tuple[Example, ...]
    questions: tuple[Question, ...]
    metric: Metric = "accuracy"
    importance_of_evaluation: bool = False
    held_out: bool = False

    @property
    def label(self) -> str:
        """Name and shot, as axes of results carry it: "rte", "rte.5shot"."""
        return self.name if self.shot == 0 else f"{self.name}.{self.shot}shot"

    def workload(self) -> Workload:
        """How much there is to score."""
        asked, choices = self.questions, [len(ids) for one in self.questions for ids in one.choices]
        contexts = [len(one.contexts[0]) for one in asked]
        return Workload(
            self.label, len(self.examples), _mean([len(one.tokens) - 1 for one in self.examples]), len(asked),
            _mean([len(one.choices) for one in asked]), _mean(contexts), _mean(choices),
        )  # fmt: skip

    def check_vocabulary(self, size: int) -> None:
        """Refuse token ids that the model does not have. size: rows of its unembedding."""
        for index, example in enumerate(self.examples):
            _check_ids(example.tokens, size, f"{self.name}, example {index}")
        for index, question in enumerate(self.questions):
            for ids in (*question.contexts, *question.choices):
                _check_ids(ids, size, f"{self.name}, question {index}")


@dataclass(frozen=True)
class ScoredTexts:
    """Task sets as token ids, the same for every model."""

    sets: tuple[TaskSet, ...]
    source: str
    sha256: str
    kind: str
    is_published: bool = False

    def task_sets(self, model: Any) -> list[TaskSet]:
        """The sets; token ids need no tokenizer. Raises `UserError` for ids that the model does not have."""
        for one in self.sets:
            one.check_vocabulary(model.vocabulary)
        return list(self.sets)


def load(spec: TokenExamples | TokenChoices) -> ScoredTexts:
    """The user's own token ids. Raises `UserError` naming file, line and record of what does not fit."""
    assert spec.path is not None
    source, checksum = Path(spec.path).name, sha256_of(spec.path)
    if isinstance(spec, TokenExamples):
        found = _tasks(Path(spec.path).expanduser(), example_of)
        sets = [TaskSet(name, 0, tuple(some), ()) for name, some in found.items()]
        return ScoredTexts(tuple(sets), source, checksum, spec.kind)
    asked = _tasks(Path(spec.path).expanduser(), _question_of)
    examples: dict[str, list[Example]] = {}
    if spec.examples_path:
        checksum = f"{checksum} {sha256_of(spec.examples_path)}"
        examples = _tasks(Path(spec.examples_path).expanduser(), example_of, "data.examples_path")
        if examples.keys() != asked.keys():
            raise UserError(
                f"data.examples_path: expected examples of the tasks that data.path has questions of,"
                f" {', '.join(asked)}; got {', '.join(examples)}"
            )
    sets = [_questions(name, some, examples.get(name)) for name, some in asked.items()]
    return ScoredTexts(tuple(sets), source, checksum, spec.kind)


def _questions(
    name: str, asked: Sequence[tuple[Question, bool]], examples: Sequence[Example] | None
) -> TaskSet:
    questions, grouped = [one for one, _ in asked], [has for _, has in asked]
    if any(grouped) and not all(grouped):
        raise UserError(
            f"data.path: {name}: some questions have a group and others none (the first without:"
            f" {grouped.index(False)}, from 0). Give all of them a group, or none"
        )
    given = examples is not None
    if examples is None:
        examples = [Example(one.context(one.right[0]), one.choices[one.right[0]]) for one in questions]
    metric: Metric = "grouped_accuracy" if all(grouped) else "accuracy"
    return TaskSet(name, 0, tuple(examples), tuple(questions), metric, not given)


def example_of(item: Mapping[str, Any], where: str) -> Example:
    """{"context": [ids], "continuation": [ids]}. Raises `UserError` naming `where`."""
    _has(item, ("context", "continuation"), where)
    return Example(_ids(item["context"], where, "context"), _ids(item["continuation"], where, "continuation"))


def _question_of(item: Mapping[str, Any], where: str) -> tuple[Question, bool]:
    """{"context": [ids], "choices": [[ids], ...], "gold": 0}, and whether it has a group."""
    _has(item, ("context", "choices", "gold"), where)
    context, listed = _ids(item["context"], where, "context"), item["choices"]
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{where}: choices: expected a list of lists of token ids; got {_short(listed)}")
    choices = tuple(_ids(one, where, f"choice {place}") for place, one in enumerate(listed))
    gold = item["gold"] if isinstance(item["gold"], list) else [item["gold"]]
    if not gold or not all(_is_id(one) and one < len(choices) for one in gold):
        raise UserError(
            f"{where}: gold: expected the number of the right choice, 0 to {len(choices) - 1}, or a list of"
            f" such; got {_short(item['gold'])}"
        )
    group = item.get("group", 0)
    if not _is_id(group):
        raise UserError(f"{where}: group: expected an integer of at least 0; got {_short(group)}")
    return Question((context,), choices, tuple(sorted(set(gold))), group), "group" in item


def _tasks(
    path: Path, parse: Callable[[Mapping[str, Any], str], T], key: str = "data.path"
) -> dict[str, list[T]]:
    """Records by task, parsed; a file without names has one task, called as the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: cannot read {path}: {error}") from None
    items = list(objects(text, str(path)))
    named = items[0][1] if len(items) == 1 and isinstance(items[0][1], dict) else {}
    if named and not text.lstrip("\ufeff \n\t").startswith("[") and "context" not in named:
        wrong = [name for name, some in named.items() if not isinstance(some, list) or not some]
        if wrong:
            raise UserError(f"{path}: task {wrong[0]}: expected a list of records, not empty")
        return {
            str(name): [
                _record(one, f"{path}, {name}, record {place}", parse) for place, one in enumerate(some)
            ]
            for name, some in named.items()
        }
    found = [_record(one, f"{path}, line {line}", parse) for line, one in items]
    if not found:
        raise UserError(f"{key}: {path}: expected at least one record, and there is none")
    return {path.stem: found}


def _record(item: Any, where: str, parse: Callable[[Mapping[str, Any], str], T]) -> T:
    if not isinstance(item, dict):
        raise UserError(f"{where}: expected an object {{...}} for each record; got {_short(item)}")
    return parse(item, where)


def _has(item: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    lacking = [name for name in names if name not in item]
    if lacking:
        raise UserError(
            f"{where}: {', '.join(lacking)} missing. A record has {', '.join(names)}; got"
            f" {', '.join(item) or 'nothing'}"
        )


def _ids(value: Any, where: str, name: str) -> Ids:
    if not isinstance(value, list) or not value or not all(map(_is_id, value)):
        raise UserError(
            f"{where}: {name}: expected a list of token ids (integers of at least 0), not empty; got"
            f" {_short(value)}"
        )
    return tuple(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_ids(ids: Ids, size: int, where: str) -> None:
    if ids and max(ids) >= size:
        raise UserError(
            f"data: {where}: token ids must lie between 0 and {size - 1}, the model's vocabulary; got"
            f" {max(ids)}. Were they made with another model's tokenizer?"
        )


def _mean(numbers: Sequence[int]) -> float:
    return sum(numbers) / max(len(numbers), 1)


def _short(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, list | dict | str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
