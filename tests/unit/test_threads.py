"""Which threads a running VM has, from libvirt's status XML and /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import changes, managers, state, threads
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.plan import Plan

from .support.hosts import Kernel, domain, domain_xml
from .support.several import PLAIN, One

INNER = "<vcpu>1</vcpu>"
MAIN = 4200100


@pytest.fixture
def host(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path, "v2")


@pytest.mark.parametrize(
    ("comm", "group"),
    [
        ("qemu-system-x86", "emulator"),
        ("worker", "emulator"),
        ("IO iothread1", "iothread1"),
        ("IO iothread42", "iothread42"),
        ("IO iothread", "emulator"),
        ("IO mon_iothread", "emulator"),
        ("IO iothreadx", "emulator"),
        ("IO iothread\N{SUPERSCRIPT TWO}", "emulator"),
        ("CPU 0/KVM", "emulator"),  # which vCPU it is the status XML says
        ("vnc_worker", "emulator"),
        ("a b) (c", "emulator"),
    ],
)
def test_the_group_of_a_thread(host: Kernel, comm: str, group: str) -> None:
    host.start_vm(domain("web", INNER), INNER)
    host.start_thread(MAIN, MAIN + 90, comm, {"": "/x"})
    running = threads.status(host, "web")
    assert running
    found = {thread.tid: thread for thread in threads.threads(host, running)}
    assert (found[MAIN + 90].comm, found[MAIN + 90].group) == (comm, group)
    assert [found[tid].group for tid in (MAIN, MAIN + 10)] == ["emulator", "vcpu0"]
    assert found[MAIN + 10].cgroups == {"": "/machine/qemu-3-web.libvirt-qemu/vcpu0"}


@pytest.mark.parametrize("name", ["a b", "..", ".", "-x", "a'b\"c\\d", "💩", "x" * 200])
def test_the_status_of_a_vm_by_its_name(host: Kernel, name: str) -> None:
    host.start_vm(domain(name, INNER), INNER)
    found = threads.status(host, name)
    assert found
    assert (found.name, found.pid, [vm.name for vm in threads.running(host, {})]) == (
        name,
        MAIN,
        [name],
    )


def test_what_is_no_running_vm(host: Kernel) -> None:
    host.put("/run/libvirt/qemu/ended.xml", domain_xml("status").decode())
    host.put("/run/libvirt/qemu/defined.xml", domain_xml("plain").decode())
    host.put("/run/libvirt/qemu/web.pid", "12")
    assert threads.status(host, "none") is None
    assert threads.status(host, "defined") is None
    assert threads.running(host, {}) == []


@pytest.mark.parametrize(
    ("name", "command", "runs"),
    [
        ("web", "/usr/bin/qemu-system-x86_64\0-name\0guest=web,debug-threads=on\0-S\0", True),
        ("web", "/opt/vmm\0-name\0guest=web\0", True),
        ("a,b", "qemu\0-name\0guest=a,,b,debug-threads=on\0", True),
        ("a", "qemu\0-name\0guest=a,,b,debug-threads=on\0", False),
        ("web", "qemu\0-name\0guest=web2,debug-threads=on\0", False),
        ("web", "/usr/sbin/cron\0-f\0", False),
        ("web", "", False),  # a zombie, or a thread of the kernel's
    ],
)
def test_the_process_of_a_vm(host: Kernel, name: str, command: str, runs: bool) -> None:
    """Where no daemon runs, the status XML outlives the VM, and another gets its process id."""
    host.start_vm(domain(name, INNER), INNER)
    host.put(f"/proc/{MAIN}/cmdline", command)
    host.put(f"/proc/{MAIN}/cgroup", "0::/system.slice/cron.service\n")
    assert [vm.name for vm in threads.running(host, {})] == ([name] if runs else [])


@pytest.mark.parametrize(
    ("name", "place", "runs"),
    [
        ("web", "/machine/qemu-3-web.libvirt-qemu/emulator", True),
        ("\N{SNOWMAN}", "/machine/qemu-3.libvirt-qemu/emulator", True),
        ("web", r"/machine.slice/machine-qemu\x2d3\x2dweb.scope/libvirt/emulator", True),
        ("\N{SNOWMAN}", r"/machine.slice/machine-qemu\x2d3.scope/libvirt/emulator", True),
        ("web", "/vms/web/emulator", True),
        ("web", "/vms/web", True),
        ("web", r"/machine.slice/machine-qemu\x2d30\x2dweb.scope/libvirt/emulator", False),
        ("web", "/machine/qemu-30-web.libvirt-qemu", False),
        ("web", "/vms/web2/emulator", False),
        ("web", "/web/emulator", False),
        ("web", "/vms", False),
        ("web", "/", False),
    ],
)
def test_a_process_hides_behind_no_other_command(
    host: Kernel, name: str, place: str, runs: bool
) -> None:
    """A guest that has taken over QEMU can write over its command line."""
    host.start_vm(domain(name, INNER), INNER)
    record = state.Record(domain().uuid, name)
    record.groups = ["/sys/fs/cgroup/vms/web"]
    host.put(f"{state.VMS}/{record.uuid}", str(record))
    host.put(f"/proc/{MAIN}/cmdline", "/usr/sbin/cron\0-f\0")
    host.put(f"/proc/{MAIN}/cgroup", f"0::{place}\n")
    assert [vm.name for vm in threads.running(host, {})] == ([name] if runs else [])


def test_one_that_is_not_understood_hides_no_other(host: Kernel) -> None:
    host.start_vm(domain("web", INNER), INNER)
    host.put("/run/libvirt/qemu/db.xml", "<domstatus")
    errors: dict[str, Error] = {}
    assert [vm.name for vm in threads.running(host, errors)] == ["web"]
    assert list(errors) == ["db"]
    assert str(errors["db"]).startswith("VM db: the domain XML is not well-formed")


def test_a_status_that_is_not_understood(host: Kernel) -> None:
    host.put("/run/libvirt/qemu/web.xml", "<domstatus")
    with pytest.raises(Error, match="not well-formed"):
        threads.status(host, "web")


def test_processes(host: Kernel) -> None:
    host.start_vm(domain("web", INNER), INNER, helpers=2)
    emulator = "/sys/fs/cgroup/machine/qemu-3-web.libvirt-qemu/emulator"
    assert threads.members(host, emulator) == [MAIN, MAIN + 50, MAIN + 51]
    assert threads.members(host, "/sys/fs/cgroup/none") == []
    assert threads.process_cgroups(host, MAIN + 50) == {
        "": "/machine/qemu-3-web.libvirt-qemu/emulator"
    }
    assert threads.process_cgroups(host, MAIN + 99) is None


def test_a_vm_that_hides_keeps_the_limits(tmp_path: Path) -> None:
    """It would run on without them, once the last other VM has ended."""
    host = Kernel(tmp_path / "host", "v2", 'reserved_host_cpus = "0"\n')
    hiding, other = (One(host, name, PLAIN, n).start() for n, name in ((3, "web"), (4, "db")))
    host.put(f"/proc/{hiding.pid}/cmdline", "/usr/sbin/cron\0-f\0")
    old = time.time() - 2 * state.GRACE
    os.utime(f"{host.root}{state.VMS}/{hiding.subject.uuid}", (old, old))
    made = Plan("apply")
    names = {vm.name for vm in threads.running(host, {})}
    changes.parent(made, managers.choose(host, host.config(), {"": "/"}), names)
    made.run(host)
    other.end()
    assert host.get("/sys/fs/cgroup/machine/cpuset.cpus") == "1-3"


def test_a_vm_is_found_as_virsh_finds_it() -> None:
    """Whoever names a VM after another, by its UUID or id, does not get what is meant for that."""
    first = domain("2", id=1)
    second = domain("web", id=2, uuid="a" * 8 + domain().uuid[8:])
    third = domain(second.uuid, id=0, uuid="b" * 8 + domain().uuid[8:])
    found = [third, first, second]
    assert [threads.named(found, wanted) for wanted in ("2", second.uuid, "web", third.uuid)] == [
        second,
        second,
        second,
        third,
    ]
