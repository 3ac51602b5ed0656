# SPDX-License-Identifier: LGPL-2.1-or-later
"""From what the host keeps to what the VMs may use, and whether a VM fits in it."""

from __future__ import annotations

from .cpuset import CpuSet
from .errors import Error, Refusal, printable
from .topology import auto_memory

MIB = 1024**2
SHOWN = 16  # pins in a message: a VM may have 65536 vCPUs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .config import Config
    from .domain import Domain
    from .topology import Memory


class Fence:
    """What the VM parent may use: CPUs, memory in bytes (a whole number of pages); None where nothing is reserved."""

    __slots__ = ("cpus", "memory")

    def __init__(self, cpus: CpuSet | None, memory: int | None) -> None:
        self.cpus = cpus
        self.memory = memory

    def __bool__(self) -> bool:
        return self.cpus is not None or self.memory is not None


def fence(config: Config, online: CpuSet, memory: Memory, page_size: int) -> Fence:
    """Online CPUs - reserved; MemTotal - HugeTLB pools - reserved. Raises Error where that leaves nothing."""
    return Fence(_cpus(config, online), _memory(config, memory, page_size))


def _cpus(config: Config, online: CpuSet) -> CpuSet | None:
    if not config.reserved_host_cpus:
        return None
    cpus = online - config.reserved_host_cpus
    if not cpus:
        raise Error(
            f"reserved_host_cpus {config.reserved_host_cpus} leaves no CPU for VMs (online: {online})",
            "reserve fewer CPUs",
        )
    return cpus


def _memory(config: Config, memory: Memory, page_size: int) -> int | None:
    if not config.reserved_host_mem:
        return None
    reserved = reserved_memory(config.reserved_host_mem, memory.total)
    left = memory.total - memory.hugetlb - reserved
    if left < page_size:
        raise Error(
            f'reserved_host_mem "{config.reserved_host_mem}" leaves no memory for VMs '
            f"({size(memory.total)} in all, {size(memory.hugetlb)} in hugepage pools, {size(reserved)} reserved)",
            "reserve less, or make the hugepage pools smaller",
        )
    return left // page_size * page_size


def reserved_memory(setting: str, total: int) -> int:
    """Bytes that SETTING (canonical: "auto", "10%" or a number of bytes) keeps of TOTAL bytes."""
    if setting == "auto":
        return auto_memory(total)
    if setting.endswith("%"):
        return total * int(setting[:-1]) // 100
    return int(setting)


def size(amount: int) -> str:
    """Bytes for people: whole where they are whole, else one decimal."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        tenths = round(amount * 10 / (1 << shift))
        if tenths >= 10 and amount >= 1024:
            return f"{tenths // 10} {unit}" if amount % (1 << shift) == 0 else f"{tenths / 10:.1f} {unit}"
    return f"{amount} bytes"


def pins_outside(domain: Domain, cpus: CpuSet) -> list[str]:
    """The first pins of DOMAIN that name CPUs outside CPUS, as "vcpu0 to 0-1 (outside: 0)"."""
    outside = [(group, pin) for group, pin in domain.pins().items() if not pin <= cpus]
    told = [f"{group} to {_short(pin)} (outside: {_short(pin - cpus)})" for group, pin in outside[:SHOWN]]
    return [*told, f"and {len(outside) - SHOWN} more"] if len(outside) > SHOWN else told


def _short(cpus: CpuSet) -> str:
    text = str(cpus)
    return text if len(text) < 200 else f"{text[:200]}..."


def check_pins(domain: Domain, cpus: CpuSet) -> None:
    """Raises Refusal where DOMAIN is pinned to CPUs outside CPUS."""
    outside = pins_outside(domain, cpus)
    if outside:
        raise Refusal(
            f"VM {printable(domain.name)} is pinned to CPUs that are kept for the host: {', '.join(outside)}",
            f'pin it within {cpus}, reserve other CPUs, or set pin_conflict = "warn"',
        )


def check_online(domain: Domain, cpus: CpuSet, kept: CpuSet, all_of_them: bool) -> None:
    """Raises Refusal where DOMAIN is pinned to CPUs that are offline, being neither of CPUS nor KEPT for the host: to
    nothing else, or, with ALL_OF_THEM, to any. libvirt could not set such a pin."""
    online = cpus | kept
    pins = {group: pin for group, pin in domain.pins().items() if (pin - online if all_of_them else not pin & online)}
    told = [f"{group} to {_short(pin)} (offline: {_short(pin - online)})" for group, pin in pins.items() if pin]
    if told:
        more = [f"and {len(told) - SHOWN} more"] if len(told) > SHOWN else []
        raise Refusal(
            f"VM {printable(domain.name)} is pinned to CPUs that are offline: {', '.join([*told[:SHOWN], *more])}",
            f"bring them online, or pin it within {cpus}",
        )


def memory_of(domain: Domain) -> int:
    """Bytes that the VM may take from the host: its memory, unless hugepages back it, and what QEMU needs beside it.

    The estimate of the latter follows KubeVirt's GetMemoryOverhead: page tables, 1/512 of the guest's memory; 8 MiB for
    each vCPU and I/O thread; the video memory; and 64 MiB for QEMU itself.
    """
    guest = max(domain.memory, domain.current_memory)
    overhead = guest // 512 + (domain.max_vcpus + domain.iothreads) * 8 * MIB + domain.video_memory + 64 * MIB
    return overhead + max(0, guest - domain.hugepage_memory())


def check_memory(domain: Domain, others: int, limit: int) -> None:
    """Raises Refusal where DOMAIN does not fit under LIMIT beside OTHERS (bytes of the VMs that run)."""
    needed = memory_of(domain)
    if others + needed > limit:
        raise Refusal(
            f"VM {printable(domain.name)} needs {size(needed)} of memory with QEMU's own, and the VMs that run have "
            f"{size(others)} of the {size(limit)} that the host leaves them",
            "stop another VM, give this one less memory, or set memory_admission = 0",
        )
