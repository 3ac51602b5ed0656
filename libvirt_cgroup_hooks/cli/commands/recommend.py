# SPDX-License-Identifier: LGPL-2.1-or-later
"""virt-cgroup recommend: what the host uses itself, and what it should keep."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from ... import threads
from ...config import PATH
from ...errors import Error
from ...host import Host
from ...reserve import KEYS
from ..command import add as add_command
from ..look import look
from ..output import print_json
from ..recommend import memory, report, sample, text
from ..recommend.counts import Sample
from . import reserve

if TYPE_CHECKING:
    from ...managers.base import Manager
    from ...virconf import Value

SECONDS = 5
STEP = 1.0  # seconds between two looks
HELP = """\
The memory of the host's own work is a sum, with the source of each line; its CPU time is measured.
Beside the proposal stand what is configured, what "auto" takes, and what known rules say. Nothing
is changed without --write. Look while the host does what it does on a busy day: --seconds 3600."""


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "recommend",
        run,
        "show what the host uses itself, and propose what it should keep",
        "virt-cgroup recommend --seconds 60",
    )
    parser.description = f"{parser.description}\n\n{HELP}"
    parser.add_argument(
        "--seconds",
        metavar="N",
        type=reserve.seconds,
        default=SECONDS,
        help=f"look at the host for N seconds (default {SECONDS})",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="put the proposal into the configuration file, as virt-cgroup reserve --config",
    )


def run(arguments: argparse.Namespace, host: Host) -> int:
    if arguments.write and not host.real:
        raise Error("nothing can be changed with --root", "edit the file in that copy")
    manager, running, _ = look(host)
    samples, lines = _look(host, manager, arguments.seconds)
    found = report.make(host, manager, running, samples, lines)
    if not arguments.json:
        text.show(found)
    written = _write(host, found) if arguments.write else False
    if arguments.json:
        print_json({**found.as_json(), "written": written})
    elif written:
        print(f"\nWritten to {PATH}.\n{reserve.later(host)}")
    else:
        print(f"\nTo reserve that, for running VMs too:\n    {text.command(found)}")
    return 0


def _look(host: Host, manager: Manager, seconds: float) -> tuple[list[Sample], list[memory.Line]]:
    """The first and the last look, and the sum of memory over all of them. A copy of a host stands
    still, so one look is all there is.
    """
    first = last = sample.take(host, manager, threads.running(host, {}))
    lines = memory.lines(first)
    end = time.monotonic() + (seconds if host.real else 0)
    progress = _Progress(seconds)
    try:
        while time.monotonic() < end:
            progress(end - time.monotonic())
            time.sleep(max(0.0, min(STEP, end - time.monotonic())))
            last = sample.take(host, manager, threads.running(host, {}))
            lines = memory.merged(lines, memory.lines(last))
    finally:
        progress.end()
    return [first, last], lines


class _Progress:
    """On a terminal one line that is rewritten, and nothing elsewhere."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.terminal = sys.stderr.isatty()

    def __call__(self, left: float) -> None:
        if self.terminal:
            told = f"looking for {self.seconds:g} seconds, {left:.0f} left"
            print(f"\r\033[K{told}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _write(host: Host, found: report.Report) -> bool:
    """What has no proposal, CPUs of a host with one core, stays as it is configured."""
    wanted: dict[str, Value | None] = {KEYS["memory"]: found.memory_setting}
    if found.proposed.cpus:
        wanted[KEYS["cpus"]] = found.proposed.cpus
    reserve.configure(host, wanted)
    return True
