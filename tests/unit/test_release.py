"""What is left of a VM that has ended, on a recorded host, v1 and v2: nothing of ours."""

from __future__ import annotations

import pytest

from .support.hosts import NO_LIMIT, Kernel, domain
from .support.operations import INNER, do, plan, vm

HOST = Kernel


NAMES = [
    "web",
    "a b",
    "..",
    ".",
    "-x",
    "a'b\"c\\d",
    "💩",
    "x" * 200,
    "_x",
    "tasks",
    "$ID",
    "cpu.max",
]


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        *(("/vms/$NAME", name) for name in NAMES),
        *(
            (layout, "a b")
            for layout in (
                "legacy",
                "nested",
                "flat",
                "root",
                "uuid",
                "/vms/$NAME/$UUID",
                "/a/b/$UUID",
            )
        ),
    ],
)
def test_nothing_is_left_behind(host: Kernel, layout: str, name: str) -> None:
    host.configure(f"reserved_host_cpus = '0'\ncgroup_layout = '{layout}'")
    before = host.snapshot("run/")
    do(host, "prepare", vm(name))
    subject = host.start_vm(vm(name), INNER)
    do(host, "started", subject)
    host.end_vm(subject)
    for operation in ("stopped", "release"):
        do(host, operation, subject)
    assert [path for path in host.cgroups() if not path.endswith("/machine")] == []
    assert host.names("/run/libvirt-cgroup-hooks/vms") == []
    after = host.snapshot("run/")
    assert {
        path: text
        for path, text in after.items()
        if "/machine/" not in path and "subtree_control" not in path
    } == {path: text for path, text in before.items() if "subtree_control" not in path}


@pytest.mark.parametrize(
    "operations",
    [["stopped", "release"], ["release"], ["stopped", "stopped", "release", "release"]],
)
def test_also_when_started_never_came(host: Kernel, operations: list[str]) -> None:
    before = host.cgroups()
    do(host, "prepare", vm())
    for operation in operations:
        do(host, operation, vm())
    assert host.cgroups() == before
    assert host.names("/run/libvirt-cgroup-hooks/vms") == []


def test_also_when_the_daemon_was_killed_and_libvirt_left_its_cgroups(host: Kernel) -> None:
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER)
    do(host, "started", subject)
    host.end_vm(subject, libvirt=False)
    do(host, "release", subject)
    left = [path for path in host.cgroups() if "qemu-3" in path and "/devices/" not in path]
    assert left == []


def test_what_an_earlier_run_left_goes_at_the_next_prepare(host: Kernel) -> None:
    do(host, "prepare", vm())
    subject = host.start_vm(vm(), INNER)
    do(host, "started", subject)
    host.end_vm(subject)
    do(host, "prepare", vm())
    assert not [path for path in host.cgroups() if "qemu-vm" in path]


def test_the_parent_stays_while_another_vm_is_known(host: Kernel) -> None:
    other = domain("other", INNER, uuid="0" * 35 + "1")
    do(host, "prepare", vm())
    do(host, "prepare", other)
    do(host, "release", vm())
    assert [path for path in host.cgroups() if path.endswith("/vms")]
    do(host, "release", other)
    assert host.cgroups() == []


def test_a_vm_that_is_not_known_is_left_alone(host: Kernel) -> None:
    subject = host.start_vm(vm(), INNER)
    for operation in ("stopped", "release"):
        assert str(plan(host, operation, subject)) == ""


def test_a_group_that_others_made_keeps_its_limits(host: Kernel) -> None:
    """What we fenced and did not make says again what it said before, when the last VM has gone."""
    for hierarchy in host.hierarchies:
        host.libvirt_cgroups(hierarchy, ["/vms"])
        if hierarchy.version == 2:
            host.enable(hierarchy.mount, "+io +pids")
            host.write(f"{hierarchy.mount}/vms/cpuset.cpus", "0-2")
    before = host.snapshot("run/")
    do(host, "prepare", vm())
    during = host.snapshot("run/")
    assert {path for path in before if before[path] != during[path]} > set()
    do(host, "release", vm())
    after = host.snapshot("run/")
    assert {
        path: after[path].replace("-1", NO_LIMIT) if "limit_in" in path else after[path]
        for path in after
    } == before
