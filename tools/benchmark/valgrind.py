"""Counting the instructions of programs with valgrind."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from .timing import run

CALLGRIND = ["/usr/bin/valgrind", "--tool=callgrind", "--trace-children=yes"]
COLLECTED = re.compile(r"^==\d+== Collected : (\d+)$", re.MULTILINE)


def count(command: list[str], stdin: str = "/dev/null") -> int:
    """Instructions in user space, of COMMAND and of all that it starts."""
    with tempfile.TemporaryDirectory() as logs:  # a file for each process
        options = ["--callgrind-out-file=/dev/null", f"--log-file={logs}/%p"]
        run([*CALLGRIND, *options, *command], stdin)
        return sum(collected(log.read_text()) for log in Path(logs).iterdir())


def collected(log: str) -> int:
    """Instructions of one process; 0 if it was killed."""
    return sum(int(found) for found in COLLECTED.findall(log))
