"""What is done on a host where systemd owns cgroups and machined makes VMs' scopes, v1 and v2, from prepare to release."""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers, state, threads
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.managers.systemd import Systemd
from libvirt_cgroup_hooks.managers.units import scope_unit
from libvirt_cgroup_hooks.plan import Plan, Write

from .hosts import NO_LIMIT, UUID, domain, run
from .machined import ACTIVATION, BUS, INNER, PID, SERVICE, UNITS, Machined

CG = "/sys/fs/cgroup"
MIB = 2**20
CONF = """
reserved_host_cpus = "0"
reserved_host_mem = "512 MiB"
cgroup_layout = "/vms/$DRIVER-$NAME"
"""
CPUS = "reserved_host_cpus = '0'\n"
SMALL_LIMIT = 2040212 * 1024 - 512 * MIB
UNIFIED_LIMIT = 8135396 * 1024 - 512 * MIB
DROP_IN = "50-libvirt-cgroup-hooks.conf"
RECORD = f"/run/libvirt-cgroup-hooks/vms/{UUID}"
OTHER = "0" * 8 + UUID[8:]
U = UUID.replace("-", r"\x2d")
SCOPE = r"machine-qemu\x2d3\x2dvm.scope"
FILE = f"{UNITS}/{SCOPE}.d/{DROP_IN}"


@pytest.fixture
def v1(tmp_path: Path) -> Machined:
    return Machined(tmp_path, "small", CONF)


@pytest.fixture
def v2(tmp_path: Path) -> Machined:
    return Machined(tmp_path, "unified", CONF)


@pytest.fixture(params=["small", "unified"])
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Machined:
    return Machined(tmp_path, request.param, CONF)


def vm(name: str = "vm", inner: str = INNER, number: int | None = None, uuid: str = UUID) -> Domain:
    return domain(name, inner, id=number, uuid=uuid)


def plan(host: Machined, operation: str, subject: Domain) -> Plan:
    return managers.plan(host, host.config(), operation, subject)


def lines(host: Machined, operation: str, subject: Domain) -> list[str]:
    return str(plan(host, operation, subject)).splitlines()


def do(host: Machined, operation: str, subject: Domain) -> list[str]:
    return run(host, plan(host, operation, subject))


def systemd(host: Machined) -> Systemd:
    chosen = managers.choose(host, host.config())
    assert isinstance(chosen, Systemd)
    return chosen


def calls(host: Machined, subject: Domain, operation: str = "prepare") -> list[str]:
    """What systemctl is asked to set."""
    found = [line for line in do(host, operation, subject) if line.startswith("set-property ")]
    return [line[len("set-property --runtime ") :] for line in found]


def layout(host: Machined, text: str, more: str = "") -> None:
    host.configure(f"{more}cgroup_layout = '{text}'\n")


# the manager


def test_a_host_with_machined_is_systemds(host: Machined) -> None:
    assert managers.name(host) == "systemd"
    assert systemd(host).name == "systemd"


@pytest.mark.parametrize("file", [BUS, ACTIVATION])
def test_without_a_bus_or_machined_it_is_not(host: Machined, file: str) -> None:
    host.remove(file)
    assert managers.choose(host, host.config()).name == "cgroupfs"


# slices


