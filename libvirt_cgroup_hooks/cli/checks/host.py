# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks of the host: the configuration, the cgroups, and the fence that is in effect."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ... import managers, threads
from ...config import PATH
from ...cpuset import CpuSet
from ...domain import parse
from ...errors import Error
from ...fence import memory_of, size
from ...managers.base import Manager
from ...managers.v1 import V1
from ...managers.v2 import V2
from ...topology import Topology
from .subject import FAIL, NOTE, WARN, Problem, Subject

APPLY = "run virt-cgroup apply --parent"
NO_VM = "the next VM that starts sets it, or virt-cgroup apply --parent"
RESERVE = "take them back from it, or reserve them"
PROBE = b"<domain type='qemu' id='1'><name>probe</name></domain>"
CPU_SETS = ("emulator_cpus", "vcpu_cpus", "iothread_cpus")


def rights(subject: Subject) -> Iterator[Problem]:
    if subject.host.real and os.geteuid() != 0:
        yield Problem(WARN, "some of the files can be read by root only", "run as root")


def configuration(subject: Subject) -> Iterator[Problem]:
    if subject.error:
        yield Problem(FAIL, subject.error.message, subject.error.hint)
    for warning in subject.warnings:
        yield Problem(WARN, warning)
    if subject.config is not None and not subject.config:
        yield Problem(NOTE, "nothing is configured, so nothing is done", f"set what the host keeps in {PATH}")


def manager(subject: Subject) -> Iterator[Problem]:
    if managers.name(subject.host) == "cgroupfs" and subject.host.exists(managers.BOOTED):
        yield Problem(
            WARN,
            "systemd owns the cgroups here, but there is no machined or no system bus, so libvirt makes VMs behind its back",
            "install systemd-container and restart libvirtd",
        )


def controllers(subject: Subject) -> Iterator[Problem]:
    try:
        subject.manager().check_controllers()
    except Error as error:
        yield Problem(FAIL, error.message, error.hint)


def parent_controllers(subject: Subject) -> Iterator[Problem]:
    """On v2 a cgroup has a controller only if each cgroup above it enables it for its children."""
    manager = subject.manager()
    wanted = {"cpuset": manager.fence.cpus, "memory": manager.fence.memory}
    for tree, path in manager.parent_paths().items():
        hierarchy = tree.hierarchy
        if not isinstance(tree, V2) or not subject.host.exists(hierarchy.directory(path)):
            continue
        for directory in [hierarchy.mount, *hierarchy.directories(path)[:-1]]:
            enabled = (subject.host.read_optional(f"{directory}/cgroup.subtree_control") or "").split()
            for name in (name for name, value in wanted.items() if value is not None and name not in enabled):
                yield _drift(subject, f"{directory} does not pass the {name} controller down to {path}")


def first_start(subject: Subject) -> Iterator[Problem]:
    """Whatever the VM: the plan of `prepare` says what the kernel or systemd would not do."""
    try:
        subject.manager().plan("prepare", parse(PROBE))
    except Error as error:
        yield Problem(FAIL, error.message, error.hint)


def fence_in_effect(subject: Subject) -> Iterator[Problem]:
    manager = subject.manager()
    for tree, path in manager.parent_paths().items() if manager.fence else ():
        directory = tree.hierarchy.directory(path)
        if not subject.host.exists(directory):
            yield Problem(NOTE, f"{directory} is not there yet", "it is made with its fence when the first VM starts")
            continue
        found = tree.in_effect(directory)
        if manager.fence.cpus is not None and tree.has_cpus:
            actual = CpuSet.parse(str(found["cpus"] or ""))
            yield from _cpus(subject, tree, directory, actual, manager.fence.cpus, manager.taken())
        if manager.fence.memory is not None and tree.has_memory:
            yield from _memory(subject, directory, found["memory_limit"], manager.fence.memory)


