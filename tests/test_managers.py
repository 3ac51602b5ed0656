"""What is done to the cgroups of a recorded host, v1 and v2, from prepare to release.

The kernel's rules are kept by `hosts.Kernel`: what it takes in this order, the kernel takes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers
from libvirt_cgroup_hooks.bpf import CarryDevices
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.errors import Error, Refusal
from libvirt_cgroup_hooks.host import Refused
from libvirt_cgroup_hooks.plan import Plan

from .hosts import NO_LIMIT, UUID, Kernel, domain, run, splits

CG = "/sys/fs/cgroup"
MIB = 2**20
CONF = """
reserved_host_cpus = "0"
reserved_host_mem = "512 MiB"
cgroup_layout = "/vms/$DRIVER-$NAME"
"""
SMALL_LIMIT = 2040212 * 1024 - 512 * MIB
UNIFIED_LIMIT = 8135396 * 1024 - 512 * MIB
INNER = (
    "<vcpu>2</vcpu><iothreads>1</iothreads><memory unit='MiB'>128</memory>"
    "<cputune><shares>512</shares><vcpupin vcpu='1' cpuset='1'/></cputune>"
)


@pytest.fixture
def v1(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path, "small", CONF)


@pytest.fixture
def v2(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path, "unified", CONF)


@pytest.fixture(params=["small", "unified"])
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Kernel:
    return Kernel(tmp_path, request.param, CONF)


def vm(name: str = "vm", inner: str = INNER) -> Domain:
    return domain(name, inner)


def plan(host: Kernel, operation: str, subject: Domain) -> Plan:
    """The device program needs a real kernel."""
    made = managers.plan(host, host.config(), operation, subject)
    made.steps = [step for step in made.steps if not isinstance(step, CarryDevices)]
    return made


def do(host: Kernel, operation: str, subject: Domain) -> list[str]:
    return run(host, plan(host, operation, subject))


def cpus(host: Kernel, directory: str) -> str:
    return host.get(f"{CG}/{directory}/cpuset.cpus")


def states(host: Kernel, *without: str) -> dict[str, str]:
    return {path: text for path, text in host.snapshot().items() if not path.startswith(without)}


# who owns cgroups


BUS, BOOTED = "/run/dbus/system_bus_socket", "/run/systemd/system/x"
MACHINED = "dbus-1/system-services/org.freedesktop.machine1.service"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ([], "cgroupfs"),
        ([BUS], "cgroupfs"),
        ([BUS, BOOTED], "cgroupfs"),  # no machined
        ([BOOTED, f"/usr/share/{MACHINED}"], "cgroupfs"),  # no bus
        ([BUS, f"/usr/share/{MACHINED}"], "cgroupfs"),  # installed, and another init
        ([BUS, BOOTED, f"/usr/share/{MACHINED}"], "systemd"),
        ([BUS, BOOTED, f"/etc/{MACHINED}"], "systemd"),
        ([BUS, BOOTED, f"/run/{MACHINED}"], "systemd"),
    ],
)
def test_the_manager(v2: Kernel, files: list[str], name: str) -> None:
    for file in files:
        v2.put(file, "")
    assert managers.name(v2) == name


@pytest.mark.parametrize(
    ("files", "pid"),
    [
        ({}, "self"),
        ({"/run/libvirtd.pid": "77"}, "self"),  # it has ended
        ({"/run/libvirtd.pid": "77", "/proc/77/cgroup": "0::/"}, "77"),
        ({"/run/virtqemud.pid": "78\n", "/proc/78/cgroup": "0::/"}, "78"),
        ({"/run/libvirtd.pid": "x", "/run/libvirt/libvirtd.pid": "9", "/proc/9/cgroup": "0::/"}, "9"),
        ({"/run/libvirtd.pid": "../77", "/proc/77/cgroup": "0::/"}, "self"),
    ],
)
def test_the_daemon(v2: Kernel, files: dict[str, str], pid: str) -> None:
    for path, text in files.items():
        v2.put(path, text)
    assert managers.daemon(v2) == pid


@pytest.mark.parametrize(
    ("operation", "conf", "known", "concerns"),
    [
        *((operation, CONF, False, True) for operation in ("prepare", "started", "reconnect")),
        ("start", CONF, False, False),  # all that can be done before QEMU runs is done at prepare
        *((operation, CONF, False, False) for operation in ("stopped", "release", "migrate", "restore", "attach", "")),
        *((operation, "", False, False) for operation in ("prepare", "started", "reconnect", "stopped", "release")),
        *((operation, "", True, True) for operation in ("stopped", "release")),
        *((operation, CONF, True, False) for operation in ("migrate", "restore", "attach")),
    ],
)
def test_whether_an_operation_concerns_us(v2: Kernel, operation: str, conf: str, known: bool, concerns: bool) -> None:
    v2.configure(conf)
    if known:
        v2.make_directory("/run/libvirt-cgroup-hooks")
    assert managers.concerns(v2, v2.config(), operation) == concerns


# prepare


def test_prepare_v1(v1: Kernel) -> None:
    """cpuset.mems and cpuset.cpus are there before any process, and so is the limit."""
    assert do(v1, "prepare", vm()) == [
        f"mkdir {CG}/memory/machine",
        f"{CG}/memory/machine/memory.use_hierarchy 1",
        f"{CG}/memory/machine/memory.limit_in_bytes {SMALL_LIMIT}",
        f"mkdir {CG}/memory/vms",
        f"{CG}/memory/vms/memory.use_hierarchy 1",
        f"{CG}/memory/vms/memory.limit_in_bytes {SMALL_LIMIT}",
        f"mkdir {CG}/cpu/vms",
        f"mkdir {CG}/cpuset/machine",
        f"{CG}/cpuset/machine/cpuset.mems 0",
        f"{CG}/cpuset/machine/cpuset.cpus 1",
        f"mkdir {CG}/cpuset/vms",
        f"{CG}/cpuset/vms/cpuset.mems 0",
        f"{CG}/cpuset/vms/cpuset.cpus 1",
    ]


def test_prepare_v2(v2: Kernel) -> None:
    """Controllers are enabled from the root down before the file of each is written."""
    do(v2, "prepare", vm())
    assert v2.written[0] == f"{CG}/cgroup.subtree_control +cpu +cpuset +io +memory +pids"
    assert [(cpus(v2, path), v2.get(f"{CG}/{path}/memory.max")) for path in ("machine", "vms")] == [
        ("1-3", str(UNIFIED_LIMIT)),
        ("1-3", str(UNIFIED_LIMIT)),
    ]


def test_prepare_is_idempotent(host: Kernel) -> None:
    do(host, "prepare", vm())
    before = host.snapshot()
    assert do(host, "prepare", vm()) == []
    assert do(host, "prepare", domain("other", uuid="0" * 35 + "1")) == []
    assert states(host, "run/") == {path: text for path, text in before.items() if not path.startswith("run/")}


def test_prepare_with_nothing_to_fence_only_makes_the_parent(v1: Kernel) -> None:
    v1.configure("cgroup_layout = '/vms/$NAME'")
    do(v1, "prepare", vm())
    assert v1.cgroups() == [f"{CG}/{name}/vms" for name in ("cpu", "cpuset", "memory")]
    assert cpus(v1, "cpuset/vms") == "0-1"


@pytest.mark.parametrize("layout", ["root", "uuid", "flat", "native"])
def test_without_a_parent_only_the_place_where_libvirt_starts_vms_is_fenced(host: Kernel, layout: str) -> None:
    host.configure(f"reserved_host_cpus = '0'\ncgroup_layout = '{layout}'")
    do(host, "prepare", vm())
    assert {path.rpartition("/")[2] for path in host.cgroups()} == {"machine"}


@pytest.mark.parametrize(
    ("partition", "directory"),
    [
        ("", "machine"),
        ("/machine", "machine"),
        ("/machine/production", "machine"),
        ("/user/me", "user"),
        ("/deployment/production", "deployment.partition"),
        ("/one.two/x", "one.two"),
        ("/_x", "__x.partition"),
    ],
)
def test_where_libvirt_starts_a_vm(v1: Kernel, partition: str, directory: str) -> None:
    v1.configure("reserved_host_cpus = '0'")
    do(v1, "prepare", vm(inner=f"<resource><partition>{partition}</partition></resource>"))
    assert v1.cgroups() == [f"{CG}/cpuset/{directory}"]


def test_a_parent_of_several_levels(v1: Kernel) -> None:
    v1.configure("reserved_host_cpus = '0'\ncgroup_layout = '/a/b/$NAME'")
    do(v1, "prepare", vm())
    assert (cpus(v1, "cpuset/a"), cpus(v1, "cpuset/a/b")) == ("0-1", "1")  # the fence is on the parent alone


@pytest.mark.parametrize(
    ("name", "at", "parent"),
    [
        ("small", "/", "/qemu"),
        ("small", "/a/daemon", "/a/daemon/qemu"),
        ("unified", "/", "/qemu"),
        ("unified", "/a/daemon", "/a/qemu"),  # the daemon's own has processes, so it can have no children there
    ],
)
def test_where_the_daemon_is(tmp_path: Path, name: str, at: str, parent: str) -> None:
    host = Kernel(tmp_path, name, "reserved_host_cpus = '0'\ncgroup_layout = 'nested'")
    for hierarchy in host.hierarchies:
        host.libvirt_cgroups(hierarchy, ["/a", at] if at != "/" else [])
    own = host.get("/proc/self/cgroup")
    host.put("/proc/self/cgroup", "\n".join(line.rpartition(":")[0] + ":" + at for line in own.splitlines()))
    do(host, "prepare", vm())
    prefix = "cpuset" if name == "small" else ""
    assert cpus(host, prefix + parent) == ("1" if name == "small" else "1-3")


def test_a_limit_below_what_is_in_use_is_refused(host: Kernel) -> None:
    do(host, "prepare", vm())
    usage = f"{CG}/memory/vms/memory.usage_in_bytes" if host.exists(f"{CG}/memory") else f"{CG}/vms/memory.current"
    host.put(usage, str(1700 * MIB))
    host.configure(CONF.replace("512 MiB", "90%"))
    before = host.snapshot()
    with pytest.raises(Error) as error:
        do(host, "prepare", vm())
    directory = usage.rpartition("/")[0]
    assert f"cannot limit {directory} to " in str(error.value)
    assert ": 1.7 GiB are in use: stop VMs or reserve less; a lower limit would kill one" in str(error.value)
    assert host.snapshot() == before


@pytest.mark.parametrize(
    ("inner", "outside"),
    [
        ("<vcpu cpuset='0-1'>1</vcpu>", "emulator to 0-1 (outside: 0), vcpu0 to 0-1 (outside: 0)"),
        ("<cputune><vcpupin vcpu='0' cpuset='0'/></cputune>", "vcpu0 to 0 (outside: 0)"),
    ],
)
def test_pins_outside_are_refused_or_told(host: Kernel, inner: str, outside: str) -> None:
    with pytest.raises(Refusal) as error:
        plan(host, "prepare", vm("web", inner))
    assert str(error.value).startswith(f"VM web is pinned to CPUs that are kept for the host: {outside}: pin it within ")
    host.configure(CONF + "pin_conflict = 'warn'")
    made = plan(host, "prepare", vm("web", inner))
    assert made.warnings == ["VM web is pinned to CPUs that are kept for the host"]
    assert made.steps


@pytest.mark.parametrize("conflict", ["refuse", "warn"])
def test_a_pin_to_offline_cpus_is_no_conflict_with_the_host(host: Kernel, conflict: str) -> None:
    """The VM may have what is online of its CPUs; one that has nothing left cannot run, whatever is configured."""
    host.put("/sys/devices/system/cpu/online", "0-2")
    host.put("/sys/devices/system/cpu/present", "0-3")
    host.configure(CONF + f"pin_conflict = '{conflict}'")
    half, whole = (vm("web", f"<cputune><vcpupin vcpu='0' cpuset='{cpus}'/></cputune>") for cpus in ("2-3", "3"))
    if host.exists(f"{CG}/cpuset"):  # v1 takes no such cpuset at all
        with pytest.raises(Refusal, match=r"vcpu0 to 2-3 \(offline: 3\)"):
            plan(host, "prepare", half)
    else:
        made = plan(host, "prepare", half)
        assert made.steps
        assert not made.warnings
    with pytest.raises(
        Refusal, match=r"pinned to CPUs that are offline: vcpu0 to 3 \(offline: 3\): bring them online, or pin"
    ):
        plan(host, "prepare", whole)


def test_a_name_that_makes_no_cgroup_is_told_before_the_vm_starts(host: Kernel) -> None:
    with pytest.raises(Error, match=r"would have a name over 255 bytes: use \$UUID in the layout"):
        plan(host, "prepare", vm("x" * 251))


@pytest.mark.parametrize(
    ("mounted", "message"),
    [
        ("memory", "cannot keep CPUs for the host: there is no cpuset controller: mount or enable it"),
        ("cpuset", "cannot keep memory for the host: there is no memory controller: mount or enable it"),
    ],
)
def test_a_controller_that_is_not_there(v1: Kernel, mounted: str, message: str) -> None:
    v1.put("/proc/self/cgroup", f"2:{mounted}:/\n3:devices:/")
    with pytest.raises(Error) as error:
        plan(v1, "prepare", vm())
    assert str(error.value) == message


def test_a_cgroup_with_processes_of_its_own_cannot_hold_vms_on_v2(v2: Kernel) -> None:
    v2.enable(CG, "+cpu +cpuset +memory +io +pids")
    v2.make_directory(f"{CG}/vms")
    v2.place(1, 1, {"": "/vms"})
    v2.configure(CONF.replace("/vms/", "/vms/prod/"))
    with pytest.raises(Error) as error:
        plan(v2, "prepare", vm())
    assert str(error.value) == (
        f"cannot make cgroups for VMs below {CG}/vms: it has processes of its own, and the kernel then enables no "
        "cpu/cpuset/io/memory/pids below it: choose a cgroup_layout elsewhere, such as /vms/$DRIVER-$NAME"
    )


def test_a_parent_that_others_made_without_controllers_on_v2(v2: Kernel) -> None:
    v2.make_directory(f"{CG}/vms")
    do(v2, "prepare", vm())
    assert cpus(v2, "vms") == "1-3"


@pytest.mark.parametrize("layout", ["legacy", "/a/b/$NAME"])
def test_the_limit_of_a_deep_parent_covers_its_children_before_linux_5_11(v1: Kernel, layout: str) -> None:
    v1.configure(f"reserved_host_mem = '512 MiB'\ncgroup_layout = '{layout}'")
    do(v1, "prepare", vm())
    parent = {"legacy": "libvirt/qemu"}.get(layout, "a/b")
    assert v1.get(f"{CG}/memory/{parent}/memory.limit_in_bytes") == str(SMALL_LIMIT)
    assert v1.get(f"{CG}/memory/{parent}/memory.use_hierarchy") == "1"


# a change of the fence


def fenced(host: Kernel, kept: str) -> None:
    host.configure(f"reserved_host_cpus = '{kept}'\ncgroup_layout = '/vms/$NAME'")
    do(host, "prepare", domain("other", uuid="0" * 35 + "1"))


@pytest.fixture
def four(tmp_path: Path) -> Kernel:
    """As `small`, with four CPUs."""
    host = Kernel(tmp_path, "small", CONF)
    for path in ("/sys/devices/system/cpu/online", "/sys/devices/system/cpu/present", f"{CG}/cpuset/cpuset.cpus"):
        host.put(path, "0-3")
    fenced(host, "0-1")
    subject = host.start_vm(vm(inner=""))
    do(host, "started", subject)
    return host


VM_SETS = ("cpuset/vms", "cpuset/vms/vm", "cpuset/vms/vm/emulator", "cpuset/vms/vm/vcpu0")


@pytest.mark.parametrize("kept", ["0", "0-2", "0,3", "2-3", "1-3", "3"])
def test_children_first_on_shrink_and_parents_first_on_growth(four: Kernel, kept: str) -> None:
    assert {cpus(four, path) for path in VM_SETS} == {"2-3"}
    fenced(four, kept)
    wanted = str(CpuSet.parse("0-3") - CpuSet.parse(kept))
    assert [cpus(four, path) for path in VM_SETS] == [wanted] * len(VM_SETS)


def test_a_child_with_fewer_cpus_keeps_those_that_are_left(four: Kernel) -> None:
    four.write(f"{CG}/cpuset/vms/vm/vcpu0/cpuset.cpus", "3")
    fenced(four, "0")
    assert [cpus(four, path) for path in VM_SETS] == ["1-3", "1-3", "1-3", "3"]
    with pytest.raises(Error) as error:
        fenced(four, "3")
    assert str(error.value) == (
        f"cannot set the CPUs of {CG}/cpuset/vms to 0-2: {CG}/cpuset/vms/vm/vcpu0 is limited to 3: "
        "stop or re-pin the VM it belongs to first"
    )


# started


def places(host: Kernel, subject: Domain, pid: int = 4200100) -> dict[str, set[str]]:
    """The cgroups of the VM's threads, by group, in the hierarchies where libvirt splits a VM."""
    names = {pid: "emulator", pid + 1: "emulator"}
    names.update((pid + 10 + n, f"vcpu{n}") for n in subject.online_vcpus())
    names.update((pid + 20 + n, f"iothread{n}") for n in subject.iothread_numbers())
    found: dict[str, set[str]] = {}
    for tid, group in names.items():
        where = host.where(pid, tid)
        found.setdefault(group, set()).update(path for key, path in where.items() if key in ("", "cpu", "cpuset"))
    return found


