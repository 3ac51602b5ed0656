# SPDX-License-Identifier: LGPL-2.1-or-later
"""virt-cgroup status: what is reserved, what is in effect, and where each running VM is. Asks the
kernel, not libvirtd.
"""

from __future__ import annotations

import argparse
import time
from datetime import datetime
from typing import Any

from ... import apart, conformance, limits, state, threads
from ...domain import Domain, handle
from ...errors import printable, size
from ...fence import reserved_memory
from ...host import Host
from ...kinds import WEIGHT
from ...managers.base import Manager
from ...memory import Memory, told_left_out
from ..command import add as add_command
from ..describe import describe
from ..look import look
from ..output import print_json, print_pairs, print_table

SHOWN = 3  # VMs of which one would be killed


def add(commands: Any) -> None:
    add_command(
        commands,
        "status",
        run,
        "show the reservation and every running VM, or the threads of one",
        "virt-cgroup status web",
    ).add_argument(
        "domains",
        metavar="DOMAIN",
        nargs="*",
        help="a running VM's name, id or UUID: show its threads",
    )


def run(arguments: argparse.Namespace, host: Host) -> int:
    manager, running, _ = look(host)
    domains = running
    if arguments.domains:
        domains = [threads.named(running, name) for name in arguments.domains]
    report = _report(host, manager, domains)
    report["parent"]["first_killed"] = conformance.first_killed(manager, running)
    if arguments.json:
        print_json(report)
    else:
        _print(report, with_threads=bool(arguments.domains))
    return 0


def _report(host: Host, manager: Manager, domains: list[Domain]) -> dict[str, Any]:
    config, fence = manager.config, manager.fence
    parent = conformance.parent(manager)
    memory = Memory.read(host.read_optional)
    kept = reserved_memory(config.reserved_host_mem, memory) if config.reserved_host_mem else None
    return {
        "manager": manager.name,
        "layout": config.cgroup_layout.preset,
        "reservation": {"cpus": str(config.reserved_host_cpus or ""), "memory": kept},
        "memory_left_out": memory.left_out,
        "fence": {
            "cpus": str(fence.cpus or ""),
            "memory_limit": fence.memory_limit,
            "swap_limit": fence.swap,
            "lent": {"cpus": str(fence.lent), "to": config.host_cpus_for},
        },
        "host": {
            "confine_host": config.confine_host,
            "confined": limits.confines(manager, domains),
            "since": _since(host),
            "cpus": {path: str(cpus) for path, cpus in conformance.host_cpus(manager).items()},
        },
        "protection": {
            "configured": config.protect_host_mem,
            "memory": conformance.protected(manager),
        },
        "cpu_weight": {
            "configured": fence.cpu_weight,
            "in_effect": conformance.cpu_weight(manager),
        },
        "parent": {
            "path": parent.path,
            "cpus": str(parent.cpus) if parent.cpus else None,
            "memory_limit": parent.memory_limit,
            "memory_current": parent.memory_current,
            "swap_limit": parent.swap_limit,
            "swap_current": parent.swap_current,
        },
        "unwanted": [
            {"path": path, "limit": kind.key, "value": kind.amount(value)}
            for (kind, path), value in limits.unwanted(manager).items()
        ],
        "dedicated": [
            {"name": owner.name, "cpus": str(owner.cpus)} for owner in apart.owners(manager)
        ],
        "taken": {path: str(cpus) for path, cpus in conformance.taken(manager).items()},
        "domains": [describe(host, manager, domain) for domain in domains],
    }


def _print(report: dict[str, Any], with_threads: bool) -> None:
    reservation, fence, parent = report["reservation"], report["fence"], report["parent"]
    print_pairs(
        [
            ("Manager", report["manager"]),
            ("Layout", report["layout"]),
            (
                "Reserved",
                f"CPUs {reservation['cpus'] or 'none'}, memory "
                f"{_size(reservation['memory'], 'none')}",
            ),
            ("VM parent", parent["path"] or "none: each VM has the CPU limit"),
            ("VM CPUs", _cpus(parent, fence)),
            ("VM memory", _memory(parent, fence)),
            *_at_the_limit(parent),
            *_left_out(report["memory_left_out"]),
            *_swap(parent, fence),
            *_cpu_weight(report["cpu_weight"]),
            *_host(report["host"], reservation["cpus"]),
            *_dedicated(report["dedicated"]),
            *_protection(report["protection"]),
        ]
    )
    for path, cpus in report["taken"].items():
        print(f"\n{printable(path)} has exclusive use of CPUs {cpus}.")
    for row in report["unwanted"]:
        print(
            f"\n{printable(row['path'])} still has {row['limit']}={row['value']}, which "
            "virt-cgroup apply --parent takes back."
        )
    if parent["path"] and parent["cpus"] is None and parent["memory_current"] is None:
        print("\nThe VM parent is created when the first VM starts.")
    print()
    rows = [
        (
            str(vm["id"] or "-"),
            vm["name"],
            vm["layout"],
            _below(vm["cgroup"] or "-", parent["path"]),
            "yes" if vm["conforms"] else "no",
        )
        for vm in report["domains"]
    ]
    print_table(("Id", "Name", "Layout", "Cgroup", "As configured"), rows)
    for vm in report["domains"]:
        if with_threads:
            _print_threads(vm)
        elif vm["problems"]:
            more = len(vm["problems"]) - 1
            command = f"virt-cgroup status {handle(vm['name'], vm['uuid'])}"
            told = f" (and {more} more: {command})" if more else ""
            print(f"\nproblem: {printable(vm['name'])}: {printable(vm['problems'][0] + told)}")
    if any(vm["problems"] for vm in report["domains"]):
        print("\nWhat to do about problems: virt-cgroup validate -q")
    for note in dict.fromkeys(note for vm in report["domains"] for note in vm["notes"]):
        print(f"\nnote: {note}")


