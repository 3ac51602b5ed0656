"""Where the threads of VMs are put on a recorded host, v1 and v2, and their limits with them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers, operations, threads
from libvirt_cgroup_hooks.cli.describe import describe
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.host import Refused
from libvirt_cgroup_hooks.kernel.devices import CarryDevices

from ..support.hosts import PID, UUID, Kernel, cpus, run, splits
from ..support.operations import CG, CONF, INNER, MIB, do, plan, vm

HOST = Kernel
VCPU0, VCPU1 = PID + 10, PID + 11


def places(host: Kernel, subject: Domain, pid: int = 4200100) -> dict[str, set[str]]:
    """The cgroups of the VM's threads, by group, in the hierarchies where libvirt splits a VM."""
    names = {pid: "emulator", pid + 1: "emulator"}
    names.update((pid + 10 + n, f"vcpu{n}") for n in subject.online_vcpus())
    names.update((pid + 20 + n, f"iothread{n}") for n in subject.iothread_numbers())
    found: dict[str, set[str]] = {}
    for tid, group in names.items():
        where = host.where(pid, tid)
        found.setdefault(group, set()).update(
            path for key, path in where.items() if key in ("", "cpu", "cpuset")
        )
    return found


GROUPS = ("emulator", "vcpu0", "vcpu1", "iothread1")


def test_every_thread_is_in_its_group(host: Kernel) -> None:
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER, helpers=1)
    do(host, "started", subject)
    assert places(host, subject) == {group: {f"/vms/qemu-vm/{group}"} for group in GROUPS}
    helper = host.where(4200150, 4200150)
    assert all(
        helper[key] == "/vms/qemu-vm/emulator" for key in ("", "cpu", "cpuset") if key in helper
    )
    for pid in (4200100, 4200150):
        assert host.where(pid, pid).get("memory", "/vms/qemu-vm") == "/vms/qemu-vm"
        assert (
            host.where(pid, pid)
            .get("devices", "/machine/qemu-3-vm.libvirt-qemu")
            .startswith("/machine/")
        )


def test_the_order_on_v1(v1: Kernel) -> None:
    """Each cpuset has its memory nodes and CPUs before a process comes; the whole process first,
    then its threads.
    """
    do(v1, "prepare", vm())
    subject = v1.start_vm(vm(inner="<vcpu>1</vcpu>"), "<vcpu>1</vcpu>")
    assert [line for line in do(v1, "started", subject) if "/cpuset/" in line] == [
        f"mkdir {CG}/cpuset/vms/qemu-vm",
        f"{CG}/cpuset/vms/qemu-vm/cpuset.mems 0",
        f"{CG}/cpuset/vms/qemu-vm/cpuset.cpus 1",
        f"mkdir {CG}/cpuset/vms/qemu-vm/emulator",
        f"{CG}/cpuset/vms/qemu-vm/emulator/cpuset.mems 0",
        f"{CG}/cpuset/vms/qemu-vm/emulator/cpuset.cpus 1",
        f"mkdir {CG}/cpuset/vms/qemu-vm/vcpu0",
        f"{CG}/cpuset/vms/qemu-vm/vcpu0/cpuset.mems 0",
        f"{CG}/cpuset/vms/qemu-vm/vcpu0/cpuset.cpus 1",
        f"{CG}/cpuset/vms/qemu-vm/emulator/cgroup.procs 4200100",
        f"{CG}/cpuset/vms/qemu-vm/vcpu0/tasks 4200110",
    ]


