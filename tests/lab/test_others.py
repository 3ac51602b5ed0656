"""What others do to the VM parent, and to the CPUs that VMs may use: cpusets that keep them, and
foreign writers.

No VM is killed by it, `status` and `validate` tell what is so, and `apply` or the next VM that
starts brings back what is configured. Serves hosts with and without machined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cpuset import CpuSet

from ..live.harness import LIVE, all_cgroups, virsh
from ..live.reserving import (
    assert_conform,
    assert_same,
    everything,
    nobody_is_killed,
    parent_directory,
    refused,
    reserve,
)
from .drift import (
    FENCE,
    LAYOUT,
    PINS,
    START,
    Shown,
    cpu_files,
    findings,
    not_applied,
    not_started,
    only_v1,
    only_v2,
    thorough,
)
from .host import V2, configure, directory, fenced, run, start, status, virt_cgroup


@contextmanager
def cgroup(path: Path, files: dict[str, str]) -> Iterator[Path]:
    """Somebody else's, with what is written to its FILES."""
    path.mkdir()
    try:
        for name, value in files.items():
            (path / name).write_text(value)
        yield path
    finally:
        path.rmdir()


# a v1 parent that cannot shrink


@only_v1
def test_a_cpuset_of_somebody_else_in_the_vm_parent() -> None:
    """It gives up what it can; where it would have nothing left, nothing is changed, and it is
    named.
    """
    configure(fenced(LAYOUT))
    web = start("web")
    parent = cpu_files()
    try:
        with (
            nobody_is_killed(web),
            cgroup(parent / "other", {"cpuset.mems": "0", "cpuset.cpus": "6-7"}) as other,
        ):
            reserve("--cpus", "0-1,6", "--live")
            assert (other / "cpuset.cpus").read_text().strip() == "7"
            told = f"cannot set the CPUs of {parent} to 2-5: {other} is limited to 7"
            assert told in refused("--cpus", "0-1,6-7", "--live")
            LIVE.unlink()
            configure(fenced(LAYOUT).replace("0-1", "0-1,6-7"))
            before = everything()
            assert told in not_started("db")
            assert told in not_applied()
            assert_same(everything(), before)
            assert told in findings()[START]
            assert findings()[FENCE] == (
                f"FAIL {parent} may use CPUs 2-5,7, including reserved CPUs 7"
            )
            configure(fenced(LAYOUT))
            virt_cgroup("apply", "--all")
            assert_conform("web")
    finally:
        LIVE.unlink(missing_ok=True)


@only_v1
@thorough
def test_exclusive_cpus_of_somebody_else_on_v1() -> None:
    """Nobody beside it may have had them: libvirt's own /machine.slice has all CPUs, once there is
    one.
    """
    configure(fenced(LAYOUT))
    mine = directory("cpuset", "/mine")
    others = [file for file in mine.parent.glob("*/cpuset.cpus") if file.read_text().strip()]
    before = {file: file.read_text() for file in others}
    try:
        for file in others:
            file.write_text("0-5")
        with cgroup(mine, {"cpuset.mems": "0", "cpuset.cpus": "6-7", "cpuset.cpu_exclusive": "1"}):
            told = (
                "cannot give CPUs 6-7 to VMs: "
                f"{mine} has exclusive use of them (cpuset.cpu_exclusive)"
            )
            assert f"{told}: take them back from it" in not_started("web")
            assert findings()[START] == f"FAIL {told}"
            assert status()["taken"] == {str(mine): "6-7"}
            configure(fenced(LAYOUT).replace("0-1", "0-1,6-7"))
            start("web")
            assert_conform("web")
    finally:
        for file, text in before.items():
            if file.exists():
                file.write_text(text)
    configure(fenced(LAYOUT))
    start("db")
    assert Shown().allowed("web") == {"2-7"}


# a v2 partition of somebody else


@contextmanager
def partition(wanted: str) -> Iterator[Path]:
    """Somebody else has the CPUs WANTED for itself alone, though others name them: a remote
    partition (Linux 6.7) may.
    """
    with cgroup(directory("cpuset", "/mine"), {}) as holder:
        if not (holder / "cpuset.cpus.exclusive").exists():
            pytest.skip("this kernel makes no partition of CPUs that others name")
        (holder / "cpuset.cpus.exclusive").write_text(wanted)
        (holder / "cgroup.subtree_control").write_text("+cpuset")
        with cgroup(holder / "part", {"cpuset.cpus": wanted}) as path:
            (path / "cpuset.cpus.exclusive").write_text(wanted)
            (path / "cpuset.cpus.partition").write_text("root")
            assert (path / "cpuset.cpus.partition").read_text().strip() == "root"
            try:
                yield path
            finally:
                (path / "cpuset.cpus.partition").write_text("member")


