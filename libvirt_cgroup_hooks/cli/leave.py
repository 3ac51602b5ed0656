# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leaving the host: the fence is opened and all that was kept in /run goes, while VMs run on where they are."""

from __future__ import annotations

from .. import managers, state, threads
from ..config import Config
from ..errors import Error
from ..host import Host
from ..managers import units
from ..managers.systemd import DROP_IN, UNITS
from ..plan import Plan, Remove, RemoveEmpty, Step, Systemctl
from ..topology import read_online

RUNTIME = "/run/systemd/system.control"  # where set-property --runtime keeps what it was told


def leave(host: Host) -> list[str]:
    """What was done. Goes as far as it can, then raises Error if something could not be done."""
    if not host.exists(state.DIRECTORY):
        return []
    with host.locked(state.LOCK):
        done, errors = _opened(host)
        for step in _drop_ins(host, errors):
            _try(step, host, errors)
        _forget(host, state.DIRECTORY)
    if errors:
        raise Error("; ".join([*done, *(str(error) for error in errors)]), "the rest is removed; a reboot removes this too")
    return [*done, f"removed {state.DIRECTORY}"]


def _opened(host: Host) -> tuple[list[str], list[Error]]:
    shared = state.Shared(host)
    if not shared.before and not shared.made:
        return [], []
    errors: list[Error] = []
    plan = Plan("remove")
    try:
        manager = managers.choose(host, Config({}), managers.daemon(host))
        plan.add(*manager.opened(state.Shared(host), list(shared.before)))
    except Error as error:
        errors.append(error)
    plan.add(*(RemoveEmpty(path) for path in sorted(shared.made, reverse=True)))
    for step in plan.steps:
        _try(step, host, errors)
    properties = [name.partition(" ") for name in shared.before if not name.startswith("/")]
    for step in _removals(host, [f"{RUNTIME}/{unit}.d/50-{key}.conf" for unit, _, key in properties]):
        _try(step, host, errors)
    return (["opened the fence of the VM parent"] if shared.before and not errors else []), errors


def _drop_ins(host: Host, errors: list[Error]) -> list[Step]:
    """Of scopes. One that carries the CPU fence itself is opened first: an empty AllowedCPUs= would not do it."""
    paths = {name: f"{UNITS}/{name}/{DROP_IN}" for name in host.names(UNITS) if name.endswith(".scope.d")}
    scopes = _scopes(host, errors) if paths else set()
    steps: list[Step] = []
    for name, path in paths.items():
        scope = name.removesuffix(".d")
        if scope in scopes and "AllowedCPUs=" in (host.read_optional(path) or ""):
            everything = f"AllowedCPUs={read_online(host.read_optional)}"
            steps.append(Systemctl(["set-property", "--runtime", scope, everything]))
    return steps + _removals(host, list(paths.values()))


def _scopes(host: Host, errors: list[Error]) -> set[str]:
    """Of the VMs that run."""
    try:
        return {units.scope_unit(domain.name, domain.id) for domain in threads.running(host) if domain.id is not None}
    except Error as error:
        errors.append(error)
        return set()


def _removals(host: Host, paths: list[str]) -> list[Step]:
    """Each with its directory, if that is empty then."""
    steps: list[Step] = []
    for path in paths:
        if host.exists(path):
            steps += [Remove(path, "", 0o644), RemoveEmpty(path.rpartition("/")[0])]
    return steps


def _try(step: Step, host: Host, errors: list[Error]) -> None:
    try:
        step.run(host)
    except Error as error:
        errors.append(error)


def _forget(host: Host, directory: str) -> None:
    inner = host.directories(directory)
    for name in inner:
        _forget(host, f"{directory}/{name}")
    for name in host.names(directory):
        host.remove(f"{directory}/{name}")
    host.remove_directory(directory)
