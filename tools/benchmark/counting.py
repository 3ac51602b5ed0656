"""Counting the instructions of programs: by the CPU, where the machine lets perf ask it, else with
valgrind.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from .timing import run
from .vm_host import have

PERF = ["/usr/bin/perf", "stat", "-x", ",", "-e", "instructions:u"]
CALLGRIND = ["/usr/bin/valgrind", "--tool=callgrind", "--trace-children=yes"]
COLLECTED = re.compile(r"^==\d+== Collected : (\d+)$", re.MULTILINE)
COUNTED = re.compile(r"^(\d+),[^,]*,instructions:u", re.MULTILINE)


@cache
def counter() -> str:
    """What counts here: "perf", "valgrind", or nothing ("")."""
    if have("perf"):
        done = subprocess.run([*PERF, "true"], capture_output=True, text=True, check=False)
        if COUNTED.search(done.stderr):
            return "perf"
    return "valgrind" if have("valgrind") else ""


def count(command: list[str], stdin: str = "/dev/null") -> int:
    """Instructions in user space, of COMMAND and of all that it starts."""
    with tempfile.TemporaryDirectory() as logs:
        if counter() == "perf":
            log = Path(logs, "perf")
            run([*PERF, "-o", str(log), "--", *command], stdin)
            return counted(log.read_text())
        # a file for each process
        options = ["--callgrind-out-file=/dev/null", f"--log-file={logs}/%p"]
        run([*CALLGRIND, *options, *command], stdin)
        return sum(collected(log.read_text()) for log in Path(logs).iterdir())


def collected(log: str) -> int:
    """Instructions of one process; 0 if it was killed."""
    return sum(int(found) for found in COLLECTED.findall(log))


def counted(log: str) -> int:
    """Instructions of all processes, as perf tells them."""
    found = COUNTED.search(log)
    assert found, f"perf has counted nothing:\n{log}"
    return int(found[1])
