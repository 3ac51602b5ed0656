"""The hook, killed by SIGKILL at each of its system calls that change something, at each operation
of a real libvirtd.

libvirt refuses a VM whose `prepare` is killed; one whose later operations are killed
goes on. Then the daemon's next operation, or `virt-cgroup apply`, brings the host right, and after
the VM's end nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .faults import age_records, calls_at, killed
from .harness import (
    LIMITED,
    STATE,
    Daemon,
    all_cgroups,
    destroy_vm,
    domain_xml,
    running_vm,
    start_vm,
    virsh,
)
from .marks import ENDURANCE
from .test_operations import assert_nothing_left, left_since, status, virt_cgroup

# without start, at which there is nothing to do here, nor Python to be killed
OPERATIONS = ("prepare", "started", "stopped", "release", "reconnect")
XML = domain_xml("web", vcpus=2, iothreads=1, vcpupin={1: "1"})
Record = Callable[[str, object], None]


def life(daemon: Daemon, operation: str) -> None:
    """A VM's life, in which the hook is killed at OPERATION."""
    started = virsh("create", "/dev/stdin", stdin=XML, check=False)
    if operation == "prepare":
        assert "Killed" in started.stderr, started.stderr
        return
    assert started.returncode == 0, started.stderr
    vm = running_vm("web")
    if operation == "reconnect":
        daemon.restart()
    if operation in ("started", "reconnect"):
        assert vm.alive()
    destroy_vm("web")


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=ENDURANCE)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_each_call(
    daemon: Daemon,
    configure: Callable[[str], None],
    operation: str,
    every: int,
    record_property: Record,
) -> None:
    configure(LIMITED)
    before = all_cgroups()
    chosen = calls_at(operation, lambda: start_vm("web", xml=XML), daemon.restart)[::every]
    for number, (call, nth) in enumerate(chosen):
        with killed(operation, call, nth):
            life(daemon, operation)
        if operation == "started":
            with killed(operation, call, nth):
                virsh("create", "/dev/stdin", stdin=XML)
            bring_right(daemon, "apply" if number % 2 else "reconnect")
        age_records()
        start_vm("db", xml=domain_xml("db"))
        assert status("db")["conforms"], (call, nth, status("db")["problems"])
        destroy_vm("db")
        assert not left_since(before), (call, nth)
        assert_nothing_left(before)
        assert not list(STATE.rglob("*.new")), (call, nth)
    record_property("faults injected", len(chosen))


def bring_right(daemon: Daemon, by: str) -> None:
    vm = running_vm("web")
    if by == "apply":
        virt_cgroup("apply", "--all")
    else:
        daemon.restart()
    assert vm.alive()
    found = status("web")
    assert found["conforms"], found["problems"]
    assert virt_cgroup("apply", "--all").count(": nothing to do\n") == 2
    destroy_vm("web")
