"""A small world of words with tasks of our own, which can be learned from demonstrations or from memory.

Stands in for the tasks of papers on in-context learning where their data sets or models cannot be had. Every
task has training and evaluation documents, each with a text, candidates and the right one. None of a task's
labels can be known without a demonstration, except those of `knowledge` (memory), and of `recall` and
`completion` (in the text itself).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repro.data.lm_tasks import generator

START, IS, NEXT = "</s>", ":", ";"
LABELS = tuple("yes no true false red blue good bad".split())
CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "animal": tuple("cat dog fox hen cow ant bee owl rat pig bat elk".split()),
    "plant": tuple("oak elm fir ivy fern moss palm reed rose vine yew birch".split()),
    "tool": tuple("axe saw pen cup fork knife rope nail lamp comb drill spade".split()),
    "food": tuple("fig pea egg jam nut pie rice corn plum milk bread soup".split()),
}
ITEMS = tuple(word for words in CATEGORIES.values() for word in words)
WORDS = (START, IS, NEXT, *LABELS, *CATEGORIES, *ITEMS)
SEPARATOR = f" {NEXT} "  # between demonstrations
KINDS = ("labels", "groups", "knowledge", "recall", "completion")
CATEGORY = {item: name for name, words in CATEGORIES.items() for item in words}


@dataclass(frozen=True)
class ToyTask:
    """kind: see `document`. inputs: items (labels) or categories (groups); labels: of each of them."""

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


TASKS = (
    ToyTask("two_labels", "labels", ("cat", "oak", "axe", "fig"), ("red", "blue", "blue", "red")),
    ToyTask("three_labels", "labels", ("dog", "elm", "saw", "pea"), ("yes", "no", "good", "no")),
    ToyTask("two_groups", "groups", ("animal", "tool"), ("true", "false")),
    ToyTask("other_groups", "groups", ("plant", "food"), ("bad", "good")),
    ToyTask("knowledge", "knowledge"),
    ToyTask("recall", "recall"),
    ToyTask("completion", "completion"),
)
BY_NAME = {task.name: task for task in TASKS}


def document(task: ToyTask, rng: np.random.Generator) -> dict[str, Any]:
    """One document {"text", "choices", "gold"} of a task, texts and choices as words with spaces between.

    labels: an item, then the label that the task gives it. groups: an item, then the label of its category.
    knowledge: an item, then the name of its category. recall: two items with labels, then one of them again.
    completion: three items, and the first two of them again.
    """
    if task.kind == "labels":
        place = int(rng.integers(len(task.inputs)))
        return _document([task.inputs[place]], dict.fromkeys(task.labels), task.labels[place])
    if task.kind == "groups":
        place = int(rng.integers(len(task.inputs)))
        item = str(rng.choice(CATEGORIES[task.inputs[place]]))
        return _document([item], dict.fromkeys(task.labels), task.labels[place])
    if task.kind == "knowledge":
        item = str(rng.choice(ITEMS))
        return _document([item], CATEGORIES, CATEGORY[item])
    if task.kind == "recall":
        items, labels = rng.choice(ITEMS, 2, replace=False), rng.choice(LABELS, 2, replace=False)
        which = int(rng.integers(2))
        told = [items[0], labels[0], items[1], labels[1]]
        return _document([*told, IS, items[which]], labels, labels[which])
    items = rng.choice(ITEMS, 3, replace=False)
    return _document([*items, *items[:-1]], items, items[-1])


def random_task(kind: str, rng: np.random.Generator) -> ToyTask:
    """A task of the kind with random labels: what a model is trained on, so that it must read them."""
    if kind == "labels":
        # Any word may be a label: the less a guess is worth, the sooner demonstrations are read.
        pool = LABELS if rng.random() < 0.5 else (*LABELS, *ITEMS)
        count, labels = int(rng.integers(3, 9)), rng.choice(pool, int(rng.integers(2, 9)), replace=False)
        inputs = tuple(map(str, rng.choice(ITEMS, count, replace=False)))
        return ToyTask("", kind, inputs, tuple(map(str, rng.choice(labels, count))))
    if kind == "groups":
        inputs = tuple(map(str, rng.choice(tuple(CATEGORIES), 2, replace=False)))
        return ToyTask("", kind, inputs, tuple(map(str, rng.choice(LABELS, 2, replace=False))))
    return ToyTask("", kind)


def documents(name: str, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` documents of a task by name. split: train or eval, of independent random streams."""
    rng = generator(f"in-context {split} {name}", seed)
    return [document(BY_NAME[name], rng) for _ in range(count)]


def _document(text: Sequence[str], choices: Any, gold: str) -> dict[str, Any]:
    listed = [str(choice) for choice in choices]
    return {"text": " ".join(map(str, text)), "choices": listed, "gold": listed.index(str(gold))}
