# SPDX-License-Identifier: LGPL-2.1-or-later
"""From what the host keeps to what the VMs may use together."""

from __future__ import annotations

from .cpuset import CpuSet
from .errors import Error, size
from .kinds import CPU_WEIGHT, CPUS, MEMORY, MEMSW, SWAP
from .memory import auto_memory, told_left_out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .kinds import Kind, Value
    from .memory import Memory


class Fence:
    """What VMs may use together: CPUs, memory in bytes (whole pages); None where nothing is
    reserved.

    `lent` are the host's CPUs that threads of some VMs may use besides (host_cpus_for). No limit of
    all VMs together can say so: each VM has its own.

    `memory` is without hugepages. Where the kernel charges those to cgroups, the limit has them on
    top: `hugepages` are the bytes that VMs start with, and `charged` those that they have now,
    which may be more: memory devices were added.
    """

    __slots__ = (
        "charged",
        "cpu_weight",
        "cpus",
        "hugepages",
        "lent",
        "memory",
        "protected",
        "swap",
    )

    def __init__(self, cpus: CpuSet | None = None, memory: int | None = None) -> None:
        self.cpus = cpus
        self.lent = CpuSet()
        self.memory = memory
        self.swap: int | None = None  # bytes
        self.cpu_weight: int | None = None  # beside the host's own work
        self.protected = 0  # bytes of the host's own work that are not reclaimed for VMs
        self.hugepages = 0
        self.charged = 0

    def __bool__(self) -> bool:
        return self.cpus is not None or bool(self.limits())

    @property
    def memory_limit(self) -> int | None:
        """Bytes of all memory that is charged to the VM parent."""
        if self.memory is None:
            return None
        return self.memory + max(self.hugepages, self.charged)

    def limits(self) -> dict[Kind, Value]:
        """What the VM parent is limited to, by kind."""
        cpus, memory = None if self.lent else self.cpus, self.memory_limit
        values: dict[Kind, Value] = {
            CPUS: cpus,
            MEMORY: memory,
            MEMSW: None if self.swap is None or memory is None else memory + self.swap,
            SWAP: self.swap,
            CPU_WEIGHT: self.cpu_weight,
        }
        return {kind: value for kind, value in values.items() if value is not None}


def cpus_left(reserved: CpuSet | None, online: CpuSet) -> CpuSet | None:
    """The CPUs of VMs: ONLINE but for those RESERVED. Raises Error where that leaves none."""
    if not reserved:
        return None
    cpus = online - reserved
    if not cpus:
        raise Error(
            f"reserving CPUs {reserved} leaves none for VMs (online: {online})",
            "reserve fewer CPUs",
        )
    return cpus


def memory_left(reserved: str, memory: Memory, page_size: int) -> int | None:
    """The bytes of VMs: all MEMORY that is counted - HugeTLB pools - RESERVED (as for
    `reserved_memory`), in whole pages.

    Raises Error where that leaves none.
    """
    if not reserved:
        return None
    kept = reserved_memory(reserved, memory)
    left = memory.total - memory.hugetlb - kept
    if left < page_size:
        raise Error(
            f"reserving {size(kept)} leaves no memory for VMs ({size(memory.total)} in all"
            f"{_in_pools(memory)}{_not_counted(memory)})",
            "reserve less" + (", or make the hugepage pools smaller" if memory.hugetlb else ""),
        )
    return left // page_size * page_size


def _in_pools(memory: Memory) -> str:
    return f", {size(memory.hugetlb)} in hugepage pools" if memory.hugetlb else ""


def _not_counted(memory: Memory) -> str:
    return f"; not counted: {told_left_out(memory.left_out)}" if memory.left_out else ""


def reserved_memory(setting: str, memory: Memory) -> int:
    """Bytes that SETTING (canonical: "auto", "10%" or a number of bytes) keeps of MEMORY."""
    return auto_memory(memory) if setting == "auto" else share(setting, memory.total)


def shared_out(protected: int, units: list[str], page_size: int) -> dict[str, int]:
    """Of the PROTECTED bytes what each of the host's UNITS gets: each but the first a sixteenth,
    and the first what is left.
    """
    part = protected // 16 // page_size * page_size
    found = dict.fromkeys(units, part)
    if units:
        found[units[0]] = protected // page_size * page_size - part * (len(found) - 1)
    return found


def share(setting: str, total: int) -> int:
    """Bytes that SETTING (canonical: "10%" or a number of bytes) is of TOTAL bytes."""
    if setting.endswith("%"):
        return total * int(setting[:-1]) // 100
    return int(setting)
