"""One VM fills its memory: what is killed, beside another one that does nothing.

The table in docs/reliability.md is this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import pytest

from ..live.guests import disk, toucher
from ..live.harness import Vm, running_vm, virsh
from ..live.pace import wait_for
from ..live.reserving import (
    COMMAND,
    MIB,
    in_use,
    leaving,
    oom_kills,
    parent_directory,
    wait_for_use,
)
from .host import COUNTS_SWAP, IMAGES, V2, configure, run, start, status, swap_file, xml

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.releases,
    pytest.mark.skipif(not COUNTS_SWAP, reason="the kernel counts no swap by cgroup"),
]
GUEST, FILLED = 256, 200  # MiB that the VM has, and that it fills
BELOW, ABOVE = 160, 512  # MiB for all VMs together: less than is filled, and more than all may take


class Case(NamedTuple):
    """MiB for all VMs, MiB of swap on the host, and what becomes of the VM; `more` settings."""

    limit: int
    swap: int
    admission: int
    outcome: str
    more: str = ""


CASES = [
    Case(ABOVE, 0, 0, "runs"),
    Case(ABOVE, 0, 1, "runs"),
    Case(ABOVE, 512, 0, "runs"),
    Case(ABOVE, 512, 1, "runs"),
    Case(BELOW, 0, 0, "is killed"),
    Case(BELOW, 0, 1, "is refused"),
    Case(BELOW, 512, 0, "is swapped"),
    Case(BELOW, 512, 1, "is refused"),
    Case(ABOVE, 512, 0, "runs", "vm_swap_max = 0"),
    Case(BELOW, 512, 0, "is killed", "vm_swap_max = 0"),
    Case(BELOW, 512, 0, "is killed", 'vm_swap_max = "16 MiB"'),
    Case(BELOW, 512, 0, "is swapped", 'vm_swap_max = "128 MiB"'),
    Case(BELOW, 512, 1, "is refused", "vm_swap_max = 0"),
]


def limited(limit: int, more: str = "") -> None:
    lines = [f'reserved_host_mem = "{leaving(limit * MIB)}"', 'cgroup_layout = "/vms/$NAME"', more]
    configure("\n".join([*lines, ""]))


def small(name: str, filled: int = 0, rounds: bool = False) -> str:
    """The XML of a VM that fills so many MiB of its memory."""
    devices = disk(IMAGES / name, toucher(filled, rounds)) if filled else ""
    memory = GUEST if filled else 32
    return xml(
        name, vcpus=1, current=1, iothreads=0, machine="pc", memory_mib=memory, devices=devices
    )


@contextmanager
def idle(name: str) -> Iterator[Vm]:
    """A VM that does nothing, and that nothing happens to."""
    vm = start(name, vcpus=1, current=1, iothreads=0, machine="pc")
    yield vm
    assert vm.alive()
    assert virsh("domstate", name).stdout.strip() == "running"


def swapped() -> int:
    parent = parent_directory()
    if V2:
        return int((parent / "memory.swap.current").read_text())
    both = int((parent / "memory.memsw.usage_in_bytes").read_text())
    return max(0, both - in_use(parent))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_one_vm_fills_its_memory(case: Case) -> None:
    limited(case.limit, f"memory_admission = {case.admission}\n{case.more}")
    virsh("define", "/dev/stdin", stdin=small("web", FILLED))
    swap = swap_file(case.swap) if case.swap else nullcontext()
    with swap, idle("db"):
        killed = oom_kills()
        result = virsh("start", "web", check=False)
        assert bool(result.returncode) == (case.outcome == "is refused")
        if case.outcome == "is refused":
            assert "VM web needs " in result.stderr
            return
        web = running_vm("web")
        if case.outcome == "is killed":
            wait_for(lambda: not web.alive(), "the kernel to kill the VM")
            wait_for(lambda: "shut off" in virsh("domstate", "web").stdout, "libvirt to see it")
            assert virsh("domstate", "web", "--reason").stdout.strip() == "shut off (crashed)"
            assert oom_kills() > killed or not V2  # v1 counts in the VM's cgroup, which is gone
            return
        wait_for(lambda: in_use(parent_directory()) + swapped() > FILLED * MIB, "it to be filled")
        assert web.alive()
        assert oom_kills() == killed
        assert (swapped() > 0) == (case.outcome == "is swapped")
        assert status()["parent"]["first_killed"] == ["web"]


def test_the_kernel_kills_the_one_that_status_names() -> None:
    """Which has most, whichever asks for more."""
    limited(BELOW)
    start_filled("web", 80)
    parent = parent_directory()
    wait_for_use(parent, 80)
    web = running_vm("web")
    shown = status()["parent"]
    assert shown["first_killed"] == ["web"]
    told = run(*COMMAND, "validate", "-q", check=False)
    assert "WARN (running VMs may come to use " in told
    assert "memory_admission = 1 refuses further VMs" in told
    db = start_filled("db", 75)
    wait_for(lambda: not web.alive(), "the kernel to kill a VM")
    wait_for_use(parent, 75)
    assert db.alive()
    assert status()["parent"]["first_killed"] == ["db"]


def start_filled(name: str, mib: int) -> Vm:
    virsh("create", "/dev/stdin", stdin=small(name, mib))
    return running_vm(name)
