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
