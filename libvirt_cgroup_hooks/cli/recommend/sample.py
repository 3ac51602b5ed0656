# SPDX-License-Identifier: LGPL-2.1-or-later
"""One look at what the kernel counts: of each cgroup at the top, of VMs, and of the whole host."""

from __future__ import annotations

from collections.abc import Iterable

from ... import threads
from ...domain import Domain
from ...host import Host
from ...kernel.tree import Tree
from ...managers.base import Manager
from .. import pressure
from . import parsing
from .counts import Sample, Use

# The same count on cgroup v2 and v1; whichever file or line is there is read.
NOW = ("memory.current", "memory.usage_in_bytes")
PEAK = ("memory.peak", "memory.max_usage_in_bytes")  # v2: since Linux 5.19
FILES = (*NOW, *PEAK, "memory.stat")
KERNEL = "memory.kmem.usage_in_bytes"  # v1; on v2 it is in memory.stat, by kind
CHARGED = ("slab", "kernel_stack", "pagetables", "sec_pagetables", "percpu", "vmalloc")
PROCESSES = ("anon", "shmem")
ARC = "/proc/spl/kstat/zfs/arcstats"
ARC_MAX = "/sys/module/zfs/parameters/zfs_arc_max"


def take(host: Host, manager: Manager, running: list[Domain]) -> Sample:
    """RUNNING: the VMs that run."""
    memory = _memory_tree(manager)
    cpu = next((tree for tree in manager.trees if "cpuacct" in tree.hierarchy.controllers), None)
    inside = [_vm_places(manager, tree, running) for tree in (memory, cpu)]
    tops: dict[str, None] = {}
    for tree in (memory, cpu):
        if tree is not None:
            tops.update(dict.fromkeys(host.directories(tree.hierarchy.mount)))
    units: dict[str, Use] = {}
    vms, whole = Use(), Use()
    for name in tops:
        top = _use(host, memory, cpu, f"/{name}", f"/{name}")
        whole = whole.joined(top)
        below = Use()
        for path in sorted({*inside[0], *inside[1]}):
            if f"{path}/".startswith(f"/{name}/"):
                place = [path if path in places else None for places in inside]
                below = below.joined(_use(host, memory, cpu, *place))
        vms = vms.joined(below)
        if not any(f"/{name}" in places for places in inside):
            units[name] = top.without(below) if below != Use() else top
    return Sample(
        _uptime(host),
        units,
        vms,
        whole.kernel,
        whole.processes,
        memory is not None,
        parsing.meminfo(_text(host, "/proc/meminfo")),
        parsing.arcstats(_text(host, ARC)),
        parsing.number(_text(host, ARC_MAX)) or 0,
        parsing.busy(_text(host, "/proc/stat")),
        _waited(host, "/proc/pressure/{}"),
        parsing.interrupts(_text(host, "/proc/interrupts")),
    )


def vm_use(host: Host, manager: Manager, domain: Domain) -> Use:
    """Of the cgroup of DOMAIN alone."""
    memory = _memory_tree(manager)
    found = threads.threads(host, domain)[:1]
    if memory is None or not found:
        return Use()
    return _use(host, memory, None, manager.vm_of(found[0], memory), None)


def _memory_tree(manager: Manager) -> Tree | None:
    return next((tree for tree in manager.trees if tree.has_memory), None)


def _vm_places(manager: Manager, tree: Tree | None, running: list[Domain]) -> list[str]:
    """The cgroups of TREE that hold VMs and nothing of the host's: the VM parent, and those of VMs
    elsewhere. None is below another.
    """
    if tree is None:
        return []
    found = set(manager.parent_paths().values())
    for domain in running:
        found.update(manager.vm_of(one, tree) for one in threads.threads(manager.host, domain)[:1])
    found.discard("/")
    return [path for path in found if not _above(path) & found]


def _above(path: str) -> set[str]:
    """Each cgroup that PATH is below."""
    names = path.split("/")
    return {"/".join(names[:length]) for length in range(2, len(names))}


def _use(
    host: Host, memory: Tree | None, cpu: Tree | None, in_memory: str | None, in_cpu: str | None
) -> Use:
    """The cgroups IN_MEMORY and IN_CPU of the hierarchies; None for one that is not asked for."""
    now, peak, time = 0, None, None
    files: list[str] = []
    stat: dict[str, int] = {}
    waits: dict[str, float] = {}
    kernel = 0
    if memory is not None and in_memory is not None:
        directory = memory.hierarchy.directory(in_memory)
        files = [name for name in FILES if host.exists(f"{directory}/{name}")]
        now = _first(host, directory, NOW) or 0
        peak = _first(host, directory, PEAK)
        stat = memory.memory_stat(directory)
        kernel = sum(stat.get(key, 0) for key in CHARGED)
        kernel += _first(host, directory, (KERNEL,)) or 0
    if cpu is not None and in_cpu is not None:
        directory = cpu.hierarchy.directory(in_cpu)
        time = _cpu_time(host, directory)
        waits = _waited(host, directory + "/{}.pressure")
    # pools of hugepages are not the host's to keep, wherever the kernel charges them
    huge = stat.get("hugetlb", 0)
    return Use(
        max(0, now - huge),
        None if peak is None else max(0, peak - huge),
        stat.get("inactive_file", 0),
        kernel,
        sum(stat.get(name, 0) for name in PROCESSES),
        time,
        waits,
        tuple(files),
    )


def _cpu_time(host: Host, directory: str) -> float | None:
    nanoseconds = _first(host, directory, ("cpuacct.usage",))
    if nanoseconds is not None:
        return nanoseconds / 1e9
    microseconds = parsing.keyed(_text(host, f"{directory}/cpu.stat")).get("usage_usec")
    return None if microseconds is None else microseconds / 1e6


def _waited(host: Host, pattern: str) -> dict[str, float]:
    """By resource, the seconds in which a task waited."""
    return {name: seconds["some"] for name, seconds in pressure.read(host, pattern).items()}


def _uptime(host: Host) -> float:
    first = _text(host, "/proc/uptime").split()[:1]
    return float(first[0]) if first else 0


def _first(host: Host, directory: str, names: Iterable[str]) -> int | None:
    for name in names:
        found = parsing.number(_text(host, f"{directory}/{name}"))
        if found is not None:
            return found
    return None


def _text(host: Host, path: str) -> str:
    return host.read_optional(path) or ""
