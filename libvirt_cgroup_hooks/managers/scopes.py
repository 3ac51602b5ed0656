# SPDX-License-Identifier: LGPL-2.1-or-later
"""The CPU limit of one VM's scope, where systemd keeps it."""

from __future__ import annotations

from ..cpuset import CpuSet
from ..kinds import VM_CPUS, as_cpus
from ..steps import Remove, RemoveEmpty, Replace, Step, Systemctl
from . import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..host import Host
    from ..kinds import Value
    from .base import Manager

KEY = "AllowedCPUs="


def write(manager: Manager, path: str, value: Value, there: Value) -> list[Step]:
    """The scope with the cgroup PATH has the CPUs VALUE instead of THERE; None: all.

    Our drop-in for it follows, since systemd adds up what several files say when it reads them
    again. An empty list would not take the limit from what runs (systemd 257), so all CPUs are
    named; nothing else is left of that once the VM has ended.
    """
    tree = manager.tree_of(VM_CPUS)
    unit = units.unit_of(path)
    new, old = (f"{KEY}{as_cpus(one) or manager.present()}" for one in (value, there))
    directory = tree.hierarchy.directory(path) if tree else ""
    command = [*units.SET, unit]
    return [
        *_drop_in_with(manager.host, units.drop_in(unit), as_cpus(value)),
        Systemctl([*command, new], [*command, old], of_cgroup=directory),
    ]


def _drop_in_with(host: Host, path: str, cpus: CpuSet | None) -> list[Step]:
    """The drop-in PATH, if it is there, names CPUS; one that then says nothing goes."""
    text = host.read_optional(path)
    if text is None:
        return []
    lines = [line for line in text.splitlines() if not line.startswith(KEY)]
    lines += [f"{KEY}{cpus}"] if cpus else []
    if lines == ["[Scope]"]:
        return [Remove(path, text, mode=0o644), RemoveEmpty(path.rpartition("/")[0])]
    new = "\n".join(lines) + "\n"
    return [Replace(path, new, text, mode=0o644)] if new != text else []


def forgets(manager: Manager, path: str, value: Value) -> bool:
    """Whether systemd lifts the limit VALUE of the scope PATH when it reads its files again."""
    unit = units.unit_of(path)
    for file in (units.drop_in(unit), f"{units.TRANSIENT}/{unit}.d/50-AllowedCPUs.conf"):
        for line in (manager.host.read_optional(file) or "").splitlines():
            if line.startswith(KEY) and line != KEY:
                return VM_CPUS.parse(line[len(KEY) :]) != value
    return True
