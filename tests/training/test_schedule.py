"""Schedules against the published loop, written out."""

from __future__ import annotations

import random

import numpy as np
import pytest

from repro.training.loop import LONGEST_STRETCH, longest_stretch, stretches
from repro.training.schedule import checkpoint_steps, entries, evaluation_steps, step_count, steps
from repro.training.specs import Every, LogSpaced, Training


def labels(training: Training) -> list[int]:
    """Sequences seen at each evaluation."""
    return (evaluation_steps(training) * training.batch).tolist()


def published_loop(scheduled: list[int], sequences: int, batch: int) -> tuple[list[int], int]:
    """Labels of the acts within training, and the label of the one after it."""
    acts, at, i = [], 0, 0
    for i in range(0, sequences, batch):
        if at < len(scheduled) and i >= scheduled[at]:
            acts.append(i)
            at += 1
    return acts, i + batch


def test_labels_are_multiples_rounded_up_to_a_batch() -> None:
    main = labels(Training(sequences=1_000_000, evaluate_every=5000))
    assert main[:3] == [0, 5024, 10016] and 50016 in main and main[-1] == 1_000_000
    assert len(main) == 201
    rare = labels(Training(sequences=10_000_000, evaluate_every=50_000))
    assert 9_750_016 in rare and rare[-1] == 10_000_000


def test_the_end_is_a_whole_batch() -> None:
    training = Training(sequences=100, batch=32, evaluate_every=50)
    assert step_count(training) == 4
    assert labels(training) == [0, 64, 128]


def test_random_schedules_are_those_of_the_loop() -> None:
    draw = random.Random(0)
    for _ in range(200):
        batch, sequences = draw.choice([1, 7, 8, 32]), draw.randint(32, 500)
        scheduled = sorted(draw.sample(range(sequences), draw.randint(0, min(30, sequences))))
        acts, end = published_loop(scheduled, sequences, batch)
        training = Training(sequences=sequences, batch=batch, evaluate_at=scheduled)
        assert labels(training) == [*acts, end], (scheduled, sequences, batch)
        assert (steps(scheduled, sequences, batch) * batch).tolist() == acts


def test_entries_within_one_batch_act_at_successive_steps() -> None:
    training = Training(sequences=320, batch=32, evaluate_at=[0, 1, 2, 3, 200])
    assert labels(training) == [0, 32, 64, 96, 224, 320]


def test_a_checkpoint_interval_as_long_as_training_gives_start_and_end() -> None:
    training = Training(sequences=6400, checkpoint_every=6400)
    assert checkpoint_steps(training).tolist() == [0, 200]


def test_without_a_checkpoint_option_there_is_none() -> None:
    assert checkpoint_steps(Training(sequences=6400)).size == 0
    assert checkpoint_steps(Training(sequences=6400, checkpoint_at=[3200])).tolist() == [100, 200]


def test_windows_lists_and_log_spacing_are_united() -> None:
    assert entries(100, [Every(every=10, start=200, stop=230), 205, 0], 400) == [
        0, 100, 200, 205, 210, 220, 300,
    ]  # fmt: skip
    assert entries(None, [Every(every=100, start=50)], 400) == [50, 150, 250, 350]
    assert entries(None, [Every(every=100, stop=1000)], 400) == [0, 100, 200, 300]
    assert entries(None, [LogSpaced(log_spaced=6, first=10)], 1_000_000) == [10, 100, 1000, 10_000, 100_000]
    assert entries(None, [400, 401, 399], 400) == [399]


@pytest.mark.parametrize("every", [32, 5000, 100_000])
def test_stretches_cover_training_and_stop_at_every_event(every: int) -> None:
    training = Training(sequences=100_000, evaluate_every=every, checkpoint_at=[40_000])
    stops = stretches(training)
    assert stops[0] == 0 and stops[-1] == step_count(training)
    assert {*evaluation_steps(training).tolist(), *checkpoint_steps(training).tolist()} <= set(stops)
    gaps = np.diff(stops)
    assert gaps.min() > 0 and gaps.max() == longest_stretch(training) <= LONGEST_STRETCH
