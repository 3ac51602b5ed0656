# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks of what runs on CPUs of VMs, whatever confine_host says: other cgroups, and the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from ... import threads
from ...cpuset import CpuSet
from ...errors import Error, printable
from ...host import Host
from ...kinds import HOST_CPUS
from .subject import Problem, Subject

SHOWN = 5  # cgroups, processes or interrupts in a message
INTERRUPTS = "/proc/irq"
IRQBALANCE = ("/etc/default/irqbalance", "/etc/sysconfig/irqbalance")
WORKQUEUES = "/sys/devices/virtual/workqueue/cpumask"
MASK_DIGITS = 8


def not_confined(subject: Subject) -> Iterator[Problem]:
    """What confine_host does not reach, and what an administrator can do about it."""
    manager = subject.manager()
    tree = manager.tree_of(HOST_CPUS)
    if tree is None or manager.fence.cpus is None:
        return
    host, top = subject.host, tree.hierarchy.mount
    known = {*manager.host_units(HOST_CPUS), *manager.parent_paths().values()}
    others = [
        f"/{name}"
        for name in host.directories(top)
        if not any(f"{path}/".startswith(f"/{name}/") for path in known)
        and tree.is_populated(f"{top}/{name}")
    ]
    if others:
        names = ", ".join(map(printable, others[:SHOWN]))
        remedy = "name them in host_units, if they are not to run on CPUs of VMs"
        yield Problem("cgroup-not-confined", f"confine_host does not reach {names}", remedy)
    inner = [
        pid for pid in threads.members(host, top) if host.read_optional(f"/proc/{pid}/cmdline")
    ]
    if inner:
        names = ", ".join(map(str, inner[:SHOWN]))
        text = f"processes {names} are in the root cgroup, and cannot be kept to the host's CPUs"
        yield Problem("root-processes", text, "start them in a cgroup of their own")
    yield from _interrupts(host, manager.fence.cpus)
    yield from _irqbalance(host, manager.fence.cpus)
    yield from _workqueues(host, manager.fence.cpus, manager.kept)
    yield from _kernel_threads(host, manager.fence.cpus, manager.kept)


def _interrupts(host: Host, cpus: CpuSet) -> Iterator[Problem]:
    """Those whose effective affinity has CPUs of VMs."""
    found: list[str] = []
    for name in host.directories(INTERRUPTS):
        text = host.read_optional(f"{INTERRUPTS}/{name}/effective_affinity_list") or ""
        if CpuSet.parse(text.strip()) & cpus:
            found.append(name)
    if found:
        numbers = ", ".join(sorted(found, key=int)[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        remedy = f"set {INTERRUPTS}/NUMBER/smp_affinity_list, unless irqbalance runs"
        yield Problem(
            "interrupts", f"interrupts {numbers}{more} are handled by CPUs of VMs", remedy
        )


def _irqbalance(host: Host, cpus: CpuSet) -> Iterator[Problem]:
    """It moves interrupts to any CPU that it is not told to leave alone (irqbalance(1))."""
    if "irqbalance" not in [_comm(host, pid) for pid in _processes(host)]:
        return
    path = next((path for path in IRQBALANCE if host.exists(path)), IRQBALANCE[0])
    left_alone = CpuSet()
    for line in (host.read_optional(path) or "").splitlines():
        key, _, value = line.partition("=")
        with suppress(Error, ValueError):
            if key.strip() == "IRQBALANCE_BANNED_CPULIST":
                left_alone = CpuSet.parse(value.strip(" \"'"))
            elif key.strip() == "IRQBALANCE_BANNED_CPUS":
                left_alone = _mask(value.strip(" \"'"))
    if cpus - left_alone:
        text = f"irqbalance may move interrupts to CPUs of VMs ({cpus - left_alone})"
        remedy = f"set IRQBALANCE_BANNED_CPULIST={cpus} in {path}, and restart irqbalance"
        yield Problem("irqbalance", text, remedy)


def _workqueues(host: Host, cpus: CpuSet, kept: CpuSet) -> Iterator[Problem]:
    """Work of the kernel that is bound to no CPU."""
    used = _mask(host.read_optional(WORKQUEUES) or "") & cpus
    if used:
        text = f"the kernel's unbound workqueues may run on CPUs of VMs ({used})"
        remedy = f"echo {as_mask(kept)} >{WORKQUEUES}, at every boot"
        yield Problem("workqueues", text, remedy)


def _mask(text: str) -> CpuSet:
    """The CPUs of a mask in hexadecimal digits, with commas. Raises ValueError."""
    digits = text.strip().replace(",", "")
    return CpuSet(n for n in range(4 * len(digits)) if int(digits, 16) >> n & 1)


def as_mask(cpus: CpuSet) -> str:
    """As the kernel takes it: 32 CPUs between commas (bitmap_parse)."""
    digits = f"{sum(1 << cpu for cpu in cpus):x}"
    first = len(digits) % MASK_DIGITS or MASK_DIGITS
    rest = [digits[at : at + MASK_DIGITS] for at in range(first, len(digits), MASK_DIGITS)]
    return ",".join([digits[:first], *rest])


def _kernel_threads(host: Host, cpus: CpuSet, kept: CpuSet) -> Iterator[Problem]:
    """Those that are bound to no CPU: a thread that serves one CPU has no other."""
    found: list[str] = []
    for pid in _processes(host):
        allowed = threads.allowed_in(host, f"/proc/{pid}/status")
        is_kernels = not (host.read_optional(f"/proc/{pid}/cmdline") or "").strip()
        if is_kernels and allowed & cpus and len(allowed) > 1:
            found.append(printable(_comm(host, pid)))
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        text = f"kernel threads {', '.join(found[:SHOWN])}{more} may run on CPUs of VMs"
        remedy = (
            f"pin each of them (taskset --cpu-list --pid {kept} PID), or boot with isolcpus= or "
            "nohz_full= for those CPUs"
        )
        yield Problem("kernel-threads", text, remedy)


def _processes(host: Host) -> list[str]:
    return [name for name in host.names("/proc") if name.isdigit()]


def _comm(host: Host, pid: str) -> str:
    return (host.read_optional(f"/proc/{pid}/comm") or "").strip()