@pytest.mark.parametrize(
    ("template", "name", "parent", "unit", "directory"),
    [
        ("native", "vm", "machine.slice", None, "/machine.slice"),
        (
            "legacy",
            "vm",
            "system-libvirt-qemu.slice",
            "system-libvirt-qemu.slice",
            "/system.slice/system-libvirt.slice/system-libvirt-qemu.slice",
        ),
        ("nested", "vm", "system-qemu.slice", "system-qemu.slice", "/system.slice/system-qemu.slice"),
        ("flat", "vm", None, "system.slice", "/system.slice"),
        ("root", "vm", None, "-.slice", ""),
        ("uuid", "vm", None, rf"qemu\x2d{U}.slice", rf"/qemu\x2d{U}.slice"),
        ("/vms/prod/$NAME", "vm", "vms-prod.slice", "vms-prod.slice", "/vms.slice/vms-prod.slice"),
        (
            "/vms/$DRIVER-$UUID",
            "vm",
            "vms.slice",
            rf"vms-qemu\x2d{U}.slice",
            rf"/vms.slice/vms-qemu\x2d{U}.slice",
        ),
        (
            "/vms/$NAME/$UUID",
            "a-b ü",
            "vms.slice",
            rf"vms-a\x2db\x20\xc3\xbc-{U}.slice",
            rf"/vms.slice/vms-a\x2db\x20\xc3\xbc.slice/vms-a\x2db\x20\xc3\xbc-{U}.slice",
        ),
        (
            "/vms/$NAME-$UUID",
            "💩",
            "vms.slice",
            rf"vms-\xf0\x9f\x92\xa9\x2d{U}.slice",
            rf"/vms.slice/vms-\xf0\x9f\x92\xa9\x2d{U}.slice",
        ),
        ("/vms/$UUID%i", "vm", "vms.slice", rf"vms-{U}\x25i.slice", rf"/vms.slice/vms-{U}\x25i.slice"),
        ("/my-vms/x.$ID", "vm", r"my\x2dvms.slice", r"my\x2dvms.slice", r"/my\x2dvms.slice"),
        (r"/a\b/$NAME", "vm", r"a\x5cb.slice", r"a\x5cb.slice", r"/a\x5cb.slice"),
        ("/.vms/_x/$NAME", "vm", r"\x2evms-_x.slice", r"\x2evms-_x.slice", r"/\x2evms.slice/\x2evms-_x.slice"),
        ("/vms.slice/$NAME", "vm", "vms.slice.slice", "vms.slice.slice", "/vms.slice.slice"),
        ("/vms/$NAME/a", "..", "vms.slice", r"vms-\x2e.-a.slice", r"/vms.slice/vms-\x2e..slice/vms-\x2e.-a.slice"),
        ("/vms/$NAME/a", "$ID", "vms.slice", r"vms-\x24ID-a.slice", r"/vms.slice/vms-\x24ID.slice/vms-\x24ID-a.slice"),
        ("/vms/libvirt/$NAME", "vm", "vms-libvirt.slice", "vms-libvirt.slice", "/vms.slice/vms-libvirt.slice"),
    ],
)
def test_slices(host: Machined, template: str, name: str, parent: str | None, unit: str | None, directory: str) -> None:
    layout(host, template)
    subject = vm(name, number=3)
    manager = systemd(host)
    assert manager.parent_slice() == parent
    assert manager.vm_slice(subject) == unit
    assert manager.scope_path(subject) == f"{directory}/{scope_unit(name, 3)}"


@pytest.mark.parametrize(
    ("at", "template", "unit"),
    [
        ("/system.slice/libvirtd.service", "nested", "system-qemu.slice"),
        ("/a.slice/a-b.slice/x.service", "nested", "a-b-qemu.slice"),
        ("/user.slice/user-0.slice/session-1.scope", "flat", "user-0.slice"),
        ("/init.scope", "nested", "qemu.slice"),
        ("/", "flat", "-.slice"),
    ],
)
def test_the_daemons_slice(host: Machined, at: str, template: str, unit: str) -> None:
    host.daemon(at)
    layout(host, template)
    assert systemd(host).vm_slice(vm()) == unit


@pytest.mark.parametrize(
    ("at", "template", "name", "unit"),
    [
        (SERVICE, "/libvirt/$NAME", "vm", "libvirt.slice"),
        (SERVICE, "/libvirtish/x/$NAME", "vm", "libvirtish-x.slice"),
        (SERVICE, "/libvirt-$UUID", "vm", rf"libvirt\x2d{U}.slice"),
        (SERVICE, "/$NAME/x", "libvirt", "libvirt-x.slice"),
        ("/init.scope", "legacy", "vm", "libvirt-qemu.slice"),
    ],
)
def test_a_slice_that_libvirt_would_misread_is_refused(host: Machined, at: str, template: str, name: str, unit: str) -> None:
    host.daemon(at)
    layout(host, template, CPUS)
    before = host.snapshot()
    with pytest.raises(Error) as error:
        do(host, "prepare", vm(name))
    assert str(error.value) == (
        f'cgroup_layout "{template}" makes the slice {unit}: '
        "libvirt loses VMs in a cgroup whose name begins with libvirt; choose another name"
    )
    assert {path: text for path, text in host.snapshot().items() if not path.startswith("run/libvirt-")} == before


@pytest.mark.parametrize(
    ("name", "fits"),
    [("x" * 196, True), ("x" * 197, False), ("-" * 49, True), ("-" * 50, False), ("💩" * 12, True), ("💩" * 13, False)],
)
def test_a_slice_has_a_name_of_at_most_255_bytes(host: Machined, name: str, fits: bool) -> None:
    layout(host, "/vms/$NAME/$UUID")
    if fits:
        assert lines(host, "prepare", vm(name))
        return
    with pytest.raises(Error) as error:
        plan(host, "prepare", vm(name))
    assert str(error.value) == f"the slice of VM {name} would have a name over 255 bytes: use $UUID in the layout"


# prepare


def test_prepare_v2(v2: Machined) -> None:
    assert lines(v2, "prepare", vm()) == [
        f"save {RECORD}",
        f"save {state.SHARED}",
        f"systemctl set-property --runtime vms.slice AllowedCPUs=1-3 MemoryMax={UNIFIED_LIMIT}",
    ]


