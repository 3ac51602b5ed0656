# SPDX-License-Identifier: LGPL-2.1-or-later
"""The CPU time that is not the VMs', and the CPUs that the host should keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...cpuset import CpuSet
from ...topology import Topology
from .counts import Sample, Use
from .memory import SHOWN

REST = "kernel, in no cgroup"
VMS = "VMs"
HOST = "whole host"
OTHERS = "other cgroups"
LITTLE = 0.05  # CPUs; a cgroup with less and next to no memory is one of the others
WORTH_TELLING = 0.01  # of device interrupts
SETTLED = 3600  # seconds after boot
MANY = 100  # device interrupts a second, from which on they say where the host's CPUs begin


@dataclass(frozen=True)
class Line:
    """CPUs: seconds of CPU time in a second, during the look and on average since boot; `waited`:
    by resource, the share of the look in which a task had to wait for it. None: not known.
    """

    name: str
    now: float | None
    since_boot: float | None
    waited: Mapping[str, float]


@dataclass(frozen=True)
class Proposal:
    """`cpus` is empty where the host has none to give away; `used`: the CPUs that the host's own
    work takes.
    """

    cpus: CpuSet
    used: float
    reasons: tuple[str, ...]


def lines(first: Sample, last: Sample) -> list[Line]:
    """From the look between FIRST and LAST, which may be one: then only what is since boot."""
    seconds, uptime = last.uptime - first.uptime, last.uptime
    named: list[Line] = []
    others: list[Line] = []
    for name, use in last.units.items():
        line = _line(name, first.units.get(name), use, seconds, uptime)
        large = use.memory >= SHOWN or max(line.now or 0, line.since_boot or 0) >= LITTLE
        (named if large else others).append(line)
    named.sort(key=lambda line: -max(line.now or 0, line.since_boot or 0))
    if others:
        named.append(_together(others))
    vms = _line(VMS, first.vms, last.vms, seconds, uptime)
    parts = [*named, vms]
    busy = _rate(first.busy, last.busy, seconds)
    if busy is not None:
        # the kernel may count whole ticks for the host, but always exact times for cgroups
        listed = sum(line.now or 0 for line in parts)
        busy = max(busy, listed)
        named.append(Line(REST, busy - listed, None, {}))
    since_boot = None
    if uptime:
        since_boot = max(last.busy / uptime, sum(line.since_boot or 0 for line in parts))
    whole = Line(HOST, busy, since_boot, _shares(first.waited, last.waited, seconds))
    return [*named, vms, whole]


def used(found: list[Line], uptime: float) -> tuple[float, float]:
    """CPUs that the host's own work takes: during the look, and since boot at UPTIME seconds.

    Of a host that has just booted the latter tells of little but booting, so it is 0.
    """
    own = [line for line in found if line.name not in (VMS, HOST)]
    since_boot = sum(line.since_boot or 0 for line in own) if uptime >= SETTLED else 0
    return sum(line.now or 0 for line in own), since_boot


def interrupts(first: Sample, last: Sample) -> dict[int, float]:
    """Device interrupts a second by CPU, of those that had any; since boot without a look."""
    seconds = last.uptime - first.uptime
    before = first.interrupts if seconds > 0 else {}
    seconds = seconds if seconds > 0 else last.uptime
    if not seconds:
        return {}
    counts = {cpu: count - before.get(cpu, 0) for cpu, count in last.interrupts.items()}
    return {cpu: count / seconds for cpu, count in counts.items() if count > 0}


def proposal(
    topology: Topology,
    needed: float,
    served: Mapping[int, float],
    dedicated: CpuSet | None = None,
) -> Proposal:
    """As many CPUs as make the host's NEEDED CPUs half of them, and at least as "auto"; of those
    that VMs have for themselves (DEDICATED) only if there are no others.

    SERVED: device interrupts a second by CPU. Where most are on one NUMA node, the host's CPUs
    begin there. Both take CPUs in the same way (`Topology.for_host`).
    """
    least = topology.auto_count
    count = max(least, math.ceil(2 * needed))
    node = _node_of_interrupts(topology, served)
    most = len(topology.online - topology.isolated) // 2
    free = topology.without(dedicated) if dedicated else topology
    cpus = free.for_host(min(count, most) or 1, node)
    if len(cpus) >= len(topology.online):
        return Proposal(CpuSet(), needed, ("this host has one core, which VMs need, too",))
    reasons = _reasons(topology, cpus, count, most, node, served)
    if dedicated:
        some = "none" if not cpus & dedicated else "some"
        reasons.append(f"{some} of CPUs {dedicated}, which VMs have for themselves")
    return Proposal(cpus, needed, tuple(reasons))


def _reasons(
    topology: Topology,
    cpus: CpuSet,
    count: int,
    most: int,
    node: int | None,
    served: Mapping[int, float],
) -> list[str]:
    found = ["whole cores" if _whole(topology, cpus) else "what is not isolated of a core"]
    if count == topology.auto_count:
        found.append('as many as "auto" takes, one core in 32')
    elif count > most:
        half = "half of the CPUs that are not isolated" if topology.isolated else "half of the CPUs"
        found.append(f"{half}: the host's own work would like more")
    else:
        found.append("twice the CPU time of the host's own work")
    nodes = [number for number, on in topology.nodes.items() if on & cpus]
    if len(nodes) > 1:
        found.append("spread over the NUMA nodes " + ", ".join(map(str, nodes)))
    elif node is not None:
        found.append(f"on NUMA node {node}, where most device interrupts are")
    elif len(topology.nodes) > 1 and nodes:
        found.append(f"on NUMA node {nodes[0]}")
    if topology.isolated:
        found.append(
            f"none of the isolated CPUs {topology.isolated}"
            if not cpus & topology.isolated
            else "isolated, as all CPUs are"
        )
    total = sum(served.values())
    if total >= 1:
        share = sum(served.get(cpu, 0) for cpu in cpus) / total
        if share >= WORTH_TELLING:
            found.append(f"they serve {share:.0%} of device interrupts")
    return found


def _whole(topology: Topology, cpus: CpuSet) -> bool:
    return all(core <= cpus for core in topology.cores if core & cpus)


def _node_of_interrupts(topology: Topology, served: Mapping[int, float]) -> int | None:
    """The NUMA node whose CPUs serve more than half of the device interrupts."""
    total = sum(served.values())
    if total < MANY or len(topology.nodes) < 2:
        return None
    for node, cpus in topology.nodes.items():
        if sum(served.get(cpu, 0) for cpu in cpus) * 2 > total:
            return node
    return None


def _together(found: list[Line]) -> Line:
    nows = [line.now for line in found if line.now is not None]
    boots = [line.since_boot for line in found if line.since_boot is not None]
    return Line(OTHERS, sum(nows) if nows else None, sum(boots) if boots else None, {})


def _line(name: str, first: Use | None, last: Use, seconds: float, uptime: float) -> Line:
    """What was not there in FIRST has begun during the look: all that it has used, it used then."""
    before = first or Use()
    since_boot = last.cpu / uptime if last.cpu is not None and uptime else None
    return Line(
        name,
        _rate(before.cpu or 0, last.cpu, seconds),
        since_boot,
        _shares(before.waited, last.waited, seconds),
    )


def _rate(before: float, after: float | None, seconds: float) -> float | None:
    if after is None or seconds <= 0:
        return None
    return max(0.0, after - before) / seconds


def _shares(
    before: Mapping[str, float], after: Mapping[str, float], seconds: float
) -> dict[str, float]:
    if seconds <= 0:
        return {}
    return {key: max(0.0, after[key] - before[key]) / seconds for key in after if key in before}
