"""Hosts that have controllers on cgroup v1 and on v2: each is asked for where it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers
from libvirt_cgroup_hooks.cgroups import Hierarchy, detect
from libvirt_cgroup_hooks.cli.checks import host as checks
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.kernel.devices import CarryDevices
from libvirt_cgroup_hooks.operations import plan as plan_of

from ..support.hosts import PID, Kernel, run
from ..support.machined import ACTIVATION, BUS, SERVICE
from ..support.operations import CG, INNER, SMALL_LIMIT, do, plan, vm

CONF = "reserved_host_cpus = '0'\nreserved_host_mem = '512 MiB'\n"
MOVED = CONF + "cgroup_layout = '/vms/$NAME'\n"
ALL = "cpuset cpu io memory hugetlb pids"
V1_FILES = {
    "cpuset": {"cpuset.cpus": "0-1", "cpuset.mems": "0"},
    "cpu": {"cpu.shares": "1024"},
    "memory": {"memory.use_hierarchy": "1", "memory.usage_in_bytes": "0"},
    "devices": {"devices.list": "a *:* rwm"},
}
EVERYTHING = "cpuset,cpu,cpuacct,blkio,memory,devices,freezer,net_cls,perf_event"


class Mixed(Kernel):
    """The host v1 with the hierarchies V1 (name and controllers), and cgroup2 at UNIFIED, whose
    root has CONTROLLERS.
    """

    def __init__(self, root: Path, v1: dict[str, str], controllers: str, unified: str = CG) -> None:
        super().__init__(root, "v1")
        self.is_libvirt = False
        shutil.rmtree(self.root + CG)
        mounts = [f"cgroup2 {unified} cgroup2 rw 0 0"]
        places = ["0::/"]
        for number, (name, names) in enumerate(v1.items(), 1):
            mounts.append(f"cgroup {CG}/{name} cgroup rw,{names} 0 0")
            places.append(f"{number}:{names}:/")
            self.put(f"{CG}/{name}/tasks", "")
            for controller in names.split(","):
                for file, text in V1_FILES.get(controller, {}).items():
                    self.put(f"{CG}/{name}/{file}", text)
        self.put(f"{unified}/cgroup.controllers", controllers)
        self.put(f"{unified}/cgroup.subtree_control", "")
        self.put("/proc/mounts", "\n".join(mounts))
        self.put("/proc/self/cgroup", "\n".join(places))
        self.redetect()

    def redetect(self) -> None:
        found = detect(self.read_optional).hierarchies
        # those of v1 are mounted below that of v2
        self.hierarchies = sorted(found, key=lambda one: -len(one.mount))

    def libvirt_cgroups(self, hierarchy: Hierarchy, paths: list[str]) -> None:
        self.is_libvirt = True
        super().libvirt_cgroups(hierarchy, paths)
        self.is_libvirt = False

    def enable(self, directory: str, value: str) -> None:
        """libvirt enables what is there."""
        if self.is_libvirt:
            there = self.get(f"{directory}/cgroup.controllers").split()
            value = " ".join(word for word in value.split() if word[1:] in there)
        super().enable(directory, value)

    def systemd(self) -> None:
        for path in (BUS, ACTIVATION, "/run/systemd/system/.keep"):
            self.put(path, "")


def without(*names: str) -> str:
    return " ".join(name for name in ALL.split() if name not in names)


NET_CLS = {"net_cls": "net_cls"}
CPUSET = {"cpuset": "cpuset"}
MEMORY = {"memory": "memory"}
ONE = {"all": EVERYTHING}
UNIFIED = f"{CG}/unified"


@pytest.mark.parametrize(
    ("v1", "controllers", "mount", "cpuset", "memory"),
    [
        (NET_CLS, ALL, CG, CG, CG),
        ({"net_prio": "net_cls,net_prio"}, ALL, CG, CG, CG),
        ({"freezer": "freezer", "perf_event": "perf_event"}, ALL, CG, CG, CG),
        ({"pids": "pids"}, without("pids"), CG, CG, CG),
        (CPUSET, without("cpuset"), CG, f"{CG}/cpuset", CG),
        (MEMORY, without("memory"), CG, CG, f"{CG}/memory"),
        ({**CPUSET, **MEMORY}, "io pids", CG, f"{CG}/cpuset", f"{CG}/memory"),
        (ONE, "hugetlb", CG, f"{CG}/all", f"{CG}/all"),
        (ONE, "hugetlb", UNIFIED, f"{CG}/all", f"{CG}/all"),
        (CPUSET, "memory", UNIFIED, f"{CG}/cpuset", UNIFIED),
        (MEMORY, "cpuset cpu", UNIFIED, UNIFIED, f"{CG}/memory"),
    ],
)
@pytest.mark.parametrize("conf", [CONF, MOVED])
def test_each_limit_is_where_its_controller_is(
    tmp_path: Path,
    v1: dict[str, str],
    controllers: str,
    mount: str,
    cpuset: str,
    memory: str,
    conf: str,
) -> None:
    host = Mixed(tmp_path, v1, controllers, mount)
    host.configure(conf)
    do(host, "prepare", vm())
    parents = ("machine", "vms") if conf == MOVED else ("machine",)
    for path in parents:
        assert host.get(f"{cpuset}/{path}/cpuset.cpus") == "1"
        limits = [
            host.get(f"{memory}/{path}/{name}") for name in ("memory.max", "memory.limit_in_bytes")
        ]
        assert str(SMALL_LIMIT) in limits
    do(host, "release", vm())
    assert [path for path in host.cgroups() if path.endswith(("/machine", "/vms"))] == []


MIXES = [
    (NET_CLS, ALL),
    (CPUSET, without("cpuset")),
    (MEMORY, without("memory")),
    (ONE, "hugetlb"),
    # libvirt takes nothing from these, and the VM goes to its place there, too
    ({"pids": "pids"}, without("pids")),
    ({"pids": "pids", "cpuset": "cpuset", "both": "devices,hugetlb"}, "cpu io memory"),
]


@pytest.mark.parametrize(("v1", "controllers"), MIXES)
def test_a_vm_moves_in_every_hierarchy_that_holds_it(
    tmp_path: Path, v1: dict[str, str], controllers: str
) -> None:
    host = Mixed(tmp_path, v1, controllers)
    host.configure(MOVED)
    do(host, "prepare", vm())
    if controllers == "hugetlb":  # libvirt uses it for what is always on v2
        host.hierarchies = [one for one in host.hierarchies if one.version == 1]
    subject = host.start_vm(vm(), INNER)
    do(host, "started", subject)
    where = host.where(PID, PID + 11)
    split = {key: path for key, path in where.items() if key in ("", "cpuset", EVERYTHING)}
    assert set(split.values()) == {"/vms/vm/vcpu1"}
    own = {key: path for key, path in where.items() if key not in split}
    assert own == dict.fromkeys(own, "/vms/vm")
    assert do(host, "reconnect", subject) == []


DEVICES = "c 1:3 rwm\nc 1:5 rwm\nc 10:232 rwm\nb *:* m"


def test_a_device_list_beside_other_controllers_goes_along(tmp_path: Path) -> None:
    """Before there are cgroups below, since the kernel takes no "a" then, and they get a copy."""
    host = Mixed(tmp_path, ONE, "hugetlb")
    host.hierarchies = [one for one in host.hierarchies if one.version == 1]
    host.configure(MOVED)
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER)
    host.put(f"{CG}/all/machine/qemu-3-vm.libvirt-qemu/devices.list", DEVICES)
    lines = [str(step) for step in plan(host, "started", subject).steps]
    at = f"{CG}/all/vms/vm"
    written = [line for line in lines if "/devices." in line]
    assert written == [
        f'write "a" to {at}/devices.deny',
        *(f'write "{line}" to {at}/devices.allow' for line in DEVICES.split("\n")),
    ]
    below = [n for n, line in enumerate(lines) if line == f"make {at}/emulator"]
    assert below[0] > lines.index(written[-1])


@pytest.mark.parametrize(("text", "layout"), [("a *:* rwm", MOVED), (DEVICES, CONF)])
def test_no_device_list_is_written_without_need(tmp_path: Path, text: str, layout: str) -> None:
    """libvirt keeps none, or the VM stays where it is."""
    host = Mixed(tmp_path, ONE, "hugetlb")
    host.hierarchies = [one for one in host.hierarchies if one.version == 1]
    host.configure(layout)
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER)
    host.put(f"{CG}/all/machine/qemu-3-vm.libvirt-qemu/devices.list", text)
    assert not [step for step in plan(host, "started", subject).steps if "/devices." in str(step)]


def test_the_device_program_goes_along_where_a_vm_moves_on_v2(tmp_path: Path) -> None:
    host = Mixed(tmp_path, CPUSET, without("cpuset"))
    host.configure(MOVED)
    do(host, "prepare", vm())
    made = plan_of(host, host.config(), "started", host.start_vm(vm(), INNER))
    assert len([step for step in made.steps if isinstance(step, CarryDevices)]) == 1


# with systemd


@pytest.mark.parametrize("v1", [NET_CLS, {"a": "net_cls,net_prio", "b": "perf_event"}])
def test_systemd_on_v2_with_v1_beside_it(tmp_path: Path, v1: dict[str, str]) -> None:
    host = Mixed(tmp_path, v1, ALL)
    host.systemd()
    host.configure(CONF)
    lines = [str(step) for step in plan(host, "prepare", vm()).steps]
    limits = f"MemoryMax={SMALL_LIMIT} AllowedCPUs=1"
    assert lines[-1] == f"systemctl set-property --runtime machine.slice {limits}"
    assert not [line for line in lines if line.startswith(("make", "write"))]


@pytest.mark.parametrize(
    ("v1", "controllers", "written", "by_systemd"),
    [
        (CPUSET, without("cpuset"), "cpuset/machine.slice/cpuset.cpus", "MemoryMax="),
        (MEMORY, without("memory"), "memory/machine.slice/memory.limit_in_bytes", "AllowedCPUs="),
    ],
)
def test_what_systemd_does_not_have_is_written(
    tmp_path: Path, v1: dict[str, str], controllers: str, written: str, by_systemd: str
) -> None:
    """Where cgroup2 is at /sys/fs/cgroup, systemd uses nothing else."""
    host = Mixed(tmp_path, v1, controllers)
    host.systemd()
    host.configure(CONF)
    lines = [str(step) for step in plan(host, "prepare", vm()).steps]
    assert [line for line in lines if line.endswith(written)]
    [called] = [line for line in lines if line.startswith("systemctl")]
    assert by_systemd in called
    assert len(called.split()) == 5


def test_a_hybrid_of_systemds_keeps_limits_on_v1(tmp_path: Path) -> None:
    """And none on v2, where a controller may be that v1 does not have (cgroup_no_v1=)."""
    host = Mixed(tmp_path, {"cpuset": "cpuset", "pids": "pids"}, "memory", UNIFIED)
    host.systemd()
    host.put("/proc/self/cgroup", host.get("/proc/self/cgroup") + f"\n9:name=systemd:{SERVICE}")
    host.configure(CONF)
    lines = [str(step) for step in plan(host, "prepare", vm()).steps]
    assert f'write "+memory" to {UNIFIED}/cgroup.subtree_control' in lines
    assert f'write "{SMALL_LIMIT}" to {UNIFIED}/machine.slice/memory.max' in lines
    assert not [line for line in lines if line.startswith("systemctl")]


@pytest.mark.parametrize("more", ["", "\n8:name=systemd:/"])
def test_where_systemd_has_the_daemon(tmp_path: Path, more: str) -> None:
    """Containers of old distributions want name=systemd, so somebody has mounted it beside v2."""
    host = Mixed(tmp_path, NET_CLS, ALL)
    host.systemd()
    own = host.get("/proc/self/cgroup").replace("0::/", "0::/system.slice/libvirtd.service")
    host.put("/proc/self/cgroup", own + more)
    host.configure(CONF + "cgroup_layout = 'nested'\n")
    manager = managers.choose(host, host.config())
    assert set(manager.parent_paths().values()) == {"/system.slice/system-qemu.slice"}


def test_a_controller_on_v1_is_not_missed_on_v2(tmp_path: Path) -> None:
    host = Mixed(tmp_path, CPUSET, without("cpuset"))
    host.configure(CONF)
    run(host, plan(host, "prepare", vm()))
    assert list(checks.parent_controllers(Subject(host))) == []
    assert list(checks.fence_in_effect(Subject(host))) == []
