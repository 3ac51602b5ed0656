"""What is asked of systemd at prepare where it owns cgroups and machined makes VMs' scopes, v1 and
v2.
"""

from __future__ import annotations

import pytest

from libvirt_cgroup_hooks import managers, state
from libvirt_cgroup_hooks.cli.checks.host import fence_in_effect
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.kinds import MEMORY
from libvirt_cgroup_hooks.leave import leave
from libvirt_cgroup_hooks.managers.unitfiles import decided
from libvirt_cgroup_hooks.steps import Write

from ..support.hosts import NO_LIMIT, run
from ..support.machined import ACTIVATION, BUS, DROP_IN, UNITS, Machined, U, layout, systemd
from ..support.operations import (
    CG,
    CPUS,
    MIB,
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


def calls(host: Machined, subject: Domain, operation: str = "prepare") -> list[str]:
    """What systemctl is asked to set."""
    found = [line for line in do(host, operation, subject) if line.startswith("set-property ")]
    return [line[len("set-property --runtime ") :] for line in found]


# the manager


def test_a_host_with_machined_is_systemds(host: Machined) -> None:
    assert managers.name(host) == "systemd"
    assert systemd(host).name == "systemd"


@pytest.mark.parametrize("file", [BUS, ACTIVATION])
def test_without_a_bus_or_machined_it_is_not(host: Machined, file: str) -> None:
    host.remove(file)
    assert managers.choose(host, host.config()).name == "cgroupfs"


# prepare


def test_prepare_v2(v2: Machined) -> None:
    assert lines(v2, "prepare", vm()) == [
        f"save {RECORD}",
        f"save {state.SHARED}",
        f"systemctl set-property --runtime vms.slice MemoryMax={UNIFIED_LIMIT} AllowedCPUs=1-3",
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
    assert lines(host, "prepare", vm("other", uuid=OTHER)) == [
        f"save /run/libvirt-cgroup-hooks/vms/{OTHER}"
    ]


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
        (
            "reserved_host_mem = '512 MiB'\nreserved_host_cpus = '3'\n",
            [f"MemoryMax={UNIFIED_LIMIT}", "AllowedCPUs=0-2"],
        ),
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
        ("1-2", "4096", []),  # the administrator's is narrower
        ("1-3", "max", [f"MemoryMax={UNIFIED_LIMIT}"]),
        ("1-3", "4096", []),
        ("", "max", [f"MemoryMax={UNIFIED_LIMIT}", "AllowedCPUs=1-3"]),
    ],
)
def test_the_bus_is_asked_only_for_what_the_kernel_does_not_say(
    v2: Machined, cpus: str, memory: str, needed: list[str]
) -> None:
    v2.slice("vms.slice", cpus, memory)
    v2.promise("vms.slice", AllowedCPUs="1-3", MemoryMax=str(UNIFIED_LIMIT))
    assert calls(v2, vm()) == ([" ".join(["vms.slice", *needed])] if needed else [])


@pytest.mark.parametrize(
    ("memory", "needed"),
    [(str(SMALL_LIMIT), []), (NO_LIMIT, [f"vms.slice MemoryMax={SMALL_LIMIT}"])],
)
def test_the_same_on_v1(v1: Machined, memory: str, needed: list[str]) -> None:
    v1.slice("vms.slice", memory=memory)
    v1.promise("vms.slice", MemoryMax=str(SMALL_LIMIT))
    assert calls(v1, vm()) == needed


@pytest.mark.parametrize(
    "directory", ["/run/systemd/system.control", "/etc/systemd/system.control"]
)
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
    """A drop-in in /etc/systemd/system.control hides the one of the same name in /run
    (systemd.unit(5)).
    """
    layout(v2, "/vms/$NAME", CPUS)
    v2.put(
        "/run/systemd/system.control/vms.slice.d/50-AllowedCPUs.conf", "[Slice]\nAllowedCPUs=1-3"
    )
    v2.put(
        "/etc/systemd/system.control/vms.slice.d/50-AllowedCPUs.conf", "[Slice]\nAllowedCPUs=0-1"
    )
    assert calls(v2, vm()) == ["vms.slice AllowedCPUs=1"]  # what both leave


def test_a_limit_below_what_is_in_use_is_refused(host: Machined) -> None:
    host.slice("vms.slice", used=str(7900 * MIB))
    before = host.snapshot()
    with pytest.raises(Error) as error:
        do(host, "prepare", vm())
    directory = f"{CG}/memory/vms.slice" if host.version == 1 else f"{CG}/vms.slice"
    assert str(error.value).startswith(f"cannot limit {directory} to ")
    assert str(error.value).endswith(
        ": 7.7 GiB is in use: stop some of it or reserve less; a lower limit would kill a process"
    )
    assert host.snapshot() == before