@only_v2
def test_a_partition_takes_cpus_of_the_vms() -> None:
    configure(fenced(LAYOUT))
    vms = [start("web"), start("db", vcpupin=PINS)]
    parent = cpu_files()
    with nobody_is_killed(*vms):
        with partition("6-7") as other:
            shown = Shown()
            assert (shown.allowed("web"), shown.parent["cpus"], shown.report["taken"]) == (
                {"2-5"},
                "2-5",
                {str(other): "6-7"},
            )
            assert f"{other} has exclusive use of CPUs 6-7." in virt_cgroup("status")
            assert findings()[FENCE] == (
                f"WARN {parent} may use CPUs 2-5 only, and not 6-7: "
                f"{other} has exclusive use of 6-7"
            )
            start("new")
            told = (
                f"VM late is pinned to CPUs 6-7 (vcpu0), of which {other} has exclusive use: "
                "take them back from it"
            )
            assert told in not_started("late", vcpupin={0: "7"})
            assert (other / "cpuset.cpus.partition").read_text().strip() == "root"
        assert findings() == {}
        assert_conform("web", "db", "new")
        shown = Shown()
        assert (shown.allowed("web"), shown.pinned("db"), shown.report["taken"]) == (
            {"2-7"},
            ("6-7", "7"),
            {},
        )


@only_v2
@thorough
def test_a_partition_that_was_there_first() -> None:
    """The kernel makes it invalid as soon as the VM parent names its CPUs, or leaves them to it;
    both is told.
    """
    configure(fenced(LAYOUT))
    with cgroup(
        directory("cpuset", "/mine"), {"cpuset.cpus": "6-7", "cpuset.cpus.partition": "root"}
    ) as other:
        web = start("web")
        with nobody_is_killed(web):
            valid = (other / "cpuset.cpus.partition").read_text().strip() == "root"
            shown = Shown()
            assert shown.parent["cpus"] == ("2-5" if valid else "2-7")
            assert shown.report["taken"] == ({str(other): "6-7"} if valid else {})
            assert (FENCE in findings()) == valid
            (other / "cpuset.cpus.partition").write_text("member")
            virt_cgroup("apply", "--all")
            assert Shown().allowed("web") == {"2-7"}


# foreign writers


def write_cpus(value: str) -> None:
    """As somebody would who means it: on v1 in an order that the kernel takes."""
    parent = cpu_files()
    groups = [parent]
    if not V2:
        groups = [one for one in all_cgroups() if parent in (one, *one.parents)]
    for group in sorted(groups, reverse=CpuSet.parse(value) <= CpuSet.parse("2-7")):
        (group / "cpuset.cpus").write_text(value)


def write_memory(value: str) -> None:
    (parent_directory() / ("memory.max" if V2 else "memory.limit_in_bytes")).write_text(value)


def set_property(assignment: str) -> None:
    run("systemctl", "set-property", "--runtime", parent_directory().name, assignment)


CHANGES: dict[str, tuple[Callable[[str], None], str, str]] = {
    "more CPUs": (write_cpus, "0-7", "FAIL {parent} may use CPUs 0-7, including reserved CPUs 0-1"),
    "fewer CPUs": (write_cpus, "3-4", "WARN {parent} may use CPUs 3-4 only, and not 2,5-7"),
    "more memory": (write_memory, "2500M", "FAIL the memory limit of {parent} is 2.4 GiB"),
    "less memory": (write_memory, "1000M", "WARN the memory limit of {parent} is 1048576000 bytes"),
    "all memory": (write_memory, "max" if V2 else "-1", "FAIL {parent} has no memory limit"),
    "AllowedCPUs=0-7": (
        set_property,
        "AllowedCPUs=0-7",
        "FAIL {parent} may use CPUs 0-7, including reserved CPUs 0-1",
    ),
    "AllowedCPUs=3-4": (
        set_property,
        "AllowedCPUs=3-4",
        "WARN {parent} may use CPUs 3-4 only, and not 2,5-7",
    ),
    "MemoryMax=1000M": (
        set_property,
        "MemoryMax=1000M",
        "WARN the memory limit of {parent} is 1048576000 bytes",
    ),
    "MemoryMax=infinity": (set_property, "MemoryMax=infinity", "FAIL {parent} has no memory limit"),
}


@thorough  # a part of it is in the plain runs of live/test_kernel.py and lab/test_validate.py
@pytest.mark.parametrize("mend", ["apply", "next VM"])
@pytest.mark.parametrize("names", [list(CHANGES)[::2], list(CHANGES)[1::2]])
def test_somebody_else_writes_the_vm_parent(mend: str, names: list[str]) -> None:
    configure(fenced(LAYOUT))
    vm = start("web")
    slices = status()["manager"] == "systemd"
    with nobody_is_killed(vm):
        for name in names:
            write, value, told = CHANGES[name]
            # systemd knows no v1 cpuset
            if write is set_property and not (slices and (V2 or "CPUs" not in name)):
                continue
            write(value)
            parent = cpu_files() if "CPUs" in name else parent_directory()
            assert findings()[FENCE].startswith(told.format(parent=parent)), name
            if mend == "apply":
                shown, kind = Shown(), "cpus" if "CPUs" in name else "memory_limit"
                assert shown.parent[kind] != shown.fence[kind], name
                virt_cgroup("apply", "--all")
            else:
                start("db")
                virsh("destroy", "db")
            assert findings() == {}, name
        assert_conform("web")
