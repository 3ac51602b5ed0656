"""A NUMA node with memory and no CPU: its memory is not counted. On a host whose kernel was told to
leave the CPUs of a node out (the variant memory-node), and on one where they are offline.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cpuset import CpuSet

from ..live.guests import disk, toucher
from ..live.harness import virsh
from ..live.reserving import parent_directory, wait_for_use
from .drift import findings
from .host import configure, meminfo, start, status, value, virt_cgroup
from .test_kernel import without_cpu

NODES = Path("/sys/devices/system/node")
LAYOUT = "/vms/$NAME"
IMAGES = Path("/var/lib/libvirt/images")
MIB = 1 << 20
CONF = f'reserved_host_cpus = "0"\nreserved_host_mem = "512 MiB"\ncgroup_layout = "{LAYOUT}"\n'


def nodes(state: str) -> CpuSet:
    return CpuSet.parse((NODES / state).read_text())


BARE = nodes("has_memory") - nodes("has_cpu")
needs_bare_node = pytest.mark.skipif(
    not BARE, reason="each node has CPUs; run: tools/lab run 13 --variant memory-node tests/lab"
)


def memory_of(node: int) -> int:
    lines = (NODES / f"node{node}/meminfo").read_text().splitlines()
    return next(int(line.split()[3]) * 1024 for line in lines if " MemTotal:" in line)


def limit() -> int:
    return int(value("memory", "/vms.slice", "memory.max", "memory.limit_in_bytes"))


@contextmanager
def pool(node: int, pages: int) -> Iterator[int]:
    """Hugepages of 2 MiB on NODE; their bytes."""
    file = NODES / f"node{node}/hugepages/hugepages-2048kB/nr_hugepages"
    file.write_text(str(pages))
    try:
        assert file.read_text().strip() == str(pages)
        yield pages * 2 * MIB
    finally:
        file.write_text("0")


@needs_bare_node
def test_its_memory_is_not_counted() -> None:
    (node,) = BARE
    left_out = memory_of(node)
    assert left_out > 1024 * MIB
    counted = meminfo("MemTotal") - left_out
    configure(CONF)
    start("web")
    assert limit() == counted - 512 * MIB
    assert findings() == {}
    shown = status()
    assert shown["memory_left_out"] == {str(node): left_out}
    told = f"{left_out / 2**30:.1f} GiB of NUMA nodes without CPUs ({node})"
    for command in ("status", "reserve", "host"):
        assert told in virt_cgroup(command)
    configure(CONF.replace("512 MiB", "50%"))
    virt_cgroup("apply", "--all")
    assert limit() == counted - counted * 50 // 100 & -4096
    virsh("destroy", "web")


@needs_bare_node
def test_nor_are_hugepages_there() -> None:
    (node,) = BARE
    counted = meminfo("MemTotal") - memory_of(node)
    configure(CONF)
    with pool(node, 16):
        start("web")
        assert limit() == counted - 512 * MIB
        with pool(0, 8) as there:
            virt_cgroup("apply", "--all")
            assert limit() == counted - there - 512 * MIB
    virsh("destroy", "web")


@needs_bare_node
def test_what_vms_use_there_is_charged_to_their_limit() -> None:
    (node,) = BARE
    configure(CONF)
    # "strict" would have libvirt (11.3) put QEMU on the CPUs of that node
    there = f"<numatune><memory mode='restrictive' nodeset='{node}'/></numatune>"
    image = disk(IMAGES / "web", toucher(48))
    start("web", memory_mib=128, machine="pc", iothreads=0, devices=image, extra=there)
    parent = parent_directory()
    wait_for_use(parent, 48)
    lines = dict(
        line.split(" ", 1) for line in (parent / "memory.numa_stat").read_text().splitlines()
    )
    by_node = dict(one.split("=") for one in lines["anon"].split())
    assert int(by_node[f"N{node}"]) > 48 * MIB
    virsh("destroy", "web")


@pytest.mark.thorough
@pytest.mark.skipif(bool(BARE), reason="all CPUs that there are may not go offline")
def test_a_node_whose_cpus_are_offline_is_counted() -> None:
    (*_, node) = nodes("has_cpu")
    configure(CONF)
    with ExitStack() as offline:
        for cpu in CpuSet.parse((NODES / f"node{node}/cpulist").read_text()):
            offline.enter_context(without_cpu(cpu))
        assert node in nodes("has_memory") - nodes("has_cpu")
        start("web")
        assert status()["memory_left_out"] == {}
        assert limit() == meminfo("MemTotal") - 512 * MIB
    virsh("destroy", "web")
