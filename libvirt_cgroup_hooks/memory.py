# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a limit follows from that may change while the host runs: its memory, and the CPUs that are
online. From texts of /proc and /sys.
"""

from __future__ import annotations

from .cpuset import CpuSet
from .errors import Error, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Reader = Callable[[str], "str | None"]  # path -> text, None where there is no such file

CPUS = "/sys/devices/system/cpu"
NODES = "/sys/devices/system/node"
GIB = 1024**3
# In kB: a power of two, from arm64's smallest to POWER's largest
HUGEPAGE_SIZES = tuple(2**exponent for exponent in range(6, 25))


class Memory:
    """Sizes in bytes: all memory of the NUMA nodes that have CPUs, the part of it held by the
    HugeTLB pools of every page size, and the host's swap.

    `left_out` is what other nodes have, by number: memory of a GPU, or behind CXL. The host's own
    work gets it only by policy, or when all else is used, so it is none that the host can keep.
    """

    __slots__ = ("hugetlb", "left_out", "swap", "total")

    def __init__(self, total: int, hugetlb: int, swap: int = 0) -> None:
        self.total = total
        self.hugetlb = hugetlb
        self.swap = swap
        self.left_out: dict[int, int] = {}

    @classmethod
    def read(cls, read: Reader) -> Memory:
        """Raises Error where MemTotal is missing."""
        memory = cls.parse(read("/proc/meminfo") or "")
        for node in _nodes_without_cpus(read):
            # its lines begin with "Node N", and it has no Hugetlb
            total = _fields(read(f"{NODES}/node{node}/meminfo") or "").get("MemTotal", 0) * 1024
            memory.left_out[node] = total
            memory.total -= total
            memory.hugetlb = max(0, memory.hugetlb - _pools(read, node))
        return memory

    @classmethod
    def parse(cls, meminfo: str) -> Memory:
        """From the text of /proc/meminfo; its kB are 1024 bytes. Raises Error where MemTotal is
        missing.
        """
        fields = _fields(meminfo)
        if "MemTotal" not in fields:
            raise Error("/proc/meminfo has no MemTotal", "is /proc mounted?")
        # "Hugetlb" counts the pools of all sizes (since Linux 4.17); before it only the default
        # size is told.
        pool = fields.get(
            "Hugetlb", fields.get("HugePages_Total", 0) * fields.get("Hugepagesize", 0)
        )
        return cls(fields["MemTotal"] * 1024, pool * 1024, fields.get("SwapTotal", 0) * 1024)


def read_online(read: Reader) -> CpuSet:
    """The online CPUs. Raises Error where the kernel does not tell."""
    online = read(f"{CPUS}/online")
    if not online:
        raise Error(f"cannot read {CPUS}/online", "is /sys mounted?")
    return CpuSet.parse(online)


def auto_memory(memory: Memory) -> int:
    """Bytes that "auto" keeps: 5 % of MEMORY, at least 1 GiB, at most 8 GiB, and at most half of
    what is not in hugepage pools.
    """
    return min(max(GIB, memory.total // 20), 8 * GIB, (memory.total - memory.hugetlb) // 2)


def told_left_out(memory: dict[int, int]) -> str:
    """What `Memory.left_out` has, for people."""
    return f"{size(sum(memory.values()))} of NUMA nodes without CPUs ({CpuSet(memory)})"


def _fields(meminfo: str) -> dict[str, int]:
    """The numbers of /proc/meminfo or of a node's, by name."""
    fields = {}
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        number = value.strip().partition(" ")[0]
        if number.isascii() and number.isdigit():
            fields[name.rpartition(" ")[2]] = int(number)
    return fields


def _nodes_without_cpus(read: Reader) -> CpuSet:
    """The nodes that have memory and no CPU; none where no other node has memory.

    A node whose CPUs are all offline is not among them: the kernel keeps its links to them.
    """
    with_cpus = CpuSet.parse(read(f"{NODES}/has_cpu") or "")
    with_memory = CpuSet.parse(read(f"{NODES}/has_memory") or "")
    found = with_memory - with_cpus
    if not found or not with_memory & with_cpus:
        return CpuSet()
    offline = CpuSet.parse(read(f"{CPUS}/present") or "") - read_online(read)
    return CpuSet(
        node
        for node in found
        if all(read(f"{NODES}/node{node}/cpu{cpu}/online") is None for cpu in offline)
    )


def _pools(read: Reader, node: int) -> int:
    """Bytes of the HugeTLB pools of NODE."""
    found = 0
    for kib in HUGEPAGE_SIZES:
        pages = read(f"{NODES}/node{node}/hugepages/hugepages-{kib}kB/nr_hugepages")
        found += int(pages or 0) * kib * 1024
    return found