def test_prepare_v1(v1: Machined) -> None:
    """systemd has no cpuset there, so that is made and fenced; memory is systemd's."""
    assert lines(v1, "prepare", vm()) == [
        f"save {RECORD}",
        f"save {state.SHARED}",
        f"make {CG}/cpuset/vms.slice",
        f'write "0" to {CG}/cpuset/vms.slice/cpuset.mems',
        f'write "1" to {CG}/cpuset/vms.slice/cpuset.cpus',
        f"systemctl set-property --runtime vms.slice MemoryMax={SMALL_LIMIT}",
    ]


def test_prepare_is_idempotent(host: Machined) -> None:
    do(host, "prepare", vm())
    assert lines(host, "prepare", vm()) == []
    assert lines(host, "prepare", vm("other", uuid=OTHER)) == [f"save /run/libvirt-cgroup-hooks/vms/{OTHER}"]


@pytest.mark.parametrize(
    ("template", "unit"),
    [
        ("native", "machine.slice"),
        ("legacy", "system-libvirt-qemu.slice"),
        ("nested", "system-qemu.slice"),
        ("/vms/prod/$NAME", "vms-prod.slice"),
        ("/vms/$DRIVER-$UUID", "vms.slice"),
        ("/a-b/ü/$NAME", r"a\x2db-\xc3\xbc.slice"),
    ],
)
def test_the_property_of_the_parent(v2: Machined, template: str, unit: str) -> None:
    layout(v2, template, CPUS)
    assert calls(v2, vm()) == [f"{unit} AllowedCPUs=1-3"]


@pytest.mark.parametrize("template", ["flat", "root", "uuid"])
def test_without_a_parent_there_is_no_property(host: Machined, template: str) -> None:
    layout(host, template, CPUS)
    assert do(host, "prepare", vm()) == []


@pytest.mark.parametrize(
    ("conf", "properties"),
    [
        ("", []),
        ("reserved_host_cpus = '0,2'\n", ["AllowedCPUs=1,3"]),
        ("reserved_host_mem = '512 MiB'\n", [f"MemoryMax={UNIFIED_LIMIT}"]),
        ("reserved_host_mem = '512 MiB'\nreserved_host_cpus = '3'\n", ["AllowedCPUs=0-2", f"MemoryMax={UNIFIED_LIMIT}"]),
    ],
)
def test_the_text_of_properties(v2: Machined, conf: str, properties: list[str]) -> None:
    layout(v2, "/vms/$NAME", conf)
    assert calls(v2, vm()) == ([" ".join(["vms.slice", *properties])] if properties else [])


@pytest.mark.parametrize(
    ("cpus", "memory", "needed"),
    [
        ("1-3", str(UNIFIED_LIMIT), []),
        ("", str(UNIFIED_LIMIT), ["AllowedCPUs=1-3"]),
        ("1-2", str(UNIFIED_LIMIT), ["AllowedCPUs=1-3"]),
        ("1-3", "max", [f"MemoryMax={UNIFIED_LIMIT}"]),
        ("1-3", "4096", [f"MemoryMax={UNIFIED_LIMIT}"]),
        ("", "max", ["AllowedCPUs=1-3", f"MemoryMax={UNIFIED_LIMIT}"]),
    ],
)
def test_the_bus_is_asked_only_for_what_the_kernel_does_not_say(
    v2: Machined, cpus: str, memory: str, needed: list[str]
) -> None:
    v2.slice("vms.slice", cpus, memory)
    v2.put("/run/systemd/system.control/vms.slice.d/50-AllowedCPUs.conf", "AllowedCPUs=1-3")  # the kernel's word counts
    assert calls(v2, vm()) == ([" ".join(["vms.slice", *needed])] if needed else [])


@pytest.mark.parametrize(("memory", "needed"), [(str(SMALL_LIMIT), []), (NO_LIMIT, [f"vms.slice MemoryMax={SMALL_LIMIT}"])])
def test_the_same_on_v1(v1: Machined, memory: str, needed: list[str]) -> None:
    v1.slice("vms.slice", memory=memory)
    assert calls(v1, vm()) == needed


@pytest.mark.parametrize("directory", ["/run/systemd/system.control", "/etc/systemd/system.control"])
@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("AllowedCPUs=1 3", []),
        ("AllowedCPUs=1,3", []),
        ("# set by systemctl\n[Slice]\nAllowedCPUs=\nAllowedCPUs= 1 3 ", []),  # the last one counts
        ("[Slice]\nAllowedCPUs=1-3", ["vms.slice AllowedCPUs=1,3"]),
        ("[Slice]\nAllowedCPUs=1 3\nAllowedCPUs=", ["vms.slice AllowedCPUs=1,3"]),
        ("[Slice]\nAllowedMemoryNodes=0", ["vms.slice AllowedCPUs=1,3"]),
        ("", ["vms.slice AllowedCPUs=1,3"]),
    ],
)
def test_while_there_is_no_cgroup_what_systemd_was_told_counts(
    v2: Machined, directory: str, text: str, needed: list[str]
) -> None:
    layout(v2, "/vms/$NAME", "reserved_host_cpus = '0,2'\n")
    v2.put(f"{directory}/vms.slice.d/50-AllowedCPUs.conf", text)
    assert calls(v2, vm()) == needed


