"""What the kernel and others do to the VM parent behind our back: CPUs and memory that go and come back, foreign writers.

No VM is killed by any of it, `status` and `validate` tell what is so, and `apply` or the next VM that starts brings back
what is configured. Serves hosts with and without machined.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cli.checks import TABLE
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.host import Host

from ..live.guests import disk, toucher
from ..live.harness import LIVE, all_cgroups, virsh
from ..live.reserving import (
    COMMAND,
    MIB,
    assert_conform,
    assert_same,
    everything,
    leaving,
    limit_of,
    nobody_is_killed,
    parent_directory,
    refused,
    reserve,
    total_memory,
    wait_for_use,
)
from .host import V2, configure, directory, fenced, run, start, status, virt_cgroup, xml

LAYOUT = "/vms/$NAME"
DEEP = "/vms/prod/$NAME"
CPUS = Path("/sys/devices/system/cpu")
MEMORY = Path("/sys/devices/system/memory")
IMAGES = Path("/var/lib/libvirt/images")
PINS = {0: "6-7", 1: "7"}
START = "for what would keep every VM from starting"
FENCE = "for the fence in effect on the VM parent"
SPECIAL = "for CPUs that are offline or isolated"
CONFORM = "for VMs that do not conform"
only_v1 = pytest.mark.skipif(V2, reason="cgroup v1 is not used here")
only_v2 = pytest.mark.skipif(not V2, reason="cgroup v2 is not used here")
thorough = pytest.mark.thorough


def findings() -> dict[str, str]:
    """What `validate` has to say of the fence: by check the result and the message of its first problem."""
    subject = Subject(Host())
    checks = [check for check in TABLE if check.title in (START, FENCE, SPECIAL, CONFORM) and check.when(subject)]
    found = {check.title: list(check.find(subject)) for check in checks}
    return {title: f"{problems[0].result} {problems[0].message}" for title, problems in found.items() if problems}


class Shown:
    """What `status` says now."""

    def __init__(self) -> None:
        self.report = status()
        self.fence, self.parent = self.report["fence"], self.report["parent"]

    def cpus(self, name: str) -> dict[str, str]:
        """Of each thread group of the VM."""
        vm = next(vm for vm in self.report["domains"] if vm["name"] == name)
        return {row["group"]: row["cpus"] for row in reversed(vm["threads"])}

    def pinned(self, name: str) -> tuple[str, str]:
        """Of the first two vCPUs."""
        return self.cpus(name)["vcpu0"], self.cpus(name)["vcpu1"]

    def allowed(self, name: str) -> set[str]:
        return set(self.cpus(name).values())


def cpu_files() -> Path:
    """The VM parent where its CPUs are."""
    return directory("cpuset", status()["parent"]["path"])


def not_started(name: str, **options: object) -> str:
    result = virsh("create", "/dev/stdin", stdin=xml(name, **options), check=False)
    assert result.returncode
    return result.stderr


def not_applied() -> str:
    result = subprocess.run([*COMMAND, "apply", "--all"], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr


@contextmanager
def without_cpu(number: int) -> Iterator[None]:
    file = CPUS / f"cpu{number}/online"
    file.write_text("0")
    try:
        yield
    finally:
        file.write_text("1")


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


# CPUs


@thorough
def test_a_reserved_cpu_goes_and_comes_back() -> None:
    configure(fenced(LAYOUT))
    web = start("web", vcpupin={0: "7"})
    with nobody_is_killed(web):
        with without_cpu(1):
            assert findings() == {SPECIAL: "WARN CPUs 1 of reserved_host_cpus are offline"}
            start("db")
            assert_conform("web", "db")
        assert findings() == {}
        shown = Shown()
        assert (shown.cpus("web")["vcpu0"], shown.allowed("db"), shown.parent["cpus"]) == ("7", {"2-7"}, "2-7")


@pytest.mark.parametrize(
    "layout",
    [DEEP, *(pytest.param(one, marks=thorough) for one in (LAYOUT, "native", "root", "/vms/$UUID/$NAME"))],
)
def test_a_cpu_of_the_vms_goes_and_comes_back(layout: str) -> None:
    configure(fenced(layout, memory=layout != "root"))
    vms = [start("web"), start("db", vcpupin=PINS)]
    with nobody_is_killed(*vms):
        with without_cpu(7):
            shown = Shown()
            assert (shown.fence["cpus"], shown.allowed("web"), shown.pinned("db")) == ("2-6", {"2-6"}, ("6", "2-6"))
            start("new")
            virt_cgroup("apply", "--all")
            assert findings() == {}
            assert Shown().pinned("db") == ("6", "2-6")
            message = not_started("late", vcpupin={0: "7"})
            assert "VM late is pinned to CPUs that are offline: vcpu0 to 7 (offline: 7): bring them online" in message
        shown = Shown()
        assert shown.fence["cpus"] == "2-7"
        if shown.parent["path"]:
            assert findings()[FENCE].endswith(" may use CPUs 2-6 only, and not 7")
        virt_cgroup("apply", "--all")
        assert findings() == {}
        assert_conform("web", "db", "new")
        shown = Shown()
        assert (shown.allowed("web"), shown.pinned("db"), shown.cpus("db")["emulator"]) == ({"2-7"}, ("6-7", "7"), "2-7")


@thorough
@pytest.mark.parametrize("mend", ["next VM", "apply"])
def test_a_cpu_is_away_for_a_moment(mend: str) -> None:
    """Nobody has looked meanwhile. v1 has taken it from all cpusets; v2 gives it back by itself."""
    configure(fenced(DEEP))
    vms = [start("web"), start("db", vcpupin=PINS)]
    with nobody_is_killed(*vms):
        with without_cpu(7):
            pass
        assert (FENCE in findings()) != V2
        if mend == "apply":
            virt_cgroup("apply", "--all")
            assert_conform("web", "db")
            assert Shown().pinned("db") == ("6-7", "7")
        else:
            start("new")
        assert FENCE not in findings()
        assert Shown().allowed("web") == {"2-7"}


@thorough
def test_nothing_is_reserved_any_more_while_a_cpu_is_away() -> None:
    """The VMs get that CPU, too, when it comes back."""
    configure(fenced(LAYOUT))
    web = start("web")
    with nobody_is_killed(web):
        with without_cpu(7):
            configure(f'cgroup_layout = "{LAYOUT}"\n')
            virt_cgroup("apply", "--all")
            assert Shown().allowed("web") == {"0-6"}
        if V2:
            assert Shown().allowed("web") == {"0-7"}


@thorough
def test_sets_that_are_offline_do_not_keep_vms_from_starting() -> None:
    configure(fenced(LAYOUT, more='vcpu_cpus = "7"'))
    web = start("web")
    with nobody_is_killed(web):
        with without_cpu(7):
            start("db")
            virt_cgroup("apply", "--all")
            assert_conform("web", "db")
        virt_cgroup("apply", "--all")
        assert_conform("web", "db")
        shown = Shown()
        assert shown.pinned("web") == shown.pinned("db") == ("7", "7")


# memory


@contextmanager
def without_memory(blocks: int) -> Iterator[int]:
    """Takes memory away in whole blocks, those that the kernel can empty; yields how many bytes."""
    before = total_memory()
    taken = []
    for block in sorted(MEMORY.glob("memory[0-9]*"), key=lambda path: int(path.name[len("memory") :]), reverse=True):
        try:
            (block / "state").write_text("offline")
        except OSError:  # there is something in it that cannot move
            continue
        taken.append(block)
        if len(taken) == blocks:
            break
    assert len(taken) == blocks, "the kernel gives no memory away"
    try:
        yield before - total_memory()
    finally:
        for block in taken:
            (block / "state").write_text("online")


@pytest.mark.parametrize("mend", ["apply", pytest.param("next VM", marks=thorough)])
def test_memory_goes_and_comes_back(mend: str) -> None:
    def mended() -> None:
        if mend == "next VM":
            virsh("destroy", "db", check=False)
            start("db")
        else:
            virt_cgroup("apply", "--all")
        assert findings() == {}

    configure(fenced(LAYOUT))
    web = start("web", memory_mib=128, machine="pc", iothreads=0, devices=disk(IMAGES / "web", toucher(48)))
    parent = parent_directory()
    wait_for_use(parent, 48)
    whole = int(limit_of(parent))
    with nobody_is_killed(web):
        with without_memory(2) as gone:
            assert gone > 200 * MIB
            assert Shown().fence["memory_limit"] == whole - gone
            assert findings() == {
                FENCE: f"FAIL the memory limit of {parent} is 1.9 GiB ({whole} bytes) and should be {whole - gone}"
            }
            mended()
            assert int(limit_of(parent)) == whole - gone
        assert findings()[FENCE].startswith(f"WARN the memory limit of {parent} is ")
        mended()
        assert int(limit_of(parent)) == whole


@thorough
def test_memory_goes_that_the_vms_have() -> None:
    """A limit below what is used would kill one: the limit stays, and who wants it lower is told."""
    configure(fenced(LAYOUT))
    web = start("web", memory_mib=256, machine="pc", iothreads=0, devices=disk(IMAGES / "web", toucher(128)))
    parent = parent_directory()
    used = wait_for_use(parent, 128)
    configure(fenced(LAYOUT).replace("1 GiB", leaving((used + 64 * MIB) & -4096)))
    virt_cgroup("apply", "--all")
    limit = limit_of(parent)
    with nobody_is_killed(web):
        with without_memory(1):
            assert findings()[FENCE].startswith("FAIL ")
            message = f"cannot limit {parent} to "
            assert message in not_applied()
            assert message in not_started("db")
            assert limit_of(parent) == limit
        assert findings() == {}
        assert_conform("web")


# a v1 parent that cannot shrink


@only_v1
def test_a_cpuset_of_somebody_else_in_the_vm_parent() -> None:
    """It gives up what it can; where it would have nothing left, nothing is changed, and it is named."""
    configure(fenced(LAYOUT))
    web = start("web")
    parent = cpu_files()
    try:
        with nobody_is_killed(web), cgroup(parent / "other", {"cpuset.mems": "0", "cpuset.cpus": "6-7"}) as other:
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
            assert findings()[FENCE] == f"FAIL {parent} may use CPUs 2-5,7, of which the host keeps 7"
            configure(fenced(LAYOUT))
            virt_cgroup("apply", "--all")
            assert_conform("web")
    finally:
        LIVE.unlink(missing_ok=True)


@only_v1
@thorough
def test_exclusive_cpus_of_somebody_else_on_v1() -> None:
    """Nobody beside it may have had them: libvirt's own /machine.slice has all CPUs, once there is one."""
    configure(fenced(LAYOUT))
    mine = directory("cpuset", "/mine")
    others = [file for file in mine.parent.glob("*/cpuset.cpus") if file.read_text().strip()]
    before = {file: file.read_text() for file in others}
    try:
        for file in others:
            file.write_text("0-5")
        with cgroup(mine, {"cpuset.mems": "0", "cpuset.cpus": "6-7", "cpuset.cpu_exclusive": "1"}):
            told = f"cannot give CPUs 6-7 to VMs: {mine} has them for itself alone (cpuset.cpu_exclusive)"
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
    """Somebody else has the CPUs WANTED for itself alone, though others name them: a remote partition (Linux 6.7) may."""
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
            assert (shown.allowed("web"), shown.parent["cpus"], shown.report["taken"]) == ({"2-5"}, "2-5", {str(other): "6-7"})
            assert f"{other} has CPUs 6-7 for itself alone." in virt_cgroup("status")
            assert findings()[FENCE] == f"WARN {parent} may use CPUs 2-5 only, and not 6-7: {other} has 6-7 for itself alone"
            start("new")
            told = f"VM late is pinned to CPUs 6-7 (vcpu0), which {other} has for itself alone: take them back from it"
            assert told in not_started("late", vcpupin={0: "7"})
            assert (other / "cpuset.cpus.partition").read_text().strip() == "root"
        assert findings() == {}
        assert_conform("web", "db", "new")
        shown = Shown()
        assert (shown.allowed("web"), shown.pinned("db"), shown.report["taken"]) == ({"2-7"}, ("6-7", "7"), {})


