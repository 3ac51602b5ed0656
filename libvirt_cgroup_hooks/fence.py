# SPDX-License-Identifier: LGPL-2.1-or-later
"""From what the host keeps to what the VMs may use together."""

from __future__ import annotations

from .cpuset import CpuSet
from .errors import Error, size
from .kinds import CPU_WEIGHT, CPUS, MEMORY
from .topology import auto_memory, told_left_out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .kinds import Kind, Value
    from .topology import Memory


class Fence:
    """What VMs may use together: CPUs, memory in bytes (whole pages); None where nothing is
    reserved.

    `lent` are the host's CPUs that threads of some VMs may use besides (host_cpus_for). No limit of
    all VMs together can say so: each VM has its own.

    `memory` is without hugepages. Where the kernel charges those to cgroups, the limit has them on
    top: `hugepages` are the bytes that VMs start with, and `charged` those that they have now,
    which may be more: memory devices were added.
    """

    __slots__ = ("charged", "cpu_weight", "cpus", "hugepages", "lent", "memory")

    def __init__(self, cpus: CpuSet | None = None, memory: int | None = None) -> None:
        self.cpus = cpus
        self.lent = CpuSet()
        self.memory = memory
        self.cpu_weight: int | None = None  # beside the host's own work
        self.hugepages = 0
        self.charged = 0

    def __bool__(self) -> bool:
        return not (self.cpus is None and self.memory is None and self.cpu_weight is None)

    @property
    def memory_limit(self) -> int | None:
        """Bytes of all memory that is charged to the VM parent."""
        if self.memory is None:
            return None
        return self.memory + max(self.hugepages, self.charged)

    def limits(self) -> dict[Kind, Value]:
        """What the VM parent is limited to, by kind."""
        cpus = None if self.lent else self.cpus
        values: dict[Kind, Value] = {
            CPUS: cpus,
            MEMORY: self.memory_limit,
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
    kept = reserved_memory(reserved, memory.total)
    left = memory.total - memory.hugetlb - kept
    if left < page_size:
        raise Error(
            f"reserving {size(kept)} leaves no memory for VMs ({size(memory.total)} in all, "
            f"{size(memory.hugetlb)} in hugepage pools{_not_counted(memory)})",
            "reserve less, or make the hugepage pools smaller",
        )
    return left // page_size * page_size


def _not_counted(memory: Memory) -> str:
    return f"; not counted: {told_left_out(memory.left_out)}" if memory.left_out else ""


def reserved_memory(setting: str, total: int) -> int:
    """Bytes that SETTING (canonical: "auto", "10%" or a number of bytes) keeps of TOTAL bytes."""
    if setting == "auto":
        return auto_memory(total)
    if setting.endswith("%"):
        return total * int(setting[:-1]) // 100
    return int(setting)