def test_the_text_of_a_plan_for_a_running_vm(v1: Kernel) -> None:
    do(v1, "prepare", vm())
    subject = v1.start_vm(vm(), INNER)
    lines = str(plan(v1, "started", subject)).splitlines()
    assert lines[0].endswith(f" /run/libvirt-cgroup-hooks/vms/{UUID}")  # before anything is made
    assert [line for line in lines if "/cpu/" in line] == [
        f"make {CG}/cpu/vms/qemu-vm",
        *(
            f"make {CG}/cpu/vms/qemu-vm/{group}"
            for group in ("emulator", "iothread1", "vcpu0", "vcpu1")
        ),
        *(
            f'write "{value}" to {CG}/cpu/vms/qemu-vm{group}/cpu.{name}'
            for group in ("", "/emulator", "/iothread1", "/vcpu0", "/vcpu1")
            for name, value in (("shares", 1024), ("cfs_period_us", 100000))
        ),
        f"move process 4200100 to {CG}/cpu/vms/qemu-vm/emulator/cgroup.procs",
        f"move thread 4200110 to {CG}/cpu/vms/qemu-vm/vcpu0/tasks",
        f"move thread 4200111 to {CG}/cpu/vms/qemu-vm/vcpu1/tasks",
        f"move thread 4200121 to {CG}/cpu/vms/qemu-vm/iothread1/tasks",
    ]
    assert lines[-1] == "set the CPUs of thread 4200111 to 1"


def test_a_vm_in_v2_takes_its_device_program_along(v2: Kernel) -> None:
    do(v2, "prepare", vm())
    made = operations.plan(v2, v2.config(), "started", v2.start_vm(vm(), INNER))
    carried = [number for number, step in enumerate(made.steps) if isinstance(step, CarryDevices)]
    moves = [number for number, step in enumerate(made.steps) if str(step).startswith("move ")]
    assert len(carried) == 1
    assert carried[0] < moves[0]
    assert str(made.steps[carried[0]]) == (
        f"attach the device filter of {CG}/machine/qemu-3-vm.libvirt-qemu to {CG}/vms/qemu-vm"
    )


def test_tuning_goes_along(host: Kernel) -> None:
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER + "<memtune/>")
    shared = not host.exists(f"{CG}/memory")
    base = "machine/qemu-3-vm.libvirt-qemu"
    old, new = (
        (f"{CG}/{base}", f"{CG}/vms/qemu-vm")
        if shared
        else (f"{CG}/cpu/{base}", f"{CG}/cpu/vms/qemu-vm")
    )
    memory_old, memory_new = (
        (old, new) if shared else (f"{CG}/memory/{base}", f"{CG}/memory/vms/qemu-vm")
    )
    weight, quota, limit = (
        ("cpu.weight", "cpu.max", "memory.max")
        if shared
        else ("cpu.shares", "cpu.cfs_quota_us", "memory.limit_in_bytes")
    )
    host.write(f"{old}/{weight}", "512")
    host.write(f"{old}/vcpu1/{quota}", "50000 100000" if shared else "50000")
    host.write(f"{memory_old}/{limit}", str(256 * MIB))
    do(host, "started", subject)
    assert host.get(f"{new}/{weight}") == "512"
    assert host.get(f"{new}/vcpu1/{quota}").startswith("50000")
    assert host.get(f"{memory_new}/{limit}") == str(256 * MIB)


def test_a_hybrid_hosts_v2_hierarchy_stays_as_it_is(tmp_path: Path) -> None:
    v1 = Kernel(tmp_path, "v1", CONF)
    v1.put("/proc/mounts", v1.get("/proc/mounts") + f"\ncgroup2 {CG}/unified cgroup2 rw 0 0")
    v1.put("/proc/self/cgroup", v1.get("/proc/self/cgroup") + "\n0::/")
    v1.put(f"{CG}/unified/cgroup.controllers", "hugetlb")
    do(v1, "prepare", vm())
    subject = v1.start_vm(vm(), INNER)
    v1.place(4200100, 4200100, {"": "/machine/qemu-3-vm.libvirt-qemu/emulator"})
    assert not [line for line in do(v1, "started", subject) if "v2" in line]
    assert v1.where(4200100, 4200100)[""] == "/machine/qemu-3-vm.libvirt-qemu/emulator"


def test_pins_hold_and_lie_within_the_fence(v2: Kernel) -> None:
    v2.configure(CONF + "emulator_cpus = '0-1'\nvcpu_cpus = '2-3'\npin_conflict = 'warn'")
    inner = (
        "<vcpu>2</vcpu><iothreads>1</iothreads><cputune><vcpupin vcpu='1' cpuset='0,3'/></cputune>"
    )
    do(v2, "prepare", vm(inner=inner))
    subject = v2.start_vm(vm(inner=inner), inner)
    do(v2, "started", subject)
    groups = {group: cpus(v2, f"vms/qemu-vm/{group}") for group in GROUPS}
    # "" is all that the VM has
    assert groups == {"emulator": "1", "vcpu0": "2-3", "vcpu1": "3", "iothread1": ""}
    assert str(v2.affinity(4200111)) == "3"