def test_a_limit_that_is_in_force_is_no_failure_when_more_is_in_use(host: Machined) -> None:
    limit = SMALL_LIMIT if host.version == 1 else UNIFIED_LIMIT
    host.slice("vms.slice", "1-3", str(limit), str(limit + 1))
    host.promise("vms.slice", AllowedCPUs="1-3")
    assert calls(host, vm()) == []


def test_what_systemd_was_not_told_of_is_set_again(v2: Machined) -> None:
    """/run/systemd/system.control/vms.slice.d was removed, say: the next reload would lift it."""
    v2.slice("vms.slice", "1-3", str(UNIFIED_LIMIT))
    limits = ("AllowedCPUs=1-3", f"MemoryMax={UNIFIED_LIMIT}")
    assert calls(v2, vm()) == [f"vms.slice {limit}" for limit in limits]
    assert calls(v2, vm("other", uuid=OTHER)) == []


@pytest.mark.parametrize("name", ["50-AllowedCPUs.conf", "99-own.conf"])
def test_what_a_reload_will_lift_is_told(v2: Machined, name: str) -> None:
    """As `systemctl set-property`, without --runtime, has left it before there was a hook."""
    file = f"/etc/systemd/system.control/vms.slice.d/{name}"
    v2.put(file, "[Slice]\nAllowedCPUs=0-3\n")
    v2.slice("vms.slice", "0-3")
    made = plan(v2, "prepare", vm(number=3))
    run(v2, made)
    assert made.warnings == [
        f"/vms.slice: {file} sets AllowedCPUs=0-3, which replaces the limit CPUs 1-3 at "
        f"the next daemon-reload: remove that line from {file}, then run systemctl daemon-reload"
    ]
    assert v2.get(f"{CG}/vms.slice/cpuset.cpus") == "1-3"


def test_a_property_is_put_back_when_a_later_step_fails(v2: Machined) -> None:
    v2.slice("vms.slice", "1", str(UNIFIED_LIMIT))
    before = v2.snapshot()
    made = plan(v2, "prepare", vm(number=3))
    made.add(Write(f"{CG}/none/cpuset.cpus", "1"))
    with pytest.raises(Error, match="none"):
        run(v2, made)
    assert made.warnings == []
    assert v2.get(f"{CG}/vms.slice/cpuset.cpus") == "1"
    assert v2.snapshot("run/systemd/system.control/vms") == before


def test_also_one_that_was_not_limited(v2: Machined) -> None:
    v2.slice("vms.slice")
    made = plan(v2, "prepare", vm(number=3))
    made.add(Write(f"{CG}/none/cpuset.cpus", "1"))
    with pytest.raises(Error, match="none"):
        run(v2, made)
    assert made.warnings == []
    assert [v2.get(f"{CG}/vms.slice/{name}") for name in ("cpuset.cpus", "memory.max")] == [
        "0-3",
        "max",
    ]


# a reservation that is taken back


@pytest.mark.parametrize("there", [True, False])
def test_what_is_taken_back_is_cleared_by_the_full_list(v2: Machined, there: bool) -> None:
    if there:
        v2.slice("vms.slice")
    do(v2, "prepare", vm())
    layout(v2, "/vms/$DRIVER-$NAME")
    assert calls(v2, vm("other", uuid=OTHER)) == [
        "vms.slice AllowedCPUs=0-3",
        "vms.slice AllowedCPUs=",
        "vms.slice MemoryMax=infinity",
    ]
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
    ("left", "expected"),
    [
        (
            "reserved_host_mem = '512 MiB'\n",
            ["vms.slice AllowedCPUs=0-3", "vms.slice AllowedCPUs="],
        ),
        (CPUS, ["vms.slice MemoryMax=infinity"]),
    ],
)
def test_one_of_two_reservations_is_taken_back(
    v2: Machined, left: str, expected: list[str]
) -> None:
    do(v2, "prepare", vm())
    layout(v2, "/vms/$DRIVER-$NAME", left)
    assert calls(v2, vm("other", uuid=OTHER)) == expected


def test_the_parent_of_an_earlier_layout_stays_fenced(v2: Machined) -> None:
    """VMs may still run there, for as long as it has a cgroup."""
    layout(v2, "/vms/$NAME", CPUS)
    do(v2, "prepare", vm())
    v2.slice("vms.slice", "1-3")
    layout(v2, "/other/$NAME", CPUS)
    assert calls(v2, vm("other", uuid=OTHER)) == ["other.slice AllowedCPUs=1-3"]
    layout(v2, "/other/$NAME", "reserved_host_cpus = '0,2'\n")
    assert sorted(calls(v2, vm("other", uuid=OTHER))) == [
        "other.slice AllowedCPUs=1,3",
        "vms.slice AllowedCPUs=1,3",
    ]
    v2.remove_directory(f"{CG}/vms.slice")
    assert calls(v2, vm("other", uuid=OTHER)) == [
        "vms.slice AllowedCPUs=0-3",
        "vms.slice AllowedCPUs=",
    ]


