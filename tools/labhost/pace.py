"""How much slower this host is than an idle one: prints a factor, which is 1 or more.

It measures what tests do most, several at a time: to start programs that load modules. It needs
nothing but Python 3.9: a lab host is given its text.
"""

from __future__ import annotations

import subprocess
import sys
import time

ROUNDS = 3
AT_ONCE = 4
WORK = (sys.executable, "-I", "-c", "import json, subprocess, xml.etree.ElementTree")
NOMINAL = 2.0  # seconds on a lab host that has two CPUs of the outer machine for itself


def measured() -> float:
    """Seconds that the work takes here and now."""
    began = time.monotonic()
    for _ in range(ROUNDS):
        processes = [subprocess.Popen(WORK) for _ in range(AT_ONCE)]
        for process in processes:
            process.wait()
    return time.monotonic() - began


if __name__ == "__main__":
    print(f"{max(1.0, measured() / NOMINAL):.1f}")
