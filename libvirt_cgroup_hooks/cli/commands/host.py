# SPDX-License-Identifier: LGPL-2.1-or-later
"""virt-cgroup host: what the host is made of and who owns its cgroups."""

from __future__ import annotations

import argparse
from typing import Any

from ... import managers
from ...cgroups import Cgroups, Hierarchy, detect
from ...cpuset import CpuSet
from ...errors import Error, size
from ...host import Host
from ...memory import Memory, told_left_out
from ...topology import Topology
from ..command import add as add_command
from ..output import print_json, print_pairs, print_table


def add(commands: Any) -> None:
    add_command(
        commands,
        "host",
        run,
        "show CPUs, memory and cgroup hierarchies of the host",
        "virt-cgroup host --json",
    )


def run(arguments: argparse.Namespace, host: Host) -> int:
    cgroups = detect(host.read_optional, managers.daemon(host))
    topology = _topology(host)
    if arguments.json:
        print_json(_json(host, cgroups, topology))
    else:
        _print(host, cgroups, topology)
    return 0


def _topology(host: Host) -> Topology | None:
    """None for a copy of a host that has its cgroup files only."""
    try:
        return Topology.read(host.read_optional)
    except Error:
        if host.real:
            raise
        return None


def _json(host: Host, cgroups: Cgroups, topology: Topology | None) -> dict[str, object]:
    unified = cgroups.unified
    return {
        "manager": managers.name(host),
        "controllers": {
            name: {"version": h.version, **_place(h)} for name, h in cgroups.controllers.items()
        },
        "unified": _place(unified) if unified else None,
        "cpus": str(topology.online) if topology else None,
        "memory": topology.memory.total if topology else None,
        "memory_left_out": topology.memory.left_out if topology else None,
        "cores": [str(core) for core in topology.cores] if topology else None,
        "nodes": {str(node): str(cpus) for node, cpus in topology.nodes.items()}
        if topology
        else None,
        "hugepages": topology.memory.hugetlb if topology else None,
    }


def _place(hierarchy: Hierarchy) -> dict[str, str]:
    return {"mount": hierarchy.mount, "placement": hierarchy.placement}


def _print(host: Host, cgroups: Cgroups, topology: Topology | None) -> None:
    print_pairs([("Manager", managers.name(host))])
    if topology:
        print_pairs(
            [
                ("CPUs", _cpus(topology)),
                (
                    "Cores",
                    f"{len(topology.cores)} ({' '.join(str(core) for core in topology.cores)})",
                ),
                *(
                    (f"NUMA node {node}", f"CPUs {cpus}" if cpus else "no CPUs")
                    for node, cpus in topology.nodes.items()
                ),
                ("Memory", _memory(topology.memory)),
                ("Hugepages", _hugepages(topology.memory)),
            ]
        )
    print()
    rows = [
        (name, f"v{h.version}", h.mount, h.placement or "/")
        for name, h in sorted(cgroups.controllers.items())
    ]
    print_table(("Controller", "Version", "Mount point", "Placement of the daemon"), rows)


def _cpus(topology: Topology) -> str:
    offline: CpuSet = topology.present - topology.online
    text = str(topology.online)
    if offline:
        text += f" (offline: {offline})"
    return text + (f" (isolated: {topology.isolated})" if topology.isolated else "")


def _memory(memory: Memory) -> str:
    more = f", and {told_left_out(memory.left_out)}" if memory.left_out else ""
    return size(memory.total) + more


def _hugepages(memory: Memory) -> str:
    return size(memory.hugetlb) if memory.hugetlb else "none"
