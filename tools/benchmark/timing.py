"""Running commands in turn and taking their time."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

S = TypeVar("S")  # a sample
Samples = dict[str, list[float]]
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
PYTHON = "/usr/bin/python3"
BARE_PYTHON = [PYTHON, "-I", "-c", "pass"]


@dataclass(frozen=True)
class Took:
    wall: int  # nanoseconds, until the program has ended
    cpu: int  # nanoseconds, user and system

    def __add__(self, other: Took) -> Took:
        return Took(self.wall + other.wall, self.cpu + other.cpu)


def run(command: list[str], stdin: str = "/dev/null", may_fail: bool = False) -> Took:
    """Run COMMAND with the file STDIN, as libvirtd runs a hook. If it fails, end the benchmark,
    except where it may.
    """
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, stdin, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
    ]
    begin = time.monotonic_ns()
    child = os.posix_spawn(command[0], command, ENVIRONMENT, file_actions=actions)
    _, status, usage = os.wait4(child, 0)
    wall = time.monotonic_ns() - begin
    if status and not may_fail:
        code = os.waitstatus_to_exitcode(status)
        sys.exit(f"bench: {' '.join(command)}: exit status {code}")
    return Took(wall, round((usage.ru_utime + usage.ru_stime) * 1e9))


def in_turn(cases: Mapping[str, Callable[[], S]], rounds: int) -> dict[str, list[S]]:
    """Samples of each case; every round takes all of them once, in another order.

    A round before the first, whose samples are thrown away, warms the caches.
    """
    order = random.Random(1)  # noqa: S311 - an order, and the same at every run
    samples: dict[str, list[S]] = {name: [] for name in cases}
    for number in range(-1, rounds):
        names = list(cases)
        order.shuffle(names)
        for name in names:
            took = cases[name]()
            if number >= 0:
                samples[name].append(took)
    return samples


def empty_hook(directory: Path) -> list[str]:
    """The least that a hook can be."""
    path = directory / "empty"
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    return [str(path)]


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