GROUPS = ("emulator", "vcpu0", "vcpu1", "iothread1")


def test_every_thread_is_in_its_group(host: Kernel) -> None:
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER, helpers=1)
    do(host, "started", subject)
    assert places(host, subject) == {group: {f"/vms/qemu-vm/{group}"} for group in GROUPS}
    helper = host.where(4200150, 4200150)
    assert all(helper[key] == "/vms/qemu-vm/emulator" for key in ("", "cpu", "cpuset") if key in helper)
    for pid in (4200100, 4200150):
        assert host.where(pid, pid).get("memory", "/vms/qemu-vm") == "/vms/qemu-vm"
        assert host.where(pid, pid).get("devices", "/machine/qemu-3-vm.libvirt-qemu").startswith("/machine/")


def test_the_order_on_v1(v1: Kernel) -> None:
    """Each cpuset has its memory nodes and CPUs before a process comes; the whole process first, then its threads."""
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
        *(f"make {CG}/cpu/vms/qemu-vm/{group}" for group in ("emulator", "iothread1", "vcpu0", "vcpu1")),
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
    made = managers.plan(v2, v2.config(), "started", v2.start_vm(vm(), INNER))
    carried = [number for number, step in enumerate(made.steps) if isinstance(step, CarryDevices)]
    moves = [number for number, step in enumerate(made.steps) if str(step).startswith("move ")]
    assert len(carried) == 1
    assert carried[0] < moves[0]
    assert str(made.steps[carried[0]]) == (
        f"attach the device program of {CG}/machine/qemu-3-vm.libvirt-qemu to {CG}/vms/qemu-vm"
    )


