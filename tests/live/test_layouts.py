"""Each layout with a real libvirtd: every thread is where the layout says, on the CPUs it may have;
nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import (
    STATE,
    VM_CPUS,
    Daemon,
    Vm,
    all_cgroups,
    cgroup_directory,
    destroy_vm,
    domain_xml,
    running_vm,
    start_vm,
)

UUID = "6a0e1f9c-7c5b-4d0a-9f7e-0123456789ab"
LAYOUTS = {
    "legacy": "/libvirt/qemu/web",
    "nested": "/qemu/web",
    "flat": "/qemu-web",
    "root": "/qemu-web",
    "uuid": f"/qemu-{UUID}",
    "/vms/$DRIVER-$UUID": f"/vms/qemu-{UUID}",
    "/vms/prod/$NAME": "/vms/prod/web",
    "/vms/$ID/$DRIVER": None,
}
WITHOUT_PARENT = ("flat", "root", "uuid")
XML = domain_xml(
    "web", uuid=UUID, vcpus=4, current=2, iothreads=2, vcpupin={1: "1"}, iothreadpin={2: "1"}
)


def read(path: Path) -> str:
    return path.read_text().strip()


def meminfo(key: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def groups_of(vm: Vm) -> dict[int, str]:
    """Thread group of each thread, from what libvirt and QEMU call them."""
    vcpu = {tid: f"vcpu{number}" for number, tid in vm.vcpus.items()}
    return {
        tid: vcpu.get(tid)
        or (thread.comm[3:] if thread.comm.startswith("IO iothread") else "emulator")
        for tid, thread in vm.threads().items()
    }


def assert_placed(vm: Vm, path: str, pinned: dict[str, str], allowed: str) -> None:
    groups = groups_of(vm)
    assert set(groups.values()) >= {"emulator", "vcpu0", "vcpu1", "iothread1", "iothread2"}
    for tid, thread in vm.threads().items():
        for controller in ("cpu", "cpuset"):
            assert thread.group(controller) == f"{path}/{groups[tid]}", thread
        for controller in ("memory", "pids", "blkio", "freezer"):
            if controller in thread.groups:
                assert thread.group(controller) == path, thread
        assert thread.cpus_allowed == pinned.get(groups[tid], allowed), thread


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(daemon: Daemon, configure: Callable[[str], None], layout: str) -> None:
    before = all_cgroups()
    memory = layout not in WITHOUT_PARENT
    configure(
        f'reserved_host_cpus = "0"\ncgroup_layout = "{layout}"\n'
        + ('reserved_host_mem = "1 GiB"\n' if memory else "")
    )
    vm = start_vm("web", xml=XML)
    path = LAYOUTS[layout] or f"/vms/{vm.id}/qemu"
    cpus = VM_CPUS
    pinned = {"vcpu1": "1", "iothread2": "1"}
    assert_placed(vm, path, pinned, cpus)
    assert_fence(path, layout, cpus, memory)

    daemon.restart()
    assert running_vm("web") == vm
    assert vm.alive()
    assert_placed(vm, path, pinned, cpus)

    destroy_vm("web")
    assert not vm.alive()
    left = {group for group in all_cgroups() - before if group.name != "machine"}
    assert not left
    assert not list((STATE / "vms").iterdir())
    assert not (STATE / "shared").exists()


def assert_fence(path: str, layout: str, cpus: str, memory: bool) -> None:
    parent = path.rpartition("/")[0] if memory else path
    if layout == "/vms/$ID/$DRIVER":
        parent = "/vms"
    assert read(cgroup_directory("cpuset", parent) / "cpuset.cpus") == cpus
    if memory:
        limit = meminfo("MemTotal") - meminfo("Hugetlb") - (1 << 30)
        assert read_limit(parent) == limit


def read_limit(parent: str) -> int:
    directory = cgroup_directory("memory", parent)
    file = directory / "memory.max"
    return int(read(file if file.exists() else directory / "memory.limit_in_bytes"))