def test_the_order_of_systemds_directories(v2: Machined) -> None:
    """A drop-in in /etc/systemd/system.control hides the one of the same name in /run (systemd.unit(5))."""
    layout(v2, "/vms/$NAME", CPUS)
    v2.put("/run/systemd/system.control/vms.slice.d/50-AllowedCPUs.conf", "[Slice]\nAllowedCPUs=1-3")
    v2.put("/etc/systemd/system.control/vms.slice.d/50-AllowedCPUs.conf", "[Slice]\nAllowedCPUs=0-1")
    assert calls(v2, vm()) == ["vms.slice AllowedCPUs=1-3"]


def test_a_limit_below_what_is_in_use_is_refused(host: Machined) -> None:
    host.slice("vms.slice", used=str(7900 * MIB))
    before = host.snapshot()
    with pytest.raises(Error) as error:
        do(host, "prepare", vm())
    directory = f"{CG}/memory/vms.slice" if host.version == 1 else f"{CG}/vms.slice"
    assert str(error.value).startswith(f"cannot limit {directory} to ")
    assert str(error.value).endswith(": 7.7 GiB are in use: stop VMs or reserve less; a lower limit would kill one")
    assert host.snapshot() == before


def test_a_limit_that_is_in_force_is_no_failure_when_more_is_in_use(host: Machined) -> None:
    limit = SMALL_LIMIT if host.version == 1 else UNIFIED_LIMIT
    host.slice("vms.slice", "1-3", str(limit), str(limit + 1))
    assert calls(host, vm()) == []


def test_a_property_is_put_back_when_a_later_step_fails(v2: Machined) -> None:
    v2.slice("vms.slice", "1", str(UNIFIED_LIMIT))
    before = v2.snapshot()
    made = plan(v2, "prepare", vm())
    made.add(Write(f"{CG}/none/cpuset.cpus", "1"))
    with pytest.raises(Error, match="none"):
        run(v2, made)
    assert made.warnings == []
    assert v2.get(f"{CG}/vms.slice/cpuset.cpus") == "1"
    after = v2.snapshot()
    assert {path: text for path, text in after.items() if "system.control/vms" not in path} == before


def test_also_one_that_was_not_limited(v2: Machined) -> None:
    v2.slice("vms.slice")
    made = plan(v2, "prepare", vm())
    made.add(Write(f"{CG}/none/cpuset.cpus", "1"))
    with pytest.raises(Error, match="none"):
        run(v2, made)
    assert made.warnings == []
    assert [v2.get(f"{CG}/vms.slice/{name}") for name in ("cpuset.cpus", "memory.max")] == ["0-3", "max"]


# a reservation that is taken back


@pytest.mark.parametrize("there", [True, False])
def test_what_is_taken_back_is_cleared_by_the_full_list(v2: Machined, there: bool) -> None:
    if there:
        v2.slice("vms.slice")
    do(v2, "prepare", vm())
    layout(v2, "/vms/$DRIVER-$NAME")
    assert calls(v2, vm("other", uuid=OTHER)) == ["vms.slice AllowedCPUs=0-3", "vms.slice MemoryMax=infinity"]
    assert not v2.exists(state.SHARED)
    assert calls(v2, vm("third", uuid=OTHER.replace("0", "1"))) == []


def test_also_on_v1(v1: Machined) -> None:
    do(v1, "prepare", vm())
    layout(v1, "/vms/$DRIVER-$NAME")
    assert calls(v1, vm("other", uuid=OTHER)) == ["vms.slice MemoryMax=infinity"]


def test_the_v1_cpuset_is_opened_too(v1: Machined) -> None:
    do(v1, "prepare", vm())
    layout(v1, "/vms/$DRIVER-$NAME")
    do(v1, "prepare", vm("other", uuid=OTHER))
    assert v1.get(f"{CG}/cpuset/vms.slice/cpuset.cpus") == "0-1"


@pytest.mark.parametrize(
    ("left", "call"),
    [
        ("reserved_host_mem = '512 MiB'\n", "vms.slice AllowedCPUs=0-3"),
        (CPUS, "vms.slice MemoryMax=infinity"),
    ],
)
def test_one_of_two_reservations_is_taken_back(v2: Machined, left: str, call: str) -> None:
    do(v2, "prepare", vm())
    layout(v2, "/vms/$DRIVER-$NAME", left)
    assert calls(v2, vm("other", uuid=OTHER)) == [call]


