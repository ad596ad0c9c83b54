"""Contexts and choices of the user's own: what is read, and what is refused with file, line and record."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repro.data.scored_texts import Example, Question, ScoredTexts, TaskSet, load
from repro.data.specs import Data, sha256_of
from repro.errors import UserError

EXAMPLES = [{"context": [5, 3], "continuation": [9]}, {"context": [1], "continuation": [2, 4]}]
CHOICES = [
    {"context": [5, 3], "choices": [[1], [2, 4]], "gold": 1},
    {"context": [7], "choices": [[1], [2], [3]], "gold": [2, 0]},
]


def loaded(tmp_path: Path, kind: str, content: Any, **more: Any) -> ScoredTexts:
    file = tmp_path / "mine.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    spec = Data.choose({"kind": kind, "path": str(file), **more}, "data")
    assert spec.fingerprint()["sha256"] == sha256_of(file) and "path" not in spec.fingerprint()
    return load(spec)  # type: ignore[arg-type]


@pytest.mark.parametrize("as_lines", [False, True])
def test_examples_are_read_as_they_stand(tmp_path: Path, as_lines: bool) -> None:
    content = "\n".join(map(json.dumps, EXAMPLES)) if as_lines else EXAMPLES
    (only,) = loaded(tmp_path, "token_examples", content).sets
    assert only == TaskSet("mine", 0, (Example((5, 3), (9,)), Example((1,), (2, 4))), ())
    assert only.examples[1].tokens == (1, 2, 4)


def test_choices_and_their_own_examples(tmp_path: Path) -> None:
    (only,) = loaded(tmp_path, "token_choices", CHOICES).sets
    assert only.questions[0] == Question(((5, 3),), ((1,), (2, 4)), (1,))
    assert only.questions[1].right == (0, 2) and only.metric == "accuracy"
    assert only.examples == (Example((5, 3), (2, 4)), Example((7,), (1,))) and only.importance_of_evaluation
    other = tmp_path / "examples.json"
    other.write_text(json.dumps({"mine": EXAMPLES}))
    (given,) = loaded(tmp_path, "token_choices", {"mine": CHOICES}, examples_path=str(other)).sets
    assert given.examples[0] == Example((5, 3), (9,)) and not given.importance_of_evaluation
    with pytest.raises(UserError, match=r"questions of, one, two; got mine"):
        loaded(tmp_path, "token_choices", {"one": CHOICES, "two": CHOICES}, examples_path=str(other))


def test_groups_and_several_tasks(tmp_path: Path) -> None:
    grouped = [{**item, "group": 4} for item in CHOICES]
    first, second = loaded(tmp_path, "token_choices", {"a": grouped, "b": CHOICES}).sets
    assert (first.metric, second.metric) == ("grouped_accuracy", "accuracy")
    assert [one.group for one in first.questions] == [4, 4]
    with pytest.raises(UserError, match=r"some questions have a group.*first without: 1"):
        loaded(tmp_path, "token_choices", [grouped[0], CHOICES[1]])


def test_ids_that_the_model_does_not_have(tmp_path: Path) -> None:
    data = loaded(tmp_path, "token_choices", CHOICES)
    assert len(data.task_sets(SimpleNamespace(vocabulary=8))) == 1
    with pytest.raises(UserError, match=r"mine, example 1: token ids must lie between 0 and 6.*got 7"):
        data.task_sets(SimpleNamespace(vocabulary=7))


def test_contexts_of_a_question() -> None:
    one, each = Question(((1,),), ((2,), (3,)), (0,)), Question(((1,), (4,)), ((2,), (2,)), (0,))
    assert one.shared and one.context(1) == (1,) and not each.shared and each.context(1) == (4,)
    with pytest.raises(ValueError, match="2 contexts for 3 choices"):
        Question(((1,), (4,)), ((2,), (3,), (5,)), (0,))


@pytest.mark.parametrize(
    ("kind", "content", "says"),
    [
        ("token_examples", "[]", "at least one record"),
        ("token_examples", "{", "line 1: no JSON"),
        ("token_examples", [[1, 2]], r"line 1: expected an object.*\[1, 2\]"),
        ("token_examples", [{"context": [1]}], "continuation missing. A record has context, continuation"),
        ("token_examples", [{"context": [], "continuation": [1]}], "context: expected a list of token ids"),
        ("token_examples", [{"context": [1], "continuation": [-1]}], r"continuation: expected.*\[-1\]"),
        ("token_examples", {"rte": []}, "task rte: expected a list of records"),
        ("token_examples", {"rte": [{"context": [1]}]}, "rte, record 0: continuation missing"),
        ("token_choices", [{"context": [1], "choices": [], "gold": 0}], "choices: expected a list of lists"),
        ("token_choices", [{"context": [1], "choices": [[1], []], "gold": 0}], "choice 1: expected a list"),
        (
            "token_choices",
            [{"context": [1], "choices": [[1]], "gold": 1}],
            "gold: expected the number.*0 to 0",
        ),
        ("token_choices", [{"context": [1], "choices": [[1]], "gold": []}], "gold: expected the number"),
        ("token_choices", [{"context": [1], "choices": [[1]], "gold": True}], "gold: expected the number"),
    ],
)
def test_what_is_refused(tmp_path: Path, kind: str, content: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        loaded(tmp_path, kind, content)


def test_a_line_is_named(tmp_path: Path) -> None:
    lines = [json.dumps(EXAMPLES[0]), json.dumps({"context": [1], "continuation": "x"})]
    with pytest.raises(UserError, match=r"mine.json, line 2: continuation"):
        loaded(tmp_path, "token_examples", "\n".join(lines))


@pytest.mark.parametrize("kind", ["token_examples", "token_choices"])
def test_a_file_is_required(kind: str) -> None:
    with pytest.raises(UserError, match="data.path: a file is required"):
        Data.choose({"kind": kind}, "data")