def test_started_again_changes_nothing(host: Kernel) -> None:
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER, helpers=2)
    do(host, "started", subject)
    for operation in ("started", "reconnect"):
        assert str(plan(host, operation, subject)) == ""


def test_a_vm_that_runs_already_is_placed_at_reconnect(host: Kernel) -> None:
    subject = host.start_vm(vm(), INNER)
    do(host, "reconnect", subject)
    assert places(host, subject) == {group: {f"/vms/qemu-vm/{group}"} for group in GROUPS}
    assert cpus(host, "cpuset/vms" if host.exists(f"{CG}/cpuset") else "vms") in ("1", "1-3")


def test_a_vcpu_that_comes_later_gets_its_group_at_the_next_reconnect(host: Kernel) -> None:
    do(host, "prepare", vm())
    subject = host.start_vm(vm(inner="<vcpu>1</vcpu>"), "<vcpu>1</vcpu>")
    do(host, "started", subject)
    status = host.get("/run/libvirt/qemu/vm.xml")
    host.put(
        "/run/libvirt/qemu/vm.xml", status.replace("<vcpus>", "<vcpus><vcpu id='5' pid='4200115'/>")
    )
    host.start_thread(4200100, 4200115, "CPU 5/KVM", host.where(4200100, 4200100))
    do(host, "reconnect", subject)
    assert {path for path in host.where(4200100, 4200115).values() if path.startswith("/vms/")} >= {
        "/vms/qemu-vm/vcpu5"
    }


def test_a_thread_that_ends_meanwhile_is_no_failure(host: Kernel) -> None:
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER)
    made = plan(host, "started", subject)
    shutil.rmtree(f"{host.root}/proc/4200100/task/4200121")
    run(host, made)
    assert places(host, vm(inner="<vcpu>2</vcpu>")) == {
        group: {f"/vms/qemu-vm/{group}"} for group in GROUPS[:3]
    }


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_thread_that_is_removed_while_it_is_being_placed(tmp_path: Path, kind: str) -> None:
    """libvirt takes away its group meanwhile; the others are placed all the same."""
    host = Kernel(tmp_path, kind, "emulator_cpus = '0'\niothread_cpus = '1'\n")
    subject = host.start_vm(vm(), INNER)
    made = plan(host, "started", subject)
    shutil.rmtree(f"{host.root}/proc/4200100/task/4200121")
    for hierarchy in host.hierarchies:
        host.remove_directory(hierarchy.directory("/machine/qemu-3-vm.libvirt-qemu/iothread1"))
    run(host, made)
    cpuset = next(h for h in host.hierarchies if "cpuset" in h.controllers)
    directory = cpuset.directory("/machine/qemu-3-vm.libvirt-qemu")
    assert host.get(f"{directory}/emulator/cpuset.cpus") == "0"
    assert not host.exists(f"{directory}/iothread1")


def test_thread_numbers_below_that_of_the_process(host: Kernel) -> None:
    """After the numbers have wrapped, a thread's can be lower than its process's."""
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER)
    base = "/machine/qemu-3-vm.libvirt-qemu"
    host.start_thread(
        4200100,
        4200099,
        "CPU 0/KVM",
        {h.key: f"{base}/vcpu0" if splits(h) else base for h in host.hierarchies},
    )
    host.put(
        "/run/libvirt/qemu/vm.xml",
        host.get("/run/libvirt/qemu/vm.xml").replace("4200110", "4200099"),
    )
    top, weight = (
        ("", "cpu.weight") if host.exists(f"{CG}/cgroup.controllers") else ("/cpu", "cpu.shares")
    )
    host.write(f"{CG}{top}{base}/{weight}", "512")
    do(host, "started", subject)
    assert host.where(4200100, 4200099)[top.strip("/")] == "/vms/qemu-vm/vcpu0"
    assert host.get(f"{CG}{top}/vms/qemu-vm/{weight}") == "512"


