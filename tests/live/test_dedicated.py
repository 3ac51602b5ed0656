"""Where nobody owns cgroups: a VM that has its CPUs for itself while it runs, and others beside
it. This machine may have two CPUs, so the host keeps none of them.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from libvirt_cgroup_hooks.cpuset import CpuSet

from .dedicating import dedicated, groups, places, spinning, usage, while_busy
from .faults import age_records, calls_at, killed
from .harness import (
    ALL_CPUS,
    LAST_CPU,
    STATE,
    Daemon,
    Vm,
    all_cgroups,
    destroy_vm,
    domain_xml,
    running_vm,
    start_vm,
    virsh,
)
from .marks import ENDURANCE
from .pace import wait_for
from .reserving import RESERVE_LAST, WITHOUT_LAST, virt_cgroup
from .test_operations import assert_nothing_left, refused, status

CONF = 'cgroup_layout = "{}"\n'
every_layout = pytest.mark.parametrize("layout", ["native", "/vms/$NAME", "root"])
WEB = dedicated("web", LAST_CPU, iothreads=1)
XML = {"web": WEB, "db": domain_xml("db", iothreads=1), "mail": domain_xml("mail", vcpus=2)}


def all_cpus(vm: Vm) -> set[str]:
    return set(groups(vm).values())


def as_wanted(*names: str) -> None:
    """Those that run have what they are to have."""
    for name in names:
        found = groups(running_vm(name))
        own = found.pop("vcpu0") if name == "web" else None
        assert own in (None, LAST_CPU)
        left = WITHOUT_LAST if "web" in names else ALL_CPUS
        assert set(found.values()) == {left}, (name, names, found)
        assert status(name)["conforms"], status(name)["problems"]


ORDERS = list(itertools.permutations(("web", "db", "mail")))
SOME = [
    pytest.param(one, marks=[pytest.mark.thorough] * (n % 5 > 0)) for n, one in enumerate(ORDERS)
]


@every_layout
@pytest.mark.parametrize("order", SOME)
def test_in_every_order(
    configure: Callable[[str], None], layout: str, order: tuple[str, ...]
) -> None:
    before = all_cgroups()
    configure(CONF.format(layout))
    running: list[str] = []
    for number, name in enumerate(order):
        start_vm(name, xml=XML[name])
        running.append(name)
        change(layout, number)
        as_wanted(*running)
    for name in order:
        destroy_vm(name)
        running.remove(name)
        as_wanted(*running)
        change(layout, len(running))
    change(layout)
    left = [path for path in all_cgroups() - before if path.name != "machine"]
    assert [path for path in left if path.name != "vms"] == []
    assert not list((STATE / "vms").glob("*"))


def change(layout: str, number: int = -1) -> None:
    """The reservation is another, or none any more."""
    if layout != "root":  # which has no cgroup that could have a memory limit
        memory = "none" if number < 0 else f"{900 + number} MiB"
        virt_cgroup("reserve", "--memory", memory, "--live")
    else:
        virt_cgroup("apply", "--all")


@every_layout
def test_busy_loops_of_others_stay_away(configure: Callable[[str], None], layout: str) -> None:
    """By the kernel's own count of what each VM uses of each CPU; those that began before, and one
    that began after.
    """
    configure(CONF.format(layout))
    before = start_vm("db", xml=spinning(XML["db"]))
    web = start_vm("web", xml=WEB)
    after = start_vm("mail", xml=spinning(XML["mail"]))
    others = (before, after)
    began = {vm.name: usage(vm) for vm in others}
    found = places(others, while_busy())
    left = set(CpuSet.parse(WITHOUT_LAST))
    assert found == {"db": left, "mail": left}
    for vm in others:
        there, now = began[vm.name], usage(vm)
        if there and now:
            used = [one - other for one, other in zip(now, there)]
            assert used[int(LAST_CPU)] == 0, (vm, used)
            assert sum(used) > 0
    assert web.alive()


def test_refused(configure: Callable[[str], None]) -> None:
    """In one sentence each; nothing has changed then."""
    configure(CONF.format("native"))
    pinned = domain_xml("db", vcpus=2, vcpupin={0: "0", 1: LAST_CPU})
    start_vm("db", xml=pinned)
    told = refused(WEB)
    assert f"for itself (dedicated): VM db is pinned there: vcpu1 to {LAST_CPU}: pin db" in told
    destroy_vm("db")
    start_vm("db", xml=domain_xml("db"))
    told = refused(dedicated("web", ALL_CPUS, emulatorpin="0"))
    assert "nothing would be left of the VMs' CPUs of VM db" in told
    assert "vcpu1 is not pinned" in refused(WEB.replace("<vcpu current='1'>1", "<vcpu>2"))
    assert all_cpus(running_vm("db")) == {ALL_CPUS}
    start_vm("web", xml=WEB)
    assert f"VM web has {LAST_CPU} for itself" in refused(dedicated("rt", LAST_CPU))
    told = refused(domain_xml("mail", vcpupin={0: LAST_CPU}))
    assert "pinned to CPUs that VM web has for itself (dedicated): vcpu0 to" in told
    failed = virt_cgroup("reserve", "--cpus", RESERVE_LAST, "--live", "--force", check=False)
    assert f"cannot take CPUs {LAST_CPU} from VM web" in failed.stderr
    as_wanted("web", "db")


def test_ends_that_nobody_planned(daemon: Daemon, configure: Callable[[str], None]) -> None:
    """A crash, with and without a daemon, and a daemon that is killed in between."""
    before = all_cgroups()
    configure(CONF.format("native"))
    start_vm("db", xml=XML["db"])
    web = start_vm("web", xml=WEB)
    daemon.kill()
    daemon.start()
    as_wanted("web", "db")
    os.kill(web.pid, signal.SIGKILL)
    wait_for(lambda: all_cpus(running_vm("db")) == {ALL_CPUS}, "db to have all CPUs again")

    web = start_vm("web", xml=WEB)
    as_wanted("web", "db")
    daemon.kill()
    os.kill(web.pid, signal.SIGKILL)
    wait_for(lambda: not web.alive(), "web to end")
    daemon.start()
    wait_for(lambda: all_cpus(running_vm("db")) == {ALL_CPUS}, "db to have all CPUs again")
    # libvirt leaves the cgroups of a VM that has ended without it
    for directory in sorted(all_cgroups() - before, reverse=True):
        if "-web." in str(directory):
            directory.rmdir()

    start_vm("web", xml=WEB)
    shutil.rmtree(STATE)
    daemon.restart()
    as_wanted("web", "db")
    destroy_vm("web")
    as_wanted("db")
    destroy_vm("db")
    assert not (STATE / "shared").exists()


def test_asked_for_while_it_runs(configure: Callable[[str], None]) -> None:
    configure(CONF.format("native"))
    start_vm("db", xml=XML["db"])
    start_vm("web", xml=domain_xml("web", vcpupin={0: LAST_CPU}))
    virt_cgroup("domain", "web", "--set", "dedicated=threads", "--live")
    assert all_cpus(running_vm("db")) == {ALL_CPUS}
    virt_cgroup("apply", "web")
    as_wanted("web", "db")
    virt_cgroup("domain", "web", "--unset", "dedicated", "--live")
    virt_cgroup("apply", "web")
    assert all_cpus(running_vm("db")) == {ALL_CPUS}


def test_what_virsh_can_change_beside_it(configure: Callable[[str], None]) -> None:
    """A pin to CPUs that are another's is refused by the kernel, and one elsewhere is not."""
    configure(CONF.format("native"))
    start_vm("db", xml=XML["db"])
    start_vm("web", xml=WEB)
    assert virsh("vcpupin", "db", "0", LAST_CPU, check=False).returncode
    virsh("vcpupin", "db", "0", WITHOUT_LAST)
    virsh("emulatorpin", "web", LAST_CPU)
    assert groups(running_vm("web"))["emulator"] == LAST_CPU
    assert all_cpus(running_vm("db")) == {WITHOUT_LAST}


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=ENDURANCE)])
@pytest.mark.parametrize("operation", ["prepare", "start", "started", "release", "reconnect"])
def test_killed_at_each_call(
    daemon: Daemon, configure: Callable[[str], None], operation: str, every: int
) -> None:
    """The hook of the VM that has CPUs for itself; afterwards the other one has them back."""
    before = all_cgroups()
    configure('reserved_host_mem = "1 GiB"\n')
    db = start_vm("db", xml=XML["db"])
    chosen = calls_at(operation, lambda: start_vm("web", xml=WEB), daemon.restart)[::every]
    for call, nth in chosen:
        with killed(operation, call, nth):
            started = virsh("create", "/dev/stdin", stdin=WEB, check=False)
            assert bool(started.returncode) == (operation in ("prepare", "start"))
            if operation == "reconnect":
                daemon.restart()
            if not started.returncode:
                assert LAST_CPU in groups(running_vm("web")).values()
            destroy_vm("web")
        age_records()
        virt_cgroup("apply", "--all")
        assert all_cpus(db) == {ALL_CPUS}, (call, nth)
        assert not [line for line in shared() if line.startswith("dedicated")], (call, nth)
    destroy_vm("db")
    assert_nothing_left(before)


