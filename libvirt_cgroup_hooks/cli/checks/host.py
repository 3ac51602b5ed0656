# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks of the host: the configuration, the cgroups, and the fence that is in effect."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ... import admission, conformance, limits, managers, operations, threads
from ...cgroups import RECURSIVE, passes_protection_down
from ...cpuset import CpuSet
from ...domainxml import parse
from ...errors import Error, printable, size
from ...host import page_size
from ...kernel.tree import Tree
from ...kinds import CPUS, HOST_CPUS, LOW, MEMORY, PRESSURE, Kind, as_cpus, in_bytes
from ...layout import apart
from ...managers.base import Manager
from ...plan import Plan
from ...state import Remembered
from ...topology import Topology
from .subject import Problem, Subject

if TYPE_CHECKING:
    from ...host import Host
    from ...kinds import Value

APPLY = "run virt-cgroup apply --parent"
NO_VM = "the next VM that starts sets it, or virt-cgroup apply --parent"
PROBE = b"<domain type='qemu' id='1'><name>probe</name></domain>"
GENERATIONS = "/sys/kernel/mm/lru_gen/enabled"
SHOWN = 5  # cgroups, processes or interrupts in a message
CPU_SETS = ("emulator_cpus", "vcpu_cpus", "iothread_cpus")


def rights(subject: Subject) -> Iterator[Problem]:
    if subject.host.real and os.geteuid() != 0:
        yield Problem("not-root", "only root can read some of the files", "run as root")


def configuration(subject: Subject) -> Iterator[Problem]:
    if subject.error:
        yield Problem("configuration-invalid", subject.error.message, subject.error.hint)
    for warning in subject.warnings:
        yield Problem("configuration-doubtful", warning)
    if subject.config is not None and not subject.config:
        yield Problem(
            "nothing-configured",
            "nothing is configured, so the hook does nothing",
            "run virt-cgroup reserve --cpus auto --memory auto --live --config, or with what "
            "virt-cgroup recommend proposes",
        )


def manager(subject: Subject) -> Iterator[Problem]:
    if managers.name(subject.host) == "cgroupfs" and subject.host.exists(managers.BOOTED):
        yield Problem(
            "machined-missing",
            "systemd manages the cgroups of this host, but libvirt does not ask it for those of "
            "VMs: systemd-machined or the system bus is missing",
            "install systemd-container and restart libvirtd",
        )


def controllers(subject: Subject) -> Iterator[Problem]:
    try:
        operations.check_controllers(subject.manager())
    except Error as error:
        if error.denied:
            raise
        yield Problem("controller-missing", error.message, error.hint)


def parent_controllers(subject: Subject) -> Iterator[Problem]:
    """What a cgroup above the VM parent does not pass on, the VM parent does not have."""
    manager = subject.manager()
    for tree, path in manager.parent_paths().items():
        wanted = [kind.controller for kind in manager.fence.limits() if tree.limits(kind)]
        if not subject.host.exists(tree.hierarchy.directory(path)):
            continue
        for directory, name in tree.not_passed_down(path, wanted):
            text = f"{directory} does not pass the {name} controller down to {path}"
            yield _drift(subject, text)


def first_start(subject: Subject) -> Iterator[Problem]:
    """Whatever the VM: the plan of `prepare` says what the kernel or systemd would not do."""
    try:
        operations.prepare(Plan("prepare"), subject.manager(), parse(PROBE))
    except Error as error:
        if error.denied:
            raise
        yield Problem("start-refused", error.message, error.hint)