def test_tuning_goes_along(host: Kernel) -> None:
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER + "<memtune/>")
    shared = not host.exists(f"{CG}/memory")
    base = "machine/qemu-3-vm.libvirt-qemu"
    old, new = (f"{CG}/{base}", f"{CG}/vms/qemu-vm") if shared else (f"{CG}/cpu/{base}", f"{CG}/cpu/vms/qemu-vm")
    memory_old, memory_new = (old, new) if shared else (f"{CG}/memory/{base}", f"{CG}/memory/vms/qemu-vm")
    weight, quota, limit = (
        ("cpu.weight", "cpu.max", "memory.max") if shared else ("cpu.shares", "cpu.cfs_quota_us", "memory.limit_in_bytes")
    )
    host.write(f"{old}/{weight}", "512")
    host.write(f"{old}/vcpu1/{quota}", "50000 100000" if shared else "50000")
    host.write(f"{memory_old}/{limit}", str(256 * MIB))
    do(host, "started", subject)
    assert host.get(f"{new}/{weight}") == "512"
    assert host.get(f"{new}/vcpu1/{quota}").startswith("50000")
    assert host.get(f"{memory_new}/{limit}") == str(256 * MIB)


def test_a_hybrid_hosts_v2_hierarchy_stays_as_it_is(tmp_path: Path) -> None:
    v1 = Kernel(tmp_path, "small", CONF)
    v1.put("/proc/mounts", v1.get("/proc/mounts") + f"\ncgroup2 {CG}/unified cgroup2 rw 0 0")
    v1.put("/proc/self/cgroup", v1.get("/proc/self/cgroup") + "\n0::/")
    v1.put(f"{CG}/unified/cgroup.controllers", "io")
    do(v1, "prepare", vm())
    subject = v1.start_vm(vm(), INNER)
    v1.place(4200100, 4200100, {"": "/machine/qemu-3-vm.libvirt-qemu/emulator"})
    assert not [line for line in do(v1, "started", subject) if "unified" in line]
    assert v1.where(4200100, 4200100)[""] == "/machine/qemu-3-vm.libvirt-qemu/emulator"


