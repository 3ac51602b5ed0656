"""The memory limit of the VM parent while VMs with and without hugepages start and stop, on a host
that charges hugepages to cgroups and on one that does not.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from uuid import NAMESPACE_DNS, uuid5

import pytest

from ..live.harness import virsh
from ..live.reserving import reserve
from .drift import findings
from .host import V2, configure, fenced, meminfo, restart_libvirtd, run, start, status, value

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.releases,
    pytest.mark.skipif(not V2, reason="cgroup v1 charges no hugepages"),
]
POOL = Path("/proc/sys/vm/nr_hugepages")
PAGES = 200
CHARGES = "memory_hugetlb_accounting"
HUGE = "<memoryBacking><hugepages/></memoryBacking>"
MIB = 2**20
RESERVED = 1024 * MIB
# by name: MiB of hugepages, and of other memory
VMS = {"web": (64, 0), "db": (128, 0), "plain": (0, 64)}
FEATURES = Path("/sys/kernel/cgroup/features")
CAN_CHARGE = FEATURES.exists() and CHARGES in FEATURES.read_text()
STARTS = 50  # where it can be charged, the most of them with that


@pytest.fixture(scope="module", params=[False, True], ids=["not charged", "charged"])
def charged(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether /sys/fs/cgroup is mounted with the option; a pool of hugepages is there."""
    if request.param and not CAN_CHARGE:
        pytest.skip(f"this kernel has no {CHARGES}")
    options = next(
        line.split()[3]
        for line in Path("/proc/mounts").read_text().splitlines()
        if line.split()[1] == "/sys/fs/cgroup"
    )
    own = [one for one in options.split(",") if one != CHARGES]
    wanted = [*own, CHARGES] if request.param else own
    mount = ("mount", "-o")
    run(*mount, f"remount,{','.join(wanted)}", "/sys/fs/cgroup", check=False)
    charges = CHARGES in Path("/proc/mounts").read_text()
    if charges and not request.param:
        pytest.skip(f"systemd mounts it with {CHARGES}, which a remount keeps")
    assert charges == request.param
    POOL.write_text(str(PAGES))
    assert POOL.read_text().strip() == str(PAGES)
    restart_libvirtd()  # it looks for hugetlbfs, and for the pools, when it starts
    yield bool(request.param)
    for name in VMS:
        virsh("destroy", name, check=False)
    POOL.write_text("0")
    run(*mount, f"remount,{options}", "/sys/fs/cgroup")


def begin(name: str) -> None:
    huge, plain = VMS[name]
    uuid = str(uuid5(NAMESPACE_DNS, name))
    start(name, uuid=uuid, memory_mib=huge or plain, extra=HUGE if huge else "")


def expected(running: set[str], charged: bool, reserved: int = RESERVED) -> int:
    left = meminfo("MemTotal") - PAGES * 2 * MIB - reserved
    page = os.sysconf("SC_PAGE_SIZE")
    huge = sum(VMS[name][0] for name in running) * MIB
    return left // page * page + (huge if charged else 0)


def limit() -> int:
    return int(value("memory", "/vms.slice", "memory.max", ""))


def test_fifty_starts_and_stops(charged: bool) -> None:
    configure(fenced("/vms/$NAME"))
    chance = random.Random(0)
    running: set[str] = set()
    for number in range(STARTS if charged or not CAN_CHARGE else STARTS // 5):
        name = chance.choice(list(VMS))
        if name in running:
            virsh("destroy", name)
            running.remove(name)
        else:
            begin(name)
            running.add(name)
        assert limit() == expected(running, charged), (number, name, running)
    for name in set(VMS) - running:
        begin(name)
    assert findings() == {}
    assert all(vm["conforms"] for vm in status()["domains"])


def test_a_change_and_a_restart_of_the_daemon_keep_the_room(charged: bool) -> None:
    configure(fenced("/vms/$NAME"))
    for name in VMS:
        begin(name)
    running = set(VMS)
    restart_libvirtd()
    assert limit() == expected(running, charged)
    reserve("--memory", "1152 MiB", "--live")
    assert limit() == expected(running, charged, 1152 * MIB)
    virsh("destroy", "db")
    assert limit() == expected(running - {"db"}, charged, 1152 * MIB)
    begin("db")
    reserve("--memory", "1 GiB", "--live")
    assert limit() == expected(running, charged)
