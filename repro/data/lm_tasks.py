"""Sequences to train a small language model on, and probes to test it with: pure sampling, no PyTorch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import numpy as np

from repro.data.lm_task_specs import Task as TaskSpec


@dataclass(frozen=True, eq=False)
class Scored:
    """Token sequences, and which of their tokens a model has to predict from what comes before them.

    tokens: integers (row, column), padded on the right. scored: booleans of the same shape, False in
    column 0. rivals: integers of the same shape; where scored, the token that the true one is compared with.
    """

    tokens: np.ndarray
    scored: np.ndarray
    rivals: np.ndarray | None = None

    def __post_init__(self) -> None:
        shapes = {part.shape for part in (self.tokens, self.scored, self.rivals) if part is not None}
        if len(shapes) != 1 or self.tokens.ndim != 2:
            raise ValueError(f"tokens, scored and rivals must have one shape (row, column); got {shapes}")
        if self.scored[:, 0].any() or not self.scored.any():
            raise ValueError("the first token has nothing before it, and some token must be predicted")


class Task(Protocol):
    """What a model is trained on. All methods are pure: the same arguments give the same arrays."""

    vocabulary: Sequence[str]  # the word of every token id
    start: str | None  # the word that every sequence begins with
    filler: int  # the id on the right of short sequences

    def batch(self, seed: int, step: int, size: int) -> Scored:
        """The training sequences of one step."""
        ...

    def probes(self) -> dict[str, Scored]:
        """Sequences to measure on, none of which occurs in training; the same for every seed."""
        ...


def build(spec: TaskSpec) -> Task:
    """The task that a spec describes."""
    return import_module(spec.module).build(spec)


def generator(stream: str, *place: int) -> np.random.Generator:
    """Random numbers of a place (a seed, a step) in a named stream; others are independent."""
    text = "/".join([stream, *map(str, place)])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()))


def padded(rows: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    """Rows of any length as one array of integers, filled up on the right."""
    tokens = np.full((len(rows), max(map(len, rows))), filler, np.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens
