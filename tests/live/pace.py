"""How long things may take on this host, which may be busy or emulated.

Tests wait for events. An end is there for what never comes, so it is generous, and it is longer on
a host that is slower.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

TOLD = "CGROUP_HOOKS_SLOWNESS"  # tools/lab measures it when it restores a host
MEASURE = Path(__file__).resolve().parents[2] / "tools/labhost/pace.py"
EVENT = 120.0  # seconds for what takes one or two on an idle machine
HOOK_SECONDS = 60  # six times the default: only tests of hook_timeout are to run into it
HOOK_TIMEOUT_MAX = 600


@cache
def slowness() -> float:
    """How many times longer than on an idle machine all takes here; 1 or more."""
    told = os.environ.get(TOLD)
    if told is None:
        command = [sys.executable, "-I", str(MEASURE)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return max(1.0, float(told))


def patient(seconds: float = EVENT) -> float:
    """The end of something that has to be over in SECONDS on an idle machine."""
    return seconds * slowness()


def hook_timeout(seconds: float = HOOK_SECONDS) -> int:
    """The same as a value for the setting."""
    return min(HOOK_TIMEOUT_MAX, round(patient(seconds)))


def in_time(config: str) -> str:
    """The configuration, with a hook_timeout that suits this host where it has none.

    One that sets nothing stays as it is: with it, the hook has nothing to do.
    """
    sets_something = any(line and not line.startswith("#") for line in config.splitlines())
    if not sets_something or "hook_timeout" in config:
        return config
    return f"{config}hook_timeout = {hook_timeout()}\n"


def wait_for(condition: Callable[[], bool], what: str, seconds: float = EVENT) -> None:
    """SECONDS are those of an idle machine."""
    limit = patient(seconds)
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"after {limit:g} s still waiting for {what}"
        time.sleep(0.02)
