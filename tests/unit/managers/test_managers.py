"""Who owns cgroups, and what is done at prepare to those of a recorded host, v1 and v2.

The kernel's rules are kept by `hosts.Kernel`: what it takes in this order, the kernel takes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers, operations
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.errors import Error, Refusal

from ..support.hosts import Kernel, cpus, domain
from ..support.operations import CG, CONF, MIB, SMALL_LIMIT, UNIFIED_LIMIT, do, plan, vm

HOST = Kernel


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
        ([BUS, BOOTED, f"/run/current-system/sw/share/{MACHINED}"], "systemd"),  # NixOS
    ],
)
def test_the_manager(v2: Kernel, files: list[str], name: str) -> None:
    for file in files:
        v2.put(file, "")
    assert managers.name(v2) == name


def test_where_the_daemon_that_runs_is(v1: Kernel) -> None:
    v1.put("/run/virtqemud.pid", "78")
    v1.put("/proc/78/comm", "virtqemud")
    v1.put("/proc/78/cgroup", "2:cpuset:/\n3:memory:/a")
    assert managers.daemon(v1) == {"cpuset": "/", "memory": "/a"}


UNIT = "[Service]\nSlice=vms.slice\n"
SYSTEMD_V1 = "\n1:name=systemd:/user.slice/session-1.scope\n7:cpu,cpuacct:/user.slice\n0::/x"
ON_V1 = {
    **dict.fromkeys(("", "name=systemd", "cpu,cpuacct", "cpu", "memory", "devices"), "/vms.slice"),
    "cpuset": "/",
    "name=openrc": "/",
}


@pytest.mark.parametrize(
    ("name", "own", "files", "daemon"),
    [
        # as an administrator who is logged in, where no daemon runs
        ("v2", "0::/user.slice/user-0.slice/session-1.scope", {}, {"": "/"}),
        (
            "v2",
            "0::/user.slice/user-0.slice/session-1.scope\n4:net_cls:/vpn\n5:name=systemd:/",
            {BOOTED: ""},
            {"": "/system.slice/libvirtd.service", "net_cls": "/", "name=systemd": "/"},
        ),
        (
            "v2",
            "0::/init.scope",
            {BOOTED: "", "/lib/systemd/system/virtqemud.service": UNIT},
            {"": "/vms.slice/virtqemud.service"},
        ),
        (
            "v2",
            "0::/init.scope",
            {BOOTED: "", "/lib/systemd/system/libvirtd.service": "[Service]\nSlice=-.slice"},
            {"": "/libvirtd.service"},
        ),
        (
            "v1",
            SYSTEMD_V1,
            {BOOTED: "", "/usr/lib/systemd/system/libvirtd.service": UNIT},
            {
                key: path if path == "/" else f"{path}/libvirtd.service"
                for key, path in ON_V1.items()
            },
        ),
    ],
)
def test_where_a_daemon_that_is_away_will_be(
    tmp_path: Path, name: str, own: str, files: dict[str, str], daemon: dict[str, str]
) -> None:
    host = Kernel(tmp_path, name)
    host.put("/proc/self/cgroup", (host.get("/proc/self/cgroup") if name == "v1" else "") + own)
    for path, text in files.items():
        host.put(path, text)
    assert managers.daemon(host) == daemon


@pytest.mark.parametrize(
    ("layout", "parent"),
    [
        ("nested", "/system.slice/system-qemu.slice"),
        ("$LIBVIRTD/vms/$UUID", "/system.slice/system-vms.slice"),
        ("flat", None),
        ("native", "/machine.slice"),
    ],
)
def test_an_administrators_session_is_not_the_daemon(
    tmp_path: Path, layout: str, parent: str | None
) -> None:
    host = Kernel(tmp_path, "v2", f"reserved_host_cpus = '0'\ncgroup_layout = '{layout}'\n")
    host.put("/proc/self/cgroup", "0::/user.slice/user-0.slice/session-1.scope")
    for path in (BUS, BOOTED, f"/usr/share/{MACHINED}"):
        host.put(path, "")
    paths = managers.choose(host, host.config(), managers.daemon(host)).parent_paths().values()
    assert list(paths) == ([parent] if parent else [])


@pytest.mark.parametrize(
    ("operation", "conf", "known", "concerns"),
    [
        *((operation, CONF, False, True) for operation in ("prepare", "started", "reconnect")),
        ("start", CONF, False, False),  # all that can be done before QEMU runs is done at prepare
        *(
            (operation, CONF, False, False)
            for operation in ("stopped", "release", "migrate", "restore", "attach", "")
        ),
        *(
            (operation, "", False, False)
            for operation in ("prepare", "started", "reconnect", "stopped", "release")
        ),
        *((operation, "", True, True) for operation in ("stopped", "release")),
        *((operation, CONF, True, False) for operation in ("migrate", "restore", "attach")),
    ],
)
def test_whether_an_operation_concerns_us(
    v2: Kernel, operation: str, conf: str, known: bool, concerns: bool
) -> None:
    v2.configure(conf)
    if known:
        v2.make_directory("/run/libvirt-cgroup-hooks")
    assert operations.concerns(v2, v2.config(), operation) == concerns


# prepare


def test_prepare_v1(v1: Kernel) -> None:
    """cpuset.mems and cpuset.cpus are there before any process, and so is the limit."""
    assert do(v1, "prepare", vm()) == [
        f"mkdir {CG}/cpuset/machine",
        f"{CG}/cpuset/machine/cpuset.mems 0",
        f"{CG}/cpuset/machine/cpuset.cpus 1",
        f"mkdir {CG}/cpuset/vms",
        f"{CG}/cpuset/vms/cpuset.mems 0",
        f"{CG}/cpuset/vms/cpuset.cpus 1",
        f"mkdir {CG}/memory/machine",
        f"{CG}/memory/machine/memory.use_hierarchy 1",
        f"mkdir {CG}/memory/vms",
        f"{CG}/memory/vms/memory.use_hierarchy 1",
        f"mkdir {CG}/cpu/vms",
        f"{CG}/memory/machine/memory.limit_in_bytes {SMALL_LIMIT}",
        f"{CG}/memory/vms/memory.limit_in_bytes {SMALL_LIMIT}",
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
    before = host.snapshot("run/")
    assert do(host, "prepare", vm()) == []
    assert do(host, "prepare", domain("other", uuid="0" * 35 + "1")) == []
    assert host.snapshot("run/") == before


def test_prepare_with_nothing_to_fence_only_makes_the_parent(v1: Kernel) -> None:
    v1.configure("cgroup_layout = '/vms/$NAME'")
    do(v1, "prepare", vm())
    assert v1.cgroups() == [f"{CG}/{name}/vms" for name in ("cpu", "cpuset", "memory")]
    assert cpus(v1, "cpuset/vms") == "0-1"


@pytest.mark.parametrize("layout", ["root", "uuid", "flat", "native"])
def test_without_a_parent_only_the_place_where_libvirt_starts_vms_is_fenced(
    host: Kernel, layout: str
) -> None:
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


def test_a_level_above_that_has_lost_cpus(v1: Kernel) -> None:
    """It is of an earlier time, and is not remembered: the kernel gives no CPU back that was
    offline.
    """
    v1.make_directory(f"{CG}/cpuset/a")
    v1.put(f"{CG}/cpuset/a/cpuset.cpus", "0")
    v1.configure("reserved_host_cpus = '0'\ncgroup_layout = '/a/b/$NAME'")
    do(v1, "prepare", vm())
    assert (cpus(v1, "cpuset/a"), cpus(v1, "cpuset/a/b")) == ("0-1", "1")


def test_a_parent_of_several_levels(v1: Kernel) -> None:
    v1.configure("reserved_host_cpus = '0'\ncgroup_layout = '/a/b/$NAME'")
    do(v1, "prepare", vm())
    # the fence is on the parent alone
    assert (cpus(v1, "cpuset/a"), cpus(v1, "cpuset/a/b")) == ("0-1", "1")


@pytest.mark.parametrize(
    ("name", "at", "parent"),
    [
        ("v1", "/", "/qemu"),
        ("v1", "/a/daemon", "/a/daemon/qemu"),
        ("v2", "/", "/qemu"),
        # the daemon's own has processes, so it can have no children there
        ("v2", "/a/daemon", "/a/qemu"),
    ],
)
def test_where_the_daemon_is(tmp_path: Path, name: str, at: str, parent: str) -> None:
    host = Kernel(tmp_path, name, "reserved_host_cpus = '0'\ncgroup_layout = 'nested'")
    for hierarchy in host.hierarchies:
        host.libvirt_cgroups(hierarchy, ["/a", at] if at != "/" else [])
    own = host.get("/proc/self/cgroup")
    host.put(
        "/proc/self/cgroup",
        "\n".join(line.rpartition(":")[0] + ":" + at for line in own.splitlines()),
    )
    do(host, "prepare", vm())
    prefix = "cpuset" if name == "v1" else ""
    assert cpus(host, prefix + parent) == ("1" if name == "v1" else "1-3")


def test_a_limit_below_what_is_in_use_is_refused(host: Kernel) -> None:
    do(host, "prepare", vm())
    usage = (
        f"{CG}/memory/vms/memory.usage_in_bytes"
        if host.exists(f"{CG}/memory")
        else f"{CG}/vms/memory.current"
    )
    host.put(usage, str(1700 * MIB))
    host.configure(CONF.replace("512 MiB", "90%"))
    before = host.snapshot()
    with pytest.raises(Error) as error:
        do(host, "prepare", vm())
    directory = usage.rpartition("/")[0]
    message = str(error.value)
    assert f"cannot limit {directory} to " in message
    assert ": 1.7 GiB is in use: stop some of it or reserve less; a lower" in message
    assert host.snapshot() == before


@pytest.mark.parametrize(
    ("inner", "outside"),
    [
        (
            "<vcpu cpuset='0-1'>1</vcpu>",
            "emulator to 0-1 (reserved: 0), vcpu0 to 0-1 (reserved: 0)",
        ),
        ("<cputune><vcpupin vcpu='0' cpuset='0'/></cputune>", "vcpu0 to 0 (reserved: 0)"),
    ],
)
def test_pins_outside_are_refused_or_told(host: Kernel, inner: str, outside: str) -> None:
    with pytest.raises(Refusal) as error:
        plan(host, "prepare", vm("web", inner))
    assert str(error.value).startswith(
        f"VM web is pinned to reserved CPUs: {outside}: pin it within "
    )
    host.configure(CONF + "pin_conflict = 'warn'")
    made = plan(host, "prepare", vm("web", inner))
    (warning,) = made.warnings
    assert warning.startswith(f"VM web is pinned to reserved CPUs: {outside}: pin it within ")
    assert made.steps


@pytest.mark.parametrize("conflict", ["refuse", "warn"])
def test_a_pin_to_offline_cpus_is_no_conflict_with_the_host(host: Kernel, conflict: str) -> None:
    """The VM may have what is online of its CPUs; one that has nothing left cannot run, whatever is
    configured.
    """
    host.put("/sys/devices/system/cpu/online", "0-2")
    host.put("/sys/devices/system/cpu/present", "0-3")
    host.configure(CONF + f"pin_conflict = '{conflict}'")
    half, whole = (
        vm("web", f"<cputune><vcpupin vcpu='0' cpuset='{cpus}'/></cputune>")
        for cpus in ("2-3", "3")
    )
    if host.exists(f"{CG}/cpuset"):  # v1 takes no such cpuset at all
        with pytest.raises(Refusal, match=r"vcpu0 to 2-3 \(offline: 3\)"):
            plan(host, "prepare", half)
    else:
        made = plan(host, "prepare", half)
        assert made.steps
        assert not made.warnings
    with pytest.raises(
        Refusal,
        match=(
            r"pinned to CPUs that are offline: vcpu0 to 3 \(offline: 3\): "
            "bring them online, or pin"
        ),
    ):
        plan(host, "prepare", whole)


def test_a_name_that_makes_no_cgroup_is_told_before_the_vm_starts(host: Kernel) -> None:
    with pytest.raises(Error, match=r"would have a name over 255 bytes: use \$UUID in the layout"):
        plan(host, "prepare", vm("x" * 251))


@pytest.mark.parametrize(
    ("mounted", "message"),
    [
        (
            "memory",
            "cannot keep CPUs for the host: there is no cpuset controller: mount or enable it",
        ),
        (
            "cpuset",
            "cannot keep memory for the host: there is no memory controller: mount or enable it",
        ),
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
        f"cannot make cgroups for VMs below {CG}/vms: it has processes of its own, "
        "and the kernel then enables no cpu/cpuset/io/memory/pids below it: "
        "choose a cgroup_layout elsewhere, such as /vms/$DRIVER-$NAME"
    )


def test_a_parent_that_others_made_without_controllers_on_v2(v2: Kernel) -> None:
    v2.make_directory(f"{CG}/vms")
    do(v2, "prepare", vm())
    assert cpus(v2, "vms") == "1-3"


@pytest.mark.parametrize("layout", ["legacy", "/a/b/$NAME"])
def test_the_limit_of_a_deep_parent_covers_its_children_before_linux_5_11(
    v1: Kernel, layout: str
) -> None:
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
    host = Kernel(tmp_path, "v1", CONF)
    for path in (
        "/sys/devices/system/cpu/online",
        "/sys/devices/system/cpu/present",
        f"{CG}/cpuset/cpuset.cpus",
    ):
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
        "stop the VM that it belongs to, or pin it to other CPUs, first"
    )


def test_a_child_that_libvirt_has_left_is_to_be_removed(four: Kernel) -> None:
    left = f"{CG}/cpuset/vms/ended"
    four.put(f"{left}/cpuset.cpus", "3")
    four.put(f"{left}/cgroup.procs", "")
    with pytest.raises(Error, match=f"no process is in it, so remove it: rmdir {left}"):
        fenced(four, "3")


def test_what_is_to_be_typed_is_safe_whatever_a_vm_is_called(four: Kernel) -> None:
    left = f"{CG}/cpuset/vms/x; reboot"
    four.put(f"{left}/cpuset.cpus", "3")
    four.put(f"{left}/cgroup.procs", "")
    with pytest.raises(Error) as error:
        fenced(four, "3")
    assert error.value.hint == f"no process is in it, so remove it: rmdir '{left}'"
