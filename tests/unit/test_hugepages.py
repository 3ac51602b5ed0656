"""Hugepages that the kernel charges to cgroups (cgroup2 with memory_hugetlb_accounting)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers, state
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.kinds import MEMORY
from libvirt_cgroup_hooks.reserve import Change

from .support import reserving
from .support.hosts import Kernel, domain
from .support.operations import CG, UNIFIED_LIMIT, do, plan

MIB = 2**20
KINDS = ("cgroupfs-v2", "systemd-v2")
HUGE = "<memory unit='MiB'>{}</memory><memoryBacking><hugepages/></memoryBacking>"


def made(root: Path, kind: str, charges: bool = True) -> Kernel:
    host = reserving.made(root, kind)
    if charges:
        mounts = host.get("/proc/mounts").splitlines()
        lines = [
            line.replace(" rw,", " rw,memory_hugetlb_accounting,") if " cgroup2 " in line else line
            for line in mounts
        ]
        assert lines != mounts
        host.put("/proc/mounts", "\n".join(lines) + "\n")
    return host


def vm(number: int, hugepages: int) -> Domain:
    """One that has that many MiB of hugepages, or as much other memory as one has at least."""
    inner = HUGE.format(hugepages) if hugepages else "<memory unit='MiB'>64</memory>"
    return domain(f"vm{number}", inner, uuid=f"{number:08}-0000-0000-0000-000000000000", id=number)


def limit(host: Kernel) -> int | None:
    """What the VM parent has; None: nothing, since no VM is left."""
    manager = managers.choose(host, host.config())
    (path,) = {path for path in manager.parents(MEMORY, []) if "vms" in path}
    found = manager.read(MEMORY, path)
    return None if found is None else int(str(found)) - UNIFIED_LIMIT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_limit_has_room_for_those_of_vms_that_run(tmp_path: Path, kind: str, seed: int) -> None:
    host, chance = made(tmp_path, kind), random.Random(seed)
    running: dict[int, int] = {}
    for number in range(1, 60):
        if running and chance.random() < 0.5:
            ends = chance.choice(list(running))
            do(host, "release", vm(ends, running.pop(ends)))
        else:
            running[number] = chance.choice([0, 256, 512])
            do(host, "prepare", vm(number, running[number]))
        stays = running or kind == "systemd-v2"
        assert limit(host) == (sum(running.values()) * MIB if stays else None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_start_gives_them_back(tmp_path: Path, kind: str) -> None:
    host = made(tmp_path, kind)
    do(host, "prepare", vm(1, 256))
    do(host, "prepare", vm(2, 512))
    do(host, "prepare", vm(2, 512))  # its release never came
    assert limit(host) == 768 * MIB
    do(host, "release", vm(2, 512))
    assert limit(host) == 256 * MIB


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_the_reservation_keeps_the_room(tmp_path: Path, kind: str) -> None:
    host = made(tmp_path, kind)
    reserving.start(host, reserving.INNER + HUGE.format(256))
    Change(host, {"reserved_host_mem": "256 MiB"}, live=True, config=True).run()
    assert limit(host) == (256 + 256) * MIB
    Change(host, {"reserved_host_mem": "512 MiB"}, live=True, config=True).run()
    assert limit(host) == 256 * MIB


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_ran_before_there_was_a_hook_counts(tmp_path: Path, kind: str) -> None:
    host = made(tmp_path, kind)
    reserving.start(host, reserving.INNER + HUGE.format(256))
    for uuid in state.recorded(host):
        state.forget(host, uuid).run(host)
    do(host, "prepare", vm(1, 512))
    assert limit(host) == 768 * MIB


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_added_to_one_that_runs_counts(tmp_path: Path, kind: str) -> None:
    host = made(tmp_path, kind)
    reserving.start(host, reserving.INNER + HUGE.format(256))
    parent = "vms.slice" if kind == "systemd-v2" else "vms"
    host.put(f"{CG}/{parent}/memory.stat", f"anon 4096\nhugetlb {1024 * MIB}\n")
    do(host, "prepare", vm(1, 0))
    assert limit(host) == 1024 * MIB


@pytest.mark.parametrize("kind", KINDS)
def test_others_that_have_taken_the_room_are_told(tmp_path: Path, kind: str) -> None:
    """While the VM had not touched its hugepages yet: the limit stays, and no VM starts."""
    host = made(tmp_path, kind)
    reserving.start(host)
    do(host, "prepare", vm(1, 256))
    reserving.use(host, UNIFIED_LIMIT + 100 * MIB)
    released = plan(host, "release", vm(1, 256))
    assert len(released.warnings) == 1
    assert "is in use" in released.warnings[0]
    released.run(host)
    assert limit(host) == 256 * MIB


@pytest.mark.parametrize("kind", KINDS)
def test_where_they_are_not_charged_they_do_not_count(tmp_path: Path, kind: str) -> None:
    host = made(tmp_path, kind, charges=False)
    do(host, "prepare", vm(1, 256))
    assert limit(host) == 0
