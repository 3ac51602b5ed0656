"""CPUs that belong to one VM alone while it runs, on a whole host: by what the kernel counts."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cpuset import CpuSet

from ..live.dedicating import groups, places, settings, spinning
from ..live.faults import age_records, calls_at, killed
from ..live.harness import STATE, Vm, destroy_vm, running_vm, virsh
from ..live.pace import wait_for
from .drift import not_started
from .faults import some_of
from .host import (
    FENCE_CPUS,
    SYSTEMD,
    V2,
    configure,
    directory,
    fenced,
    log,
    problems,
    restart_libvirtd,
    run,
    start,
    status,
    virt_cgroup,
    xml,
)

thorough = (pytest.mark.thorough, pytest.mark.releases)
OWN = "4-5"
REST = "2-3,6-7"
# the VMs of a lab host have a third vCPU that is not plugged in; its CPU is web's own, too
PINS = {"vcpupin": {0: "4", 1: "5", 2: "4-5"}}
YES = {**PINS, "extra": settings(dedicated="threads")}
LAYOUTS = [
    "native",
    pytest.param("/vms/$NAME", marks=thorough),
    pytest.param("root", marks=thorough),
]
ORDERS = list(itertools.permutations(("web", "db", "mail")))
SOME = [ORDERS[0], *(pytest.param(one, marks=thorough) for one in ORDERS[1:])]
SECONDS = 10


def conf(layout: str, more: str = "") -> str:
    return fenced(layout, memory=layout != "root", more=more)


def begin(name: str) -> Vm:
    return start(name, **(YES if name == "web" else {}))


def as_wanted(*names: str, without: str = "") -> None:
    """Those that run have what they are to have, and `status` says so. WITHOUT is reserved, too."""
    left = CpuSet.parse(REST if "web" in names else FENCE_CPUS) - CpuSet.parse(without)
    for name in names:
        found = groups(running_vm(name))
        if name == "web":
            assert (found.pop("vcpu0"), found.pop("vcpu1")) == ("4", "5")
        assert set(found.values()) == {str(left)}, (name, found)
    report = status()
    assert all(vm["conforms"] for vm in report["domains"]), report["domains"]
    assert report["dedicated"] == ([{"name": "web", "cpus": OWN}] if "web" in names else [])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", SOME)
def test_in_every_order(layout: str, order: tuple[str, ...]) -> None:
    configure(conf(layout))
    running: list[str] = []
    for number, name in enumerate(order):
        begin(name)
        running.append(name)
        as_wanted(*running)
        if number == 1:
            virt_cgroup("reserve", "--cpus", "0-2", "--live")
            as_wanted(*running, without="2")
            virt_cgroup("reserve", "--cpus", "0-1", "--live")
            as_wanted(*running)
    if SYSTEMD:
        run("systemctl", "daemon-reload")
        as_wanted(*running)
    restart_libvirtd()
    as_wanted(*running)
    for name in order:
        destroy_vm(name)
        running.remove(name)
        as_wanted(*running)


def busy(cpus: str) -> int:
    """Ticks that the CPUs have worked for processes since the host booted."""
    first, last = (int(number) for number in cpus.split("-"))
    found = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and first <= int(name[3:]) <= last:
            found += int(fields[0]) + int(fields[1])  # user and nice: guests are in these
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_busy_loops_of_others_stay_away(layout: str) -> None:
    """Of those that began before, and of one that began after."""
    configure(conf(layout, 'confine_host = "running"' if V2 and SYSTEMD else ""))
    for name in ("db", "mail"):
        virsh("define", "/dev/stdin", stdin=spinning(xml(name, iothreads=0)))
    virsh("start", "db")
    start("web", **YES)
    virsh("start", "mail")
    others = [running_vm("db"), running_vm("mail")]
    before = busy(OWN)
    found = places(others, SECONDS)
    ticks = busy(OWN) - before
    rest = {2, 3, 6, 7}
    for name, cpus in found.items():
        assert cpus, name
        assert cpus <= rest, (name, cpus)
    if V2 and SYSTEMD:  # where the host's own work is not there either
        assert ticks <= SECONDS * os.sysconf("SC_CLK_TCK") // 20, ticks


def test_refused_by_name() -> None:
    configure(conf("native"))
    start("db", vcpupin={0: "5", 1: "2", 2: "2"})
    told = not_started("web", **YES)
    assert "VM web cannot have CPUs 4-5 for itself (dedicated): VM db is pinned there" in told
    assert groups(running_vm("db"))["emulator"] == FENCE_CPUS
    destroy_vm("db")
    start("web", **YES)
    told = not_started("db", vcpupin={0: "5", 1: "2", 2: "2"})
    assert "db is pinned to CPUs that VM web has for itself (dedicated): vcpu0 to 5" in told
    told = run(
        *("/usr/bin/python3", "-I", "-m", "libvirt_cgroup_hooks", "reserve", "--cpus", "0-4"),
        "--force",
        "--live",
        check=False,
    )
    assert told == ""
    as_wanted("web")


@pytest.mark.thorough
@pytest.mark.releases
def test_ends_that_nobody_planned() -> None:
    configure(conf("native"))
    start("db")
    web = start("web", **YES)
    if SYSTEMD:
        run("systemctl", "kill", "--signal=KILL", "libvirtd")
    restart_libvirtd()
    as_wanted("web", "db")
    os.kill(web.pid, signal.SIGKILL)
    wait_for(lambda: set(groups(running_vm("db")).values()) == {FENCE_CPUS}, "db to have all")
    wait_for(lambda: not list((STATE / "vms").glob("*web*")), "the record to go")
    as_wanted("db")


@pytest.mark.thorough
@pytest.mark.releases
def test_hot_plugged_and_pinned_while_it_runs() -> None:
    configure(conf("native"))
    start("db")
    start("web", **YES)
    virsh("setvcpus", "web", "3", "--live")
    web = running_vm("web")
    assert web.threads()[web.vcpus[2]].cpus_allowed == OWN
    virsh("setvcpus", "db", "3", "--live")
    db = running_vm("db")
    assert db.threads()[db.vcpus[2]].cpus_allowed == REST
    assert virsh("vcpupin", "db", "0", "4", check=False).returncode
    virsh("vcpupin", "db", "0", "6")
    assert groups(running_vm("db"))["vcpu0"] == "6"


@pytest.mark.thorough
@pytest.mark.releases
def test_two_that_have_some_for_themselves() -> None:
    configure(conf("native"))
    start("db")
    start("web", **YES)
    other = {"vcpupin": dict.fromkeys(range(3), "7"), "extra": settings(dedicated="threads")}
    start("mail", **other)
    assert set(groups(running_vm("db")).values()) == {"2-3,6"}
    assert groups(running_vm("web"))["emulator"] == "2-3,6"
    assert groups(running_vm("mail"))["emulator"] == "2-3,6"
    destroy_vm("web")
    assert set(groups(running_vm("db")).values()) == {"2-6"}
    assert groups(running_vm("mail"))["emulator"] == "2-6"
    destroy_vm("mail")
    assert set(groups(running_vm("db")).values()) == {FENCE_CPUS}
    assert not problems().keys() & {"vm-escaped", "vm-misplaced", "vm-not-dedicated"}


@pytest.mark.thorough
@pytest.mark.releases
def test_a_storm() -> None:
    """Twenty VMs at once, three of which have a CPU each for themselves."""
    configure(conf("native"))
    names = [f"vm{number}" for number in range(20)]
    owners = dict(zip(names[2::8], ("4", "5", "6")))
    for name in names:
        options: dict[str, object] = {"vcpus": 1, "current": 1, "iothreads": 0, "machine": "pc"}
        if name in owners:
            options["vcpupin"] = {0: owners[name]}
            options["extra"] = settings(dedicated="threads")
        virsh("define", "/dev/stdin", stdin=xml(name, **options))
    virsh("start", names[0])  # a hook_timeout that suits this host holds once the file was read
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: virsh("start", name), names[1:]))
    for name in names:
        found = groups(running_vm(name))
        if name in owners:
            assert found.pop("vcpu0") == owners[name]
        assert set(found.values()) == {"2-3,7"}, name
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda name: virsh("destroy", name), [name for name in names if name != "vm0"])
        )
    assert set(groups(running_vm("vm0")).values()) == {FENCE_CPUS}
    assert "internal error" not in log()


@pytest.mark.thorough
@pytest.mark.parametrize("cycles", [20])
def test_cycles(cycles: int) -> None:
    configure(conf("native"))
    db = start("db")
    virsh("define", "/dev/stdin", stdin=xml("web", **YES))
    for _ in range(cycles):
        virsh("start", "web")
        assert set(groups(db).values()) == {REST}
        virsh("destroy", "web")
        assert set(groups(db).values()) == {FENCE_CPUS}
    if V2:
        assert directory("cpuset", "/machine.slice").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("operation", ["prepare", "start", "started", "release", "reconnect"])
def test_killed_on_its_way(operation: str, record_property: Callable[[str, object], None]) -> None:
    """The hook of the VM that has CPUs for itself, at some of its calls; the next VM that starts
    brings the host right.
    """
    configure(conf("native"))
    db = start("db")
    text = xml("web", **YES)
    calls = calls_at(operation, lambda: virsh("create", "/dev/stdin", stdin=text), restart_libvirtd)
    chosen = some_of(calls, operation)
    for call, nth in chosen:
        with killed(operation, call, nth):
            begun = virsh("create", "/dev/stdin", stdin=text, check=False)
            assert bool(begun.returncode) == (operation in ("prepare", "start")), begun.stderr
            if operation == "reconnect":
                restart_libvirtd()
            destroy_vm("web")
        age_records()
        start("mail")
        assert set(groups(db).values()) == {FENCE_CPUS}, (call, nth)
        assert set(groups(running_vm("mail")).values()) == {FENCE_CPUS}, (call, nth)
        destroy_vm("mail")
    record_property("faults injected", len(chosen))
