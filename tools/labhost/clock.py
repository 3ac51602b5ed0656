"""How long things take: deadlines, and progress lines with the time since the start."""

from __future__ import annotations

import sys
import time

STARTED = time.monotonic()


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
