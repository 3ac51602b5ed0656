# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory that the host uses itself, as a sum.

What the reservation has to cover is everything that is not charged to the VMs:

- each cgroup at the top that is not the VMs', as the kernel counts it (memory.current): processes,
  page cache, and the kernel's own memory that is charged to it;
- processes in no cgroup at all: AnonPages and Shmem of /proc/meminfo, less what memory.stat of all
  cgroups at the top, the VMs' too, says of both. On a host with systemd that is next to nothing;
- the kernel's own memory that is charged to no cgroup: Slab, PageTables, SecPageTables, Percpu and
  VmallocUsed of /proc/meminfo, less what is charged to cgroups, so that nothing is counted twice.
  Kernel stacks are in VmallocUsed (CONFIG_VMAP_STACK) where that is the larger number. Before Linux
  5.11 memory.stat does not tell page tables, which then are counted twice: some MiB;
- ZFS's cache (ARC), which is charged to nobody. Its headers, some per cent of it, are in Slab, too.

Page cache that nobody has used twice (inactive_file) is dropped when memory is short, so it is not
counted; the kubelet takes this for its "working set", too. A peak cannot be told apart like that.
What is counted of a cgroup therefore is its peak, but at most twice what it has now without that
cache; of ZFS its ceiling, if one is set.

Hugepage pools are left out: they are subtracted from the host's memory before the VMs' limit is
made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...errors import MIB, size
from ...memory import GIB, Memory
from .counts import Sample, Use

STEP = 256 * MIB  # what is proposed is a multiple of this many bytes
LEAST = GIB  # as "auto" keeps (topology.auto_memory)
REST = "/proc/meminfo less cgroups"
SHOWN = MIB  # a line with fewer bytes is left out
PROCESSES = ("AnonPages", "Shmem")
KERNEL = ("Slab", "PageTables", "SecPageTables", "Percpu")


@dataclass(frozen=True)
class Line:
    """A part of the sum, in bytes; `cache` is of `now`, and None where the kernel tells none."""

    name: str
    now: int
    cache: int | None
    peak: int | None
    counted: int
    source: str


def lines(sample: Sample) -> list[Line]:
    """The sum of one look, largest first, without what is too small to matter."""
    found = [_unit(name, use) for name, use in sample.units.items()]
    if sample.counts_memory:
        found += [_processes(sample), _kernel(sample)]
    if sample.arc:
        found.append(_arc(sample))
    found = [line for line in found if max(line.now, line.counted) >= SHOWN]
    return sorted(found, key=lambda line: -line.counted)


def merged(earlier: Sequence[Line], later: Sequence[Line]) -> list[Line]:
    """LATER, with the most that was counted of each. What has ended meanwhile is gone."""
    counted = {line.name: line.counted for line in earlier}
    found = [replace(line, counted=max(line.counted, counted.get(line.name, 0))) for line in later]
    return sorted(found, key=lambda line: -line.counted)


def proposed(found: Sequence[Line], memory: Memory) -> int:
    """Bytes: the sum in whole steps, at least LEAST, at most half of the MEMORY that is not in
    hugepage pools.
    """
    counted = sum(line.counted for line in found)
    wanted = max(-(-counted // STEP) * STEP, LEAST)
    return min(wanted, (memory.total - memory.hugetlb) // 2 // STEP * STEP)


def _unit(name: str, use: Use) -> Line:
    counted = 2 * (use.memory - use.cache)
    if use.peak is not None:
        counted = min(counted, use.peak)
    return Line(name, use.memory, use.cache, use.peak, counted, _source(use.files))


def _source(files: Sequence[str]) -> str:
    """As a shell would have it, since the table is wide."""
    names = [file.removeprefix("memory.") for file in files]
    return f"memory.{{{','.join(names)}}}" if names else ""


def _processes(sample: Sample) -> Line:
    there = sum(sample.meminfo.get(key, 0) for key in PROCESSES)
    now = max(0, there - sample.processes)
    return Line("processes in no cgroup", now, None, None, 2 * now, REST)


def _kernel(sample: Sample) -> Line:
    there = sum(sample.meminfo.get(key, 0) for key in KERNEL)
    there += max(sample.meminfo.get("VmallocUsed", 0), sample.meminfo.get("KernelStack", 0))
    now = max(0, there - sample.kernel)
    return Line("kernel, in no cgroup", now, None, None, now, REST)


def _arc(sample: Sample) -> Line:
    now = sample.arc.get("size", 0)
    if sample.arc_max:
        ceiling = max(now, sample.arc.get("c_max", sample.arc_max))
        return Line("ZFS ARC", now, None, None, ceiling, "arcstats: c_max (zfs_arc_max set)")
    told = "no zfs_arc_max"
    if "c_max" in sample.arc:
        told += f": up to {size(sample.arc['c_max'])}"
    return Line("ZFS ARC", now, None, None, now, f"arcstats: size ({told})")
