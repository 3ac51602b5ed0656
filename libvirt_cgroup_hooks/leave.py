# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leaving the host: the limits are lifted and all that was kept in /run goes; VMs run on where they
are.
"""

from __future__ import annotations

from . import limits, managers, snapshot, state, threads
from .config import Config
from .errors import Error
from .plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .domain import Domain
    from .host import Host


def leave(host: Host) -> list[str]:
    """What was done. Goes as far as it can, then raises Error if something could not be done."""
    if not host.exists(state.DIRECTORY):
        return []
    errors: list[Error] = []
    with host.locked(state.LOCK):
        limited = bool(state.Remembered(host).before)
        plan = _plan(host, errors)
        for step in plan.steps:
            try:
                step.run(host)
            except Error as error:
                errors.append(error)
        _forget(host, state.DIRECTORY)
    done = ["lifted the limits of the VM parent"] if limited and not errors else []
    if errors:
        told = "; ".join([*done, *(str(error) for error in errors)])
        raise Error(told, "everything else was removed; a reboot removes this, too")
    return [*done, f"removed {state.DIRECTORY}"]


def _plan(host: Host, errors: list[Error]) -> Plan:
    plan = Plan("leave", transaction=False)
    try:
        manager = managers.choose(host, Config({}), managers.daemon(host))
        limits.lift(plan, manager, _layouts_own(host))
        plan.add(*manager.opened(_running(host, errors)))
    except Error as error:
        errors.append(error)
    return plan


def _layouts_own(host: Host) -> list[str]:
    """The cgroups that the configured layout has had made, also without any limit."""
    try:
        config = snapshot.load(host, [])
    except Error:  # which is told when a VM starts
        return []
    return managers.choose(host, config, managers.daemon(host)).shared_paths()


def _running(host: Host, errors: list[Error]) -> list[Domain]:
    unknown: dict[str, Error] = {}
    found = threads.running(host, unknown)
    errors += unknown.values()
    return found


def _forget(host: Host, directory: str) -> None:
    for name in host.directories(directory):
        _forget(host, f"{directory}/{name}")
    for name in host.names(directory):
        host.remove(f"{directory}/{name}")
    host.remove_directory(directory)