@pytest.mark.parametrize("text", [None, "<domain><name>vm</name></domain>"])
def test_a_vm_without_a_process(host: Kernel, text: str | None) -> None:
    if text:
        host.put("/run/libvirt/qemu/vm.xml", text)
    with pytest.raises(Error, match=r"^VM vm has no process: it has ended meanwhile$"):
        plan(host, "started", vm())


class Failing(Kernel):
    """A kernel that refuses any CPU affinity."""

    def set_affinity(self, thread: int, cpus: Iterable[int]) -> None:
        if self.fails:
            raise Refused(f"set the CPUs of thread {thread}", OSError(22, "Invalid argument"))
        super().set_affinity(thread, cpus)

    fails = False


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_a_failure_at_the_last_step_puts_everything_back(tmp_path: Path, name: str) -> None:
    host = Failing(tmp_path, name, CONF)
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER, helpers=1)
    before = host.snapshot()
    host.fails = True
    made = plan(host, "started", subject)
    with pytest.raises(Refused, match="Invalid argument"):
        run(host, made)
    assert host.snapshot() == before
    assert made.warnings == [
        "could not undo (set the CPUs of thread 4200111 to 1): "
        "cannot set the CPUs of thread 4200111: Invalid argument"
    ]


def test_native_moves_nothing(host: Kernel) -> None:
    host.configure("reserved_host_cpus = '0'\nvcpu_cpus = '1'")
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), "<vcpu>2</vcpu><iothreads>1</iothreads>")
    written = do(host, "started", subject)
    assert not [line for line in written if "procs" in line or "tasks" in line or "threads" in line]
    top = "cpuset/machine" if host.exists(f"{CG}/cpuset") else "machine"
    base = f"{top}/qemu-3-vm.libvirt-qemu"
    assert (cpus(host, f"{base}/vcpu0"), cpus(host, f"{base}/vcpu1")) == ("1", "1")
    assert cpus(host, top) == ("1" if top != "machine" else "1-3")


@pytest.mark.parametrize("layout", ["native", "/vms/$NAME"])
def test_sets_win_over_an_affinity_that_was_inherited(host: Kernel, layout: str) -> None:
    """As libvirt 12.8 leaves the vCPUs of a VM with `<emulatorpin>`."""
    host.configure(f"cgroup_layout = '{layout}'\nvcpu_cpus = '0-1'")
    pins = "<emulatorpin cpuset='1'/><vcpupin vcpu='1' cpuset='1'/>"
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), f"<vcpu>2</vcpu><cputune>{pins}</cputune>")
    for thread in (VCPU0, VCPU1):
        host.put(f"/proc/{PID}/task/{thread}/allowed", "1")
        host.put(f"/proc/{PID}/task/{thread}/status", "Cpus_allowed_list:\t1\n")
    running = threads.running(host, {})[0]
    found = describe(host, managers.choose(host, host.config()), running)["problems"]
    told = "it may use only CPUs 1, not all of"
    assert [text for text in found if told in text] == [f"thread {VCPU0} (vcpu0): {told} 0-1"]
    written = do(host, "started", subject)
    present = host.get("/sys/devices/system/cpu/present")
    assert f"affinity {VCPU0} {present}" in written
    assert f"affinity {VCPU1} {present}" not in written


@pytest.mark.parametrize(
    ("layout", "path"), [("root", "qemu-vm"), ("flat", "qemu-vm"), ("uuid", f"qemu-{UUID}")]
)
def test_without_a_parent_each_vm_carries_the_fence(host: Kernel, layout: str, path: str) -> None:
    host.configure(f"reserved_host_cpus = '0'\ncgroup_layout = '{layout}'")
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER)
    do(host, "started", subject)
    prefix, online = ("cpuset/", "1") if host.exists(f"{CG}/cpuset") else ("", "1-3")
    assert cpus(host, prefix + path) == online
    host.configure(f"reserved_host_cpus = '1'\ncgroup_layout = '{layout}'\npin_conflict = 'warn'")
    do(host, "reconnect", subject)
    assert cpus(host, prefix + path) == ("0" if prefix else "0,2-3")