def shared() -> list[str]:
    file = STATE / "shared"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.thorough
def test_storm(configure: Callable[[str], None]) -> None:
    """Twenty VMs at once, three of which ask for the same CPU: one has it, and two are refused, or
    start when it has ended.
    """
    before = all_cgroups()
    configure(CONF.format("native"))
    names = [f"vm{number}" for number in range(20)]
    owners = names[::8]
    texts = {name: domain_xml(name) for name in names}
    texts.update({name: dedicated(name, LAST_CPU) for name in owners})
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(
            lambda name: virsh("create", "/dev/stdin", stdin=texts[name], check=False), names
        )
    failed = [name for name, result in zip(names, results) if result.returncode]
    assert len(failed) == 2
    assert set(failed) <= set(owners)
    (owner,) = set(owners) - set(failed)
    for name in set(names) - set(owners):
        assert all_cpus(running_vm(name)) == {WITHOUT_LAST}, name
    assert groups(running_vm(owner))["vcpu0"] == LAST_CPU
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(destroy_vm, [name for name in names if name != "vm1"]))
    assert all_cpus(running_vm("vm1")) == {ALL_CPUS}
    destroy_vm("vm1")
    assert_nothing_left(before)


@pytest.mark.parametrize("cycles", [3, pytest.param(200, marks=ENDURANCE)])
def test_cycles(configure: Callable[[str], None], cycles: int) -> None:
    before = all_cgroups()
    configure(CONF.format("native"))
    db = start_vm("db", xml=XML["db"])
    for _ in range(cycles):
        start_vm("web", xml=WEB)
        assert all_cpus(db) == {WITHOUT_LAST}
        destroy_vm("web")
        assert all_cpus(db) == {ALL_CPUS}
    destroy_vm("db")
    assert_nothing_left(before)