@only_v2
@thorough
def test_a_partition_that_was_there_first() -> None:
    """The kernel makes it invalid as soon as the VM parent names its CPUs, or leaves them to it; both is told."""
    configure(fenced(LAYOUT))
    with cgroup(directory("cpuset", "/mine"), {"cpuset.cpus": "6-7", "cpuset.cpus.partition": "root"}) as other:
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
    groups = sorted(
        (one for one in all_cgroups() if parent in (one, *one.parents)), reverse=CpuSet.parse(value) <= CpuSet.parse("2-7")
    )
    for group in groups if not V2 else [parent]:
        (group / "cpuset.cpus").write_text(value)


def write_memory(value: str) -> None:
    (parent_directory() / ("memory.max" if V2 else "memory.limit_in_bytes")).write_text(value)


def set_property(assignment: str) -> None:
    run("systemctl", "set-property", "--runtime", parent_directory().name, assignment)


CHANGES: dict[str, tuple[Callable[[str], None], str, str]] = {
    "more CPUs": (write_cpus, "0-7", "FAIL {parent} may use CPUs 0-7, of which the host keeps 0-1"),
    "fewer CPUs": (write_cpus, "3-4", "WARN {parent} may use CPUs 3-4 only, and not 2,5-7"),
    "more memory": (write_memory, "2500M", "FAIL the memory limit of {parent} is 2.4 GiB"),
    "less memory": (write_memory, "1000M", "WARN the memory limit of {parent} is 1.0 GiB"),
    "all memory": (write_memory, "max" if V2 else "-1", "FAIL {parent} has no memory limit"),
    "AllowedCPUs=0-7": (set_property, "AllowedCPUs=0-7", "FAIL {parent} may use CPUs 0-7, of which the host keeps 0-1"),
    "AllowedCPUs=3-4": (set_property, "AllowedCPUs=3-4", "WARN {parent} may use CPUs 3-4 only, and not 2,5-7"),
    "MemoryMax=1000M": (set_property, "MemoryMax=1000M", "WARN the memory limit of {parent} is 1.0 GiB"),
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
            if write is set_property and not (slices and (V2 or "CPUs" not in name)):  # systemd knows no v1 cpuset
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