def test_the_parent_of_an_earlier_layout_stays_fenced(v2: Machined) -> None:
    """VMs may still run there."""
    layout(v2, "/vms/$NAME", CPUS)
    do(v2, "prepare", vm())
    layout(v2, "/other/$NAME", CPUS)
    assert calls(v2, vm("other", uuid=OTHER)) == ["other.slice AllowedCPUs=1-3"]
    layout(v2, "/other/$NAME", "reserved_host_cpus = '0,2'\n")
    assert sorted(calls(v2, vm("other", uuid=OTHER))) == ["other.slice AllowedCPUs=1,3", "vms.slice AllowedCPUs=1,3"]


def test_nothing_is_cleared_that_is_not_in_effect(v2: Machined) -> None:
    v2.make_directory("/run/libvirt-cgroup-hooks")
    v2.put(state.SHARED, f"{state.FORMAT}\nlimit 0-3 vms.slice AllowedCPUs\nlimit infinity vms.slice MemoryMax")
    layout(v2, "/other/$NAME")
    assert lines(v2, "prepare", vm()) == [f"save {RECORD}", f"remove {state.SHARED}"]


# strays


def test_drop_ins_of_no_vms_record_are_swept(host: Machined) -> None:
    started(host, vm("other", number=4, uuid=OTHER))
    stray = f"{UNITS}/machine-qemu\\x2d9\\x2dgone.scope.d"
    for path in (f"{stray}/{DROP_IN}", f"{UNITS}/others.scope.d/50-x.conf", f"{UNITS}/vms.slice.d/{DROP_IN}"):
        host.put(path, "[Scope]")
    made = lines(host, "prepare", vm())
    assert [line for line in made if UNITS in line] == [
        f"remove {stray}/{DROP_IN}",
        f"remove {stray} if it is empty",
    ]
    do(host, "prepare", vm())
    assert host.names(UNITS) == [".keep", r"machine-qemu\x2d4\x2dother.scope.d", "others.scope.d", "vms.slice.d"]


def test_also_beside_a_vm_that_has_no_drop_in(host: Machined) -> None:
    do(host, "prepare", vm("other", uuid=OTHER))
    host.put(f"{UNITS}/machine-qemu\\x2d9\\x2dgone.scope.d/{DROP_IN}", "[Scope]")
    assert [line for line in lines(host, "prepare", vm()) if UNITS in line]


def test_what_an_earlier_run_left_goes_once(host: Machined) -> None:
    layout(host, "/vms/$UUID", CPUS)
    started(host, vm(number=2))
    old = f"{UNITS}/machine-qemu\\x2d2\\x2dvm.scope.d"
    assert [line for line in lines(host, "prepare", vm()) if "systemctl" in line or UNITS in line] == [
        f"remove {old}/{DROP_IN}",
        f"remove {old} if it is empty",
        f"systemctl stop --no-block vms-{U}.slice",
    ]


# start


def started(host: Machined, subject: Domain) -> list[str]:
    do(host, "prepare", subject)
    return do(host, "start", subject)


def test_start(host: Machined) -> None:
    """The record comes first, so that nothing can be left that nobody knows of."""
    do(host, "prepare", vm())
    assert lines(host, "start", vm(number=3)) == [
        f"save {RECORD}",
        f"make {UNITS}/{SCOPE}.d",
        f"save {FILE}",
        f"touch {UNITS}",
        "systemctl show -p LoadState libvirt-cgroup-hooks-no-such-unit.service",
    ]
    assert do(host, "start", vm(number=3)) == [
        f"touch {UNITS}",
        "show -p LoadState libvirt-cgroup-hooks-no-such-unit.service",
    ]
    assert host.get(FILE) == "[Scope]\nSlice=vms.slice"
    assert Path(host.root + FILE).stat().st_mode & 0o777 == 0o644
    record = state.Record.read(host, UUID)
    assert record and (record.files, record.slices, record.groups) == ([FILE], [], [])
    assert record.memory > 0  # what prepare admitted


