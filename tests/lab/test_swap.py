"""The ceiling of swap of all VMs (vm_swap_max), by what systemd and the kernel say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..live.harness import virsh
from ..live.pace import wait_for
from ..live.reserving import MIB, in_use, nobody_is_killed
from .host import (
    COUNTS_SWAP,
    SYSTEMD,
    V2,
    configure,
    directory,
    guest,
    run,
    start,
    status,
    swap_file,
    virt_cgroup,
)

thorough = (pytest.mark.thorough, pytest.mark.releases)
pytestmark = pytest.mark.skipif(
    not (SYSTEMD and COUNTS_SWAP),
    reason="tests/live has it without systemd; or swap is not counted",
)


def conf(swap: str, layout: str = "native") -> str:
    return f'reserved_host_mem = "1 GiB"\n{swap}\ncgroup_layout = "{layout}"\n'


def ceiling(parent: str) -> str:
    """What the kernel has of the slice, and systemd too, which knows of swap on cgroup v2 only; on
    v1 beside all the memory that VMs may have.
    """
    slice_ = directory("memory", f"/{parent}")
    if V2:
        there = (slice_ / "memory.swap.max").read_text().strip()
        shown = run("systemctl", "show", "--property=MemorySwapMax", "--value", parent).strip()
        assert shown == there.replace("max", "infinity")
        return there
    memory, both = (
        int((slice_ / f"memory.{which}limit_in_bytes").read_text()) for which in ("", "memsw.")
    )
    return "max" if both > 1 << 62 else str(both - memory)


@pytest.mark.parametrize("layout", ["native", pytest.param("/vms/$NAME", marks=thorough)])
def test_set_changed_and_taken_back(layout: str) -> None:
    parent = "machine.slice" if layout == "native" else "vms.slice"
    configure(conf('vm_swap_max = "64 MiB"', layout))
    start("web")
    assert ceiling(parent) == str(64 * MIB)
    run("systemctl", "daemon-reload")
    assert ceiling(parent) == str(64 * MIB)
    virsh("destroy", "web")
    virsh("start", "web")  # the slice is there, and on v1 its limit of swap went with the last VM
    assert ceiling(parent) == str(64 * MIB)
    virt_cgroup("reserve", "--memory", "900 MiB", "--live")
    assert ceiling(parent) == str(64 * MIB)
    virt_cgroup("reserve", "--memory", "1100 MiB", "--live")
    assert ceiling(parent) == str(64 * MIB)
    assert status()["parent"]["swap_limit"] == status()["fence"]["swap_limit"] == 64 * MIB
    virt_cgroup("reserve", "--swap", "0", "--live")
    assert ceiling(parent) == "0"
    virt_cgroup("reserve", "--swap", "none", "--live")
    assert ceiling(parent) == "max"
    configure(conf("", layout))
    virt_cgroup("apply", "--parent")
    assert ceiling(parent) == "max"
    virsh("destroy", "web")


@pytest.fixture
def swap() -> Iterator[None]:
    with swap_file(256):
        yield


@pytest.mark.skipif(not V2, reason="memory.high is cgroup v2's")
@pytest.mark.thorough
@pytest.mark.releases
def test_vms_swap_no_more_than_that(swap: None) -> None:
    """Lowered below what they have swapped, it takes nothing back and kills nobody."""
    configure(conf('vm_swap_max = "32 MiB"'))
    vm = guest("web", 96, rounds=False)
    parent = directory("memory", "/machine.slice")
    wait_for(lambda: in_use(parent) > 96 * MIB, "the VM to have touched its memory")
    with nobody_is_killed(vm):
        (parent / "memory.high").write_text(str(48 * MIB))
        wait_for(lambda: swapped() > 24 * MIB, "the VM to be swapped out")
        assert swapped() <= 32 * MIB
        (parent / "memory.high").write_text("max")
        before = swapped()
        virt_cgroup("reserve", "--swap", "8 MiB", "--live")
        assert status()["parent"]["swap_limit"] == 8 * MIB < before
    virsh("destroy", "web")


def swapped() -> int:
    return int((directory("memory", "/machine.slice") / "memory.swap.current").read_text())