def test_nothing_is_cleared_that_is_not_in_effect(v2: Machined) -> None:
    v2.make_directory("/run/libvirt-cgroup-hooks")
    v2.put(
        state.SHARED, f"{state.LIMITS_FORMAT}\nlimit cpus 0-3 /vms.slice\nlimit memory - /vms.slice"
    )
    layout(v2, "/other/$NAME")
    assert lines(v2, "prepare", vm()) == [
        f"save {RECORD}",
        "systemctl stop --no-block vms.slice",
        f"remove {state.SHARED}",
    ]


# strays


def test_drop_ins_of_no_vms_record_are_swept(host: Machined) -> None:
    started(host, vm("other", number=4, uuid=OTHER))
    stray = f"{UNITS}/machine-qemu\\x2d9\\x2dgone.scope.d"
    for path in (
        f"{stray}/{DROP_IN}",
        f"{UNITS}/others.scope.d/50-x.conf",
        f"{UNITS}/vms.slice.d/50-x.conf",
        f"{UNITS}/vms-gone.slice.d/{DROP_IN}",
    ):
        host.put(path, "[Scope]")
    made = lines(host, "prepare", vm())
    assert [line for line in made if UNITS in line] == [
        f"remove {stray}/{DROP_IN}",
        f"remove {stray} if it is empty",
        f"remove {UNITS}/vms-gone.slice.d/{DROP_IN}",
        f"remove {UNITS}/vms-gone.slice.d if it is empty",
    ]
    do(host, "prepare", vm())
    assert host.names(UNITS) == [
        ".keep",
        r"machine-qemu\x2d4\x2dother.scope.d",
        "others.scope.d",
        "vms.slice.d",
    ]


def test_also_beside_a_vm_that_has_no_drop_in(host: Machined) -> None:
    do(host, "prepare", vm("other", uuid=OTHER))
    host.put(f"{UNITS}/machine-qemu\\x2d9\\x2dgone.scope.d/{DROP_IN}", "[Scope]")
    assert [line for line in lines(host, "prepare", vm()) if UNITS in line]


def test_what_an_earlier_run_left_goes_once(host: Machined) -> None:
    layout(host, "/vms/$UUID", CPUS)
    started(host, vm(number=2))
    old = f"{UNITS}/machine-qemu\\x2d2\\x2dvm.scope.d"
    planned = lines(host, "prepare", vm())
    slice_ = f"{UNITS}/vms-{U}.slice.d"
    assert [line for line in planned if "systemctl" in line or UNITS in line] == [
        f"remove {old}/{DROP_IN}",
        f"remove {old} if it is empty",
        f"remove {slice_}/{DROP_IN}",
        f"remove {slice_} if it is empty",
        f"systemctl stop --no-block vms-{U}.slice",
    ]


def test_the_slices_of_a_vm_go_with_it_where_there_is_no_hook_any_more(host: Machined) -> None:
    layout(host, "/vms/$UUID/$NAME", CPUS)
    started(host, vm(number=2))
    files = [f"{UNITS}/{name}.slice.d/{DROP_IN}" for name in (f"vms-{U}", f"vms-{U}-vm")]
    assert [host.get(file) for file in files] == ["[Unit]\nStopWhenUnneeded=yes"] * 2
    host.starts(vm(), f"/vms.slice/vms-{U}.slice/vms-{U}-vm.slice")
    leave(host)
    assert all(host.exists(file) for file in files)
    assert not host.names(f"{UNITS}/machine-qemu\\x2d2\\x2dvm.scope.d")


def test_what_ended_vms_left_goes_when_the_host_is_left(host: Machined) -> None:
    layout(host, "/vms/$UUID", CPUS)
    started(host, vm(number=2))
    leave(host)
    assert host.names(UNITS) == [".keep"]


OVERRIDE = "/etc/systemd/system/vms.slice.d/override.conf"


@pytest.mark.parametrize(
    ("memory", "bytes_"), [("max", "max"), ("4G", str(4 << 30)), ("64G", str(64 << 30))]
)
def test_a_narrower_limit_of_the_administrator_stays(
    v2: Machined, memory: str, bytes_: str
) -> None:
    """And is what remains when nothing is reserved any more."""
    v2.put(OVERRIDE, f"[Slice]\nAllowedCPUs=2-3\nMemoryMax={memory}")
    v2.slice("vms.slice", "2-3", bytes_)
    made = calls(v2, vm())
    assert not any("AllowedCPUs" in line for line in made)
    assert any("MemoryMax" in line for line in made) == (memory != "4G")
    assert (v2.get(f"{CG}/vms.slice/cpuset.cpus")) == "2-3"
    leave(v2)
    assert v2.get(f"{CG}/vms.slice/cpuset.cpus") == "2-3"
    assert v2.get(f"{CG}/vms.slice/memory.max") == bytes_