@pytest.mark.parametrize(
    ("template", "name", "scope", "unit", "own", "carries"),
    [
        ("legacy", "vm", SCOPE, "system-libvirt-qemu.slice", False, False),
        ("nested", "vm", SCOPE, "system-qemu.slice", False, False),
        ("flat", "vm", SCOPE, "system.slice", False, True),
        ("root", "vm", SCOPE, "-.slice", False, True),
        ("uuid", "vm", SCOPE, rf"qemu\x2d{U}.slice", True, True),
        ("/vms/prod/$NAME", "a b", r"machine-qemu\x2d3\x2dab.scope", "vms-prod.slice", False, False),
        ("/vms/$DRIVER-$UUID", "💩", r"machine-qemu\x2d3.scope", rf"vms-qemu\x2d{U}.slice", True, False),
        ("/$NAME/$UUID", "ü-1", r"machine-qemu\x2d3\x2d1.scope", rf"\xc3\xbc\x2d1-{U}.slice", True, True),
        ("/vms/$ID/$NAME", "x", r"machine-qemu\x2d3\x2dx.scope", "vms-3-x.slice", True, False),
    ],
)
def test_drop_ins(v2: Machined, template: str, name: str, scope: str, unit: str, own: bool, carries: bool) -> None:
    layout(v2, template, CPUS)
    v2.make_directory(state.DIRECTORY)
    v2.make_directory(state.VMS)
    do(v2, "start", vm(name, number=3))
    text = v2.get(f"{UNITS}/{scope}.d/{DROP_IN}")
    assert text == f"[Scope]\nSlice={unit}" + ("\nAllowedCPUs=1-3" if carries else "")
    record = state.Record.read(v2, UUID)
    assert record and record.slices == ([unit] if own else [])


@pytest.mark.parametrize("template", ["flat", "root", "uuid"])
def test_without_a_reservation_the_vm_carries_none(v2: Machined, template: str) -> None:
    layout(v2, template)
    started(v2, vm(number=3))
    assert "AllowedCPUs" not in v2.get(FILE)


@pytest.mark.parametrize(
    ("template", "directory"),
    [("root", ""), ("flat", "/system.slice"), ("uuid", rf"/qemu\x2d{U}.slice")],
)
def test_on_v1_the_scope_has_its_cpuset_before_libvirt_makes_it(v1: Machined, template: str, directory: str) -> None:
    layout(v1, template, CPUS)
    do(v1, "prepare", vm())
    made = do(v1, "start", vm(number=3))
    scope = f"{CG}/cpuset{directory}/{SCOPE}"
    assert made[-3:] == [f"mkdir {scope}", f"{scope}/cpuset.mems 0", f"{scope}/cpuset.cpus 1"]
    assert v1.get(FILE).splitlines()[2:] == []
    record = state.Record.read(v1, UUID)
    assert record and record.groups == [f"{CG}/cpuset{directory}" if template == "uuid" else scope]


def test_native_steers_nothing_and_removes_what_would(host: Machined) -> None:
    layout(host, "native", CPUS)
    do(host, "prepare", vm())
    assert lines(host, "start", vm(number=3)) == []
    host.put(FILE, "[Scope]\nSlice=vms.slice")
    assert lines(host, "start", vm(number=3)) == [f"remove {FILE}", f"remove {UNITS}/{SCOPE}.d if it is empty"]


def test_start_without_an_id(host: Machined) -> None:
    with pytest.raises(Error, match=r"^VM vm has no id yet, which its scope is named by: start it first$"):
        plan(host, "start", vm())


def test_a_failed_start_leaves_no_drop_in(v2: Machined) -> None:
    do(v2, "prepare", vm())
    before = v2.snapshot()
    made = plan(v2, "start", vm(number=3))
    made.add(Write(f"{CG}/none/cpuset.cpus", "1"))
    with pytest.raises(Error, match="none"):
        run(v2, made)
    assert v2.snapshot() == before
    assert not v2.exists(f"{UNITS}/{SCOPE}.d")


# started


@pytest.mark.parametrize(
    ("template", "at", "warns"),
    [
        ("/vms/$NAME", "/vms.slice", False),
        ("/vms/$NAME", "/machine.slice", True),
        ("/vms/$NAME", "", True),
        ("root", "", False),
        ("root", "/machine.slice", True),
        ("uuid", rf"/qemu\x2d{U}.slice", False),
        ("native", "/vms.slice", False),
    ],
)
@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("operation", ["started", "reconnect"])
def test_where_systemd_put_the_vm(host: Machined, template: str, at: str, warns: bool, groups: bool, operation: str) -> None:
    layout(host, template)
    subject = host.starts(vm(), at, groups=groups)
    made = plan(host, operation, subject)
    scope = f"{at}/{SCOPE}"
    place = f"{scope}/libvirt/emulator" if groups and host.version == 2 else scope
    expected = systemd(host).scope_path(subject)
    text = f"systemd has put the VM in {place}, not in {expected}; restart it to move it"
    assert made.warnings == ([text] if warns else [])
    assert str(made) == ""


def test_started_writes_nothing_when_all_is_in_effect(host: Machined) -> None:
    started(host, vm(number=3))
    subject = host.starts(vm(), "/vms.slice")
    do(host, "reconnect", subject)  # the slice has its cgroup now
    for operation in ("started", "reconnect"):
        assert lines(host, operation, subject) == []


