# SPDX-License-Identifier: LGPL-2.1-or-later
"""All that virt-cgroup recommend tells, from the looks that were taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ... import apart, conformance
from ...config import Config
from ...cpuset import CpuSet
from ...domain import Domain
from ...errors import MIB
from ...fence import reserved_memory
from ...host import Host, page_size
from ...managers.base import Manager
from ...memory import GIB, Memory, auto_memory
from ...topology import Topology
from . import cpu, memory, rules, sample
from .counts import Sample
from .cpu import Line as CpuLine
from .cpu import Proposal


@dataclass(frozen=True)
class Vm:
    """Bytes: the guest's memory without hugepages; what the VM's cgroup has without page cache that
    is not in use; of it what is above the guest's memory, None where the guest has not yet touched
    all of that; and what KubeVirt would add for QEMU.
    """

    name: str
    guest: int
    cgroup: int
    overhead: int | None
    rule: int


@dataclass(frozen=True)
class Reserved:
    """`cpus` is "" and `memory` None where nothing is kept."""

    cpus: str
    memory: int | None


@dataclass(frozen=True)
class Report:
    """`seconds` is 0 where there was one look alone. Memory in bytes, interrupts a second by CPU.
    `nodes` are NUMA nodes without CPUs, whose memory is not counted; `pinned` the VMs that run and
    are pinned to proposed CPUs.
    """

    seconds: float
    memory: list[memory.Line]
    cpu: list[CpuLine]
    interrupts: dict[int, float]
    hugepages: int
    nodes: dict[int, int]
    vms: list[Vm]
    vms_memory: int
    total: int
    online: CpuSet
    rules: list[rules.Rule]
    configured: Reserved
    auto: Reserved
    proposed: Reserved
    proposal: Proposal
    pinned: list[str]

    @property
    def memory_setting(self) -> str:
        """The proposal as the configuration file has it; it is a multiple of 1 MiB."""
        amount = self.proposed.memory or 0
        whole = amount % GIB == 0
        return f"{amount // GIB} GiB" if whole else f"{amount // MIB} MiB"

    @property
    def left(self) -> int:
        """Bytes that the proposal leaves to VMs."""
        return self.total - self.hugepages - (self.proposed.memory or 0)

    def as_json(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "memory": [asdict(line) for line in self.memory],
            "cpu": [asdict(line) for line in self.cpu],
            "interrupts": {str(number): rate for number, rate in self.interrupts.items()},
            "hugepages": self.hugepages,
            "nodes_without_cpus": {str(number): size for number, size in self.nodes.items()},
            "vms": [asdict(vm) for vm in self.vms],
            "rules": [asdict(rule) for rule in self.rules],
            "pinned": self.pinned,
            "configured": asdict(self.configured),
            "auto": asdict(self.auto),
            "proposed": {**asdict(self.proposed), "reasons": list(self.proposal.reasons)},
        }


def make(
    host: Host,
    manager: Manager,
    running: list[Domain],
    samples: Sequence[Sample],
    lines: list[memory.Line],
) -> Report:
    """SAMPLES: the first and the last; LINES: the memory's sum over all of them."""
    topology = Topology.read(host.read_optional)
    total, hugetlb = topology.memory.total, topology.memory.hugetlb
    first, last = samples[0], samples[-1]
    cpu_lines = cpu.lines(first, last)
    interrupts = cpu.interrupts(first, last)
    used = cpu.used(cpu_lines, last.uptime)
    chosen = cpu.proposal(topology, max(used), interrupts, apart.taken(manager))
    counted = memory.proposed(lines, topology.memory)
    return Report(
        round(last.uptime - first.uptime, 1),
        lines,
        cpu_lines,
        interrupts,
        hugetlb,
        topology.memory.left_out,
        [_vm(host, manager, domain) for domain in running],
        _used_by_vms(manager),
        total,
        topology.online,
        rules.rules(len(topology.online), total, bool(last.arc)),
        _configured(manager.config, topology.memory),
        Reserved(str(topology.auto_cpus()), auto_memory(topology.memory)),
        Reserved(str(chosen.cpus), counted),
        chosen,
        [domain.name for domain in running if _is_pinned(domain, chosen.cpus)],
    )


def _is_pinned(domain: Domain, cpus: CpuSet) -> bool:
    return any(pin & cpus for pin in domain.pins().values())


def _configured(config: Config, memory: Memory) -> Reserved:
    kept = config.reserved_host_mem
    return Reserved(
        str(config.reserved_host_cpus or ""), reserved_memory(kept, memory) if kept else None
    )


def _vm(host: Host, manager: Manager, domain: Domain) -> Vm:
    use = sample.vm_use(host, manager, domain)
    guest = domain.ordinary_memory(page_size())
    held = use.memory - use.cache
    return Vm(
        domain.name,
        guest,
        held,
        held - guest if held > guest else None,
        rules.kubevirt_overhead(guest, domain.vcpus, int(domain.video_memory > 0)),
    )


def _used_by_vms(manager: Manager) -> int:
    parents = conformance.memory_parents(manager)
    return max((tree.memory_in_use(path) for path, tree in parents.items()), default=0)
