# SPDX-License-Identifier: LGPL-2.1-or-later
"""The value of each metric, from what the kernel, the configuration and the records of VMs say."""

from __future__ import annotations

from typing import Any

from ... import __version__, conformance, limits, snapshot, state
from ...config import PATH
from ...cpuset import CpuSet
from ...domain import Domain
from ...errors import printable
from ...fence import reserved_memory
from ...host import Host, page_size
from ...kinds import HOST_CPUS, KINDS
from ...managers.base import Manager
from ...memory import Memory
from .. import pressure
from ..describe import describe
from . import table
from .exposition import Samples

UNREADABLE = "unreadable"  # a VM whose status XML is not understood
REASONS = (*conformance.REASONS, UNREADABLE)
VMS, HOST = "vms", "host"  # groups of cgroups that pressure is told of


def read(manager: Manager, domains: list[Domain], unreadable: int) -> Samples:
    """DOMAINS run, and so many more that are UNREADABLE."""
    samples = Samples()
    samples.add(table.INFO, 1, version=__version__, manager=manager.name)
    samples.add(table.CHANGED, _last_change(manager.host))
    _add_reservation(samples, manager)
    _add_parent(samples, manager)
    samples.add(table.ADMISSION, manager.config.memory_admission)
    samples.add(table.ADMITTED, _admitted(manager, domains))
    found = [describe(manager.host, manager, domain) for domain in domains]
    _add_vms(samples, found, unreadable)
    for domain in domains:
        used = conformance.memory_in_use(manager, domain)
        samples.add(table.VM_MEMORY, used, **_labels(domain.name, domain.uuid))
    _add_pressure(samples, manager)
    # of settings that cannot be, no limits follow
    sound = [
        domain for domain, vm in zip(domains, found) if conformance.SETTINGS not in vm["reasons"]
    ]
    _add_limits(samples, manager, sound)
    samples.add(table.CONFINEMENT_WANTED, limits.confines(manager, sound))
    samples.add(table.CONFINED, conformance.confined(manager) is not None)
    samples.add(table.CONFINED_SINCE, manager.host.written_at(state.CONFINED))
    return samples


def _last_change(host: Host) -> float | None:
    """Seconds of the epoch; None where nothing is configured."""
    moments = [host.written_at(path) for path in (PATH, snapshot.LIVE)]
    return max((moment for moment in moments if moment is not None), default=None)


def _admitted(manager: Manager, domains: list[Domain]) -> int:
    """Bytes; VMs that were not counted when they started are counted now."""
    if manager.records.admitted.is_kept:
        return manager.records.admitted.total
    return sum(domain.host_memory(page_size()) for domain in domains)


def _add_reservation(samples: Samples, manager: Manager) -> None:
    config, fence = manager.config, manager.fence
    setting = config.reserved_host_mem
    memory = Memory.read(manager.host.read_optional)
    samples.add(table.RESERVED_CPUS, len(manager.kept))
    samples.add(table.RESERVED_MEMORY, reserved_memory(setting, memory) if setting else 0)
    samples.add(table.FENCE_CPUS, None if fence.cpus is None else len(fence.cpus))
    samples.add(table.FENCE_MEMORY, fence.memory_limit)
    samples.add(table.FENCE_SWAP, fence.swap)


def _add_parent(samples: Samples, manager: Manager) -> None:
    parent = conformance.parent(manager)
    samples.add(table.VMS_CPUS, None if parent.cpus is None else len(parent.cpus))
    limit, used = parent.memory_limit, parent.memory_current
    samples.add(table.VMS_MEMORY_LIMIT, limit)
    samples.add(table.VMS_MEMORY_USED, used)
    if limit is not None and used is not None:
        cache = sum(
            tree.memory_stat(directory).get("inactive_file", 0)
            for directory, tree in conformance.memory_parents(manager).items()
        )
        samples.add(table.VMS_MEMORY_HEADROOM, limit - used + cache)
    samples.add(table.VMS_SWAP_LIMIT, parent.swap_limit)
    samples.add(table.VMS_SWAP_USED, parent.swap_current)


def _add_vms(samples: Samples, found: list[dict[str, Any]], unreadable: int) -> None:
    reasons = dict.fromkeys(REASONS, 0)
    reasons[UNREADABLE] = unreadable
    for vm in found:
        for reason in vm["reasons"]:
            reasons[reason] += 1
        labels = _labels(vm["name"], vm["uuid"])
        samples.add(table.VM_CONFORMS, vm["conforms"], **labels)
        samples.add(table.VM_DEDICATED, len(CpuSet.parse(vm["dedicated"])), **labels)
    samples.add(table.RUNNING, len(found) + unreadable)
    samples.add(table.CONFORMING, sum(vm["conforms"] for vm in found))
    for reason, count in reasons.items():
        samples.add(table.NOT_CONFORMING, count, reason=reason)


def _labels(name: str, uuid: str) -> dict[str, str]:
    """With the UUID, since two names may look the same once they are printable."""
    return {"name": printable(name), "uuid": uuid}


def _add_pressure(samples: Samples, manager: Manager) -> None:
    host, tree = manager.host, manager.tree_of(HOST_CPUS)
    places = [(VMS, one, path) for one, path in manager.parent_paths().items()]
    if tree is not None:
        places += [(HOST, tree, path) for path in manager.host_units(HOST_CPUS)]
    for group, tree, path in places:
        pattern = tree.hierarchy.directory(path) + "/{}.pressure"
        for resource, waited in pressure.read(host, pattern).items():
            labels = {"group": group, "cgroup": printable(path), "resource": resource}
            samples.add(table.WAITING, waited.get("some"), **labels)
            samples.add(table.STALLED, waited.get("full"), **labels)


def _add_limits(samples: Samples, manager: Manager, domains: list[Domain]) -> None:
    wanted = limits.wanted(manager, domains, state.Remembered(manager.host))
    held = limits.held(manager, wanted)
    for kind in KINDS:
        samples.add(table.LIMIT_WANTED, kind in held, kind=kind.name)
    for kind in KINDS:
        samples.add(table.LIMIT_IN_EFFECT, held.get(kind, False), kind=kind.name)
    samples.add(table.UNWANTED, len(limits.unwanted(manager)))
