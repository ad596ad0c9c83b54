"""Following the log of another process: every row once, whatever happens to the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from repro.recorder import LOG, Recorder, Tail


def rows(tail: Tail) -> list[tuple[str, int, float]]:
    """Everything new, as (column, step, value)."""
    return [
        (name, step, value)
        for steps, columns in tail.read()
        for name, values in columns.items()
        for step, value in zip(steps.tolist(), values.tolist(), strict=True)
    ]


def test_each_read_gives_what_is_new(tmp_path: Path) -> None:
    tail = Tail(tmp_path)
    assert rows(tail) == []  # nobody writes yet
    record = Recorder(tmp_path)
    assert rows(tail) == []
    record.many([1, 2], {"loss": [3.0, 2.0]})
    assert rows(tail) == [("loss", 1, 3.0), ("loss", 2, 2.0)]
    assert rows(tail) == []
    record(2, accuracy=0.5)
    record(3, loss=1.0)
    assert rows(tail) == [("accuracy", 2, 0.5), ("loss", 3, 1.0)]


def test_a_line_that_is_being_written_waits_for_its_end(tmp_path: Path) -> None:
    whole = '{"condition":"","steps":[1],"columns":{"loss":[2.5]}}\n'
    tail = Tail(tmp_path)
    for end in range(len(whole)):
        (tmp_path / LOG).write_text(whole[:end])
        assert rows(tail) == []
    (tmp_path / LOG).write_text(whole)
    assert rows(tail) == [("loss", 1, 2.5)]


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    good = '{"condition":"","steps":[1],"columns":{"loss":[2.5]}}\n'
    (tmp_path / LOG).write_text('{"condition":"","ste\n' + good)
    assert rows(Tail(tmp_path)) == [("loss", 1, 2.5)]


def test_a_resumed_run_is_heard_from_where_it_was(tmp_path: Path) -> None:
    """The second start writes the log anew and replays what is in it, then goes on."""
    tail, steps = Tail(tmp_path), np.arange(20)
    killed = Recorder(tmp_path)
    for step in range(8):
        killed(step, loss=step / 2)
    assert len(rows(tail)) == 8
    killed(8, loss=4.0)  # written, not read, and lost with the state of the run
    resumed = Recorder(tmp_path)
    resumed.many(steps[:5], {"loss": steps[:5] / 2})
    for step in range(5, 20):
        resumed(step, loss=step / 2)
    assert rows(tail) == [("loss", step, step / 2) for step in range(8, 20)]


def test_a_rewritten_log_of_the_same_length_is_noticed(tmp_path: Path) -> None:
    """Nothing is lost where the new file is as long as the old one was when it was read last."""
    tail = Tail(tmp_path)
    Recorder(tmp_path)(1, loss=1.5)
    assert rows(tail) == [("loss", 1, 1.5)]
    new = (tmp_path / LOG).read_text().replace("[1]", "[2]")
    (tmp_path / "new").write_text(new)
    (tmp_path / "new").replace(tmp_path / LOG)
    assert rows(tail) == [("loss", 2, 1.5)]


def test_columns_of_one_block_may_be_new_from_different_steps(tmp_path: Path) -> None:
    tail, record = Tail(tmp_path), Recorder(tmp_path)
    record.many([1, 2], {"loss": [1.0, 2.0]})
    assert len(rows(tail)) == 2
    record.many([1, 2, 3], {"loss": [1.0, 2.0, 3.0], "norm": [4.0, 5.0, 6.0]})
    assert sorted(rows(tail)) == [("loss", 3, 3.0), ("norm", 1, 4.0), ("norm", 2, 5.0), ("norm", 3, 6.0)]


def test_no_value_and_infinity_survive(tmp_path: Path) -> None:
    tail, record = Tail(tmp_path), Recorder(tmp_path)
    record(1, loss=float("inf"))
    record(2, loss=float("nan"))
    (_, _, first), (_, _, second) = rows(tail)
    assert first == float("inf") and np.isnan(second)