def fence_in_effect(subject: Subject) -> Iterator[Problem]:
    manager = subject.manager()
    if not manager.fence:
        return
    for tree, path in manager.parent_paths().items():
        directory = tree.hierarchy.directory(path)
        if not subject.host.exists(directory):
            yield Problem(
                "parent-missing",
                f"{directory} does not exist yet",
                "the first VM that starts makes it, or virt-cgroup apply --parent",
            )
            continue
        wanted = {
            kind: value
            for kind, value in manager.fence.limits().items()
            if tree.limits(kind) and kind in (CPUS, MEMORY)
        }
        for kind, value in wanted.items():
            yield from _at_reload(manager, kind, path, value)
            before = Remembered(subject.host).before.get((kind, path), manager.before(kind, path))
            actual = manager.read(kind, path)
            if actual in (None, value) or not limits.stays(manager, kind, before):
                continue
            if actual == kind.narrower(value, before):
                yield _narrower(manager, kind, path, before)
                wanted[kind] = None
        found = tree.in_effect(directory)
        cpus, memory = as_cpus(wanted.get(CPUS)), in_bytes(wanted.get(MEMORY))
        if cpus is not None:
            taken = conformance.taken(manager)
            yield from _cpus(subject, tree, directory, found.cpus or CpuSet(), cpus, taken)
        if memory is not None:
            yield from _memory(subject, directory, found.memory_limit, memory)
    for kind, value in manager.fence.limits().items():
        if kind not in (CPUS, MEMORY):
            for path in manager.parents(kind, []):
                yield from _row(subject, manager, kind, path, value)


def _row(
    subject: Subject,
    manager: Manager,
    kind: Kind,
    path: str,
    wanted: Value,
    code: str = "fence-open",
) -> Iterator[Problem]:
    """A limit as the table has it."""
    yield from _at_reload(manager, kind, path, wanted)
    there = manager.read(kind, path)
    theirs = Remembered(subject.host).before.get((kind, path))
    if there == wanted or not manager.exists(kind, path):
        return
    if there is not None and there == theirs and kind.narrower(wanted, theirs) == theirs:
        yield _narrower(manager, kind, path, theirs)
        return
    text = f"{path} has {kind.shown(there)}; it should be {kind.shown(wanted)}"
    yield _drift(subject, text, code)


def _narrower(manager: Manager, kind: Kind, path: str, before: Value) -> Problem:
    """The administrator's own limit stays."""
    decides = manager.decided_elsewhere(kind, path)
    where = f" by {decides[0]}" if decides else ""
    text = f"{path} was limited to {kind.shown(before)}{where} before, and the narrower limit stays"
    return Problem("limit-kept", text)


def _at_reload(manager: Manager, kind: Kind, path: str, wanted: Value) -> Iterator[Problem]:
    """systemd goes by its files at the next daemon-reload, whatever the kernel has now."""
    decides = manager.decided_elsewhere(kind, path)
    replaced = limits.replaced_at_reload(decides, kind, wanted) if decides else None
    if replaced:
        yield Problem("limit-replaced", replaced.message, replaced.hint)
        return
    there = manager.read(kind, path) == wanted and manager.is_limit(kind, wanted)
    if there and not decides and manager.forgets(kind, path, wanted):
        text = f"systemd has no record of the limit {kind.shown(wanted)} of {path}, and lifts it"
        yield Problem("limit-forgotten", f"{text} at the next daemon-reload", APPLY)


def confined(subject: Subject) -> Iterator[Problem]:
    """The host's own work, on the host's own CPUs."""
    manager = subject.manager()
    confines = limits.confines(manager, threads.running(subject.host, {}))
    before = Remembered(subject.host).before
    for path in manager.host_units(HOST_CPUS):
        if confines or (HOST_CPUS, path) in before:
            yield from _at_reload(manager, HOST_CPUS, path, manager.read(HOST_CPUS, path))
    if not confines:
        return
    for path, cpus in conformance.host_cpus(manager).items():
        if not cpus <= manager.kept:
            text = f"{path} may use CPUs {cpus}, including those of VMs {cpus - manager.kept}"
            yield Problem("host-unconfined", text, APPLY)
    pinned = conformance.pinned_elsewhere(manager)
    if pinned:
        yield Problem("host-pinned", pinned.message, pinned.hint)