def test_thread_sets_for_what_the_xml_does_not_pin(host: Machined) -> None:
    host.configure(CONF + "emulator_cpus = '0-1'\nvcpu_cpus = '0-1'\n")
    started(host, vm(number=3))
    subject = host.starts(vm(), "/vms.slice")
    top = f"{CG}/cpuset" if host.version == 1 else CG
    base = f"{top}/vms.slice/{SCOPE}/libvirt"
    host.put(f"{base}/vcpu1/cpuset.cpus", "1")  # as libvirt does for the pin
    do(host, "started", subject)
    moves = [line for line in host.written if "procs" in line or "tasks" in line or "threads" in line]
    assert moves == []
    cpus = {group: host.get(f"{base}/{group}/cpuset.cpus") for group in ("emulator", "vcpu0", "vcpu1", "iothread1")}
    own = "1" if host.version == 1 else ""
    assert cpus == {"emulator": "1", "vcpu0": "1", "vcpu1": "1", "iothread1": own}
    assert lines(host, "reconnect", subject) == []


# with cgroup_controllers = [] libvirt makes no groups


def bare(host: Machined, helpers: int = 0) -> tuple[Domain, str]:
    host.configure(CONF + "emulator_cpus = '1'\nvcpu_cpus = '2-3'\n")
    started(host, vm(number=3))
    host.slice("vms.slice", "1-3", str(UNIFIED_LIMIT))
    return host.starts(vm(), "/vms.slice", groups=False, helpers=helpers), f"{CG}/vms.slice/{SCOPE}"


def test_groups_are_made_where_libvirt_made_none(v2: Machined) -> None:
    subject, scope = bare(v2)
    inner = f"{scope}/libvirt"
    groups = {"emulator": "1", "iothread1": None, "vcpu0": "2-3", "vcpu1": "1"}
    steps = lines(v2, "started", subject)
    assert steps[:4] == [
        f"make {inner}",
        f"move process {PID} to {inner}/cgroup.procs",
        f'write "+cpu +cpuset" to {scope}/cgroup.subtree_control',
        f'write "+cpu +cpuset" to {inner}/cgroup.subtree_control',
    ]
    expected = []
    for group, cpus in groups.items():
        expected += [f"make {inner}/{group}", f'write "threaded" to {inner}/{group}/cgroup.type']
        expected += [f'write "{cpus}" to {inner}/{group}/cpuset.cpus'] if cpus else []
    assert steps[4:-5] == expected
    assert steps[-5:] == [
        f"move thread {PID} to {inner}/emulator/cgroup.threads",
        f"move thread {PID + 1} to {inner}/emulator/cgroup.threads",
        f"move thread {PID + 10} to {inner}/vcpu0/cgroup.threads",
        f"move thread {PID + 11} to {inner}/vcpu1/cgroup.threads",
        f"move thread {PID + 21} to {inner}/iothread1/cgroup.threads",
    ]
    do(v2, "started", subject)
    assert v2.where(PID, PID + 11) == {"": f"/vms.slice/{SCOPE}/libvirt/vcpu1"}
    assert lines(v2, "reconnect", subject) == []


def test_without_thread_sets_none_are_made(v2: Machined) -> None:
    subject, _ = bare(v2)
    v2.configure(CONF)
    assert lines(v2, "started", subject) == []


def test_a_helper_in_the_scope_is_no_hindrance(v2: Machined) -> None:
    subject, scope = bare(v2, helpers=1)
    do(v2, "started", subject)
    assert v2.where(PID, PID) == {"": f"{scope[len(CG) :]}/libvirt/emulator"}


def test_groups_are_undone_when_a_later_step_fails(v2: Machined) -> None:
    subject, scope = bare(v2)
    made = plan(v2, "started", subject)
    made.add(Write(f"{CG}/none/cpuset.cpus", "1"))
    with pytest.raises(Error, match="none"):
        run(v2, made)
    assert made.warnings == []
    assert {path for _, tid in v2.all_tasks() for path in v2.where(PID, tid).values()} == {scope[len(CG) :]}


# stopped, release


def test_release(host: Machined) -> None:
    started(host, vm(number=3))
    assert lines(host, "stopped", vm(number=3)) == []
    released = lines(host, "release", vm(number=3))
    assert released[:3] == [f"remove {FILE}", f"remove {UNITS}/{SCOPE}.d if it is empty", f"remove {RECORD}"]
    do(host, "release", vm(number=3))
    assert host.names(UNITS) == [".keep"]
    assert host.names(state.VMS) == []
    assert lines(host, "release", vm(number=3)) == []


