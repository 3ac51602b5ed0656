"""A host without systemd: layouts, changes at run time, and the host's own services, which have
cgroups that OpenRC has made.
"""

from __future__ import annotations

import json

import pytest

from ..live.harness import running_vm, virsh
from .host import (
    CGROUP,
    FENCE_CPUS,
    SYSTEMD,
    UUIDS,
    configure,
    fenced,
    meminfo,
    restart_libvirtd,
    start,
    status,
    virt_cgroup,
)
from .test_kernel import CPUS, without_cpu, without_memory
from .triggers import in_time, installed

pytestmark = pytest.mark.skipif(SYSTEMD, reason="services are systemd's here")
OWN, ALL = "0-1", "0-7"
PLACES = {
    "native": "/machine/qemu-{id}-{name}.libvirt-qemu",
    "legacy": "/libvirt/qemu/{name}",
    "flat": "/qemu-{name}",
    "uuid": "/qemu-{uuid}",
    "/vms/prod/$NAME": "/vms/prod/{name}",
}
PARENTS = {
    "native": "machine",
    "legacy": "libvirt/qemu",
    "flat": None,
    "uuid": None,
    "/vms/prod/$NAME": "vms/prod",
}


def services() -> dict[str, str]:
    """What each of them may use, by the name of its cgroup."""
    files = CGROUP.glob("openrc.*/cpuset.cpus.effective")
    return {file.parent.name: file.read_text().strip() for file in files}


@pytest.mark.parametrize("layout", PLACES)
def test_placement(layout: str) -> None:
    memory = PARENTS[layout] is not None
    configure(fenced(layout, memory, more='vcpu_cpus = "4-7"'))
    for name in ("web", "db"):
        start(name)
    for name in ("web", "db"):
        vm = running_vm(name)
        place = PLACES[layout].format(id=vm.id, name=name, uuid=vm.uuid)
        vcpus = {tid: f"vcpu{number}" for number, tid in vm.vcpus.items()}
        for tid, thread in vm.threads().items():
            io = thread.comm[3:] if thread.comm.startswith("IO iothread") else "emulator"
            assert thread.unified == f"{place}/{vcpus.get(tid, io)}", thread
            assert thread.cpus_allowed == ("4-7" if tid in vcpus else FENCE_CPUS), thread
    assert all(vm["conforms"] for vm in status()["domains"]), status()
    if memory:
        limit = meminfo("MemTotal") - meminfo("Hugetlb") - (1 << 30)
        assert (CGROUP / f"{PARENTS[layout]}/memory.max").read_text().strip() == str(limit)
    restart_libvirtd()
    assert all(vm["conforms"] for vm in status()["domains"]), status()
    for name in ("web", "db"):
        virsh("destroy", name)
    places = [PLACES[layout].format(id=number, name="web", uuid=UUIDS["web"]) for number in (1, 2)]
    assert not any((CGROUP / place.lstrip("/")).exists() for place in places)


def test_the_reservation_changes_while_a_vm_runs() -> None:
    configure(fenced("/vms/$NAME"))
    vm = start("web")
    virt_cgroup("reserve", "--cpus", "6-7", "--memory", "1200 MiB", "--live")
    assert {thread.cpus_allowed for thread in vm.threads().values()} == {"0-5"}
    limit = meminfo("MemTotal") - meminfo("Hugetlb") - (1200 << 20)
    assert (CGROUP / "vms/memory.max").read_text().strip() == str(limit)
    virt_cgroup("reserve", "--cpus", "none", "--memory", "none", "--live")
    assert {thread.cpus_allowed for thread in vm.threads().values()} == {ALL}
    virsh("destroy", "web")


def test_services_while_vms_run() -> None:
    names = sorted(path.name for path in CGROUP.glob("openrc.*"))
    assert names
    more = f'confine_host = "running"\nhost_units = {json.dumps(names)}'
    configure(fenced("native", more=more))
    start("web")
    assert services() == dict.fromkeys(names, OWN)
    restart_libvirtd()
    vm = start("db")
    assert {thread.cpus_allowed for thread in vm.threads().values()} == {FENCE_CPUS}
    virsh("destroy", "web")
    assert set(services().values()) == {OWN}
    assert running_vm("db").alive()
    virsh("destroy", "db")
    assert set(services().values()) == {ALL}


def parent(file: str) -> str:
    return (CGROUP / "machine" / file).read_text().strip()


def test_cpus_and_memory_go_and_come_back() -> None:
    """udev runs the command."""
    configure(fenced("native"))
    vm = start("web")
    whole = parent("memory.max")
    with installed():
        with without_cpu(7):
            in_time("a CPU has gone", "2-6", lambda: parent("cpuset.cpus"))
        in_time("a CPU has come", FENCE_CPUS, lambda: parent("cpuset.cpus"))
        assert {thread.cpus_allowed for thread in vm.threads().values()} == {FENCE_CPUS}
        with without_memory(2) as gone:
            in_time("memory has gone", str(int(whole) - gone), lambda: parent("memory.max"))
        in_time("memory has come", whole, lambda: parent("memory.max"))


@pytest.mark.thorough
def test_cpus_go_and_come_again_and_again() -> None:
    """One run serves many events, and the last is not lost."""
    configure(fenced("native"))
    start("web")
    with installed():
        for number in [*range(2, 8)] * 8:
            for state in "01":
                (CPUS / f"cpu{number}/online").write_text(state)
        with without_cpu(6):
            in_time("the last one has gone", "2-5,7", lambda: parent("cpuset.cpus"))
        in_time("it has come", FENCE_CPUS, lambda: parent("cpuset.cpus"))
