# SPDX-License-Identifier: LGPL-2.1-or-later
"""The slices that a layout makes of a VM's place."""

from __future__ import annotations

from ..errors import Error, printable
from . import units

OTHERS = ("machine.slice", "system.slice", "user.slice")  # of libvirt's and of systemd's own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..domain import Domain
    from ..host import Host
    from ..kernel.tree import Tree
    from ..layout import Layout


def of_scope(layout: Layout, base: str, domain: Domain) -> str:
    """The slice that DOMAIN's scope goes to; BASE is what $LIBVIRTD stands for. Raises Error for
    one that libvirt misreads.

    The scope itself is the VM's cgroup where the layout names the VM in one last component
    without $UUID, which a scope's name cannot say; else the VM has a slice of its own.
    """
    unit = _slice(layout, base, domain, len(layout.components) if _has_own(layout) else 0)
    if "/libvirt" in units.slice_path(unit):
        raise Error(
            f'cgroup_layout "{printable(layout.preset)}" makes the slice {unit}',
            "libvirt loses VMs in a cgroup whose name begins with libvirt; choose another name",
        )
    if len(unit) > units.UNIT_NAME_MAX:
        raise Error(
            f"the slice of VM {printable(domain.name)} would have a name over 255 bytes",
            "use $UUID in the layout",
        )
    return unit


def of_vm(layout: Layout, base: str, domain: Domain) -> str | None:
    """The slice that goes with DOMAIN, and all below it: that of the first component with its
    UUID, else the last. None where it has none of its own.

    One that is named by the VM alone may be another's, too: system, for a VM of that name.
    """
    of_vm = layout.components[len(layout.own) :]
    depth = next((n for n, name in enumerate(of_vm, 1) if "$UUID" in name), len(of_vm))
    return _slice(layout, base, domain, depth) if _has_own(layout) else None


def between(own: str, unit: str) -> list[str]:
    """The slices from OWN down to UNIT.

    They go with their VM without us, too: systemd keeps an empty slice otherwise.
    """
    above = len(units.slice_path(own).split("/")) - 1
    return units.slice_path(unit).split("/")[above:]


def unused(host: Host, trees: list[Tree], path: str) -> list[str]:
    """Of the slices from PATH up, in the TREES that systemd makes, those that are there for it
    alone: they have no process, no other slice and no file of an administrator or a package.
    """
    from . import unitfiles

    found: list[str] = []
    while path.strip("/"):
        above, _, unit = path.rpartition("/")
        for tree in trees:
            directory = tree.hierarchy.directory(path)
            names = [name for name in host.directories(directory) if name.endswith(".slice")]
            if tree.is_populated(directory) or not set(names) <= {*found}:
                return found
        if unit in OTHERS or unitfiles.has_unit(host, unit) or unitfiles.hosts_own(host, unit):
            return found
        found.append(unit)
        path = above
    return found


def _has_own(layout: Layout) -> bool:
    of_vm = layout.components[len(layout.own) :]
    return len(of_vm) > 1 or "$UUID" in of_vm[0]


def _slice(layout: Layout, base: str, domain: Domain, depth: int) -> str:
    """The slice of the first DEPTH components that name DOMAIN; of none of them, the one that holds
    all VMs.
    """
    return units.slice_unit(layout.of_vm(domain)[:depth], units.slice_unit(layout.own, base))
