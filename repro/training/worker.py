"""Train plans in a process of their own: `python -m repro.training.worker`, folders on standard input.

A process with one thread trains one small model faster than a process with many, so models of a
figure are trained side by side, each on its own core. A worker takes one plan after the other, so
what is compiled for one serves the next.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from pathlib import Path

from repro import stopping

DONE, FAILED = "done", "failed"


def die_with_parent() -> None:
    """Ask Linux to end this process when the one that started it ends, however it ends."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # 1: PR_SET_PDEATHSIG
    except (OSError, AttributeError):  # not Linux: the worker ends after its plan, at the end of its input
        return


def main() -> int:
    """Train every folder named on a line of standard input; answer each with one line."""
    die_with_parent()
    stopping.listen_as_child()
    # The answers have the standard output for themselves; what a library prints goes to the errors.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from repro.errors import UserError
    from repro.training.store import train

    for line in sys.stdin:
        directory = Path(line.strip())
        try:
            train(directory)
            answer = f"{DONE}\t{directory}"
        except UserError as error:
            answer = f"{FAILED}\t{directory}\t{' '.join(str(error).split())}"
        except Exception as error:
            traceback.print_exc()
            answer = f"{FAILED}\t{directory}\t{type(error).__name__}: {' '.join(str(error).split())}"
        print(answer, file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
