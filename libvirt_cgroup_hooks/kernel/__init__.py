# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel's cgroup files want: which value, in which order, on cgroup v1 and v2."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..cgroups import Cgroups, Hierarchy
    from ..host import Host
    from .tree import Tree

DEVICES = frozenset(("devices",))
LIMITING = frozenset(("cpuset", "memory", "cpu", "io"))


def trees(host: Host, cgroups: Cgroups) -> list[Tree]:
    """The hierarchies that hold VMs; of v1 and v2 only what is needed is loaded.

    The kernel has each controller in one hierarchy alone, whatever its version. A v2 hierarchy
    without a controller that limits VMs stays as libvirt made it, and so does a v1 hierarchy of the
    device list alone.
    """
    found: list[Tree] = []
    v1 = [one for one in cgroups.v1 if one.controllers != DEVICES]
    unified = cgroups.unified
    if unified and (not v1 or _limits(host, unified)):
        from .v2 import V2

        found.append(V2(host, unified))
    if v1:
        from .v1 import V1

        found += [V1(host, hierarchy) for hierarchy in v1]
    return found


def _limits(host: Host, unified: Hierarchy) -> bool:
    """The daemon's own cgroup, which libvirt asks, may have fewer controllers than the root."""
    root = host.read_optional(f"{unified.mount}/cgroup.controllers") or ""
    return not LIMITING.isdisjoint(root.split())
