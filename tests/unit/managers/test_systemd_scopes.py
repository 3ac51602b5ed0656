"""The scopes of VMs, where systemd owns cgroups and machined makes them, v1 and v2, from start to
release.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import conformance, state, threads
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.steps import Write

from ..support.hosts import PID, UUID, run
from ..support.machined import DROP_IN, SCOPE, UNITS, Machined, U, layout, systemd
from ..support.operations import (
    CG,
    CONF,
    CPUS,
    OTHER,
    RECORD,
    SMALL_LIMIT,
    UNIFIED_LIMIT,
    do,
    lines,
    plan,
    started,
    vm,
)

HOST = Machined
FILE = f"{UNITS}/{SCOPE}.d/{DROP_IN}"


# prepare, start


def test_a_scope_is_steered(host: Machined) -> None:
    """The record comes first, so that nothing can be left that nobody knows of."""
    assert lines(host, "prepare", vm(number=3))[:5] == [
        f"save {RECORD}",
        f"make {UNITS}/{SCOPE}.d",
        f"save {FILE}",
        f"touch {UNITS}",
        "have systemd load libvirt-cgroup-hooks-no-such-unit.service",
    ]
    assert do(host, "prepare", vm(number=3))[:2] == [
        f"touch {UNITS}",
        "load libvirt-cgroup-hooks-no-such-unit.service",
    ]
    assert host.get(FILE) == "[Scope]\nSlice=vms.slice"
    assert Path(host.root + FILE).stat().st_mode & 0o777 == 0o644
    record = state.Record.read(host, UUID)
    assert record and (record.files, record.slices, record.groups) == ([FILE], [], [])
    assert record.memory > 0
    assert lines(host, "start", vm(number=3)) == []


def test_what_was_steered_since_is_written_again(host: Machined) -> None:
    """Another hook, as it was before an upgrade, or one that was allowed to fail."""
    do(host, "prepare", vm(number=3))
    host.remove(FILE)
    do(host, "start", vm(number=3))
    assert host.get(FILE) == "[Scope]\nSlice=vms.slice"


@pytest.mark.parametrize(
    ("template", "name", "scope", "unit", "own", "carries"),
    [
        ("legacy", "vm", SCOPE, "system-libvirt-qemu.slice", False, False),
        ("nested", "vm", SCOPE, "system-qemu.slice", False, False),
        ("flat", "vm", SCOPE, "system.slice", False, True),
        ("root", "vm", SCOPE, "-.slice", False, True),
        ("uuid", "vm", SCOPE, rf"qemu\x2d{U}.slice", True, True),
        (
            "/vms/prod/$NAME",
            "a b",
            r"machine-qemu\x2d3\x2dab.scope",
            "vms-prod.slice",
            False,
            False,
        ),
        (
            "/vms/$DRIVER-$UUID",
            "💩",
            r"machine-qemu\x2d3.scope",
            rf"vms-qemu\x2d{U}.slice",
            True,
            False,
        ),
        (
            "/$NAME/$UUID",
            "ü-1",
            r"machine-qemu\x2d3\x2d1.scope",
            rf"\xc3\xbc\x2d1-{U}.slice",
            True,
            True,
        ),
        ("/vms/$ID/$NAME", "x", r"machine-qemu\x2d3\x2dx.scope", "vms-3-x.slice", True, False),
    ],
)
def test_drop_ins(
    v2: Machined, template: str, name: str, scope: str, unit: str, own: bool, carries: bool
) -> None:
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
def test_on_v1_the_scope_has_its_cpuset_before_libvirt_makes_it(
    v1: Machined, template: str, directory: str
) -> None:
    layout(v1, template, CPUS)
    do(v1, "prepare", vm())
    made = do(v1, "start", vm(number=3))
    scope = f"{CG}/cpuset{directory}/{SCOPE}"
    assert made[-3:] == [f"mkdir {scope}", f"{scope}/cpuset.mems 0", f"{scope}/cpuset.cpus 1"]
    assert v1.get(FILE).splitlines()[2:] == []
    record = state.Record.read(v1, UUID)
    assert record and (f"{CG}/cpuset{directory}" if template == "uuid" else scope) in record.groups


def test_native_steers_nothing_and_removes_what_would(host: Machined) -> None:
    layout(host, "native", CPUS)
    do(host, "prepare", vm())
    assert lines(host, "start", vm(number=3)) == []
    host.put(FILE, "[Scope]\nSlice=vms.slice")
    assert lines(host, "start", vm(number=3)) == [
        f"remove {FILE}",
        f"remove {UNITS}/{SCOPE}.d if it is empty",
    ]


def test_start_without_an_id(host: Machined) -> None:
    with pytest.raises(
        Error, match=r"^VM vm has no id here, and its scope's name needs one: .*virsh dumpxml vm$"
    ):
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
def test_where_systemd_put_the_vm(
    host: Machined, template: str, at: str, warns: bool, groups: bool, operation: str
) -> None:
    layout(host, template)
    subject = host.starts(vm(), at, groups=groups)
    made = plan(host, operation, subject)
    scope = f"{at}/{SCOPE}"
    place = f"{scope}/libvirt/emulator" if groups and host.version == 2 else scope
    expected = systemd(host).scope_path(subject)
    text = (
        f"systemd has put the VM in {place}, not in {expected}; "
        "shut it down and start it again to move it"
    )
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
    moves = [
        line for line in host.written if "procs" in line or "tasks" in line or "threads" in line
    ]
    assert moves == []
    cpus = {
        group: host.get(f"{base}/{group}/cpuset.cpus")
        for group in ("emulator", "vcpu0", "vcpu1", "iothread1")
    }
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
    assert {path for _, tid in v2.all_tasks() for path in v2.where(PID, tid).values()} == {
        scope[len(CG) :]
    }


# stopped, release


def test_release(host: Machined) -> None:
    started(host, vm(number=3))
    assert lines(host, "stopped", vm(number=3)) == []
    released = lines(host, "release", vm(number=3))
    assert released[:3] == [
        f"remove {FILE}",
        f"remove {UNITS}/{SCOPE}.d if it is empty",
        f"remove {RECORD}",
    ]
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
        ("/$NAME/$UUID/x", f"vm-{U}.slice"),
        ("/vms/$UUID/$NAME", f"vms-{U}.slice"),
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
def test_on_v1_shared_cpusets_go_with_the_last_vm(
    v1: Machined, template: str, directories: list[str]
) -> None:
    layout(v1, template, CPUS)
    made = [f"{CG}/cpuset/{directory}" for directory in directories]
    for subject in (vm(), vm("other", uuid=OTHER)):
        do(v1, "prepare", subject)
    assert state.Remembered(v1).made == made
    assert v1.cgroups() == made
    assert [v1.get(f"{path}/cpuset.cpus") for path in made] == ["0-1"] * (len(made) - 1) + ["1"]
    do(v1, "release", vm("other", uuid=OTHER))
    assert v1.cgroups() == made
    do(v1, "release", vm())
    assert v1.cgroups() == []
    assert state.Remembered(v1).made == []


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


@pytest.mark.parametrize(
    ("template", "own"),
    [
        ("/vms/$DRIVER-$UUID", rf"vms-qemu\x2d{U}.slice"),
        ("/vms/$UUID/$NAME", f"vms-{U}.slice"),
        ("/vms/$NAME", None),
    ],
)
def test_on_v1_the_slices_that_libvirt_leaves_are_removed(
    v1: Machined, template: str, own: str | None
) -> None:
    """Where systemd manages the hierarchy, it removes them."""
    layout(v1, template, CPUS)
    started(v1, vm(number=3))
    record = state.Record.read(v1, UUID)
    assert record and record.groups == ([f"{CG}/cpuset/vms.slice/{own}"] if own else [])
    for path in record.groups:
        v1.make_directory(path)
        v1.make_directory(f"{path}/below.slice")
    do(v1, "release", vm(number=3))
    assert [path for path in v1.cgroups() if "cpuset/" in path] == []


# what status shows


def test_the_parent_and_the_vms_place(host: Machined) -> None:
    host.slice("vms.slice", "1-3", str(SMALL_LIMIT if host.version == 1 else UNIFIED_LIMIT), "4096")
    started(host, vm(number=3))
    subject = host.starts(vm(), "/vms.slice")
    manager = systemd(host)
    parent = conformance.parent(manager)
    assert parent.path == "/vms.slice"
    assert parent.memory_current == 4096
    main = threads.threads(host, threads.running(host, {})[0])[0]
    assert manager.vm_of(main) == f"/vms.slice/{SCOPE}"
    assert conformance.differences(manager, subject, main, CpuSet([1])) == []
    main.cgroups = {
        key: path.replace("/vms.slice", "/machine.slice") for key, path in main.cgroups.items()
    }
    trees = ("memory", "cpuset") if host.version == 1 else ("cgroup",)
    found = conformance.differences(manager, subject, main, CpuSet([0, 1]))
    assert {one.reason for one in found} == {conformance.PLACE, conformance.MORE_CPUS}
    at = f"/vms.slice/{SCOPE}"
    assert sorted(one.text for one in found) == sorted(
        [
            *(
                f"it is in {key} {main.cgroups[key if key != 'cgroup' else '']}, not in {at}"
                for key in trees
            ),
            f"it may use CPUs 0-1, not only {manager.fence.cpus}",
        ]
    )


def test_a_slice_whose_name_has_a_scopes_ending_in_it(v2: Machined) -> None:
    layout(v2, "/a.scope/$NAME")
    v2.starts(vm(), "/a.scope.slice")
    main = threads.threads(v2, threads.running(v2, {})[0])[0]
    assert systemd(v2).vm_of(main) == f"/a.scope.slice/{SCOPE}"
