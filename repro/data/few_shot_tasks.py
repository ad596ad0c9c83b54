"""Few-shot tasks as token ids: documents, demonstrations, prompts, tokens.

Source: Bansal et al. 2023, arXiv 2212.09095, section 3, and its released code: demonstrations and query are
joined by a blank line, contexts and candidates are tokenised separately, without special tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from repro.data import demonstrations as draws
from repro.data import prompt_tasks
from repro.data.few_shot_sources import Split, TaskDocuments, documents
from repro.data.few_shot_specs import HELD_OUT, FewShotTasks
from repro.data.prompt_tasks import Prompt
from repro.data.scored_texts import Example, Ids, Question, TaskSet
from repro.errors import UserError
from repro.progress import progress


@dataclass(frozen=True)
class TextExample:
    """A context and its right continuation, as text; number: of the document."""

    context: str
    continuation: str
    number: int


@dataclass(frozen=True)
class TextQuestion:
    """A question as text. contexts: with demonstrations, one or one for each choice."""

    contexts: tuple[str, ...]
    prompt: Prompt
    number: int


@dataclass(frozen=True)
class FewShotData:
    """The tasks of a spec; `task_sets` gives them for a model."""

    spec: FewShotTasks
    tasks: tuple[TaskDocuments, ...]
    source: str
    sha256: str
    kind: str = "few_shot_tasks"
    is_published: bool = False

    def task_sets(self, model: Any) -> list[TaskSet]:
        """Every task with every number of shots, shots in the outer order.

        Raises `UserError` for a model without tokenizer, and for documents that do not fit their task.
        """
        encode = Encoder(model.tokenizer, self.spec.bos)
        return every_set(self.tasks, self.spec.shots, lambda task, shot: self._set(task, shot, encode))

    def _set(self, task: TaskDocuments, shot: int, encode: Encoder) -> TaskSet:
        shown, asked = list(examples_of(task, shot, self.spec)), list(questions_of(task, shot, self.spec))
        return TaskSet(
            task.task.name, shot, *encoded(shown, asked, encode), task.task.metric,
            importance_of_evaluation=task.task.train is None, held_out=task.task.name in HELD_OUT,
        )  # fmt: skip


def every_set(
    tasks: Collection[Any], shots: Sequence[int], make: Callable[[Any, int], TaskSet]
) -> list[TaskSet]:
    """What `make` gives for every task and every number of shots, shots in the outer order."""
    pairs = [(task, shot) for shot in shots for task in tasks]
    with progress(len(pairs), "prompts", "tasks") as bar:
        sets = []
        for task, shot in pairs:
            sets.append(make(task, shot))
            bar.advance()
    return sets


class Encoder:
    """Texts to token ids, each alone and without special tokens, but for a context's start token."""

    def __init__(self, tokenizer: Any, bos: bool | None) -> None:
        if tokenizer is None:
            raise UserError(
                "data: few-shot tasks are texts, and this model's folder has no tokenizer. Put tokenizer.json"
                " there, or give token ids: data=token_choices data.path=FILE.json"
            )
        self._tokenizer = tokenizer
        self._start: Ids = self._starts(bos)

    def candidates(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of candidates."""
        found = self._encode(texts)
        for text, ids in zip(texts, found, strict=True):
            if not ids:
                raise UserError(f"data: this model's tokenizer makes no token of {text!r}")
        return found

    def contexts(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of contexts, behind the start token if there is to be one."""
        found = [self._start + ids for ids in self._encode(texts)]
        for text, ids in zip(texts, found, strict=True):
            if not ids:
                raise UserError(f"data: an empty context ({text!r}). Give data.bos=true")
        return found

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        if not texts:
            return []
        try:  # all at once, which the tokenizers library does on all CPUs; every text is encoded alone
            found = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:  # the tokenizers library raises Exception itself
            raise UserError(f"data: this model's tokenizer cannot encode the prompts: {error}") from None
        return [tuple(ids) for ids in found]

    def _starts(self, bos: bool | None) -> Ids:
        if bos is False:
            return ()
        start = self._tokenizer.bos_token_id
        if bos is None:
            return () if start is None or start not in self._tokenizer.encode("") else (start,)
        if start is None:
            raise UserError("data.bos: this model's tokenizer has no start token. Give data.bos=false")
        return (start,)


def encoded(
    shown: Sequence[TextExample], asked: Sequence[TextQuestion], encode: Encoder
) -> tuple[tuple[Example, ...], tuple[Question, ...]]:
    """Examples and questions as token ids; groups are numbered in their order."""
    ranked = zip(
        encode.contexts([one.context for one in shown]),
        encode.candidates([one.continuation for one in shown]),
        strict=True,
    )
    examples = tuple(Example(context, continuation) for context, continuation in ranked)
    contexts = iter(encode.contexts([text for one in asked for text in one.contexts]))
    choices = iter(encode.candidates([text for one in asked for text in one.prompt.choices]))
    questions, groups = [], dict[tuple[int, int], int]()
    for one in asked:
        group = groups.setdefault(one.prompt.group, len(groups)) if one.prompt.group else 0
        before = tuple(islice(contexts, len(one.contexts)))
        offered = tuple(islice(choices, len(one.prompt.choices)))
        questions.append(Question(before, offered, one.prompt.right, group))
    return examples, tuple(questions)


def examples_of(task: TaskDocuments, shot: int, spec: FewShotTasks) -> Iterator[TextExample]:
    """The first training documents (or evaluation documents, where there is no training split), with shots.

    Nothing where the training documents were not given.
    """
    if task.train is None and task.task.train is not None:
        return
    source = task.evaluation if task.train is None else task.train
    pool: Sequence[int] = range(len(source)) if task.train is None else task.trains_on
    apart = spec.exclude_query or task.train is None  # released: lambada's query is dropped, others' is not
    for place, number in enumerate(pool[: spec.examples]):
        prompt = _prompt(task, source, number)
        drawn = draws.seeded(
            spec.seed, task.task.name, shot, "train", number, len(pool), place if apart else None
        )
        shown = [_prompt(task, source, pool[one]) for one in drawn]
        released = spec.continuation == "released"
        yield TextExample(
            joined(shown, prompt.shown, spec.separator),
            prompt.continuation if released else prompt.target,
            number,
        )


def questions_of(task: TaskDocuments, shot: int, spec: FewShotTasks) -> Iterator[TextQuestion]:
    """Evaluation documents with demonstrations: in the order of the data, or in the released order."""
    without_train = task.train is None
    source = task.evaluation if without_train else task.train
    assert source is not None
    pool: Sequence[int] = range(len(source)) if without_train else task.trains_on
    for number, drawn in _drawn(task, shot, spec, pool, without_train):
        prompt = _prompt(task, task.evaluation, number)
        shown = [_prompt(task, source, pool[one]) for one in drawn]
        contexts = tuple(joined(shown, text, spec.separator) for text in prompt.contexts)
        yield TextQuestion(contexts, prompt, number)


def _drawn(
    task: TaskDocuments, shot: int, spec: FewShotTasks, pool: Sequence[int], without_train: bool
) -> Iterator[tuple[int, Sequence[int]]]:
    """Numbers of evaluation documents, and of what is shown before each."""
    name, count = task.task.name, len(task.evaluation)
    if spec.draws == "released":
        most = count if spec.questions is None else min(spec.questions, count)
        everything = draws.released(name, shot, count, None if without_train else len(pool))
        yield from (one for one, _ in zip(everything, range(most), strict=False))
        return
    for number in draws.capped(spec.seed, name, count, spec.questions):
        own = number if without_train else None
        yield number, draws.seeded(spec.seed, name, shot, "eval", number, len(pool), own)


def joined(shown: Sequence[Prompt], query: str, separator: str) -> str:
    """Demonstrations, each with its answer, and the query."""
    return separator.join([*(f"{one.shown}{one.answer}" for one in shown), query])


def load(spec: FewShotTasks) -> FewShotData:
    """The documents of every task; texts are made of them when a model asks."""
    tasks = tuple(documents(spec, prompt_tasks.BY_NAME[name]) for name in spec.names)
    content = {one.task.name: [_mark(split) for split in (one.train, one.evaluation)] for one in tasks}
    checksum = hashlib.sha256(json.dumps([content, spec.fingerprint()], sort_keys=True).encode()).hexdigest()
    where = spec.folder or "Hugging Face hub"
    source = f"{len(tasks)} tasks from {where}, {'/'.join(map(str, spec.shots))} shots, seed {spec.seed}"
    return FewShotData(spec, tasks, source, checksum, is_published=spec.folder is None)


def _mark(split: Split | None) -> Any:
    """What stands for the content of a split: the library's own fingerprint, or the number of lines."""
    return None if split is None else getattr(split.documents, "_fingerprint", len(split))


def _prompt(task: TaskDocuments, split: Split, number: int) -> Prompt:
    return task.task.prompt(split[number], f"{split.where}, document {number}")
