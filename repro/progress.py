"""Live progress: a bar on a terminal, plain lines elsewhere, silence for what is over at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from tqdm import tqdm

QUIET_SECONDS = 2.0
HEARD_SECONDS = 1.0
LINE_SECONDS = 10.0


class Progress:
    """Where a piece of work stands; `advance` and `set` may be called as often as one likes.

    done, total: in `unit`s. rate: units a second since the first report, so that what was done
    before (a resumed run) or spent on compiling does not count. eta: seconds left, None when unknown.
    """

    def __init__(
        self, total: int, description: str, unit: str, stream: TextIO, clock: Callable[[], float]
    ) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done = 0
        self._stream, self._clock = stream, clock
        self._started = self._last_line = clock()
        self._base: tuple[float, int] | None = None
        self._note = ""
        self._bar: tqdm | None = None
        self._shown = False

    def advance(self, amount: int = 1, note: str = "") -> None:
        """`amount` more units are done; `note` is a short text such as "loss 0.69"."""
        self.set(self.done + amount, note)

    def set(self, done: int, note: str = "") -> None:
        """`done` units are done in all."""
        self.done, self._note = min(done, self.total), note or self._note
        if self._base is None:
            self._base = (self._clock(), self.done)
        if self._clock() - self._started >= QUIET_SECONDS:
            self._show()
        for listener in _listeners:
            listener(self)

    @property
    def rate(self) -> float | None:
        """Units a second, None before the second report."""
        if self._base is None or self.done == self._base[1]:
            return None
        return (self.done - self._base[1]) / max(self._clock() - self._base[0], 1e-9)

    @property
    def eta(self) -> float | None:
        """Seconds left at this rate."""
        rate = self.rate
        return None if not rate else (self.total - self.done) / rate

    def _show(self) -> None:
        if self._stream.isatty():
            if self._bar is None:
                # A moment before anything is slow there is no bar, so that short work leaves no trace.
                self._bar = tqdm(
                    total=self.total, desc=self.description, unit=f" {self.unit}", file=self._stream,
                    initial=self._base[1] if self._base else 0, dynamic_ncols=True, smoothing=0, leave=True,
                )  # fmt: skip
                # tqdm divides by the time since it was made; the work began earlier.
                self._bar.start_t -= self._clock() - (self._base[0] if self._base else self._started)
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(self.done - self._bar.n)
        elif not self._shown or self._clock() - self._last_line >= LINE_SECONDS:
            self._print(self.line())
        self._shown = True

    def line(self) -> str:
        """One line of plain text: share, rate, time left."""
        share = f"{self.done:,}/{self.total:,} {self.unit} ({100 * self.done / max(self.total, 1):.0f}%)"
        parts = [share]
        if self.rate:
            parts.append(
                f"{self.rate:,.3g} {self.unit}/s" if self.rate < 1000 else f"{self.rate:,.0f} {self.unit}/s"
            )
        if self.eta is not None:
            parts.append(f"{duration(self.eta)} left")
        return f"{self.description}: " + ", ".join(parts + [self._note] * bool(self._note))

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
        self._last_line = self._clock()

    def close(self, failed: bool = False) -> None:
        """Take the bar down; on plain output say how long the work took."""
        if self._bar is not None:
            self._bar.update(self.done - self._bar.n)
            self._bar.close()
        elif self._shown:
            how = "stopped after" if failed else "took"
            share = f"{self.done:,}/{self.total:,} {self.unit}"
            self._print(f"{self.description}: {share}, {how} {duration(self._clock() - self._started)}")


_listeners: list[Callable[[Progress], None]] = []


@contextmanager
def heard(listener: Callable[[Progress], None]) -> Iterator[None]:
    """Tell `listener` of all progress made inside, once a second at most."""
    last = -HEARD_SECONDS

    def listen(bar: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= HEARD_SECONDS:
            last = time.monotonic()
            listener(bar)

    _listeners.append(listen)
    try:
        yield
    finally:
        _listeners.remove(listen)


@contextmanager
def progress(
    total: int,
    description: str,
    unit: str = "steps",
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Show how far a loop over `total` units has come, on stderr so that stdout stays clean.

    with progress(1000, "training", "steps") as bar:
        for step in range(1000):
            ...
            bar.advance(note=f"loss {loss:.3f}")

    On a terminal: a bar with rate and time left. Elsewhere: a line every ten seconds. Nothing in the
    first two seconds. Never raises: a closed or broken stream only ends the display.
    """
    shown = Progress(total, description, unit, cast(TextIO, _Safe(stream or sys.stderr)), clock)
    failed = True
    try:
        yield shown
        failed = False
    finally:
        shown.close(failed)


class Pace:
    """Seconds left at the pace since the first report, so that what was done before does not count."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def eta(self, step: int, total: int) -> float | None:
        """None where nothing can be said yet."""
        if self._first is None:
            self._first = (time.monotonic(), step)
        then, first = self._first
        return round((time.monotonic() - then) / (step - first) * (total - step), 1) if step > first else None


class _Safe:
    """A stream whose loss (a closed terminal, a broken pipe) does not end the run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            pass


def duration(seconds: float) -> str:
    """ "48 s", "3 min 05 s", "2 h 07 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