def protected(subject: Subject) -> Iterator[Problem]:
    """The host's own memory, kept from reclaim while VMs run."""
    manager, host = subject.manager(), subject.host
    kind = manager.protection
    if kind is None:
        return
    for (one, path), value in limits.of_host(manager, threads.running(host, {})).items():
        if one is kind:
            yield from _row(subject, manager, kind, path, value, "protection-missing")
    yield from _weakly_protected(host, kind)
    tree = manager.tree_of(kind)
    if tree and not passes_protection_down(host.read_optional):
        mount = tree.hierarchy.mount
        yield Problem(
            "protection-not-recursive",
            f"cgroup2 is mounted without {RECURSIVE}: {kind.v2} of a slice protects nothing of "
            "the services in it",
            f"run mount -o remount,{RECURSIVE} {mount}, and have it mounted so at boot",
        )


def _weakly_protected(host: Host, kind: Kind) -> Iterator[Problem]:
    """Seen on Linux 6.12 and 7.2: none of 300 MiB of page cache was kept, and with "min" all."""
    enabled = (host.read_optional(GENERATIONS) or "").strip()
    if kind is LOW and enabled not in ("", "0", "0x0000"):
        yield Problem(
            "protection-weak",
            "with the multi-generational LRU of this kernel, memory.low keeps hardly anything from "
            "reclaim",
            f'set protect_host_mem = "min", or turn it off: echo n >{GENERATIONS}',
        )


def beside_vms(subject: Subject) -> Iterator[Problem]:
    """Containers, such as those of podman and systemd-nspawn, are in machine.slice, too."""
    manager = subject.manager()
    parents = manager.parent_paths()
    others: list[str] = []
    for tree, path in parents.items():
        others += conformance.beside_vms(manager, tree, path)
    if others:
        names = ", ".join(map(printable, list(dict.fromkeys(others))[:SHOWN]))
        yield Problem(
            "others-limited",
            f"the limits of the VMs also apply to {names}",
            apart(next(iter(parents.values()))),
        )


def _cpus(
    subject: Subject,
    tree: Tree,
    directory: str,
    actual: CpuSet,
    wanted: CpuSet,
    taken: dict[str, CpuSet],
) -> Iterator[Problem]:
    others = ", ".join(
        f"{path} has exclusive use of {cpus}" for path, cpus in taken.items() if cpus - actual
    )
    if not actual:
        yield _drift(subject, f"{directory} has no CPU limit; it should be {wanted}")
    elif others and not actual & wanted:
        yield Problem(
            "cpus-all-taken",
            f"{directory} may use CPUs {actual}, which are reserved, and not {wanted}: {others}",
            _take_back(tree, taken),
        )
    elif others and actual <= wanted:
        yield Problem(
            "cpus-taken",
            f"{directory} may use CPUs {actual} only, and not {wanted - actual}: {others}",
            _take_back(tree, taken),
        )
    elif actual - wanted:
        yield _drift(
            subject, f"{directory} may use CPUs {actual}, including reserved CPUs {actual - wanted}"
        )
    elif wanted - actual:
        text = f"{directory} may use CPUs {actual} only, and not {wanted - actual}"
        above = tree.cpus_in_effect(directory.rpartition("/")[0]) or CpuSet()
        yield Problem(
            "fence-narrow",
            text,
            APPLY if (wanted - actual) & above else "the cgroup above it has no more",
        )


def _take_back(tree: Tree, taken: dict[str, CpuSet]) -> str:
    what = "0 >{}/cpuset.cpu_exclusive"
    if tree.hierarchy.version == 2:
        what = "member >{}/cpuset.cpus.partition"
    commands = [f"echo {what.format(shlex.quote(path))}" for path in taken]
    return f"take them back ({'; '.join(commands)}), or reserve them"


def _memory(subject: Subject, directory: str, actual: int | None, wanted: int) -> Iterator[Problem]:
    if actual is None:
        yield _drift(subject, f"{directory} has no memory limit; it should be {size(wanted)}")
    elif actual > wanted:
        yield _drift(
            subject,
            f"the memory limit of {directory} is {size(actual)} ({actual} bytes) and should be "
            f"{wanted}",
        )
    elif actual < wanted:
        text = f"the memory limit of {directory} is {actual} bytes and could be {wanted}"
        yield Problem("fence-narrow", text, APPLY)


