# SPDX-License-Identifier: LGPL-2.1-or-later
"""Limits as properties of systemd's units: how one is set, and how it is taken back."""

from __future__ import annotations

from ..kinds import MEMORY
from ..steps import Systemctl, remove_made
from . import unitfiles, units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..kinds import Kind, Value
    from ..steps import Step
    from .base import Limits, Manager


def write(manager: Manager, path: str, wanted: Limits, there: Limits) -> list[Step]:
    """By systemd where the limits are its own, and else into the kernel's files.

    systemd would not say that the kernel refused a memory limit (v1), so that is written
    before.
    """
    steps: list[Step] = []
    properties: Limits = {}
    for kind, value in wanted.items():
        tree = manager.tree_of(kind)
        if tree is None:
            continue
        directory = tree.hierarchy.directory(path)
        if tree.systemd_sets(kind):
            properties[kind] = value
        falls = kind is MEMORY and not kind.rises(there[kind], value)
        refusable = falls and tree.refuses and tree.exists(directory)
        if refusable or not tree.systemd_sets(kind):
            steps += tree.set(kind, directory, value, there[kind])
    if properties:
        steps.append(set_property(manager, units.unit_of(path), properties, there))
    return steps


def put_back(manager: Manager, path: str, kind: Kind, value: Value) -> list[Step]:
    """One that is not there any more is left out. systemd has the unit's property as it was,
    too, and no file that says so besides the administrator's own.
    """
    tree = manager.tree_of(kind)
    there = manager.read(kind, path)
    if tree is None or there is None:
        return []
    if not tree.systemd_sets(kind):
        directory = tree.hierarchy.directory(path)
        return [] if there == value else tree.put_back(kind, directory, value, there)
    unit = units.unit_of(path)
    steps: list[Step] = []
    if there != value:
        steps.append(set_property(manager, unit, {kind: value}, {kind: there}))
    if value is None and kind.of_cpus:
        steps.append(Systemctl([*units.SET, unit, f"{kind.unit_property}="]))
    ours = unitfiles.own_file(unit, kind)
    decided = unitfiles.decided(manager.host, unit, kind, but=ours)
    if value is None or (decided and decided[1] == value):
        steps += remove_made([ours])
    return steps


def take_back(manager: Manager, path: str, kind: Kind, value: Value, there: Value) -> list[Step]:
    """What a plan has set to THERE is VALUE again, and no file is left of it."""
    back = set_property(manager, units.unit_of(path), {kind: value}, {kind: there})
    return [back, *remove_made(back.files)]


def set_property(manager: Manager, unit: str, wanted: Limits, there: Limits) -> Systemctl:
    """The limits WANTED of UNIT; those that are THERE are put back to undo it."""
    new, old = ([_property(manager, kind, one[kind]) for kind in wanted] for one in (wanted, there))
    files = [unitfiles.own_file(unit, kind) for kind in wanted]
    made = [file for file in files if not manager.host.exists(file)]
    return Systemctl([*units.SET, unit, *new], [*units.SET, unit, *old], files=made)


def _property(manager: Manager, kind: Kind, value: Value) -> str:
    """An empty AllowedCPUs= would not take a limit away from what runs (systemd 257).

    The full list does, with CPUs that may yet come online.
    """
    if value is None:
        value = manager.present() if kind.of_cpus else None
    return f"{kind.unit_property}={kind.unset if value is None else value}"
