"""Accuracy of tasks from log-likelihoods of choices, as arrays that parts of an analysis are joined from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from repro.data.scored_texts import Metric, TaskSet
from repro.results import NamedArray

METRICS: tuple[str, ...] = get_args(Metric)


def question_arrays(
    sets: Sequence[TaskSet], own: Sequence[int], greedy: np.ndarray, axes: Mapping[str, Any],
    held_out: Sequence[str] = (),
) -> dict[str, NamedArray]:  # fmt: skip
    """What accuracy needs beside log-likelihoods, of the questions `own` of all tasks in one row.

    right [question, choice]; group, question_task [question]; greedy [.., question]: whether every token of
    the first choice is the likeliest; and of each task, see `task_arrays`, and metric, questions [task].
    axes: of greedy before the question. held_out: further tasks that count in no mean.
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
        "questions": NamedArray(np.array([len(one.questions) for one in sets]), tasks),
        **task_arrays(sets, held_out),
    }


def task_arrays(sets: Sequence[TaskSet], held_out: Sequence[str] = ()) -> dict[str, NamedArray]:
    """shots, counts [task]: demonstrations, and whether the task counts in means (all do, if none would)."""
    tasks: dict[str, Any] = {"task": [one.label for one in sets]}
    counts = np.array([not (one.held_out or {one.name, one.label} & set(held_out)) for one in sets])
    return {
        "shots": NamedArray(np.array([one.shot for one in sets]), tasks),
        "counts": NamedArray(counts if counts.any() else ~counts, tasks),
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


def means(arrays: Mapping[str, NamedArray], by_task: np.ndarray) -> tuple[np.ndarray, list[Any], np.ndarray]:
    """Of values [task, ..]: the mean over tasks that count; numbers of demonstrations, and the mean of each.

    A number of demonstrations with none that counts has the mean of all its tasks.
    """
    shots, counts = arrays["shots"].values, arrays["counts"].values.astype(bool)
    distinct: list[Any] = sorted({int(one) for one in shots})
    found = []
    for shot in distinct:
        its = shots == shot
        found.append(by_task[its & counts if (its & counts).any() else its].mean(0))
    return by_task[counts].mean(0), distinct, np.stack(found)


def by_shot_and_name(
    arrays: Mapping[str, NamedArray], by_task: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """Values [task, ..] as [shot, name, ..], NaN where a task was not asked with so many demonstrations."""
    labels, shots = arrays["shots"].labels("task"), arrays["shots"].values.tolist()
    names = [str(label).removesuffix(f".{shot}shot") for label, shot in zip(labels, shots, strict=True)]
    axes: dict[str, Any] = {"shot": sorted(set(shots)), "name": list(dict.fromkeys(names))}
    found = np.full((len(axes["shot"]), len(axes["name"]), *by_task.shape[1:]), np.nan)
    for name, shot, values in zip(names, shots, by_task, strict=True):
        found[axes["shot"].index(shot), axes["name"].index(name)] = values
    return axes, found