def _drift(subject: Subject, text: str, code: str = "fence-open") -> Problem:
    """Without VMs nothing is lost yet: the hook brings the VM parent to its fence whenever one
    starts.
    """
    return Problem(code, text, APPLY) if subject.has_vms else Problem("fence-pending", text, NO_VM)


def memory(subject: Subject) -> Iterator[Problem]:
    """The kernel takes that of hugepage pools from all: VMs without hugepages get the rest."""
    manager = subject.manager()
    limit = manager.fence.memory
    if limit is None:
        return
    pools = Topology.read(subject.host.read_optional).memory.hugetlb
    running = sum(vm.host_memory(page_size()) for vm in threads.running(subject.host, {}))
    exceeded = admission.may_exceed(running, limit)
    further = ""
    if not manager.config.memory_admission:
        further = "; memory_admission = 1 refuses further VMs that do not fit"
    text = f"hugepage pools hold {size(pools)}, which leaves {size(limit)} for VMs' other memory"
    if exceeded and pools:
        remedy = "make the pools smaller, or give VMs hugepages"
        yield Problem("memory-overcommitted", f"{text}; {exceeded}", remedy + further)
    elif exceeded:
        remedy = f"stop or shrink VMs, or reserve less memory{further}"
        yield Problem("memory-overcommitted", exceeded, remedy)
    elif pools:
        yield Problem("hugepage-pools", text)


def unwanted_limits(subject: Subject) -> Iterator[Problem]:
    """Those of a configuration, or of a command, that is no more."""
    for (kind, path), value in limits.unwanted(subject.manager()).items():
        text = f"{printable(path)} still has {kind.assigned(value)}"
        if kind is PRESSURE:
            text += ": virt-cgroup reserve --wait is at work, or was killed"
        yield Problem("limit-unwanted", text, APPLY)


def special_cpus(subject: Subject) -> Iterator[Problem]:
    topology = Topology.read(subject.host.read_optional)
    manager = subject.manager()
    reserved = manager.config.reserved_host_cpus or CpuSet()
    if reserved - topology.online:
        yield Problem(
            "cpus-offline",
            f"CPUs {reserved - topology.online} of reserved_host_cpus are offline",
            f"run virt-cgroup reserve --cpus {len(reserved)} --live --config, or set them online",
        )
    if reserved & topology.isolated:
        text = (
            f"CPUs {reserved & topology.isolated} of reserved_host_cpus are isolated (isolcpus): "
            "the host does not use them"
        )
        free = topology.online - topology.isolated - reserved
        remedy = "isolate fewer CPUs"
        if free:  # which --cpus COUNT takes first
            command = f"virt-cgroup reserve --cpus {len(reserved)} --live --config"
            remedy = f"run {command}, to reserve others ({free})"
        yield Problem("reserved-isolated", text, remedy)
    yield from _isolated(manager, topology)


def _isolated(manager: Manager, topology: Topology) -> Iterator[Problem]:
    """The kernel does not spread threads over isolated CPUs: each stays on the one that it was
    started on.
    """
    named = CpuSet()
    for key in CPU_SETS:
        cpus = CpuSet.parse(manager.config.values[key]) & topology.isolated
        named |= cpus
        if len(cpus) > 1:
            text = (
                f"CPUs {cpus} of {key} are isolated (isolcpus): "
                "the kernel does not spread threads over them"
            )
            yield Problem("set-isolated", text, "pin each thread in the VM's XML")
    rest = (manager.fence.cpus or CpuSet()) & topology.isolated - named
    if rest:
        yield Problem(
            "vm-cpus-isolated",
            f"CPUs {rest} are isolated (isolcpus): VMs use them only where they are pinned to them",
        )
