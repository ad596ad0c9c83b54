"""Few-shot tasks of the small world, as token ids of a model that was trained on its words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from repro.data import demonstrations as draws
from repro.data import icl_world as world
from repro.data.few_shot_specs import TOY_HELD_OUT, FewShotToy
from repro.data.scored_texts import Example, Ids, Question, TaskSet
from repro.errors import UserError

DOCUMENTS = 1000  # of a split, where a spec asks for all


@dataclass(frozen=True)
class ToyData:
    """The tasks of a spec; `task_sets` gives them for a model with the words of the small world."""

    spec: FewShotToy
    source: str
    sha256: str
    kind: str = "few_shot_toy"
    is_published: bool = False

    def task_sets(self, model: Any) -> list[TaskSet]:
        """Every task with every number of shots, shots in the outer order.

        Raises `UserError` for a model that does not know the words of the small world.
        """
        vocabulary = {} if model.tokenizer is None else model.tokenizer.get_vocab()
        unknown = [word for word in world.WORDS if word not in vocabulary]
        if unknown:
            raise UserError(
                f"data: tasks of the small world need a model of its words; this one does not know"
                f" {', '.join(unknown[:5])}. Give model=in_context_organism, or data=few_shot_tasks"
            )
        return [self._set(name, shot, vocabulary) for shot in self.spec.shots for name in self.spec.names]

    def _set(self, name: str, shot: int, ids: dict[str, int]) -> TaskSet:
        spec = self.spec
        train = world.documents(name, "train", spec.examples or DOCUMENTS, spec.seed)
        asked = world.documents(name, "eval", spec.questions or DOCUMENTS, spec.seed)

        def context(split: str, number: int, text: str, own: int | None) -> Ids:
            drawn = draws.seeded(spec.seed, name, shot, split, number, len(train), own)
            shown = [f"{train[one]['text']} {_right(train[one])}" for one in drawn]
            return _encoded(world.SEPARATOR.join([*shown, text]), ids)

        examples = [
            Example(context("train", number, doc["text"], number), _encoded(_right(doc), ids))
            for number, doc in enumerate(train)
        ]
        questions = [
            Question(
                (context("eval", number, doc["text"], None),),
                tuple(_encoded(choice, ids) for choice in doc["choices"]),
                (doc["gold"],),
            )
            for number, doc in enumerate(asked)
        ]
        return TaskSet(name, shot, tuple(examples), tuple(questions), held_out=name in TOY_HELD_OUT)


def load(spec: FewShotToy) -> ToyData:
    """The tasks; their checksum is that of the settings and of the words."""
    settings = json.dumps([spec.model_dump(mode="json"), world.WORDS], sort_keys=True)
    shots = "/".join(map(str, spec.shots))
    source = f"{len(spec.names)} tasks of a small world, {shots} shots, seed {spec.seed}"
    return ToyData(spec, source, hashlib.sha256(settings.encode()).hexdigest())


def _right(doc: dict[str, Any]) -> str:
    return doc["choices"][doc["gold"]]


def _encoded(text: str, ids: dict[str, int]) -> Ids:
    words: Sequence[str] = text.split()
    return tuple(ids[word] for word in words)