def _print_threads(vm: dict[str, Any]) -> None:
    print(f"\n{printable(vm['name'])}:")
    top = vm["cgroup"] or ""
    rows = [
        (str(row["tid"]), row["comm"], row["group"], row["cpus"], _below(row["cgroup"], top))
        for row in vm["threads"]
    ]
    print_table(("Thread", "Comm", "Group", "CPUs", "Cgroup"), rows)
    for problem in vm["problems"]:
        print(f"problem: {printable(problem)}")


def _below(path: str, top: str | None) -> str:
    """PATH as it is seen from TOP, where it is below it."""
    return path.removeprefix(f"{top}/") if top else path


def _since(host: Host) -> int | None:
    """When the host was confined, in seconds of the epoch; None where it is not."""
    if not host.exists(state.CONFINED):
        return None
    return int(time.time() - host.age(state.CONFINED))


def _host(host: dict[str, Any], kept: str) -> list[tuple[str, str]]:
    if host["confine_host"] == "no":
        return []
    shown: dict[str, list[str]] = {}
    for path, cpus in host["cpus"].items():
        shown.setdefault(cpus, []).append(printable(path[1:]))
    found = "; ".join(f"{cpus} ({', '.join(names)})" for cpus, names in shown.items()) or "-"
    wanted = "not confined now"
    if host["confined"]:
        since = host["since"]
        when = f" since {datetime.fromtimestamp(since):%Y-%m-%d %H:%M:%S}" if since else ""
        wanted = f"required {kept}{when}"
    return [("Host CPUs", f"{found} ({wanted}, confine_host {host['confine_host']})")]


def _dedicated(owners: list[dict[str, str]]) -> list[tuple[str, str]]:
    told = ", ".join(f"{owner['cpus']} ({printable(owner['name'])})" for owner in owners)
    return [("Dedicated CPUs", told)] if told else []


def _cpus(parent: dict[str, Any], fence: dict[str, Any]) -> str:
    lent = fence["lent"]
    if not fence["cpus"] and not lent["cpus"]:
        return f"{parent['cpus'] or 'all'} (no limit required)"
    told = f"{parent['cpus'] or '-'} (required {fence['cpus'] or 'no limit'}"
    if lent["cpus"]:
        told += f" for each VM, and {lent['cpus']} for {' and '.join(lent['to'])} threads"
    return f"{told})"


def _swap(parent: dict[str, Any], fence: dict[str, Any]) -> list[tuple[str, str]]:
    if parent["swap_limit"] is None and fence["swap_limit"] is None:
        return []
    limit, used = _size(parent["swap_limit"], "no limit"), _size(parent["swap_current"], "-")
    return [("VM swap", f"{limit} ({_required(fence['swap_limit'])}), {used} in use")]


def _protection(protection: dict[str, Any]) -> list[tuple[str, str]]:
    if protection["configured"] == "no":
        return []
    memory = protection["memory"]
    found = ", ".join(f"{size(amount)} of {printable(path[1:])}" for path, amount in memory.items())
    return [("Host protected", f"{found or '-'} (protect_host_mem {protection['configured']})")]


def _cpu_weight(weight: dict[str, int | None]) -> list[tuple[str, str]]:
    if weight["configured"] is None and weight["in_effect"] is None:
        return []
    there, wanted = (weight[key] or WEIGHT for key in ("in_effect", "configured"))
    return [("VM CPU weight", f"{there} (required {wanted})")]


def _memory(parent: dict[str, Any], fence: dict[str, Any]) -> str:
    limit = _size(parent["memory_limit"], "no limit")
    told = f"{limit} ({_required(fence['memory_limit'])})"
    used = parent["memory_current"]
    return told if used is None else f"{told}, {size(used)} in use"


def _required(limit: int | None) -> str:
    """Of a LIMIT in bytes."""
    return "none required" if limit is None else f"required {size(limit)}"


def _at_the_limit(parent: dict[str, Any]) -> list[tuple[str, str]]:
    if parent["memory_limit"] is None:
        return []
    names = parent["first_killed"]
    more = f" or {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    chosen = f" (now {' or '.join(names[:SHOWN])}{more})" if names else ""
    swaps = "" if parent["swap_limit"] == 0 else ", swaps if it can"
    return [("At the limit", f"the kernel reclaims{swaps}, then kills a VM{chosen}")]


def _left_out(memory: dict[int, int]) -> list[tuple[str, str]]:
    return [("Not counted", told_left_out(memory))] if memory else []


def _size(amount: int | None, otherwise: str) -> str:
    return otherwise if amount is None else size(amount)
