"""A VM whose XML names a partition: libvirt starts it there, and the fence is there before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from libvirt_cgroup_hooks import changes, managers, threads
from libvirt_cgroup_hooks.cli.checks import vm as checks
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.cli.describe import describe
from libvirt_cgroup_hooks.errors import Refusal
from libvirt_cgroup_hooks.kinds import CPUS, MEMORY
from libvirt_cgroup_hooks.plan import Plan

from .support import reserving
from .support.hosts import PID, Kernel, run
from .support.machined import Machined
from .support.operations import do, vm
from .support.reserving import KINDS

RESERVED_CPUS = "reserved_host_cpus = '0'\n"
RESERVED_MEMORY = "reserved_host_mem = '512 MiB'\n"
ELSEWHERE = ["/virtualmachines/production", "/vms", "/my-vms/a/b"]
BELOW = ["", "/machine", "/machine/production", "machine/a/b"]


@pytest.fixture(params=KINDS)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Kernel:
    return reserving.made(tmp_path, str(request.param), "")


def inner(partition: str) -> str:
    return f"<resource><partition>{partition}</partition></resource>"


def top(host: Kernel, partition: str) -> str:
    """Where libvirt puts it: the path of the cgroup."""
    name = partition.strip("/").partition("/")[0]
    if isinstance(host, Machined):
        return "/" + name.replace("-", "\\x2d") + ".slice"
    return f"/{name}.partition"


@pytest.mark.parametrize("partition", ELSEWHERE)
def test_reserved_cpus_are_kept_from_it(host: Kernel, partition: str) -> None:
    host.configure(RESERVED_CPUS)
    subject = vm(inner=inner(partition))
    do(host, "prepare", subject)
    manager = managers.choose(host, host.config())
    assert set(manager.parent_paths(subject).values()) == {top(host, partition)}
    assert manager.read(CPUS, top(host, partition)) == manager.fence.cpus


@pytest.mark.parametrize("partition", ELSEWHERE)
def test_beside_the_memory_limit_it_is_refused(host: Kernel, partition: str) -> None:
    host.configure(RESERVED_MEMORY)
    with pytest.raises(Refusal) as error:
        do(host, "prepare", vm("web", inner=inner(partition)))
    assert f"VM web has the partition {partition} in its XML" in str(error.value)
    assert "virt-cgroup domain web --no-partition" in str(error.value)


@pytest.mark.parametrize("partition", BELOW)
def test_below_machine_it_starts(host: Kernel, partition: str) -> None:
    host.configure(RESERVED_CPUS + RESERVED_MEMORY)
    do(host, "prepare", vm(inner=inner(partition)))


@pytest.mark.parametrize("partition", ELSEWHERE)
def test_a_layout_goes_before_it(host: Kernel, partition: str) -> None:
    host.configure(RESERVED_CPUS + RESERVED_MEMORY + "cgroup_layout = '/lab/$NAME'\n")
    do(host, "prepare", vm(inner=inner(partition)))


@pytest.mark.parametrize("settings", [RESERVED_CPUS, RESERVED_MEMORY])
def test_the_root_is_no_place_for_a_vm(host: Kernel, settings: str) -> None:
    host.configure(settings)
    with pytest.raises(Refusal, match="has the partition / in its XML"):
        do(host, "prepare", vm(inner=inner("/")))


def test_one_that_is_moved_out_is_told_where_its_pins_still_hold(host: Kernel) -> None:
    host.configure(RESERVED_CPUS)
    reserving.start(host, layout="native")
    for pid, thread in host.all_tasks():
        if pid == PID:
            host.place(pid, thread, {one.key: "/somewhere" for one in host.hierarchies})
            host.put(f"/proc/{pid}/task/{thread}/status", "Cpus_allowed_list:\t1-3")
    (told,) = checks.conforming(Subject(host))
    text = "VM vm: it is in /somewhere, where reserved_host_cpus does not limit it"
    assert (told.code, told.message) == ("vm-escaped", text)
    for hierarchy in host.hierarchies:
        if "cpuset" in hierarchy.controllers:
            host.put(f"{hierarchy.directory('/somewhere')}/cpuset.cpus", "1-2")
    assert list(checks.conforming(Subject(host))) == []  # as `apply` may have it


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "systemd" in kind])
def test_one_that_ran_before_is_told_and_apply_limits_it(tmp_path: Path, kind: str) -> None:
    """It started before memory was reserved."""
    host = reserving.made(tmp_path, kind, "")
    assert isinstance(host, Machined)
    subject = host.starts(vm(number=3), "/lab.slice/lab-a.slice", inner("/lab/a"))
    host.configure(RESERVED_MEMORY)

    def described() -> dict[str, Any]:
        return describe(host, managers.choose(host, host.config()), threads.running(host, {})[0])

    (problem,) = described()["problems"]
    assert problem.startswith("it is in /lab.slice/lab-a.slice/machine-qemu")
    assert problem.endswith(".scope, where reserved_host_mem does not limit it")
    made = Plan("apply")
    manager = managers.choose(host, host.config())
    changes.refit(made, manager, [subject])
    run(host, made)
    assert manager.read(MEMORY, "/lab.slice") == manager.fence.memory
    (problem,) = described()["problems"]
    assert problem.endswith(
        ".scope, not below /machine.slice, so its memory is counted apart from that of other VMs"
    )
    (told,) = checks.conforming(Subject(host))
    assert told.remedy.startswith("choose one below /machine (virt-cgroup domain vm --partition ")
    assert told.remedy.endswith("; virsh start vm")
