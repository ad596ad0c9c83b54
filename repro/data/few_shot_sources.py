"""Documents of the tasks: from a folder of JSONL files, or from the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from repro.data.few_shot_specs import FewShotTasks
from repro.data.prompt_tasks import PromptTask
from repro.errors import UserError


@dataclass(frozen=True)
class Split:
    """Documents of one split, read when they are asked for. where: what errors call them."""

    documents: Any
    where: str

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.documents[place]


@dataclass(frozen=True)
class TaskDocuments:
    """train: in the order of the data set; None: the task has no training split."""

    task: PromptTask
    train: Split | None
    evaluation: Split

    @cached_property
    def trains_on(self) -> Sequence[int]:
        """Numbers of the training documents that are used: all but for WSC."""
        if self.train is None:
            return ()
        if self.task.trains_on is None:
            return range(len(self.train))
        return [place for place in range(len(self.train)) if self.task.trains_on(self.train[place])]


def documents(spec: FewShotTasks, task: PromptTask) -> TaskDocuments:
    """Both splits of a task.

    Raises `UserError` naming the file or data set that is not there, and how to supply it.
    """
    if spec.folder is not None:
        return _from_folder(spec, task)
    train = None if task.train is None else _from_hub(task, task.train)
    return TaskDocuments(task, train, _from_hub(task, task.evaluation))


def _from_folder(spec: FewShotTasks, task: PromptTask) -> TaskDocuments:
    assert spec.folder is not None
    files = spec.files(task.name)
    if "eval" not in files:
        raise UserError(
            f"data.folder: {Path(spec.folder).absolute()} has no {task.name}.eval.jsonl. Write the"
            f" {task.evaluation} split of {_called(task)} there, one JSON object a line, or leave"
            f" {task.name} out of data.tasks"
        )
    if "train" not in files and task.train is not None and any(spec.shots):
        raise UserError(
            f"data.folder: {Path(spec.folder).absolute()} has no {task.name}.train.jsonl, from which"
            f" demonstrations are drawn. Write the {task.train} split of {_called(task)} there, or give"
            " data.shots=[0]"
        )
    train = lines(files["train"]) if "train" in files and task.train is not None else None
    return TaskDocuments(task, train, lines(files["eval"]))


def lines(path: Path) -> Split:
    """Documents of a JSONL file. Raises `UserError` naming the line that is none."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            doc = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: no JSON ({error}). Give one object a line") from None
        if not isinstance(doc, dict):
            raise UserError(f"{path}, line {number}: expected an object {{...}}, got {line[:60]!r}")
        found.append(doc)
    if not found:
        raise UserError(f"{path}: expected at least one document, and there is none")
    return Split(found, str(path))


def _from_hub(task: PromptTask, split: str) -> Split:
    import datasets

    try:
        found = datasets.load_dataset(*task.dataset, split=split)
    except Exception as error:  # the library raises many kinds: of the network, of its cache, of data sets
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(
            f"data: the {split} split of {_called(task)} (task {task.name}) cannot be had from the Hugging"
            f" Face hub or its cache ({type(error).__name__}: {reason}). Supply it as a file: with"
            f" data.folder=DIR, DIR/{task.name}.eval.jsonl (its {task.evaluation} split)"
            + (f" and DIR/{task.name}.train.jsonl" if task.train else "")
            + ", one JSON object a line in the data set's own fields"
        ) from None
    return Split(found, f"{task.dataset[0]}, {split}")


def _called(task: PromptTask) -> str:
    name, configuration = task.dataset
    return name if configuration is None else f"{name} ({configuration})"
