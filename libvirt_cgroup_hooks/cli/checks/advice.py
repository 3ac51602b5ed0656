# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks of what works as it is configured, and would work better another way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from ... import threads
from ...cpuset import CpuSet
from ...domain import Domain
from ...domainxml import parse
from ...errors import Error, printable, size
from ...host import Host, page_size
from ...memory import GIB
from ...state import DEFINED
from ...topology import Topology
from .subject import Problem, Subject

POOLS = "/sys/kernel/mm/hugepages"
DEVICES = "/sys/bus/pci/devices"
WORTH_TELLING = GIB  # hugepages that are more than VMs ask for


def whole_cores(subject: Subject) -> Iterator[Problem]:
    topology, manager = Topology.read(subject.host.read_optional), subject.manager()
    reserved, cpus = manager.config.reserved_host_cpus or CpuSet(), manager.fence.cpus or CpuSet()
    split = CpuSet()
    for core in topology.cores:
        if core & reserved and core & cpus:
            split |= core
    if split and cpus - split:
        text = (
            f"CPUs {split & reserved} of the host and CPUs {split & cpus} of VMs are threads of "
            "the same cores"
        )
        yield Problem("core-split", text, _reserve(reserved | split))


def _reserve(cpus: CpuSet) -> str:
    return f"run virt-cgroup reserve --cpus {cpus} --live --config"


def pinned(subject: Subject) -> Iterator[Problem]:
    """VMs whose vCPUs the kernel does not spread."""
    topology, manager = Topology.read(subject.host.read_optional), subject.manager()
    cpus = manager.fence.cpus
    if not cpus or not cpus <= topology.isolated or manager.config.values["vcpu_cpus"]:
        return
    for vm in threads.running(subject.host, {}):
        unpinned = set(vm.unpinned())
        vcpus = [number for number in vm.online_vcpus() if f"vcpu{number}" in unpinned]
        if vcpus:
            text = (
                f"vCPUs {CpuSet(vcpus)} of VM {printable(vm.name)} have no pins, and all CPUs of "
                f"VMs ({cpus}) are isolated (isolcpus)"
            )
            options = "--live"
            if subject.host.exists(f"{DEFINED}/{vm.name}.xml"):  # a transient VM has none
                options += " --config"
            pin = f"virsh vcpupin {vm.handle} {vcpus[0]} {next(iter(cpus))} {options}"
            yield Problem("vms-unpinned", text, f"pin each: {pin}")


def swap(subject: Subject) -> Iterator[Problem]:
    manager, memory = subject.manager(), Topology.read(subject.host.read_optional).memory
    counted = any(tree.counts_swap for tree in manager.trees)
    if counted and memory.swap and manager.fence.memory and manager.fence.swap is None:
        text = f"VMs that reach their memory limit may fill the host's swap of {size(memory.swap)}"
        yield Problem("swap-unlimited", text, "run virt-cgroup reserve --swap 0 --live --config")


def hugepages(subject: Subject) -> Iterator[Problem]:
    """Those that no VM has use for, whether it runs or not."""
    host = subject.host
    asked = _hugepages_asked(host)
    for name in host.directories(POOLS):
        kib = name.removeprefix("hugepages-").removesuffix("kB")
        of_size = int(kib) * 1024 if kib.isdigit() else 0
        pages = _number(host, f"{POOLS}/{name}/nr_hugepages")
        free = _number(host, f"{POOLS}/{name}/free_hugepages")
        free -= _number(host, f"{POOLS}/{name}/resv_hugepages")
        wanted = asked.get(of_size, 0)
        if free <= 0 or not of_size or wanted is None:
            continue
        text = f"{free} hugepages of {size(of_size)} are free ({size(free * of_size)})"
        told, left = "no VM uses that size", 0
        if wanted:
            spare = min(free, pages - -(-wanted // of_size))
            if spare * of_size < WORTH_TELLING:
                continue
            told, left = f"all VMs together have use for {size(wanted)}", pages - spare
        remedy = f"if nothing else needs them: echo {left} >{POOLS}/{name}/nr_hugepages"
        yield Problem("hugepages-unused", f"{text}, and {told}", remedy)


def _hugepages_asked(host: Host) -> dict[int, int | None]:
    """By size in bytes, what all VMs ask for if all of them run; None where that is not known: a VM
    has hugepages of several sizes.
    """
    vms = {vm.uuid or vm.name: vm for vm in [*_defined(host), *threads.running(host, {})]}
    asked: dict[int, int | None] = {}
    for vm in vms.values():
        sizes, amount = _hugepage_sizes(host, vm), vm.hugepage_memory(page_size())
        for of_size in sizes:
            so_far = asked.get(of_size, 0)
            known = so_far is not None and amount and len(sizes) == 1
            asked[of_size] = (so_far or 0) + amount if known else None
    return asked


def _defined(host: Host) -> Iterator[Domain]:
    """Those that libvirt keeps and that are understood, whether they run or not."""
    for name in host.names(DEFINED):
        if name.endswith(".xml"):
            with suppress(Error):
                text = host.read_optional(f"{DEFINED}/{name}") or ""
                yield parse(text.encode("utf-8", "surrogateescape"))


def _hugepage_sizes(host: Host, vm: Domain) -> set[int]:
    """In bytes. A VM that names none gets the kernel's default size."""
    found = {size for size, _ in vm.pages} | {one.page_size for one in vm.memory_devices}
    if vm.hugepages and not vm.pages:
        lines = (host.read_optional("/proc/meminfo") or "").splitlines()
        found |= {int(line.split()[1]) * 1024 for line in lines if line.startswith("Hugepagesize:")}
    return {of_size for of_size in found if of_size > page_size()}


def _number(host: Host, path: str) -> int:
    return int(host.read_optional(path) or 0)


def near_devices(subject: Subject) -> Iterator[Problem]:
    topology = Topology.read(subject.host.read_optional)
    reserved = subject.manager().config.reserved_host_cpus
    if not reserved:
        return
    far = {node: cpus for node, cpus in topology.nodes.items() if cpus and not cpus & reserved}
    for vm in threads.running(subject.host, {}):
        for address in filter(None, map(_pci_address, vm.pci_devices)):
            node = _number(subject.host, f"{DEVICES}/{address}/numa_node")
            if node in far:
                text = (
                    f"PCI device {address} of VM {printable(vm.name)} is on NUMA node {node}, of "
                    f"which none of the host's CPUs ({reserved}) is"
                )
                core = next(core for core in topology.cores if core <= far[node])
                yield Problem("device-far", text, _reserve(reserved | core))


def _pci_address(attributes: dict[str, str]) -> str | None:
    """As the kernel has it, of an <address>; None for one that is not understood."""
    texts = [attributes.get(name, "0") for name in ("domain", "bus", "slot", "function")]
    if any(len(text) > len("0x0000") for text in texts):
        return None
    try:
        domain, bus, slot, function = (int(text, 0) for text in texts)
    except ValueError:
        return None
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"
