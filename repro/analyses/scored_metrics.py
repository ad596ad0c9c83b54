"""Accuracy of tasks from log-likelihoods of choices, as arrays that parts of an analysis are joined from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from repro.data.scored_texts import Metric, TaskSet
from repro.results import NamedArray

METRICS: tuple[str, ...] = get_args(Metric)


def question_arrays(
    sets: Sequence[TaskSet], own: Sequence[int], greedy: np.ndarray, axes: Mapping[str, Any]
) -> dict[str, NamedArray]:
    """What accuracy needs beside log-likelihoods, of the questions `own` of all tasks in one row.

    right [question, choice]; group, question_task [question]; greedy [.., question]: whether every token of
    the first choice is the likeliest; metric, shots, questions [task]. axes: of greedy before the question.
    """
    flat = [(place, question) for place, one in enumerate(sets) for question in one.questions]
    mine = [flat[index] for index in own]
    width = max(len(question.choices) for _, question in flat)
    right = np.zeros((len(mine), width), dtype=bool)
    for row, (_, question) in enumerate(mine):
        right[row, list(question.right)] = True
    rows: dict[str, Any] = {"question": len(mine)}
    tasks: dict[str, Any] = {"task": [one.label for one in sets]}
    return {
        "right": NamedArray(right, {**rows, "choice": width}),
        "group": NamedArray(np.array([question.group for _, question in mine]), rows),
        "question_task": NamedArray(np.array([place for place, _ in mine]), rows),
        "greedy": NamedArray(greedy, {**axes, **rows}),
        "metric": NamedArray(np.array([METRICS.index(one.metric) for one in sets]), tasks),
        "shots": NamedArray(np.array([one.shot for one in sets]), tasks),
        "questions": NamedArray(np.array([len(one.questions) for one in sets]), tasks),
    }


def accuracy(arrays: Mapping[str, NamedArray], log_likelihood: np.ndarray) -> np.ndarray:
    """Accuracy [task, ..] of log-likelihoods [.., question, choice] of all questions, from 0 to 1."""
    task, metric = arrays["question_task"].values, arrays["metric"].values
    found = []
    for place, its_metric in enumerate(metric):
        its = task == place
        right = correct(
            log_likelihood[..., its, :], arrays["right"].values[its], arrays["greedy"].values[..., its],
            METRICS[its_metric],
        )  # fmt: skip
        if METRICS[its_metric] == "grouped_accuracy":
            right = grouped(right, arrays["group"].values[its])
        found.append(right.mean(-1))
    return np.stack(found)


def correct(log_likelihood: np.ndarray, right: np.ndarray, greedy: np.ndarray, metric: str) -> np.ndarray:
    """Whether each question is right, [.., question]: its likeliest choice, the first of equal ones."""
    if metric == "greedy_match":
        return greedy.astype(bool)
    chances = np.where(np.isnan(log_likelihood), -np.inf, log_likelihood)
    chosen = chances.argmax(-1)
    return right[np.arange(len(right)), chosen]


def grouped(right: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Whether all questions of each group are right, [.., group]."""
    _, number = np.unique(group, return_inverse=True)
    return np.stack([right[..., number == one].all(-1) for one in range(number.max() + 1)], axis=-1)


def mean_over_tasks(by_task: np.ndarray, labels: Sequence[Any], held_out: Sequence[str]) -> np.ndarray:
    """Mean over the tasks that are not held out; over all if all are."""
    counts = np.array([label not in held_out for label in labels])
    return by_task[counts if counts.any() else slice(None)].mean(0)