@pytest.mark.parametrize(
    ("template", "unit"),
    [
        ("uuid", rf"qemu\x2d{U}.slice"),
        ("/vms/$DRIVER-$UUID", rf"vms-qemu\x2d{U}.slice"),
        ("/vms/$NAME/x", "vms-vm-x.slice"),
        ("root", None),
        ("flat", None),
        ("nested", None),
    ],
)
def test_only_the_vms_own_slice_is_stopped(v2: Machined, template: str, unit: str | None) -> None:
    layout(v2, template, CPUS)
    started(v2, vm(number=3))
    stopped = [line for line in do(v2, "release", vm(number=3)) if not line.startswith("rmdir")]
    assert stopped == ([f"stop --no-block {unit}"] if unit else [])


def test_release_before_start(host: Machined) -> None:
    do(host, "prepare", vm())
    do(host, "release", vm())
    assert host.names(state.VMS) == []


def test_a_vm_that_is_not_known_is_left_alone(host: Machined) -> None:
    assert lines(host, "release", vm(number=3)) == []


@pytest.mark.parametrize(
    ("template", "directories"),
    [
        ("/vms/prod/$NAME", ["vms.slice", "vms.slice/vms-prod.slice"]),
        ("/vms/$NAME", ["vms.slice"]),
        ("native", ["machine.slice"]),
        ("nested", ["system.slice", "system.slice/system-qemu.slice"]),
    ],
)
def test_on_v1_shared_cpusets_go_with_the_last_vm(v1: Machined, template: str, directories: list[str]) -> None:
    layout(v1, template, CPUS)
    made = [f"{CG}/cpuset/{directory}" for directory in directories]
    for subject in (vm(), vm("other", uuid=OTHER)):
        do(v1, "prepare", subject)
    assert state.Shared(v1).made == made
    assert v1.cgroups() == made
    assert [v1.get(f"{path}/cpuset.cpus") for path in made] == ["0-1"] * (len(made) - 1) + ["1"]
    do(v1, "release", vm("other", uuid=OTHER))
    assert v1.cgroups() == made
    do(v1, "release", vm())
    assert v1.cgroups() == []
    assert state.Shared(v1).made == []


def test_on_v1_a_shared_cpuset_that_others_made_stays(v1: Machined) -> None:
    v1.make_directory(f"{CG}/cpuset/vms.slice")
    v1.write(f"{CG}/cpuset/vms.slice/cpuset.mems", "0")
    v1.write(f"{CG}/cpuset/vms.slice/cpuset.cpus", "0-1")
    do(v1, "prepare", vm())
    assert v1.get(f"{CG}/cpuset/vms.slice/cpuset.cpus") == "1"
    do(v1, "release", vm())
    assert v1.cgroups() == [f"{CG}/cpuset/vms.slice"]


def test_on_v1_one_that_is_in_use_stays(v1: Machined) -> None:
    do(v1, "prepare", vm())
    v1.make_directory(f"{CG}/cpuset/vms.slice/x")
    do(v1, "release", vm())
    assert v1.cgroups() == [f"{CG}/cpuset/vms.slice", f"{CG}/cpuset/vms.slice/x"]


@pytest.mark.parametrize("template", ["root", "flat", "uuid"])
def test_on_v1_nothing_is_left_of_a_vm_that_carries_its_fence(v1: Machined, template: str) -> None:
    layout(v1, template, CPUS)
    started(v1, vm(number=3))
    do(v1, "release", vm(number=3))
    assert [path for path in v1.cgroups() if SCOPE in path or U in path] == []


# what status shows


def test_the_parent_and_the_vms_place(host: Machined) -> None:
    host.slice("vms.slice", "1-3", str(SMALL_LIMIT if host.version == 1 else UNIFIED_LIMIT), "4096")
    started(host, vm(number=3))
    subject = host.starts(vm(), "/vms.slice")
    manager = systemd(host)
    parent = manager.parent()
    assert parent["path"] == "/vms.slice"
    assert parent["memory_current"] == 4096
    main = threads.threads(host, threads.running(host)[0])[0]
    assert manager.vm_of(main) == f"/vms.slice/{SCOPE}"
    assert manager.problems(subject, main, CpuSet([1])) == []
    main.cgroups = {key: path.replace("/vms.slice", "/machine.slice") for key, path in main.cgroups.items()}
    trees = ("memory", "cpuset") if host.version == 1 else ("cgroup",)
    found = manager.problems(subject, main, CpuSet([0, 1]))
    at = f"/vms.slice/{SCOPE}"
    assert sorted(found) == sorted(
        [
            *(f"it is in {key} {main.cgroups[key if key != 'cgroup' else '']}, not in {at}" for key in trees),
            f"it may use CPUs 0-1, not only {manager.fence.cpus}",
        ]
    )


def test_a_slice_whose_name_has_a_scopes_ending_in_it(v2: Machined) -> None:
    layout(v2, "/a.scope/$NAME")
    v2.starts(vm(), "/a.scope.slice")
    main = threads.threads(v2, threads.running(v2)[0])[0]
    assert systemd(v2).vm_of(main) == f"/a.scope.slice/{SCOPE}"
