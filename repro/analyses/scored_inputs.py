"""Task sets as analyses take them: what the data must have, and texts beyond the context window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from repro.data.scored_texts import TaskSet
from repro.errors import UserError
from repro.interventions.head_importance import Fitted
from repro.models.language_model import LanguageModel

Overlength = Literal["error", "left_truncate", "drop"]
FORMS = "data=few_shot_tasks, data=token_choices data.path=FILE, data=token_examples data.path=FILE"


def task_sets(model: LanguageModel, data: Any) -> list[TaskSet]:
    """The data's tasks as token ids of this model. Raises `UserError` for data of another kind."""
    if not hasattr(data, "task_sets"):
        raise UserError(f"data: this analysis needs tasks with examples or questions. Valid choices: {FORMS}")
    return data.task_sets(model)


def with_questions(sets: Sequence[TaskSet]) -> list[TaskSet]:
    """The sets, all of which must have questions with choices."""
    lacking = [one.label for one in sets if not one.questions]
    if lacking:
        raise UserError(
            f"data: accuracy needs questions with choices, and {', '.join(lacking)} has none. Give"
            " data=token_choices data.path=FILE, or data=few_shot_tasks"
        )
    return list(sets)


def fitted(model: LanguageModel, one: TaskSet, overlength: Overlength) -> tuple[list[int], list[Fitted]]:
    """Numbers of the examples of a task that are kept, and these as the model takes them.

    Raises `UserError` for a task without examples, for examples beyond the context window if they are to be
    an error, and if none is left.
    """
    if not one.examples:
        raise UserError(
            f"data: task {one.label} has no training split, and heads are ranked on training examples. Leave"
            " it out (data.tasks=[...]), or rank by another task: analysis.ranking=aggregate"
        )
    most = model.max_positions
    kept = [(number, Fitted.of(example, most)) for number, example in enumerate(one.examples)]
    long = [(number, item) for number, item in kept if item.cut]
    if long and overlength == "error":
        number, item = long[0]
        raise UserError(
            f"data: {len(long)} of {len(kept)} examples of {one.label} are longer than the model's context"
            f" window: example {number} has {len(item.tokens) + item.cut} tokens, and {most + 1} are possible"
            f" ({most} inputs and the last target). Give analysis.overlength=left_truncate or"
            " analysis.overlength=drop (in pruning: analysis.importance.overlength), or fewer demonstrations"
        )
    if overlength == "drop":
        kept = [(number, item) for number, item in kept if not item.cut]
    if not kept:
        raise UserError(
            f"data: all {len(long)} examples of {one.label} are longer than the model's context window"
            f" ({most} tokens). Give analysis.overlength=left_truncate, or fewer demonstrations"
        )
    return [number for number, _ in kept], [item for _, item in kept]
