"""The per-step log: nothing lost by a kill, nothing told twice after a resume."""

import errno
import math
import time

import numpy as np
import pandas as pd
import pytest

from repro.errors import UserError
from repro.recorder import Recorder, read_history, read_log


class Ears:
    def __init__(self):
        self.points = []

    def __call__(self, steps, columns, condition):
        for name, values in columns.items():
            for step, value in zip(steps.tolist(), values.tolist(), strict=True):
                if not math.isnan(value):
                    self.points.append((condition, name, step, value))


def test_rows_become_one_table(tmp_path):
    ears = Ears()
    with Recorder(tmp_path, [ears]) as record:
        record(0, loss=3.0)
        record(10, loss=2.0, accuracy=0.5)
        record.many([20, 30], {"loss": [1.0, 0.5], "accuracy": [math.nan, 0.75]})
    frame = pd.read_parquet(tmp_path / "history.parquet")
    assert list(frame.columns) == ["step", "loss", "accuracy"]
    assert frame.step.tolist() == [0, 10, 20, 30]
    assert frame.loss.tolist() == [3.0, 2.0, 1.0, 0.5]
    np.testing.assert_array_equal(frame.accuracy, [math.nan, 0.5, math.nan, 0.75])
    assert ("", "accuracy", 30, 0.75) in ears.points and len(ears.points) == 6


def test_several_conditions_share_steps(tmp_path):
    with Recorder(tmp_path) as record:
        record.many([0, 1], {"loss": [1.0, 2.0]}, condition="clamp")
        record.many([0, 1], {"loss": [3.0, 4.0], "only_here": [5.0, 6.0]}, condition="free")
    frame = read_history(tmp_path)
    assert frame.condition.tolist() == ["clamp", "clamp", "free", "free"]
    assert frame.loss.tolist() == [1.0, 2.0, 3.0, 4.0]
    np.testing.assert_array_equal(frame.only_here, [math.nan, math.nan, 5.0, 6.0])


def replay(record, until):
    record.many(np.arange(until), {"loss": np.arange(until) * 0.5}, condition="a")
    for step in range(0, until, 5):
        record(step, condition="a", accuracy=step / 100)


def test_a_resumed_run_forwards_only_what_is_new(tmp_path):
    first, second = Ears(), Ears()
    replay(Recorder(tmp_path, [first]), until=10)  # never finished: killed
    record = Recorder(tmp_path, [second])
    replay(record, until=20)
    record.finish()
    assert len(set(first.points)) == len(first.points) == 12
    assert not set(first.points) & set(second.points)
    assert sorted(first.points + second.points) == sorted(
        [("a", "loss", step, step * 0.5) for step in range(20)]
        + [("a", "accuracy", s, s / 100) for s in range(0, 20, 5)]
    )
    frame = read_history(tmp_path)
    assert frame.step.tolist() == list(range(20))
    assert frame.accuracy.dropna().tolist() == [0.0, 0.05, 0.10, 0.15]


def test_replayed_rows_replace_the_old_ones(tmp_path):
    Recorder(tmp_path)(3, loss=1.0)
    with Recorder(tmp_path) as record:
        record(3, loss=2.0)
    assert read_history(tmp_path).loss.tolist() == [2.0]


def test_a_torn_last_line_is_ignored_and_not_continued(tmp_path):
    Recorder(tmp_path)(1, loss=1.0)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"condition":"","steps":[2],"col')
    with Recorder(tmp_path) as record:
        record(3, loss=3.0)
    assert read_history(tmp_path).step.tolist() == [1, 3]


def test_the_log_is_written_before_listeners_hear(tmp_path):
    seen = []
    record = Recorder(tmp_path, [lambda steps, columns, condition: seen.append(read_log(tmp_path))])
    record(7, loss=1.5)
    steps, values = seen[0]["", "loss"]
    assert (steps.tolist(), values.tolist()) == ([7], [1.5])


def test_many_restarts_do_not_make_the_log_grow(tmp_path):
    sizes = []
    for _ in range(5):
        replay(Recorder(tmp_path), until=50)
        sizes.append((tmp_path / "log.jsonl").stat().st_size)
    assert sizes[-1] <= sizes[1]


def test_diverged_and_infinite_values(tmp_path):
    with Recorder(tmp_path) as record:
        record(0, loss=math.inf)
        record(1, loss=math.nan)
    assert (tmp_path / "log.jsonl").read_text().count("NaN") == 0
    np.testing.assert_array_equal(read_history(tmp_path).loss, [math.inf, math.nan])


def test_bad_blocks(tmp_path):
    record = Recorder(tmp_path)
    with pytest.raises(ValueError, match=r"column 'loss' has shape \(2,\)"):
        record.many([1, 2, 3], {"loss": [1.0, 2.0]})
    with pytest.raises(ValueError, match="may not be called 'step'"):
        record.many([1], {"step": [1.0]})


def test_a_full_disk_keeps_the_rows_before(tmp_path):
    record = Recorder(tmp_path)
    record(1, loss=1.0)

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, text):
            self.file.write(text[:10])

        def flush(self):
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    record._file = Full(record._file)
    with pytest.raises(UserError, match="No space left"):
        record(2, loss=2.0)
    record(3, loss=3.0)  # room again
    record.finish()
    assert read_history(tmp_path).step.tolist() == [1, 3]


def test_a_long_run_is_cheap(tmp_path):
    """31,250 steps, and 40 columns that exist at 201 of them."""
    steps = np.arange(31_250)
    sparse = np.where(steps % 156 == 0, 0.5, np.nan)
    columns = {"train_loss": steps * 1e-5, **{f"eval_{i}": sparse + i for i in range(40)}}
    began = time.process_time()
    with Recorder(tmp_path) as record:
        for rows in np.array_split(steps, 31):
            record.many(rows, {name: values[rows] for name, values in columns.items()})
    assert time.process_time() - began < 5
    frame = read_history(tmp_path)
    assert len(frame) == 31_250 and frame["eval_3"].notna().sum() == 201
    assert (tmp_path / "log.jsonl").stat().st_size < 3_000_000