def test_pins_hold_and_lie_within_the_fence(v2: Kernel) -> None:
    v2.configure(CONF + "emulator_cpus = '0-1'\nvcpu_cpus = '2-3'\npin_conflict = 'warn'")
    inner = "<vcpu>2</vcpu><iothreads>1</iothreads><cputune><vcpupin vcpu='1' cpuset='0,3'/></cputune>"
    do(v2, "prepare", vm(inner=inner))
    subject = v2.start_vm(vm(inner=inner), inner)
    do(v2, "started", subject)
    groups = {group: cpus(v2, f"vms/qemu-vm/{group}") for group in GROUPS}
    assert groups == {"emulator": "1", "vcpu0": "2-3", "vcpu1": "3", "iothread1": ""}  # "" is all that the VM has
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
    host.put("/run/libvirt/qemu/vm.xml", status.replace("<vcpus>", "<vcpus><vcpu id='5' pid='4200115'/>"))
    host.start_thread(4200100, 4200115, "CPU 5/KVM", host.where(4200100, 4200100))
    do(host, "reconnect", subject)
    assert {path for path in host.where(4200100, 4200115).values() if path.startswith("/vms/")} >= {"/vms/qemu-vm/vcpu5"}


def test_a_thread_that_ends_meanwhile_is_no_failure(host: Kernel) -> None:
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER)
    made = plan(host, "started", subject)
    shutil.rmtree(f"{host.root}/proc/4200100/task/4200121")
    run(host, made)
    assert places(host, vm(inner="<vcpu>2</vcpu>")) == {group: {f"/vms/qemu-vm/{group}"} for group in GROUPS[:3]}


