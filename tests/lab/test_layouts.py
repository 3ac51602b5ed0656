"""Each layout on a host whose cgroups are systemd's: VMs are where they should be, and all of virsh
goes on working.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ..live.harness import Thread, Vm, running_vm, virsh
from ..live.pace import wait_for
from .host import (
    FENCE_CPUS,
    IMAGES,
    UNITS,
    UUIDS,
    V2,
    configure,
    directory,
    drop_ins,
    fenced,
    log,
    meminfo,
    needs_systemd,
    restart_libvirtd,
    run,
    start,
    status,
    value,
    virt_cgroup,
)

pytestmark = needs_systemd
ESCAPED = {name: uuid.replace("-", r"\x2d") for name, uuid in UUIDS.items()}
# The slice of a VM; {} is its UUID as systemd escapes it.
SLICES = {
    "native": "/machine.slice",
    "legacy": "/system.slice/system-libvirt.slice/system-libvirt-qemu.slice",
    "nested": "/system.slice/system-qemu.slice",
    "flat": "/system.slice",
    "root": "",
    "uuid": r"/qemu\x2d{}.slice",
    "/vms/prod/$NAME": "/vms.slice/vms-prod.slice",
    "/vms/$DRIVER-$UUID": r"/vms.slice/vms-qemu\x2d{}.slice",
}
WITHOUT_PARENT = ("flat", "root", "uuid")


class Placed:
    """Two VMs in one layout, and where each thread of them has to be."""

    def __init__(self, layout: str) -> None:
        self.layout = layout
        self.pinned: dict[str, str] = {}
        self.inherits = set[
            str
        ]()  # plugged in; libvirt 12.8 leaves it where the emulator is pinned
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(start, UUIDS))

    def scope(self, vm: Vm) -> str:
        escaped_name = rf"machine-qemu\x2d{vm.id}\x2d{vm.name}.scope"
        return SLICES[self.layout].format(ESCAPED[vm.name]) + "/" + escaped_name

    def group(self, vm: Vm, tid: int, thread: Thread) -> str:
        vcpus = {thread_id: f"vcpu{number}" for number, thread_id in vm.vcpus.items()}
        return vcpus.get(tid) or (
            thread.comm[3:] if thread.comm.startswith("IO iothread") else "emulator"
        )

    def check(self) -> None:
        for name in UUIDS:
            vm = running_vm(name)
            inner = self.scope(vm) + (
                "/libvirt" if "/libvirt/" in vm.threads()[vm.pid].group("cpuset") else ""
            )
            for tid, thread in vm.threads().items():
                group = self.group(vm, tid, thread)
                assert thread.group("cpuset") == f"{inner}/{group}", (name, thread)
                assert thread.group("memory").startswith(self.scope(vm)), (name, thread)
                pinned = self.pinned if name == "web" else {}
                wanted = {pinned.get(group, FENCE_CPUS)}
                if group in self.inherits:
                    wanted.add(pinned["emulator"])
                assert thread.cpus_allowed in wanted, thread
        assert all(vm["conforms"] for vm in status()["domains"]), status()

    def web(self) -> tuple[Vm, str]:
        vm = running_vm("web")
        return vm, self.scope(vm)


@pytest.mark.parametrize("layout", SLICES)
def test_placement(layout: str) -> None:
    memory = layout not in WITHOUT_PARENT
    configure(fenced(layout, memory))
    placed = Placed(layout)
    placed.check()
    check_fence(layout, memory)
    check_gone(placed)


@pytest.mark.parametrize(
    "layout",
    [
        layout if layout == "/vms/prod/$NAME" else pytest.param(layout, marks=pytest.mark.thorough)
        for layout in SLICES
    ],
)
def test_virsh_goes_on_working(layout: str) -> None:
    configure(fenced(layout, layout not in WITHOUT_PARENT))
    placed = Placed(layout)
    for step in (tune, plug, suspend, save, managed_save, reboot):
        step(placed, IMAGES)
        placed.check()
    for restart in (restart_libvirtd, reload, reexec):
        restart()
        placed.check()
        tune(placed, IMAGES)
    check_gone(placed)


@pytest.mark.parametrize("layout", ["native", "/vms/prod/$NAME"])
def test_sets_win_over_what_a_vcpu_inherits(layout: str) -> None:
    """libvirt 12.8 leaves a vCPU without a pin where the emulator is pinned."""
    configure(fenced(layout, more='vcpu_cpus = "4-7"'))
    vm = start("web", extra="<cputune><emulatorpin cpuset='3-4'/></cputune>")
    assert {vm.threads()[tid].cpus_allowed for tid in vm.vcpus.values()} == {"4-7"}
    virsh("setvcpus", "web", "3", "--live")
    vm = running_vm("web")
    told = [text for text in status()["domains"][0]["problems"] if "vcpu2" in text]
    assert bool(told) == (vm.threads()[vm.vcpus[2]].cpus_allowed != "4-7"), told
    virt_cgroup("apply", "web")
    assert vm.threads()[vm.vcpus[2]].cpus_allowed == "4-7"
    assert status()["domains"][0]["conforms"]


def check_fence(layout: str, memory: bool) -> None:
    if memory:
        parent = SLICES[layout].partition(r"/vms-qemu")[0]
        assert value("cpuset", parent, "cpuset.cpus", "cpuset.cpus") == FENCE_CPUS
        limit = meminfo("MemTotal") - meminfo("Hugetlb") - (1 << 30)
        assert value("memory", parent, "memory.max", "memory.limit_in_bytes") == str(limit)


def tune(placed: Placed, _: Path) -> None:
    vm, scope = placed.web()
    virsh("schedinfo", "web", "--live", "--set", "cpu_shares=500")
    assert value("cpu", scope, "cpu.weight", "cpu.shares") == "500"
    virsh("vcpupin", "web", "0", "3", "--live")
    virsh("emulatorpin", "web", "2-3", "--live")
    placed.pinned = {**placed.pinned, "vcpu0": "3", "emulator": "2-3"}
    assert vm.threads()[vm.vcpus[0]].cpus_allowed == "3"
    assert vm.threads()[vm.pid].cpus_allowed == "2-3"
    virsh("memtune", "web", "--hard-limit", "900M", "--live")
    assert any(
        (top / ("memory.max" if V2 else "memory.limit_in_bytes")).read_text().strip()
        == str(900 << 20)
        for top in (directory("memory", scope), directory("memory", f"{scope}/libvirt"))
        if top.exists()
    )
    assert "cpu.time=" in virsh("domstats", "web").stdout


def plug(placed: Placed, folder: Path) -> None:
    virsh("setvcpus", "web", "3", "--live")
    assert set(running_vm("web").vcpus) == {0, 1, 2}
    virsh("iothreadadd", "web", "5", "--live")
    placed.inherits = {"vcpu2", "iothread5"}
    disk = folder / "disk"
    os.truncate(os.open(disk, os.O_RDWR | os.O_CREAT), 1 << 20)
    device = folder / "disk.xml"
    source = f"<source file='{disk}'/><driver name='qemu' type='raw'/><target dev='sdz' bus='usb'/>"
    device.write_text(f"<disk type='file' device='disk'>{source}</disk>")
    virsh("attach-device", "web", str(device), "--live")
    assert "sdz" in virsh("domblklist", "web").stdout
    virsh("detach-device", "web", str(device), "--live")
    wait_for(lambda: "sdz" not in virsh("domblklist", "web").stdout, "the disk to go")


def suspend(placed: Placed, _: Path) -> None:
    virsh("suspend", "web")
    assert virsh("domstate", "web").stdout.strip() == "paused"
    virsh("resume", "web")


def save(placed: Placed, folder: Path) -> None:
    virsh("save", "db", str(folder / "image"))
    virsh("restore", str(folder / "image"))


def managed_save(placed: Placed, _: Path) -> None:
    virsh("managedsave", "db")
    virsh("start", "db")


def reboot(placed: Placed, _: Path) -> None:
    virsh("reboot", "web")
    virsh("reset", "web")


def reload() -> None:
    run("systemctl", "daemon-reload")


def reexec() -> None:
    run("systemctl", "daemon-reexec")


def check_gone(placed: Placed) -> None:
    scopes = [placed.scope(running_vm(name)) for name in UUIDS]
    for name in UUIDS:
        virsh("destroy", name)

    def gone() -> bool:
        return not any(directory("memory", scope).exists() for scope in scopes)

    wait_for(gone, "the scopes to go")
    assert not drop_ins()
    assert not list(UNITS.glob("machine-qemu*"))
    if "$UUID" in placed.layout or placed.layout == "uuid":
        own_slice = directory("memory", str(Path(scopes[0]).parent))
        wait_for(lambda: not own_slice.exists(), "the VM's slice to go")
    assert "internal error" not in log()
