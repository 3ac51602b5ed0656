"""Lowering a memory limit: it follows the use, on v1 and v2, written by us and by systemd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers, operations
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.host import Refused
from libvirt_cgroup_hooks.kernel.lowering import (
    HaveRoom,
    LowerLimit,
    fits,
    lowers,
    needs_pressure,
    pressed,
)
from libvirt_cgroup_hooks.kernel.v1 import V1
from libvirt_cgroup_hooks.kernel.v2 import V2
from libvirt_cgroup_hooks.kinds import MEMORY
from libvirt_cgroup_hooks.plan import Plan

from ..support.hosts import NO_LIMIT, Kernel, domain, run
from ..support.machined import Machined
from ..support.operations import CG, MIB, SMALL_LIMIT, UNIFIED_LIMIT, do
from ..test_plan import planned

GIB = 2**30
HIGH = pressed(GIB)
CONF = "reserved_host_mem = '512 MiB'\ncgroup_layout = '/vms/$NAME'\n"


@pytest.mark.parametrize(
    ("limit", "high"),
    [
        (GIB, GIB - 32 * MIB),
        (64 * GIB, 64 * GIB - 32 * MIB),
        (512 * MIB, 480 * MIB),
        (160 * MIB, 150 * MIB),
        (MIB, 15 * MIB // 16),
        (GIB + 4096, GIB - 32 * MIB),  # whole pages, of whatever size
        (4096, 0),
    ],
)
def test_where_memory_high_is_meanwhile(limit: int, high: int) -> None:
    assert pressed(limit) == high
    assert fits(limit, high)
    assert not fits(limit, limit)


@pytest.mark.parametrize(
    ("used", "room"),
    [(0, True), (HIGH, True), (HIGH + 16 * MIB, True), (HIGH + 16 * MIB + 1, False)],
)
def test_what_fits(used: int, room: bool) -> None:
    assert fits(GIB, used) is room


def limited(host: Kernel, limit: int) -> Plan:
    """What limits /vms."""
    manager = managers.choose(host, host.config())
    return planned(*manager.set("/vms", {MEMORY: limit}))


# cgroup v2


@pytest.fixture
def host(tmp_path: Path) -> Kernel:
    made = Kernel(tmp_path, "v2")
    made.enable(CG, "+cpu +cpuset +memory +io +pids")
    made.make_directory(f"{CG}/vms")
    made.put(f"{CG}/vms/memory.max", str(4 * GIB))
    return made


def v2(host: Kernel, used: int, high: str = "max") -> V2:
    host.put(f"{CG}/vms/memory.current", str(used))
    host.put(f"{CG}/vms/memory.high", high)
    return V2(host, host.hierarchies[0])


@pytest.mark.parametrize(
    ("used", "high", "limit", "steps"),
    [
        (0, "max", 4 * GIB, []),
        # a grow is one write, whatever is in use
        (3 * GIB, "max", 5 * GIB, [f"memory.max {5 * GIB}"]),
        (0, "max", GIB, [f"memory.max {GIB}"]),
        (GIB // 2, "max", GIB, [f"memory.max {GIB}"]),
        (GIB // 2 + 1, "max", GIB, [f"memory.high {HIGH}", f"memory.max {GIB}", "memory.high max"]),
        (
            GIB // 2 + 1,
            str(2 * GIB),
            GIB,
            [f"memory.high {HIGH}", f"memory.max {GIB}", f"memory.high {2 * GIB}"],
        ),
        (
            GIB // 2 + 1,
            str(GIB // 4),
            GIB,
            [f"memory.high {GIB // 4}", f"memory.max {GIB}", f"memory.high {GIB // 4}"],
        ),
        (
            HIGH + 16 * MIB,
            "max",
            GIB,
            [f"memory.high {HIGH}", f"memory.max {GIB}", "memory.high max"],
        ),
    ],
)
def test_lowering_v2(host: Kernel, used: int, high: str, limit: int, steps: list[str]) -> None:
    v2(host, used, high)
    made = limited(host, limit)
    assert run(host, made) == [f"{CG}/vms/{step}" for step in steps]
    assert (host.get(f"{CG}/vms/memory.max"), host.get(f"{CG}/vms/memory.high")) == (
        str(limit),
        high,
    )
    checks = [step for step in made.steps if isinstance(step, HaveRoom)]
    assert len(checks) == (len(steps) == 3)
    if checks:
        assert str(made).splitlines()[1] == f"check that {CG}/vms uses less than {limit} bytes"


def test_from_no_limit_at_all(host: Kernel) -> None:
    host.put(f"{CG}/vms/memory.max", "max")
    tree = v2(host, GIB - 1)
    assert [lowers(tree, f"{CG}/vms", limit) for limit in (GIB, 2**60)] == [True, True]
    assert len(limited(host, GIB).steps) == 4


@pytest.mark.parametrize(
    ("limit", "expected"), [(GIB, True), (4 * GIB - 1, True), (4 * GIB, False), (5 * GIB, False)]
)
def test_what_lowers_v2(host: Kernel, limit: int, expected: bool) -> None:
    assert lowers(v2(host, 0), f"{CG}/vms", limit) is expected


def test_more_in_use_is_refused_before_anything_is_written(host: Kernel) -> None:
    tree = v2(host, GIB + 1)
    refusals: list[Callable[[], object]] = [
        lambda: limited(host, GIB),
        lambda: needs_pressure(tree, f"{CG}/vms", GIB),
    ]
    for refused in refusals:
        with pytest.raises(Error) as error:
            refused()
        assert str(error.value) == (
            f"cannot limit {CG}/vms to 1 GiB of memory: 1.0 GiB is in use: "
            "stop some of it or reserve less; a lower limit would kill a process"
        )


@pytest.mark.parametrize("cold", [0, 20 * MIB])
def test_without_room_the_limit_is_not_written(host: Kernel, cold: int) -> None:
    """A use near the limit: memory.high makes room, or the plan ends."""
    v2(host, GIB - MIB)
    made = limited(host, GIB)
    host.cold = cold
    if cold:
        run(host, made)
        assert host.get(f"{CG}/vms/memory.max") == str(GIB)
        return
    before = host.snapshot()
    with pytest.raises(Error, match=r"1.0 GiB is in use: stop some of it or reserve less"):
        run(host, made)
    assert host.snapshot() == before
    assert not [line for line in host.written if "memory.max" in line]


@pytest.mark.parametrize(
    ("used", "cold", "written", "left"),
    [
        (GIB, 64 * MIB, [f"memory.reclaim {32 * MIB}"], HIGH),
        (2 * GIB, 2 * GIB, [f"memory.reclaim {256 * MIB}"], 2 * GIB - 256 * MIB),  # in parts
        (GIB, MIB, [], GIB - MIB),  # EAGAIN: there is no more
        (GIB, 0, [], GIB),
        (HIGH, GIB, [], HIGH),
        (0, 0, [], 0),
    ],
)
def test_reclaiming_on_v2(
    host: Kernel, used: int, cold: int, written: list[str], left: int
) -> None:
    tree = v2(host, used)
    host.written.clear()
    host.cold = cold
    tree.reclaim(f"{CG}/vms", GIB)
    assert host.written == [f"{CG}/vms/{line}" for line in written]
    assert tree.memory_in_use(f"{CG}/vms") == left


def test_before_linux_5_19_memory_high_reclaims(host: Kernel) -> None:
    tree = v2(host, GIB, str(HIGH))
    host.remove(f"{CG}/vms/memory.reclaim")
    host.cold = GIB
    tree.reclaim(f"{CG}/vms", GIB)
    assert tree.memory_in_use(f"{CG}/vms") == HIGH


# cgroup v1


@pytest.fixture
def old(tmp_path: Path) -> Kernel:
    made = Kernel(tmp_path, "v1")
    made.make_directory(f"{CG}/memory/vms")
    return made


def v1(host: Kernel, used: int, limit: str) -> V1:
    host.put(f"{CG}/memory/vms/memory.usage_in_bytes", str(used))
    host.put(f"{CG}/memory/vms/memory.limit_in_bytes", limit)
    return V1(
        host, next(hierarchy for hierarchy in host.hierarchies if "memory" in hierarchy.controllers)
    )


@pytest.mark.parametrize(
    ("used", "present", "limit", "falls", "writes"),
    [
        (0, NO_LIMIT, GIB, True, True),
        (GIB, NO_LIMIT, GIB, True, True),
        (0, str(GIB), GIB, False, False),
        (GIB, str(GIB), 2 * GIB, False, True),
        (GIB, str(2 * GIB), GIB, True, True),
    ],
)
def test_lowering_v1(
    old: Kernel, used: int, present: str, limit: int, falls: bool, writes: bool
) -> None:
    tree = v1(old, used, present)
    assert lowers(tree, f"{CG}/memory/vms", limit) is falls
    made = limited(old, limit)
    assert [isinstance(step, LowerLimit) for step in made.steps] == [falls] * writes
    assert run(old, made) == [f"{CG}/memory/vms/memory.limit_in_bytes {limit}"] * writes
    assert not lowers(v1(old, used, str(limit)), f"{CG}/memory/vms", limit)


def test_what_the_kernel_refuses_on_v1_has_a_reason(old: Kernel) -> None:
    v1(old, 0, NO_LIMIT)
    made = limited(old, GIB)
    old.put(f"{CG}/memory/vms/memory.usage_in_bytes", str(2 * GIB))  # meanwhile
    with pytest.raises(Error) as error:
        run(old, made)
    assert str(error.value).startswith(
        f"cannot limit {CG}/memory/vms to 1 GiB of memory: 2 GiB is in use: stop some of it"
    )
    assert old.get(f"{CG}/memory/vms/memory.limit_in_bytes") == NO_LIMIT
    assert made.warnings == []


def test_another_failure_is_told_as_it_is(old: Kernel) -> None:
    v1(old, 0, NO_LIMIT)
    made = limited(old, GIB)
    old.remove_directory(f"{CG}/memory/vms")
    with pytest.raises(Refused, match="No such file or directory"):
        run(old, made)


def test_more_in_use_is_refused_on_v1_too(old: Kernel) -> None:
    v1(old, GIB + 1, NO_LIMIT)
    with pytest.raises(
        Error, match=f"^cannot limit {CG}/memory/vms to 1 GiB of memory: 1.0 GiB is in use"
    ):
        limited(old, GIB)


@pytest.mark.parametrize(("cold", "left"), [(0, 2 * GIB), (GIB // 2, 3 * GIB // 2), (2 * GIB, GIB)])
def test_reclaiming_on_v1_leaves_the_limit(old: Kernel, cold: int, left: int) -> None:
    tree = v1(old, 2 * GIB, str(3 * GIB))
    old.cold = cold
    tree.reclaim(f"{CG}/memory/vms", GIB)
    assert tree.memory_in_use(f"{CG}/memory/vms") == left
    assert old.get(f"{CG}/memory/vms/memory.limit_in_bytes") == str(3 * GIB)


# systemd


def calls(host: Machined) -> list[str]:
    return [
        line.replace("set-property --runtime ", "") for line in do(host, "prepare", domain(id=3))
    ]


@pytest.mark.parametrize(
    ("used", "present", "high", "expected"),
    [
        (6 * GIB, str(8 * GIB), "max", [pressed(UNIFIED_LIMIT), UNIFIED_LIMIT, "infinity"]),
        (6 * GIB, "max", str(7 * GIB), [7 * GIB, UNIFIED_LIMIT, 7 * GIB]),
        (3 * GIB, "max", "max", [UNIFIED_LIMIT]),
        (6 * GIB, str(GIB), "max", []),  # the administrator's is narrower
    ],
)
def test_lowering_through_systemd(
    tmp_path: Path, used: int, present: str, high: str, expected: list[object]
) -> None:
    host = Machined(tmp_path, "v2", CONF)
    host.slice("vms.slice", memory=present, used=str(used))
    host.put(f"{CG}/vms.slice/memory.high", high)
    names = ["MemoryHigh", "MemoryMax", "MemoryHigh"] if len(expected) == 3 else ["MemoryMax"]
    made = [line for line in calls(host) if line.startswith("vms.slice")]
    assert made == [f"vms.slice {name}={value}" for name, value in zip(names, expected)]
    assert host.get(f"{CG}/vms.slice/memory.high") == high
    assert "50-MemoryHigh.conf" not in host.names("/run/systemd/system.control/vms.slice.d")


def test_room_is_looked_for_before_systemd_is_asked(tmp_path: Path) -> None:
    host = Machined(tmp_path, "v2", CONF)
    host.slice("vms.slice", used=str(UNIFIED_LIMIT - MIB))
    made = operations.plan(host, host.config(), "prepare", domain(id=3))
    assert [type(step).__name__ for step in made.steps][-6:] == [
        "Systemctl",
        "HaveRoom",
        "Systemctl",
        "Systemctl",
        "Remove",
        "RemoveEmpty",
    ]
    with pytest.raises(Error, match=f"^cannot limit {CG}/vms.slice to "):
        run(host, made)
    files = {name: host.get(f"{CG}/vms.slice/memory.{name}") for name in ("max", "high")}
    assert files == {"max": "max", "high": "max"}
    assert not host.directories("/run/systemd/system.control")


def test_on_v1_the_kernel_is_asked_first(tmp_path: Path) -> None:
    """systemd would not say that it refused."""
    host = Machined(tmp_path, "v1", CONF)
    host.slice("vms.slice", memory=NO_LIMIT, used=str(GIB))
    file = f"{CG}/memory/vms.slice/memory.limit_in_bytes"
    written = [line for line in calls(host) if "memory" in line or "Memory" in line]
    assert written[:2] == [f"{file} {SMALL_LIMIT}", f"vms.slice MemoryMax={SMALL_LIMIT}"]