def test_thread_numbers_below_that_of_the_process(host: Kernel) -> None:
    """After the numbers have wrapped, a thread's can be lower than its process's."""
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER)
    base = "/machine/qemu-3-vm.libvirt-qemu"
    host.start_thread(4200100, 4200099, "CPU 0/KVM", {h.key: f"{base}/vcpu0" if splits(h) else base for h in host.hierarchies})
    host.put("/run/libvirt/qemu/vm.xml", host.get("/run/libvirt/qemu/vm.xml").replace("4200110", "4200099"))
    top, weight = ("", "cpu.weight") if host.exists(f"{CG}/cgroup.controllers") else ("/cpu", "cpu.shares")
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


@pytest.mark.parametrize("name", ["small", "unified"])
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
        "could not undo (set the CPUs of thread 4200111 to 1): cannot set the CPUs of thread 4200111: Invalid argument"
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


@pytest.mark.parametrize(("layout", "path"), [("root", "qemu-vm"), ("flat", "qemu-vm"), ("uuid", f"qemu-{UUID}")])
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


# stopped, release


NAMES = ["web", "a b", "..", ".", "-x", "a'b\"c\\d", "💩", "x" * 200, "_x", "tasks", "$ID", "cpu.max"]


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        *(("/vms/$NAME", name) for name in NAMES),
        *((layout, "a b") for layout in ("legacy", "nested", "flat", "root", "uuid", "/vms/$NAME/$UUID", "/a/b/$UUID")),
    ],
)
def test_nothing_is_left_behind(host: Kernel, layout: str, name: str) -> None:
    host.configure(f"reserved_host_cpus = '0'\ncgroup_layout = '{layout}'")
    before = states(host, "run/")
    do(host, "prepare", vm(name))
    subject = host.start_vm(vm(name), INNER)
    do(host, "started", subject)
    host.end_vm(subject)
    for operation in ("stopped", "release"):
        do(host, operation, subject)
    assert [path for path in host.cgroups() if not path.endswith("/machine")] == []
    assert host.names("/run/libvirt-cgroup-hooks/vms") == []
    after = states(host, "run/")
    assert {path: text for path, text in after.items() if "/machine/" not in path and "subtree_control" not in path} == {
        path: text for path, text in before.items() if "subtree_control" not in path
    }


