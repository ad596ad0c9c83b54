"""Being told to stop: SLURM's warning before the time limit, and the SIGTERM of a preemption or a cancelling.

Nothing happens in a signal handler. A thread notes what came, and work that can save its state asks now and
then: `asked()` is `"stop"` (save, then raise `Stopped`), `"save"` (save and go on: whoever preempts may yet
change his mind), or None. Where nobody listens, it is always None.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

WARNING = signal.SIGUSR2
# Told to child processes: they listen, too, since SLURM signals every process of a job.
VARIABLE = "REPRO_LISTENS"
CODE = 77  # with which a process ends that was stopped
_SIGNALS = (WARNING, signal.SIGTERM)

_asked: Literal["stop", "save"] | None = None
_threads = threading.Lock()


class Stopped(SystemExit):
    """The state is saved and the work ends before its end; no failure, so no `except Exception` takes it."""

    def __init__(self) -> None:
        super().__init__(CODE)


def asked() -> Literal["stop", "save"] | None:
    """What is asked of this process."""
    return _asked


def ask(what: Literal["stop", "save"]) -> None:
    """Ask it of this process; who was asked to stop is not told to go on by a later `save`."""
    global _asked
    with _threads:
        _asked = "stop" if _asked == "stop" else what


def saved() -> None:
    """The state is on disk: a `save` has been answered."""
    global _asked
    with _threads:
        _asked = "stop" if _asked == "stop" else None


def forget() -> None:
    """Nothing is asked any more: for a process that does one piece of work after the other, and for tests."""
    global _asked
    with _threads:
        _asked = None


def listen(
    is_cancelled: Callable[[], bool] = lambda: False,
    late: Callable[[], None] = lambda: None,
    patience: float = 30.0,
) -> None:
    """From now on take signals for requests; to be called once, in the main thread.

    is_cancelled: asked at SIGTERM; if so it means stop. late: called if the process still runs `patience`
    seconds after the warning, since the work at hand cannot be interrupted (or is deep in compiled code).
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    # Python runs handlers between two of its own instructions only; the byte comes at once.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    os.environ[VARIABLE] = "1"

    def hear() -> None:
        while number := os.read(read, 1):
            if number[0] == WARNING:
                ask("stop")
                timer = threading.Timer(patience, late)
                timer.daemon = True
                timer.start()
            elif number[0] == signal.SIGTERM:
                ask("stop" if is_cancelled() else "save")

    threading.Thread(target=hear, name="signals", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def listen_as_child() -> None:
    """The same in a process started by one that listens; in any other, signals do what they always do."""
    if os.environ.get(VARIABLE):
        listen()
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


@contextmanager
def held() -> Iterator[None]:
    """Child processes started here do not hear these signals until they listen, or never if they do not."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
