# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel's cgroup files want: which value, in which order, on cgroup v1 and v2."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..cgroups import Cgroups
    from ..host import Host
    from .tree import Tree


def trees(host: Host, cgroups: Cgroups) -> list[Tree]:
    """The hierarchies that hold VMs.

    A hybrid host's v2 hierarchy stays as libvirt made it: its device program and CPU accounting sit
    there. Of v1 and v2 only the one that the host has is loaded.
    """
    if cgroups.v1 or not cgroups.unified:
        from .v1 import V1

        # the device list is a hierarchy of its own, in which a VM stays where libvirt put it
        return [V1(host, one) for one in cgroups.v1 if "devices" not in one.controllers]
    from .v2 import V2

    return [V2(host, cgroups.unified)]
