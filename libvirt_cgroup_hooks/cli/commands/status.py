# SPDX-License-Identifier: LGPL-2.1-or-later
"""virt-cgroup status: what is reserved, what is in effect, and where each running VM is. Asks the
kernel, not libvirtd.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ... import conformance, managers, snapshot, threads
from ...errors import printable, size
from ...fence import reserved_memory
from ...host import Host
from ...managers.base import Manager
from ...topology import Memory
from ..command import add as add_command
from ..describe import describe
from ..output import print_json, print_pairs, print_table


def add(commands: Any) -> None:
    add_command(
        commands,
        "status",
        run,
        "show the reservation and the place of every running VM",
        "virt-cgroup status --json",
    )


def run(arguments: argparse.Namespace, host: Host) -> int:
    warnings: list[str] = []
    config = snapshot.load(host, warnings)
    manager = managers.choose(host, config, managers.daemon(host))
    for warning in warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    report = _report(host, manager)
    if arguments.json:
        print_json(report)
    else:
        _print(report)
    return 0


def _report(host: Host, manager: Manager) -> dict[str, Any]:
    config, fence = manager.config, manager.fence
    parent = conformance.parent(manager)
    memory = Memory.parse(host.read("/proc/meminfo"))
    kept = (
        reserved_memory(config.reserved_host_mem, memory.total)
        if config.reserved_host_mem
        else None
    )
    return {
        "manager": manager.name,
        "layout": config.cgroup_layout.preset,
        "reservation": {"cpus": str(config.reserved_host_cpus or ""), "memory": kept},
        "fence": {"cpus": str(fence.cpus or ""), "memory_limit": fence.memory},
        "parent": {
            "path": parent.path,
            "cpus": str(parent.cpus) if parent.cpus else None,
            "memory_limit": parent.memory_limit,
            "memory_current": parent.memory_current,
        },
        "taken": {path: str(cpus) for path, cpus in conformance.taken(manager).items()},
        "domains": [describe(host, manager, domain) for domain in threads.running(host)],
    }


def _print(report: dict[str, Any]) -> None:
    reservation, fence, parent = report["reservation"], report["fence"], report["parent"]
    print_pairs(
        [
            ("Manager", report["manager"]),
            ("Layout", report["layout"]),
            (
                "Reserved",
                f"CPUs {reservation['cpus'] or 'none'}, memory {_size(reservation['memory'], 'none')}",
            ),
            ("VM parent", parent["path"] or "none: each VM carries the CPU fence"),
            ("CPUs", f"{parent['cpus'] or '-'} in effect, {fence['cpus'] or 'no limit'} wanted"),
            ("Memory", _memory(parent, fence)),
        ]
    )
    for path, cpus in report["taken"].items():
        print(f"\n{printable(path)} has CPUs {cpus} for itself alone.")
    if parent["path"] and parent["cpus"] is None and parent["memory_current"] is None:
        print("\nThe VM parent is made when the first VM starts.")
    print()
    rows = [
        (
            str(vm["id"] or "-"),
            vm["name"],
            vm["layout"],
            vm["cgroup"] or "-",
            "yes" if vm["conforms"] else "no",
        )
        for vm in report["domains"]
    ]
    print_table(("Id", "Name", "Layout", "Cgroup", "Conforms"), rows)
    for vm in report["domains"]:
        _print_threads(vm)
    for note in dict.fromkeys(note for vm in report["domains"] for note in vm["notes"]):
        print(f"\nnote: {note}")


def _print_threads(vm: dict[str, Any]) -> None:
    print(f"\n{printable(vm['name'])}:")
    rows = [
        (str(row["tid"]), row["comm"], row["group"], row["cpus"], row["cgroup"])
        for row in vm["threads"]
    ]
    print_table(("Thread", "Comm", "Group", "CPUs", "Cgroup"), rows)
    for problem in vm["problems"]:
        print(f"problem: {printable(problem)}")


def _memory(parent: dict[str, Any], fence: dict[str, Any]) -> str:
    limit = _size(parent["memory_limit"], "no limit")
    wanted = _size(fence["memory_limit"], "no limit")
    return f"{limit} in effect, {wanted} wanted, {_size(parent['memory_current'], '-')} in use"


def _size(amount: int | None, otherwise: str) -> str:
    return otherwise if amount is None else size(amount)
