"""What progress prints, with a clock that we move by hand."""

import io

import pytest

from repro.progress import duration, progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def work(stream, clock, steps, seconds_a_step, start=0):
    with progress(start + steps, "training", "steps", stream, clock) as bar:
        bar.set(start)
        for _ in range(steps):
            clock.now += seconds_a_step
            bar.advance(note="loss 0.69")
    return bar


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_silent_under_two_seconds(stream):
    work(stream, Clock(), steps=19, seconds_a_step=0.1)
    assert stream.getvalue() == ""


def test_a_line_about_every_ten_seconds_and_one_at_the_end():
    stream = io.StringIO()
    work(stream, Clock(), steps=400, seconds_a_step=0.1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5  # at 2, 12, 22, 32 seconds, and the end
    assert lines[0] == "training: 20/400 steps (5%), 10 steps/s, 38 s left, loss 0.69"
    assert lines[-1] == "training: 400/400 steps, took 40 s"


def test_rate_does_not_count_what_was_done_before():
    bar = work(io.StringIO(), Clock(), steps=10, seconds_a_step=1.0, start=1000)
    assert bar.rate == pytest.approx(1.0)
    assert bar.eta == 0


def test_a_terminal_gets_a_bar_with_the_counts():
    stream = Terminal()
    work(stream, Clock(), steps=50, seconds_a_step=0.1)
    assert "training" in stream.getvalue() and "50/50" in stream.getvalue()
    assert "\n" == stream.getvalue()[-1]


def test_an_error_passes_through_and_is_told():
    stream, clock = io.StringIO(), Clock()
    with pytest.raises(KeyError), progress(10, "training", stream=stream, clock=clock) as bar:
        bar.set(0)
        clock.now += 5
        bar.advance()
        raise KeyError
    assert stream.getvalue().splitlines()[-1] == "training: 1/10 steps, stopped after 5 s"


def test_a_closed_stream_does_not_end_the_work():
    stream, clock = io.StringIO(), Clock()
    stream.close()
    assert work(stream, clock, steps=50, seconds_a_step=1.0).done == 50


def test_durations():
    assert [duration(s) for s in (0.2, 59, 185, 7620)] == ["0 s", "59 s", "3 min 05 s", "2 h 07 min"]
