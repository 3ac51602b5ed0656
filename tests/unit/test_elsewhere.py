"""A VM that runs where it is not to be: below the parent of an earlier layout, of one that its
metadata name while it runs, or where systemd has put it. No VM gets out of the fence, and `apply`
comes to an end.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers, threads
from libvirt_cgroup_hooks.cli.checks import vm as checks
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.cli.commands import apply
from libvirt_cgroup_hooks.cli.describe import describe
from libvirt_cgroup_hooks.domainxml import SETTINGS_URI
from libvirt_cgroup_hooks.leave import leave
from libvirt_cgroup_hooks.reserve import Change

from .support.hosts import Kernel, domain
from .support.machined import SCOPE, Machined
from .support.operations import CG, do, started
from .support.reserving import INNER, KINDS, cpus, file, made, start

CPUS = "reserved_host_cpus = '0'\n"
LENDS = f"{CPUS}host_cpus_for = ['emulator']\n"
MEMORY = "reserved_host_mem = '512 MiB'\n"
VMS = "cgroup_layout = '/vms/$NAME'\n"
OTHER = "cgroup_layout = '/other/$NAME'\n"
SYSTEMD = ("systemd-v1", "systemd-v2")
OWN = (
    f"{INNER}<metadata><s:settings xmlns:s='{SETTINGS_URI}'><layout>/vms/$NAME</layout>"
    "</s:settings></metadata>"
)
RESTART = "shut it down and start it again: virsh shutdown vm; virsh start vm"
STATUS = "/run/libvirt/qemu/vm.xml"

every_host = pytest.mark.parametrize("kind", KINDS)
with_systemd = pytest.mark.parametrize("kind", SYSTEMD)


def running(root: Path, kind: str, conf: str) -> Kernel:
    """A VM that was started below /vms, before the configuration became CONF."""
    host = made(root, kind, f"{CPUS}{MEMORY}{VMS}")
    start(host)
    if isinstance(host, Machined):
        host.slice("machine.slice")
    host.configure(conf)
    return host


def apply_parent(host: Kernel) -> list[str]:
    return apply._made(host, host.config(), apply._parent(host, {"vm"}, None), [])


def apply_vm(host: Kernel) -> list[str]:
    done = apply_parent(host)
    (vm,) = threads.running(host, {})
    return [*done, *apply._made(host, host.config(), apply._domain(host, vm), [])]


def apply_all(host: Kernel) -> list[str]:
    vms = threads.running(host, {})
    done = apply._made(host, host.config(), apply._parent(host, {"vm"}, vms), [])
    for vm in vms:
        done += apply._made(host, host.config(), apply._domain(host, vm), [])
    return done


def settled(host: Kernel) -> bool:
    """Whether none of the ways to apply finds anything to do."""
    return not [*apply_vm(host), *apply_parent(host), *apply_all(host), *apply_parent(host)]


# told


@every_host
def test_memory_that_is_counted_apart_is_told(tmp_path: Path, kind: str) -> None:
    host = running(tmp_path, kind, f"{CPUS}{MEMORY}")
    apply_all(host)
    assert host.get(file(host, "limit")) not in ("", "max")
    manager, (vm,) = managers.choose(host, host.config()), threads.running(host, {})
    found = describe(host, manager, vm)
    where, machine = f"/vms.slice/{SCOPE}", "/machine.slice"
    if not isinstance(host, Machined):
        where, machine = "/vms/vm", "/machine"
    assert (found["conforms"], found["reasons"]) == (False, ["memory-apart"])
    assert found["problems"] == [
        f"it is in {where}, not below {machine}, so its memory is counted apart from that of other "
        "VMs until it is restarted"
    ]
    (problem,) = checks.conforming(Subject(host))
    assert (problem.code, problem.message) == ("vm-misplaced", f"VM vm: {found['problems'][0]}")
    assert problem.remedy == RESTART


@with_systemd
def test_also_with_another_layout(tmp_path: Path, kind: str) -> None:
    host = running(tmp_path, kind, f"{CPUS}{MEMORY}{OTHER}")
    apply_all(host)
    manager, (vm,) = managers.choose(host, host.config()), threads.running(host, {})
    found = describe(host, manager, vm)
    assert found["problems"][0].startswith(f"it is in /vms.slice/{SCOPE}, not below /other.slice, ")
    assert found["reasons"] == ["memory-apart", "place"]
    assert [one.remedy for one in checks.conforming(Subject(host))] == [RESTART]


@every_host
def test_where_no_memory_is_reserved_it_is_all_the_same(tmp_path: Path, kind: str) -> None:
    host = running(tmp_path, kind, CPUS)
    apply_all(host)
    manager, (vm,) = managers.choose(host, host.config()), threads.running(host, {})
    assert describe(host, manager, vm)["conforms"]


# fenced


@every_host
@pytest.mark.parametrize("layout", ["", OTHER])
@pytest.mark.parametrize("memory", ["", MEMORY])
def test_the_fence_holds_while_the_hosts_cpus_are_lent_and_afterwards(
    tmp_path: Path, kind: str, layout: str, memory: str
) -> None:
    """The limit of the earlier parent goes, as each VM carries one, and is not made again."""
    host = running(tmp_path, kind, CPUS + memory + layout)
    for conf in (CPUS, LENDS, CPUS):
        host.configure(conf + memory + layout)
        apply_all(host)
        assert cpus(host) == "1-3"
        if "cgroupfs" in kind:  # the VM has moved, which leaves its earlier parent empty
            apply_parent(host)
        assert settled(host)
        assert cpus(host) == "1-3"
    host.configure(CPUS.replace("0", "0-1") + memory + layout)
    apply_all(host)
    assert cpus(host) == "2-3"


@every_host
def test_also_where_the_reservation_is_changed_at_run_time(tmp_path: Path, kind: str) -> None:
    host = running(tmp_path, kind, LENDS)
    Change(host, {}, live=True, config=False).run()
    host.configure(CPUS)
    Change(host, {}, live=True, config=False).run()
    assert cpus(host) == "1-3"
    Change(host, {"reserved_host_cpus": "0-1"}, live=True, config=False).run()
    assert cpus(host) == "2-3"
    Change(host, {"reserved_host_cpus": None}, live=True, config=False).run()
    assert cpus(host) == "0-3"


@with_systemd
@pytest.mark.parametrize("layout", ["", OTHER])
def test_one_that_nobody_has_limited_yet(tmp_path: Path, kind: str, layout: str) -> None:
    """What is kept below /run was lost, say, or somebody has moved it."""
    host = running(tmp_path, kind, CPUS + layout)
    leave(host)
    assert cpus(host) == "0-3"
    apply_all(host)
    assert cpus(host) == "1-3"
    assert settled(host)
    leave(host)
    assert cpus(host) == "0-3"


def test_one_that_systemd_has_put_elsewhere(tmp_path: Path) -> None:
    """Without its drop-in, which was not read."""
    host = made(tmp_path, "systemd-v2", f"{CPUS}{VMS}")
    assert isinstance(host, Machined)
    subject = domain(inner=INNER, id=3)
    started(host, subject)
    subject = host.starts(subject, "/machine.slice", INNER)
    do(host, "started", subject)
    assert cpus(host) == "1-3"
    assert settled(host)


# a layout of its own


@with_systemd  # without it the VM is moved
def test_a_layout_of_its_own_that_it_got_while_it_runs(tmp_path: Path, kind: str) -> None:
    host = made(tmp_path, kind, CPUS)
    if isinstance(host, Machined):
        host.slice("machine.slice")
    start(host, layout="native")
    host.put(STATUS, host.get(STATUS).replace(INNER, OWN))
    apply_vm(host)
    assert cpus(host) == "1-3"
    assert settled(host)


@every_host
def test_a_layout_of_its_own_that_it_was_started_with(tmp_path: Path, kind: str) -> None:
    host = made(tmp_path, kind, CPUS)
    if isinstance(host, Machined):
        host.slice("machine.slice")
    start(host, OWN, "/vms/$NAME")
    assert cpus(host) == "1-3"
    assert settled(host)
    limit = f"{CG}/cpuset/" if host.exists(f"{CG}/cpuset") else f"{CG}/"
    name = "vms.slice" if isinstance(host, Machined) else "vms"
    assert host.get(f"{limit}{name}/cpuset.cpus") == "1-3"
