# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks of what runs: VMs that are not where they should be, and QEMU that no fence holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ... import apart, conformance, operations, reserve, threads
from ...claims import losses
from ...conformance import Difference
from ...cpuset import CpuSet
from ...dedicated import told
from ...domain import Domain
from ...errors import Error, Refusal, printable
from ...host import Host
from ...managers.base import Manager
from ...managers.cgroupfs import LIBVIRT_SUFFIX
from ..describe import describe
from .subject import Problem, Subject

MACHINE = "/machine-qemu"  # how libvirt's scopes begin
FOREIGN = "/.."  # outside the cgroup namespace we are in: another container's
SHOWN = 10


def outside(subject: Subject) -> Iterator[Problem]:
    """QEMU that libvirtd did not start: VMs of qemu:///session, of containers, and those started by
    hand.
    """
    manager = subject.manager()
    if not manager.fence:
        return
    parents = {tree.hierarchy.key: path for tree, path in manager.parent_paths().items()}
    found = [
        (pid, place)
        for pid in _processes(subject.host)
        if (place := _outside(subject.host, pid, parents))
    ]
    for pid, place in found[:SHOWN]:
        text = f"process {pid} ({_comm(subject.host, pid)}) of user {_user(subject.host, pid)}"
        yield Problem(
            "qemu-outside",
            f"{text} is in {place}, outside the VM parent",
            "run it as a VM of qemu:///system, or treat it as part of the host",
        )
    if len(found) > SHOWN:
        yield Problem(
            "qemu-outside", f"{len(found) - SHOWN} more QEMU processes are outside the VM parent"
        )


def _processes(host: Host) -> list[int]:
    known = {vm.pid for vm in threads.running(host, {})}
    pids = [int(name) for name in host.names("/proc") if name.isdigit()]
    return [
        pid
        for pid in sorted(pids)
        if pid not in known and _comm(host, pid).startswith(threads.QEMU)
    ]


def _outside(host: Host, pid: int, parents: dict[str, str]) -> str | None:
    """The cgroup of a process that is not below PARENTS (by hierarchy key); None for one of
    libvirt's, and one that ended.
    """
    places = threads.process_cgroups(host, pid)
    if not places or any(MACHINE in place or LIBVIRT_SUFFIX in place for place in places.values()):
        return None
    key = next(iter(parents), next(iter(places)))
    place = places.get(key, "")
    within = parents and all(
        f"{places.get(key, '')}/".startswith(f"{path}/") for key, path in parents.items()
    )
    return None if within or place.startswith(FOREIGN) else place


def _comm(host: Host, pid: int) -> str:
    return (host.read_optional(f"/proc/{pid}/comm") or "").strip()


def _user(host: Host, pid: int) -> str:
    lines = (host.read_optional(f"/proc/{pid}/status") or "").splitlines()
    return next((line.split()[1] for line in lines if line.startswith("Uid:")), "unknown")


def in_the_way(subject: Subject) -> Iterator[Problem]:
    """What a configuration that is not in place yet would take from VMs that run. Memory is a
    matter of the next start, which is refused (`host.first_start`).
    """
    manager = subject.manager()
    pinned = reserve.newly_pinned(manager, threads.running(subject.host, {}))
    if pinned:
        text = f"it takes CPUs from VMs that are pinned to them: {reserve.told(pinned)}"
        yield Problem("pins-in-the-way", text, f"{reserve.repin(manager, pinned)}, or stop them")


def pinned_to_reserved(subject: Subject) -> Iterator[Problem]:
    """VMs that run elsewhere than they are pinned to."""
    manager = subject.manager()
    for loss in losses(manager, threads.running(subject.host, {}), manager.kept):
        text = f"VM {printable(loss.domain.name)} is pinned to reserved CPUs: {loss.pins}"
        yield Problem("vm-pinned-to-reserved", text, loss.remedy(manager))


def conforming(subject: Subject) -> Iterator[Problem]:
    manager = subject.manager()
    unknown: dict[str, Error] = {}
    running = threads.running(subject.host, unknown)
    for error in unknown.values():
        yield Problem("not-checked" if error.denied else "vm-unknown", error.message, error.hint)
    for vm in running:
        try:
            own = manager.for_domain(vm)
        except Error as error:
            yield Problem("vm-settings", error.message, error.hint)
            continue
        found = describe(subject.host, manager, vm)
        problems = found["problems"]
        if problems:
            escaped = _escapes(own, vm, found)
            more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
            yield Problem(
                "vm-escaped" if escaped else "vm-misplaced",
                f"VM {vm.name}: {problems[0]}{more}",
                _remedy(manager, own, vm, found["reasons"]),
            )


def _escapes(own: Manager, vm: Domain, found: dict[str, Any]) -> bool:
    """Whether the VM of which FOUND is said may use what it is not to use."""
    if {conformance.MEMORY_LIMIT, conformance.CPU_LIMIT} & set(found["reasons"]):
        return True
    return any(
        CpuSet.parse(row["cpus"]) - reach
        for row in found["threads"]
        if (reach := own.reach(vm, row["group"])) is not None
    )


def _remedy(manager: Manager, own: Manager, vm: Domain, reasons: list[str]) -> str:
    by_restart = {conformance.MEMORY_APART}
    if manager.name == "systemd":  # which moves nothing
        by_restart.add(conformance.PLACE)
    if conformance.MEMORY_APART in reasons and by_restart.issuperset(reasons):
        commands = f"virsh shutdown {vm.handle}; virsh start {vm.handle}"
        restart = f"shut it down and start it again: {commands}"
        try:
            operations.check_parent(manager, own, vm)
        except Refusal as refusal:  # as the start would be
            return f"{refusal.hint}; then {restart}"
        return restart
    remedy = "run virt-cgroup apply --all"
    if manager.name == "systemd":
        remedy += ", and stop and start a VM that is in another slice"
    return remedy


def dedicated(subject: Subject) -> Iterator[Problem]:
    """Of VMs that have CPUs for themselves alone, or ask for some: what keeps others there."""
    manager = subject.manager()
    owners = apart.owners(manager)
    for vm in manager.running():
        for one in _of_dedicated(manager, vm):
            yield Problem(
                "vm-not-dedicated",
                f"VM {printable(vm.name)}: {one.text}",
                f"run virt-cgroup apply {vm.handle}, which tells what is in the way",
            )
    if owners and manager.config.confine_host == "no":
        yield Problem(
            "dedicated-with-host",
            f"the host's own work may run on CPUs that VMs have for themselves: {told(owners)}",
            "keep it off them with confine_host, which needs cgroup v2, or with isolcpus=",
        )


def _of_dedicated(manager: Manager, vm: Domain) -> list[Difference]:
    try:
        return conformance.not_dedicated(manager.for_domain(vm), vm)
    except Error:  # of its own settings: `conforming` tells it
        return []
