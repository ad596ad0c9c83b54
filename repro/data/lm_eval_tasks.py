"""Tasks of lm-evaluation-harness as token ids: its documents and prompts, our draws and tokens.

Texts are those that lm-eval (0.4) would ask a model for. Two things are as in `few_shot_tasks`:
demonstrations are drawn by a generator of each document, where lm-eval draws from one stream, and contexts
and candidates are tokenised separately. Heads are ranked on the right choice as it is evaluated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from repro.data import demonstrations as draws
from repro.data.few_shot_tasks import Encoder, TextExample, TextQuestion, encoded, every_set
from repro.data.lm_eval_sources import loaded
from repro.data.lm_eval_specs import LmEvalTasks
from repro.data.prompt_tasks import Prompt
from repro.data.scored_texts import TaskSet
from repro.errors import UserError


class _Shown:
    """What lm-eval asks for demonstrations: the given ones."""

    def __init__(self, documents: Sequence[Any]) -> None:
        self._documents = documents

    def sample(self, **_: Any) -> Sequence[Any]:
        return self._documents


@dataclass(frozen=True)
class LmEvalData:
    """lm-eval's tasks by name; `task_sets` gives them for a model."""

    spec: LmEvalTasks
    tasks: dict[str, Any]
    source: str
    sha256: str
    kind: str = "lm_eval_tasks"
    is_published: bool = False

    def task_sets(self, model: Any) -> list[TaskSet]:
        """Every task with every number of shots, shots in the outer order.

        Raises `UserError` for a model without tokenizer, and for documents that do not fit their task.
        """
        encode = Encoder(model.tokenizer, self.spec.bos)
        return every_set(self.tasks, self.spec.shots, lambda task, shot: self._set(task, shot, encode))

    def _set(self, name: str, shot: int, encode: Encoder) -> TaskSet:
        task, spec = self.tasks[name], self.spec
        trains = task.has_training_docs()
        source = task.training_docs() if trains else task.eval_docs
        ranked = range(len(source))[: spec.examples]
        asked = draws.capped(spec.seed, name, len(task.eval_docs), spec.questions)
        shown = [
            TextExample(one.contexts[0 if len(one.contexts) == 1 else one.prompt.right[0]], one.prompt.target,
                        one.number)
            for one in texts(task, name, shot, "train", source, ranked, spec.seed)
        ]  # fmt: skip
        questions = list(texts(task, name, shot, "eval", task.eval_docs, asked, spec.seed))
        metric = "accuracy" if task.OUTPUT_TYPE == "multiple_choice" else "greedy_match"
        return TaskSet(
            name, shot, *encoded(shown, questions, encode), metric, importance_of_evaluation=not trains
        )


def texts(
    task: Any, name: str, shot: int, use: str, source: Any, numbers: Sequence[int], seed: int
) -> Iterator[TextQuestion]:
    """Documents of `source` as lm-eval asks them; one is never its own demonstration.

    use: train or eval, for the draws: what they are ranked on, or asked for.
    """
    task.set_config("num_fewshot", shot)
    pool = list(task.fewshot_docs()) if shot else []
    places: dict[str, int] = {}
    for place, one in enumerate(pool):
        places.setdefault(_key(one), place)
    for number in numbers:
        own = places.get(_key(source[number]))
        drawn = draws.seeded(seed, name, shot, use, number, len(pool), own)
        try:
            yield _text(task, source[number], [pool[one] for one in drawn], number)
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
            raise UserError(
                f"data: task {name}, {use} document {number} does not fit lm-eval's prompt"
                f" ({type(error).__name__}: {error}). It has {', '.join(source[number])}"
            ) from None


def _text(task: Any, doc: Any, shown: Sequence[Any], number: int) -> TextQuestion:
    task.sampler = _Shown(shown)
    made = task.fewshot_context(doc, num_fewshot=len(shown))
    requests = task.construct_requests(doc, made, metadata=(task.config.task, number, 1))
    if task.OUTPUT_TYPE == "loglikelihood":
        context, target = requests.args
        return TextQuestion((context,), Prompt((context,), (target,), (0,), target), number)
    words = task.doc_to_choice(doc)  # more requests than these are of unconditional likelihoods
    contexts, choices = zip(*(one.args[:2] for one in requests[: len(words)]), strict=True)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    right = tuple(words.index(one) if isinstance(one, str) else int(one)
                  for one in (gold if isinstance(gold, list) else [gold]))  # fmt: skip
    if not right or not all(0 <= one < len(choices) for one in right):
        raise ValueError(f"the right answer is {gold!r} of {len(choices)} choices")
    contexts = contexts[:1] if len(set(contexts)) == 1 else contexts
    return TextQuestion(contexts, Prompt(contexts, choices, right, choices[right[0]]), number)


def load(spec: LmEvalTasks) -> LmEvalData:
    """The tasks, with their documents (see `lm_eval_sources.loaded` for what is refused)."""
    identity = spec.fingerprint()  # which refuses where lm-eval is not installed
    tasks = loaded(spec)
    settings = json.dumps([identity, {name: _mark(task) for name, task in tasks.items()}])
    source = f"{len(tasks)} tasks of lm-eval, {'/'.join(map(str, spec.shots))} shots, seed {spec.seed}"
    return LmEvalData(spec, tasks, source, hashlib.sha256(settings.encode()).hexdigest())


def _mark(task: Any) -> list[Any]:
    """What stands for the content of a task's splits: their fingerprint, or the number of rows."""
    return [getattr(split, "_fingerprint", len(split)) for split in task.dataset.values()]


def _key(doc: Any) -> str:
    return json.dumps(doc, sort_keys=True, default=str)
