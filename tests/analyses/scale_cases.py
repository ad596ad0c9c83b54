"""Task sets of random token ids, for tiny models (61 tokens, 32 positions)."""

from __future__ import annotations

import random
from dataclasses import replace

from repro.data.scored_texts import Example, Question, ScoredTexts, TaskSet


def ids(rng: random.Random, least: int, most: int) -> tuple[int, ...]:
    return tuple(rng.randrange(2, 61) for _ in range(rng.randint(least, most)))


def task(name: str, seed: int, examples: int = 7, questions: int = 9, shot: int = 0) -> TaskSet:
    """Some questions are grouped in threes; contexts are shared but for every third question."""
    rng = random.Random(seed)
    asked = []
    for number in range(questions):
        choices = tuple(ids(rng, 1, 3) for _ in range(rng.randint(2, 4)))
        start = ids(rng, 2, 8)
        contexts = (start,) if number % 3 else tuple(start + ids(rng, 1, 2) for _ in choices)
        asked.append(Question(contexts, choices, (rng.randrange(len(choices)),), number // 3))
    made = [Example(ids(rng, 1, 12), ids(rng, 1, 4)) for _ in range(examples)]
    return TaskSet(name, shot, tuple(made), tuple(asked))


def texts(*sets: TaskSet) -> ScoredTexts:
    return ScoredTexts(sets, "made here", "0" * 64, "token_choices")


def two_tasks() -> ScoredTexts:
    return texts(task("one", 1), replace(task("two", 2, 4, 6), metric="grouped_accuracy"))
