"""What every part of the lab uses: its error, its progress lines, its deadlines, its way to run a program."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

STARTED = time.monotonic()


class LabError(Exception):
    """Something the lab could not do: what was tried and why it failed, and what may help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def progress(text: str) -> None:
    print(f"lab: {time.monotonic() - STARTED:5.1f}s  {text}", file=sys.stderr, flush=True)


class Deadline:
    """A point in time by which something must have happened."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - time.monotonic())

    def passed(self) -> bool:
        return self.left() == 0.0


def program(command: Sequence[str | Path], timeout: float, capture: bool = False) -> str:
    """Run a program on the outer machine, its output on stderr or, with `capture`, returned.

    Raises LabError when it is missing, fails, or takes more than `timeout` seconds.
    """
    words = [str(word) for word in command]
    output = subprocess.PIPE if capture else sys.stderr
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=output, timeout=timeout, check=True, text=True)
    except FileNotFoundError as error:
        raise LabError(f"cannot run {words[0]}: it is not installed", "install it, or run the lab as root") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"no end after {timeout:.0f} s: {' '.join(words)}") from error
    except subprocess.CalledProcessError as error:
        raise LabError(f"exit status {error.returncode}: {' '.join(words)}") from error
    return done.stdout if capture else ""
