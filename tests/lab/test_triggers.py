"""CPUs and memory of the host, and threads and pins of VMs, that change: nobody runs a command, and
all is as configured within two seconds.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ..live.harness import running_vm, virsh
from ..live.pace import patient, wait_for
from ..live.reserving import total_memory
from .host import (
    SYSTEMD,
    configure,
    fenced,
    needs_systemd,
    run,
    start,
    status,
    value,
    xml,
)
from .test_kernel import CPUS, without_cpu, without_memory
from .triggers import (
    APPLY,
    CHANGED,
    IN_TIME,
    RULES,
    THREADS,
    UNITS,
    in_time,
    installed,
    shown,
    state,
)

pytestmark = [needs_systemd, pytest.mark.releases]
thorough = pytest.mark.thorough
SETS = 'emulator_cpus = "2"\nvcpu_cpus = "4-7"\niothread_cpus = "3"'
PARENT = "machine.slice" if SYSTEMD else "machine"
MANY = 100


@pytest.fixture(autouse=True)
def triggers(clean: None) -> Iterator[None]:
    with installed():
        yield
        assert (
            run("systemctl", "list-units", "--failed", "--no-legend", "libvirt-cgroup-hooks*") == ""
        )


@pytest.fixture
def threads_too() -> None:
    run("systemctl", "enable", "--now", THREADS)


def parent_cpus() -> str:
    return value("cpuset", PARENT, "cpuset.cpus", "cpuset.cpus")


def parent_limit() -> int:
    return int(value("memory", PARENT, "memory.max", "memory.limit_in_bytes"))


def cpus_of(name: str) -> dict[str, str]:
    """The CPUs that the kernel lets each vCPU and I/O thread use, and the emulator threads where
    they all agree.
    """
    vm = running_vm(name)
    numbers = {tid: f"vcpu{number}" for number, tid in vm.vcpus.items()}
    found: dict[str, set[str]] = {}
    for tid, thread in vm.threads().items():
        io = thread.comm[3:] if thread.comm.startswith("IO iothread") else "emulator"
        found.setdefault(numbers.get(tid, io), set()).add(thread.cpus_allowed)
    return {group: ", ".join(sorted(cpus)) for group, cpus in found.items()}


def settled() -> None:
    """What has been started has ended."""
    wait_for(
        lambda: (
            state(CHANGED)["ActiveState"] == "inactive" and state(APPLY)["ActiveState"] == "active"
        ),
        "the units to end",
    )


def test_the_units_and_the_rule_are_right() -> None:
    files = [str(UNITS / unit) for unit in (APPLY, CHANGED, THREADS)]
    done = subprocess.run(
        ["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False
    )
    # the page is not there: "Command 'man virt-cgroup(8)' failed", or "Can't show" (systemd 262)
    said = [line for line in done.stderr.splitlines() if "virt-cgroup(8)" not in line]
    assert not [line for line in said if "libvirt-cgroup-hooks" in line]
    if run("udevadm", "verify", "--help", check=False):  # systemd 254
        assert "Success: 1\n" in run("udevadm", "verify", str(RULES), check=False)


# the host


def test_cpus_go_and_come_back() -> None:
    configure(fenced("native", more=SETS))
    start("web")
    assert cpus_of("web")["vcpu0"] == "4-7"
    for _ in range(2):
        with without_cpu(7):
            in_time("a CPU has gone", "2-6", parent_cpus)
            in_time("the threads without it", "4-6", lambda: cpus_of("web")["vcpu1"])
        in_time("a CPU has come", "2-7", parent_cpus)
        in_time("the threads with it", "4-7", lambda: cpus_of("web")["vcpu1"])
    with ExitStack() as offline:
        for number in (3, 5, 6, 7):
            offline.enter_context(without_cpu(number))
        in_time("CPUs have gone", "2,4", parent_cpus)
    in_time("CPUs have come", "2-7", parent_cpus)
    in_time("the threads with them", "3", lambda: cpus_of("web")["iothread1"])


def test_a_cpu_comes_that_vms_carry_themselves() -> None:
    """There is no VM parent that would have it."""
    configure(fenced("root", memory=False))
    vm = start("web")
    scope = f"machine-qemu\\x2d{vm.id}\\x2dweb.scope"
    cpus = lambda: value("cpuset", scope, "cpuset.cpus", "cpuset.cpus")  # noqa: E731
    with without_cpu(7):
        in_time("a CPU has gone", "2-6", cpus)
    in_time("a CPU has come", "2-7", cpus)


def test_memory_goes_and_comes_back() -> None:
    configure(fenced("native"))
    start("web")
    whole = total_memory() - (1 << 30)
    assert parent_limit() == whole
    with without_memory(2) as gone:
        assert gone > 200 << 20
        in_time("memory has gone", whole - gone, parent_limit)
    in_time("memory has come", whole, parent_limit)


@thorough
def test_cpus_go_and_come_again_and_again() -> None:
    """One run serves many events, and nothing that comes meanwhile is lost."""
    configure(fenced("native", more=SETS))
    start("web")
    for number in [*range(2, 8)] * (MANY // 12):
        (CPUS / f"cpu{number}/online").write_text("0")
        (CPUS / f"cpu{number}/online").write_text("1")
    (CPUS / "cpu6/online").write_text("0")
    try:
        in_time("the last one has gone", "2-5,7", parent_cpus)
    finally:
        (CPUS / "cpu6/online").write_text("1")
    in_time("it has come", "2-7", parent_cpus)
    settled()
    assert cpus_of("web") == {
        "emulator": "2",
        "vcpu0": "4-7",
        "vcpu1": "4-7",
        "iothread1": "3",
    }


def test_what_cannot_be_is_told_and_the_next_event_is_seen_to() -> None:
    configure(fenced("native"))
    start("web")
    configure('reserved_host_cpus = "0-99"\n')
    with without_cpu(7):
        wait_for(lambda: any("reserved_host_cpus" in line for line in shown(APPLY)), "the error")
        settled()
        assert parent_cpus() == "2-7"
        configure(fenced("native").replace("0-1", "0-2"))
    in_time("the CPU is back", "3-7", parent_cpus)
    settled()


def test_it_can_be_turned_off() -> None:
    configure(fenced("native"))
    start("web")
    run("systemctl", "disable", "--now", APPLY)
    with without_cpu(7):
        time.sleep(patient(IN_TIME))
        assert parent_cpus() == "2-7"
    assert state(APPLY)["ActiveState"] == "inactive"


# VMs


@pytest.mark.usefixtures("threads_too")
@pytest.mark.parametrize("layout", ["native", pytest.param("/vms/$NAME", marks=thorough)])
def test_threads_come_and_pins_change(layout: str) -> None:
    configure(fenced(layout, more=SETS))
    start("web")
    settled()
    virsh("setvcpus", "web", "3", "--live")
    in_time("a vCPU has come", "4-7", lambda: cpus_of("web").get("vcpu2"))
    virsh("iothreadadd", "web", "2", "--live")
    in_time("an I/O thread has come", "3", lambda: cpus_of("web").get("iothread2"))
    virsh("vcpupin", "web", "0", "5", "--live")
    in_time("a vCPU has been pinned", "5", lambda: cpus_of("web")["vcpu0"])
    virsh("emulatorpin", "web", "6", "--live")
    in_time("the emulator has been pinned", "6", lambda: cpus_of("web")["emulator"])
    virsh("iothreadpin", "web", "2", "4", "--live")
    in_time("an I/O thread has been pinned", "4", lambda: cpus_of("web")["iothread2"])
    virsh("iothreaddel", "web", "1", "--live")
    settled()
    time.sleep(patient(IN_TIME))
    assert cpus_of("web") == {
        "emulator": "6",
        "vcpu0": "5",
        "vcpu1": "4-7",
        "vcpu2": "4-7",
        "iothread2": "4",
    }
    assert [vm["conforms"] for vm in status()["domains"]] == [True]


@thorough
@pytest.mark.usefixtures("threads_too")
def test_many_threads_in_a_row() -> None:
    """A hundred, as fast as libvirtd makes them."""
    configure(fenced("native", more=SETS))
    start("web", vcpus=27)
    wanted = {"emulator": "2", "vcpu0": "4-7", "vcpu1": "4-7", "iothread1": "3"}
    changes: list[tuple[str, ...]] = [("emulatorpin", "2")]
    for number in range(2, 27):
        pin = f"{4 + number % 4}"
        changes += [("setvcpus", f"{number + 1}"), ("vcpupin", f"{number}", pin)]
        wanted[f"vcpu{number}"] = pin
        changes.append(("iothreadadd", f"{number}"))
        if number % 2:
            changes += [("iothreaddel", f"{number}"), ("iothreadadd", f"{number + MANY}")]
        wanted[f"iothread{number + MANY if number % 2 else number}"] = "3"
    assert len(changes) == MANY
    for command, *arguments in changes:
        virsh(command, "web", *arguments, "--live")
    in_time("the last state", wanted, lambda: cpus_of("web"))
    settled()
    assert cpus_of("web") == wanted
    assert state(THREADS)["ActiveState"] == "active"
    assert not [
        line for unit in (APPLY, CHANGED, THREADS) for line in shown(unit) if "limit" in line
    ]


@pytest.mark.usefixtures("threads_too")
def test_what_comes_while_it_works_is_not_lost() -> None:
    drop_in = UNITS / f"{APPLY}.d/slow.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\nExecReload=/bin/sleep {patient(3):.0f}\n")
    run("systemctl", "daemon-reload")
    try:
        configure(fenced("native", more=SETS))
        start("web")
        for number in range(2, 5):
            wait_for(lambda: state(APPLY)["SubState"] == "reload", "it to work")
            # what it does first is done, and it looks at nothing any more
            wait_for(lambda: cpus_of("web").get(f"iothread{number - 1}") == "3", "its work")  # noqa: B023
            virsh("iothreadadd", "web", f"{number}", "--live")
            assert state(APPLY)["SubState"] == "reload"
        wait_for(lambda: cpus_of("web").get("iothread4") == "3", "the last run")
    finally:
        drop_in.unlink()
        drop_in.parent.rmdir()
        run("systemctl", "daemon-reload")


@pytest.mark.usefixtures("threads_too")
def test_vms_start_and_end_meanwhile() -> None:
    """Their hook sees to them, and nobody else while libvirt makes their cgroups."""
    configure(fenced("native", more=SETS))
    before = len(shown(APPLY))  # other tests make mistakes on purpose
    for _ in range(3):
        for name in ("web", "db"):
            virsh("define", "/dev/stdin", stdin=xml(name))
            virsh("start", name)
        virsh("setvcpus", "web", "3", "--live")
        in_time("a vCPU has come", "4-7", lambda: cpus_of("web").get("vcpu2"))
        assert [vm["conforms"] for vm in status()["domains"]] == [True, True]
        for name in ("web", "db"):
            virsh("destroy", name)
    settled()
    assert not [line for line in shown(APPLY)[before:] if line.startswith("error")]


@thorough
@pytest.mark.usefixtures("threads_too")
def test_idle_costs_nothing() -> None:
    configure(fenced("native", more=SETS))
    start("web")
    start("db")
    virsh("setvcpus", "web", "3", "--live")
    in_time("a vCPU has come", "4-7", lambda: cpus_of("web").get("vcpu2"))
    settled()

    def quiet() -> bool:
        before = moments()
        time.sleep(patient(IN_TIME))
        return before == moments()

    wait_for(quiet, "what the vCPU has brought to be done")
    before, journal = moments(), len(shown("libvirt-cgroup-hooks*"))
    time.sleep(60)
    assert before == moments()
    assert len(shown("libvirt-cgroup-hooks*")) == journal


def moments() -> dict[str, list[str | None]]:
    """When something has last happened to each unit."""
    keys = ("StateChangeTimestampMonotonic", "ExecMainStartTimestampMonotonic", "NRestarts")
    return {unit: [state(unit).get(key) for key in keys] for unit in (APPLY, CHANGED, THREADS)}
