"""CPUs and memory that go offline and come back.

No VM is killed by it, `status` and `validate` tell what is so, and `apply` or the next VM that
starts brings back what is configured. Serves hosts with and without machined.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.leave import leave

from ..live.guests import disk, toucher
from ..live.harness import virsh
from ..live.reserving import (
    MIB,
    assert_conform,
    leaving,
    limit_of,
    nobody_is_killed,
    parent_directory,
    total_memory,
    wait_for_use,
)
from .drift import FENCE, LAYOUT, PINS, SPECIAL, Shown, findings, not_applied, not_started, thorough
from .host import V2, configure, directory, fenced, start, virt_cgroup

DEEP = "/vms/prod/$NAME"
CPUS = Path("/sys/devices/system/cpu")
MEMORY = Path("/sys/devices/system/memory")
IMAGES = Path("/var/lib/libvirt/images")


@contextmanager
def without_cpu(number: int) -> Iterator[None]:
    file = CPUS / f"cpu{number}/online"
    file.write_text("0")
    try:
        yield
    finally:
        file.write_text("1")


def give_back(fewer: str, cpus: str) -> None:
    """Or later tests, whose VMs come into the same cgroups of cgroup v1, had fewer CPUs."""
    files = directory("cpuset", "/").rglob("cpuset.cpus")
    for file in sorted(files, key=lambda file: len(file.parts)):
        if file.read_text().strip() == fewer:
            file.write_text(cpus)


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
        assert (shown.cpus("web")["vcpu0"], shown.allowed("db"), shown.parent["cpus"]) == (
            "7",
            {"2-7"},
            "2-7",
        )


@pytest.mark.parametrize(
    "layout",
    [
        DEEP,
        *(
            pytest.param(one, marks=thorough)
            for one in (LAYOUT, "native", "root", "/vms/$UUID/$NAME")
        ),
    ],
)
def test_a_cpu_of_the_vms_goes_and_comes_back(layout: str) -> None:
    configure(fenced(layout, memory=layout != "root"))
    vms = [start("web"), start("db", vcpupin=PINS)]
    with nobody_is_killed(*vms):
        with without_cpu(7):
            shown = Shown()
            assert (shown.fence["cpus"], shown.allowed("web"), shown.pinned("db")) == (
                "2-6",
                {"2-6"},
                ("6", "2-6"),
            )
            start("new")
            virt_cgroup("apply", "--all")
            assert findings() == {}
            assert Shown().pinned("db") == ("6", "2-6")
            message = not_started("late", vcpupin={0: "7"})
            assert (
                "VM late is pinned to CPUs that are offline: vcpu0 to 7 (offline: 7): "
                "bring them online" in message
            )
        shown = Shown()
        assert shown.fence["cpus"] == "2-7"
        if shown.parent["path"]:
            assert findings()[FENCE].endswith(" may use CPUs 2-6 only, and not 7")
        virt_cgroup("apply", "--all")
        assert findings() == {}
        assert_conform("web", "db", "new")
        shown = Shown()
        assert (shown.allowed("web"), shown.pinned("db"), shown.cpus("db")["emulator"]) == (
            {"2-7"},
            ("6-7", "7"),
            "2-7",
        )


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


@pytest.mark.parametrize("layout", [LAYOUT, pytest.param("uuid", marks=thorough)])
def test_the_hook_is_removed_while_a_cpu_is_away(layout: str) -> None:
    """The VMs may use it when it comes back, where the kernel lets them: on cgroup v1 a cpuset that
    loses a CPU never regains it by itself, whoever made it.
    """
    configure(fenced(layout, memory=layout != "uuid"))
    web = start("web")
    with nobody_is_killed(web):
        with without_cpu(7):
            assert Shown().allowed("web") == {"2-6"}
            leave(Host())
            assert Shown().allowed("web") == {"0-6"}
        assert Shown().allowed("web") == {"0-7" if V2 else "0-6"}
        assert Shown().parent["memory_limit"] is None
    if not V2:
        give_back("0-6", "0-7")


# memory


@contextmanager
def without_memory(blocks: int) -> Iterator[int]:
    """Takes memory away in whole blocks, those that the kernel can empty; yields how many bytes."""
    before = total_memory()
    taken = []
    for block in sorted(
        MEMORY.glob("memory[0-9]*"), key=lambda path: int(path.name[len("memory") :]), reverse=True
    ):
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
    web = start(
        "web", memory_mib=128, machine="pc", iothreads=0, devices=disk(IMAGES / "web", toucher(48))
    )
    parent = parent_directory()
    wait_for_use(parent, 48)
    whole = int(limit_of(parent))
    with nobody_is_killed(web):
        with without_memory(2) as gone:
            assert gone > 200 * MIB
            assert Shown().fence["memory_limit"] == whole - gone
            assert findings() == {
                FENCE: (
                    f"FAIL the memory limit of {parent} is 1.9 GiB ({whole} bytes) "
                    f"and should be {whole - gone}"
                )
            }
            mended()
            assert int(limit_of(parent)) == whole - gone
        assert findings()[FENCE].startswith(f"WARN the memory limit of {parent} is ")
        mended()
        assert int(limit_of(parent)) == whole


@thorough
def test_memory_goes_that_the_vms_have() -> None:
    """A limit below what is used would kill a VM: it stays, and who wants it lower is told."""
    configure(fenced(LAYOUT))
    web = start(
        "web", memory_mib=256, machine="pc", iothreads=0, devices=disk(IMAGES / "web", toucher(128))
    )
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
