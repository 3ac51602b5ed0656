"""Others that write the VM parent, or make cgroups in it, where it is ours; more, and with systemd:
lab/test_others.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cli.checks import TABLE
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.host import Host

from .harness import ALL_CPUS, VM_CPUS, cgroup_directory, destroy_vm, domain_xml, start_vm, virsh
from .reserving import assert_conform, assert_same, everything, nobody_is_killed, virt_cgroup

Configure = Callable[[str], None]
V2 = cgroup_directory("cpu").joinpath("cgroup.controllers").exists()
FENCED = 'reserved_host_cpus = "0"\nreserved_host_mem = "1 GiB"\ncgroup_layout = "{}"\n'
PARENTS = {"/vms/$NAME": "/vms", "native": "/machine"}
LAYOUTS = ["/vms/$NAME", pytest.param("native", marks=pytest.mark.thorough)]
START = "that VMs can start"
FENCE = "the limits of the VM parent"


def finding(title: str) -> str:
    """Result and message of the first problem that this check of `validate` has; "" where it
    passes.
    """
    subject = Subject(Host())
    check = next(check for check in TABLE if check.title == title)
    return next((f"{problem.result} {problem.message}" for problem in check.find(subject)), "")


def write_cpus(parent: Path) -> None:
    """On v1 what is below cannot have more, so this is the one way round."""
    (parent / "cpuset.cpus").write_text(ALL_CPUS)


def write_memory(parent: Path, value: str) -> None:
    (parent / ("memory.max" if V2 else "memory.limit_in_bytes")).write_text(value)


CHANGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "more CPUs": (
        "cpuset",
        write_cpus,
        f"FAIL {{}} may use CPUs {ALL_CPUS}, including reserved CPUs 0",
    ),
    "less memory": (
        "memory",
        lambda parent: write_memory(parent, "1000M"),
        "WARN the memory limit of {} is 1048576000 bytes",
    ),
    "all memory": (
        "memory",
        lambda parent: write_memory(parent, "max" if V2 else "-1"),
        "FAIL {} has no memory limit",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("change", "mend"),
    [("more CPUs", "next VM"), ("all memory", "next VM"), ("less memory", "apply")],
)
def test_somebody_else_writes_the_vm_parent(
    configure: Configure, change: str, layout: str, mend: str
) -> None:
    controller, write, told = CHANGES[change]
    configure(FENCED.format(layout))
    vm = start_vm("web")
    parent = cgroup_directory(controller, PARENTS[layout])
    with nobody_is_killed(vm):
        write(parent)
        assert finding(FENCE).startswith(told.format(parent))
        if mend == "apply":
            virt_cgroup("apply", "--all")
        else:
            start_vm("db")
            destroy_vm("db")
        assert finding(FENCE) == ""
        assert_conform("web")


@pytest.mark.skipif(V2, reason="cgroup v2 clips what is below")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_v1_cpuset_of_somebody_else_in_the_vm_parent(configure: Configure, layout: str) -> None:
    """Where it would have nothing left, nothing is changed, and it is named."""
    configure(FENCED.format(layout).partition("\n")[2])  # no CPUs yet
    vm = start_vm("web")
    parent = cgroup_directory("cpuset", PARENTS[layout])
    other = parent / "other"
    other.mkdir()
    try:
        for name, value in {
            "cpuset.mems": (parent / "cpuset.mems").read_text(),
            "cpuset.cpus": "0",
        }.items():
            (other / name).write_text(value)
        configure(FENCED.format(layout))
        before = everything()
        told = f"cannot set the CPUs of {parent} to {VM_CPUS}: {other} is limited to 0"
        with nobody_is_killed(vm):
            result = virsh("create", "/dev/stdin", stdin=domain_xml("db"), check=False)
            assert result.returncode
            assert told in result.stderr
            applied = virt_cgroup("apply", "--all", check=False)
            assert applied.returncode == 1
            assert told in applied.stderr
            assert_same(everything(), before)
            assert finding(START).startswith(f"FAIL {told}")
            assert finding(FENCE).startswith(
                f"FAIL {parent} may use CPUs {ALL_CPUS}, including reserved CPUs 0"
            )
    finally:
        other.rmdir()
    virt_cgroup("apply", "--all")
    assert_conform("web")
