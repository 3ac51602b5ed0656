# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a command that shows something begins with: the configuration in force, and the VMs."""

from __future__ import annotations

from typing import NamedTuple

from .. import managers, snapshot, threads
from ..domain import Domain
from ..errors import Error
from ..host import Host
from ..managers.base import Manager
from .output import print_warnings


class Look(NamedTuple):
    """`unreadable`: of how many VMs the status XML is not understood."""

    manager: Manager
    running: list[Domain]
    unreadable: int


def look(host: Host) -> Look:
    """Prints a warning for each VM that is not understood."""
    warnings: list[str] = []
    config = snapshot.load(host, warnings)
    manager = managers.choose(host, config, managers.daemon(host))
    unreadable: dict[str, Error] = {}
    running = threads.running(host, unreadable)
    print_warnings([*warnings, *map(str, unreadable.values())])
    return Look(manager, running, len(unreadable))