def _cpus(
    subject: Subject, tree: V1 | V2, directory: str, actual: CpuSet, wanted: CpuSet, taken: dict[str, CpuSet]
) -> Iterator[Problem]:
    others = ", ".join(f"{path} has {cpus} for itself alone" for path, cpus in taken.items() if cpus - actual)
    if not actual:
        yield _drift(subject, f"{directory} has no CPU limit, which should be {wanted}")
    elif others and not actual & wanted:
        yield Problem(FAIL, f"{directory} may use CPUs {actual}, which the host keeps, and not {wanted}: {others}", RESERVE)
    elif others and actual <= wanted:
        yield Problem(WARN, f"{directory} may use CPUs {actual} only, and not {wanted - actual}: {others}", RESERVE)
    elif actual - wanted:
        yield _drift(subject, f"{directory} may use CPUs {actual}, of which the host keeps {actual - wanted}")
    elif wanted - actual:
        text = f"{directory} may use CPUs {actual} only, and not {wanted - actual}"
        above = CpuSet.parse(str(tree.in_effect(directory.rpartition("/")[0])["cpus"] or ""))
        yield Problem(WARN, text, APPLY if (wanted - actual) & above else "the cgroup above it has no more")


def _memory(subject: Subject, directory: str, actual: object, wanted: int) -> Iterator[Problem]:
    if not isinstance(actual, int):
        yield _drift(subject, f"{directory} has no memory limit, which should be {size(wanted)}")
    elif actual > wanted:
        yield _drift(subject, f"the memory limit of {directory} is {size(actual)} ({actual} bytes) and should be {wanted}")
    elif actual < wanted:
        text = f"the memory limit of {directory} is {size(actual)} ({actual} bytes) and could be {wanted}"
        yield Problem(WARN, text, APPLY)


def _drift(subject: Subject, text: str) -> Problem:
    """Without VMs nothing is lost yet: the hook brings the VM parent to its fence whenever one starts."""
    return Problem(FAIL, text, APPLY) if subject.has_vms else Problem(NOTE, text, NO_VM)


def hugepages(subject: Subject) -> Iterator[Problem]:
    """The kernel takes the pools' memory from all: what VMs without hugepages get is the rest."""
    pools = Topology.read(subject.host.read_optional).memory.hugetlb
    limit = subject.manager().fence.memory
    if not pools or limit is None:
        return
    running = sum(memory_of(vm) for vm in threads.running(subject.host))
    text = f"hugepage pools hold {size(pools)}, which leaves {size(limit)} for VMs' other memory"
    if running > limit:
        remedy = "make the pools smaller, or give VMs hugepages"
        yield Problem(WARN, f"{text}; the VMs that run may take {size(running)}", remedy)
    else:
        yield Problem(NOTE, text)


def special_cpus(subject: Subject) -> Iterator[Problem]:
    topology = Topology.read(subject.host.read_optional)
    manager = subject.manager()
    reserved = manager.config.reserved_host_cpus or CpuSet()
    if reserved - topology.online:
        yield Problem(WARN, f"CPUs {reserved - topology.online} of reserved_host_cpus are offline", "reserve others")
    if reserved & topology.isolated:
        text = f"CPUs {reserved & topology.isolated} of reserved_host_cpus are isolated (isolcpus): the host does not use them"
        yield Problem(WARN, text, "reserve others")
    yield from _isolated(manager, topology)


def _isolated(manager: Manager, topology: Topology) -> Iterator[Problem]:
    """The kernel does not spread threads over isolated CPUs: each stays on the one that it was started on."""
    named = CpuSet()
    for key in CPU_SETS:
        cpus = CpuSet.parse(manager.config.values[key]) & topology.isolated
        named |= cpus
        if len(cpus) > 1:
            text = f"CPUs {cpus} of {key} are isolated (isolcpus): the kernel does not spread threads over them"
            yield Problem(WARN, text, "pin each thread in the VM's XML")
    rest = (manager.fence.cpus or CpuSet()) & topology.isolated - named
    if rest:
        yield Problem(NOTE, f"CPUs {rest} are isolated (isolcpus): VMs use them only where they are pinned to them")