@pytest.mark.parametrize("operations", [["stopped", "release"], ["release"], ["stopped", "stopped", "release", "release"]])
def test_also_when_started_never_came(host: Kernel, operations: list[str]) -> None:
    before = host.cgroups()
    do(host, "prepare", vm())
    for operation in operations:
        do(host, operation, vm())
    assert host.cgroups() == before
    assert host.names("/run/libvirt-cgroup-hooks/vms") == []


def test_also_when_the_daemon_was_killed_and_libvirt_left_its_cgroups(host: Kernel) -> None:
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER)
    do(host, "started", subject)
    host.end_vm(subject, libvirt=False)
    do(host, "release", subject)
    left = [path for path in host.cgroups() if "qemu-3" in path and "/devices/" not in path]
    assert left == []


def test_what_an_earlier_run_left_goes_at_the_next_prepare(host: Kernel) -> None:
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER)
    do(host, "started", subject)
    host.end_vm(subject)
    do(host, "prepare", vm())
    assert not [path for path in host.cgroups() if "qemu-vm" in path]


def test_the_parent_stays_while_another_vm_is_known(host: Kernel) -> None:
    other = domain("other", INNER, uuid="0" * 35 + "1")
    do(host, "prepare", vm())
    do(host, "prepare", other)
    do(host, "release", vm())
    assert [path for path in host.cgroups() if path.endswith("/vms")]
    do(host, "release", other)
    assert host.cgroups() == []


def test_a_vm_that_is_not_known_is_left_alone(host: Kernel) -> None:
    subject = host.start_vm(vm(), INNER)
    for operation in ("stopped", "release"):
        assert str(plan(host, operation, subject)) == ""


def test_a_group_that_others_made_keeps_its_limits(host: Kernel) -> None:
    """What we fenced and did not make says again what it said before, when the last VM has gone."""
    for hierarchy in host.hierarchies:
        host.libvirt_cgroups(hierarchy, ["/vms"])
        if hierarchy.version == 2:
            host.enable(hierarchy.mount, "+io +pids")
            host.write(f"{hierarchy.mount}/vms/cpuset.cpus", "0-2")
    before = states(host, "run/")
    do(host, "prepare", vm())
    during = states(host, "run/")
    assert {path for path in before if before[path] != during[path]} > set()
    do(host, "release", vm())
    after = states(host, "run/")
    assert {path: after[path].replace("-1", NO_LIMIT) if "limit_in" in path else after[path] for path in after} == before


@pytest.mark.parametrize("kind", ["small", "unified"])
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