def test_one_that_is_newer_than_ours_stays_too(v2: Machined) -> None:
    v2.slice("vms.slice")
    do(v2, "prepare", vm())
    v2.put(OVERRIDE, "[Slice]\nMemoryMax=4G")
    v2.put(f"{CG}/vms.slice/memory.max", str(4 << 30))
    assert calls(v2, vm()) == []
    leave(v2)
    assert v2.get(f"{CG}/vms.slice/memory.max") == str(4 << 30)


def test_all_cpus_are_no_limit(v2: Machined) -> None:
    """That is what a slice keeps whose limit was taken away; nothing of ours is left then."""
    for _ in range(2):
        calls(v2, vm())
        leave(v2)
        assert v2.directories("/run/systemd/system.control") == []


def test_a_limit_that_leaves_vms_nothing_is_told(v2: Machined) -> None:
    v2.slice("vms.slice", "0")
    with pytest.raises(Error, match=r"cannot limit /vms.slice to CPUs 1-3: it was limited to 0"):
        calls(v2, vm())


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        (OVERRIDE, "AllowedCPUs=0-3", "AllowedCPUs=0-3"),
        (OVERRIDE, "AllowedCPUs=", "AllowedCPUs=no limit"),
        (OVERRIDE, "AllowedCPUs=2-3", None),
        ("/etc/systemd/system/vms.slice.d/10-first.conf", "AllowedCPUs=0-3", None),
        ("/etc/systemd/system.control/vms.slice.d/50-AllowedCPUs.conf", "AllowedCPUs=0-3", "0-3"),
        ("/run/systemd/system.control/vms.slice.d/90-MemoryMax.conf", "MemoryMax=infinity", "no l"),
        ("/usr/lib/systemd/system/vms.slice.d/zz.conf", "MemoryMax=1G", None),
        # what follows is as systemd 257 has it (tests/lab/test_doctor.py)
        (OVERRIDE, "AllowedCPUs=0", "AllowedCPUs=0-3"),  # CPUs add up
        (OVERRIDE, " AllowedCPUs = 2 \\\n 0", "AllowedCPUs=0-3"),
        (OVERRIDE, "AllowedCPUs=no CPUs", None),  # which systemd ignores
        (OVERRIDE, "[Unit]\nMemoryMax=infinity", None),
        (OVERRIDE, "#MemoryMax=infinity", None),
        ("/etc/systemd/system/slice.d/90-x.conf", "MemoryMax=infinity", "no limit"),
        ("/etc/systemd/system/slice.d/10-x.conf", "MemoryMax=infinity", None),
        ("/run/systemd/system.attached/vms.slice.d/90-x.conf", "MemoryMax=infinity", "no limit"),
        # after ours, whose name it has
        ("/etc/systemd/system.control/slice.d/50-MemoryMax.conf", "MemoryMax=infinity", None),
    ],
)
def test_what_systemd_will_do_at_the_next_reload_is_told(
    v2: Machined, file: str, text: str, told: str | None
) -> None:
    v2.slice("vms.slice")
    do(v2, "prepare", vm())
    v2.put(file, f"[Slice]\n{text}")
    problems = [one for one in fence_in_effect(Subject(v2)) if "daemon-reload" in one.message]
    assert [one.result for one in problems] == (["FAIL"] if told else [])
    for one in problems:
        assert one.message.startswith(f"{file} sets ")
        assert str(told) in one.message
        assert one.remedy == f"remove that line from {file}, then run systemctl daemon-reload"


@pytest.mark.parametrize(
    ("files", "decides"),
    [
        ({"/etc": "vms-prod.slice", "/run": "vms-prod.slice"}, "/etc"),
        ({"/etc": "vms-.slice", "/run": "vms-prod.slice"}, "/etc"),
        ({"/etc": "slice", "/run": "vms-prod.slice"}, "/run"),
        ({"/etc": "slice", "/run": "slice"}, "/etc"),
        ({"/etc": "slice", "/run": "vms-.slice"}, "/run"),
        ({"/etc": "vms.slice"}, None),
    ],
)
def test_of_drop_ins_of_one_name_the_first_counts(
    v2: Machined, files: dict[str, str], decides: str | None
) -> None:
    """As systemd 257 has it."""
    for number, (top, folder) in enumerate(files.items()):
        v2.put(f"{top}/systemd/system/{folder}.d/90-a.conf", f"[Slice]\nMemoryMax={number}G")
    found = decided(v2, "vms-prod.slice", MEMORY)
    assert (found and found[0].partition("/systemd")[0]) == decides
