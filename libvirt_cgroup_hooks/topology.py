# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a host is made of: CPUs, cores, NUMA nodes; read from texts of /sys."""

from __future__ import annotations

from .cpuset import CpuSet
from .memory import CPUS, NODES, Memory, read_online

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .memory import Reader


class Topology:
    """CPUs as sets: present, online, isolated; a set for each core (its SMT siblings) and for each
    NUMA node.
    """

    __slots__ = ("cores", "isolated", "memory", "memory_nodes", "nodes", "online", "present")

    def __init__(
        self,
        online: CpuSet,
        present: CpuSet,
        isolated: CpuSet,
        cores: list[CpuSet],
        nodes: dict[int, CpuSet],
        memory_nodes: CpuSet,
        memory: Memory,
    ) -> None:
        self.online = online
        self.present = present
        self.isolated = isolated
        self.cores = cores
        self.nodes = nodes
        self.memory_nodes = memory_nodes
        self.memory = memory

    @classmethod
    def read(cls, read: Reader) -> Topology:
        """Raises Error where the kernel's files are missing or not understood."""
        online = read_online(read)
        present = CpuSet.parse(read(f"{CPUS}/present") or str(online))
        # a dict keeps the order, a set would not
        cores = {_siblings(read, cpu): None for cpu in online}
        numbers = CpuSet.parse(read(f"{NODES}/online") or "0")
        nodes: dict[int, CpuSet] = {}
        counted = CpuSet()
        for node in numbers:
            cpus = CpuSet.parse(read(f"{NODES}/node{node}/cpulist") or "") & present
            # some firmware makes several nodes of the same CPUs (Raspberry Pi 5)
            if cpus - counted or not cpus:
                nodes[node] = cpus - counted
            counted |= cpus
        if not any(nodes.values()):
            nodes = {0: present}
        return cls(
            online,
            present,
            CpuSet.parse(read(f"{CPUS}/isolated") or ""),
            list(cores),
            nodes,
            CpuSet.parse(read(f"{NODES}/has_memory") or str(numbers)),
            Memory.read(read),
        )

    def without(self, cpus: CpuSet) -> Topology:
        """The same, where the host is to keep off CPUS as off isolated ones."""
        kept_off = self.isolated | cpus
        return Topology(
            self.online,
            self.present,
            kept_off,
            self.cores,
            self.nodes,
            self.memory_nodes,
            self.memory,
        )

    def take(self, count: int, first: int | None = None) -> CpuSet:
        """At least COUNT online CPUs in whole cores, lowest first, spread evenly over the NUMA
        nodes, of which FIRST is the first if given.

        The host does not use isolated CPUs (isolcpus), so cores that have some come after all
        others, and those that have no other come last.
        """
        free = [core for core in self.cores if not core & self.isolated]
        partly = [core for core in self.cores if core & self.isolated and core - self.isolated]
        isolated = [core for core in self.cores if core <= self.isolated]
        taken = CpuSet()
        for cores in (free, partly, isolated):
            taken |= self._spread(cores, count - len(taken), first)
        return taken

    def _spread(self, cores: list[CpuSet], count: int, first: int | None) -> CpuSet:
        nodes = sorted(self.nodes, key=lambda node: node != first)
        queues = [[core for core in cores if core <= self.nodes[node]] for node in nodes]
        taken = CpuSet()
        while len(taken) < count and any(queues):
            queue = min((q for q in queues if q), key=lambda q: len(_all(self.nodes, q[0]) & taken))
            taken |= queue.pop(0)
        return taken

    def for_host(self, count: int, first: int | None = None) -> CpuSet:
        """As `take`, but fewer where only isolated CPUs would be left: they are kept for VMs."""
        taken = self.take(count, first)
        return (taken - self.isolated) or taken

    @property
    def auto_count(self) -> int:
        """CPUs of one core in 32, at least one, with siblings."""
        cores = max(1, len(self.cores) // 32)
        return cores * max((len(core) for core in self.cores), default=1)

    def auto_cpus(self) -> CpuSet:
        return self.for_host(self.auto_count)


def _siblings(read: Reader, cpu: int) -> CpuSet:
    text = read(f"{CPUS}/cpu{cpu}/topology/thread_siblings_list")
    return CpuSet.parse(text) if text else CpuSet([cpu])


def _all(nodes: dict[int, CpuSet], core: CpuSet) -> CpuSet:
    return next(cpus for cpus in nodes.values() if core <= cpus)
