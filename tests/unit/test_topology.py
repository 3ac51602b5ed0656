"""CPUs, cores, nodes and memory of recorded hosts."""

from __future__ import annotations

import pytest

from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.memory import Memory, auto_memory, read_online
from libvirt_cgroup_hooks.topology import Topology

from .support.hosts import topology

GIB = 2**30
CPUS = "/sys/devices/system/cpu"
NODES = "/sys/devices/system/node"


@pytest.mark.parametrize(
    ("name", "online", "cores", "nodes", "total", "hugetlb"),
    [
        ("smt", "0-7", ["0,4", "1,5", "2,6", "3,7"], {0: "0-7"}, 32787480, 0),
        (
            "numa",
            "0-7",
            ["0", "1", "2", "3", "4", "5", "6", "7"],
            {0: "0-3", 1: "4-7"},
            65842104,
            10485760,
        ),
        ("v1", "0-1", ["0", "1"], {0: "0-1"}, 2040212, 0),
        ("v2", "0-3", ["0", "1", "2", "3"], {0: "0-3"}, 8135396, 0),
        # 32 MiB of hugepages on the node that is not counted
        ("memory-node", "0-3", ["0", "1", "2", "3"], {0: "0-3", 1: ""}, 1546024, 0),
    ],
)
def test_recorded_hosts(
    name: str, online: str, cores: list[str], nodes: dict[int, str], total: int, hugetlb: int
) -> None:
    host = topology(name)
    assert (str(host.online), str(host.present), str(host.isolated)) == (online, online, "")
    assert [str(core) for core in host.cores] == cores
    assert {node: str(cpus) for node, cpus in host.nodes.items()} == nodes
    assert host.memory_nodes == CpuSet(nodes)
    assert (host.memory.total, host.memory.hugetlb) == (total * 1024, hugetlb * 1024)


def made(files: dict[str, str]) -> Topology:
    return Topology.read({"/proc/meminfo": "MemTotal: 1024 kB\n", **files}.get)


def test_a_host_that_tells_only_its_online_cpus() -> None:
    host = made({f"{CPUS}/online": "0,2-3\n"})
    assert (str(host.present), [str(core) for core in host.cores]) == ("0,2-3", ["0", "2", "3"])
    assert (host.nodes, str(host.memory_nodes)) == ({0: CpuSet([0, 2, 3])}, "0")


def test_offline_and_isolated_cpus() -> None:
    host = made(
        {
            f"{CPUS}/online": "0-2\n",
            f"{CPUS}/present": "0-3\n",
            f"{CPUS}/isolated": "2\n",
            f"{CPUS}/cpu0/topology/thread_siblings_list": "0,2\n",
            f"{CPUS}/cpu1/topology/thread_siblings_list": "1\n",  # 3 is offline
            f"{CPUS}/cpu2/topology/thread_siblings_list": "0,2\n",
            f"{NODES}/online": "0\n",
            f"{NODES}/node0/cpulist": "0-3\n",
        }
    )
    assert [str(core) for core in host.cores] == ["0,2", "1"]
    assert (str(host.isolated), str(host.nodes[0])) == ("2", "0-3")
    assert str(host.take(3)) == "0-2"
    assert str(host.take(4)) == "0-2"  # there are no more


def test_a_node_with_memory_and_no_cpus() -> None:
    host = made(
        {
            f"{CPUS}/online": "0-1\n",
            f"{NODES}/online": "0,2\n",
            f"{NODES}/has_memory": "0,2\n",
            f"{NODES}/node0/cpulist": "0-1\n",
            f"{NODES}/node2/cpulist": "\n",
        }
    )
    assert str(host.memory_nodes) == "0,2"
    assert str(host.take(2)) == "0-1"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "cannot read /sys/devices/system/cpu/online: is /sys mounted?"),
        ({f"{CPUS}/online": ""}, "cannot read /sys/devices/system/cpu/online"),
        (
            {f"{CPUS}/online": "0", "/proc/meminfo": ""},
            "/proc/meminfo has no MemTotal: is /proc mounted?",
        ),
        ({f"{CPUS}/online": "all"}, '"all" is not a CPU list'),
    ],
)
def test_what_cannot_be_read(files: dict[str, str], message: str) -> None:
    with pytest.raises(Error) as error:
        made(files)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "total", "hugetlb"),
    [
        ("MemTotal:  1000 kB\n", 1000, 0),
        # before Linux 4.17
        ("MemTotal:  1000 kB\nHugePages_Total:  2\nHugepagesize:  2048 kB\n", 1000, 4096),
        (
            "MemTotal:  1000 kB\nHugePages_Total:  2\nHugepagesize:  2048 kB\nHugetlb:  9000 kB\n",
            1000,
            9000,
        ),
        ("MemFree: 5 kB\nMemTotal: 1 kB\nOdd:\nOther: many kB\n", 1, 0),
    ],
)
def test_meminfo(text: str, total: int, hugetlb: int) -> None:
    memory = Memory.parse(text)
    assert (memory.total, memory.hugetlb) == (total * 1024, hugetlb * 1024)


FAR = {  # node 2 is like a GPU's: 512 of 2048 KiB of memory, and no CPU
    "/proc/meminfo": "MemTotal: 2048 kB\nHugetlb: 320 kB\n",
    f"{CPUS}/present": "0-3\n",
    f"{CPUS}/online": "0-3\n",
    f"{NODES}/online": "0-2\n",
    f"{NODES}/has_memory": "0,2\n",
    f"{NODES}/has_cpu": "0-1\n",  # node 1 has no memory
    f"{NODES}/node2/meminfo": "\nNode 2 MemTotal:  512 kB\nNode 2 HugePages_Total:  1\n",
}


@pytest.mark.parametrize(
    ("files", "total", "hugetlb", "left_out"),
    [
        ({}, 1536, 320, {2: 512}),
        (
            {
                f"{NODES}/node0/hugepages/hugepages-64kB/nr_hugepages": "1\n",
                f"{NODES}/node2/hugepages/hugepages-64kB/nr_hugepages": "2\n",
                f"{NODES}/node2/hugepages/hugepages-128kB/nr_hugepages": "1\n",
            },
            1536,
            64,
            {2: 512},
        ),
        # no node is without CPUs, but one is without memory
        ({f"{NODES}/has_memory": "0\n"}, 2048, 320, {}),
        # none has both, or nothing is known of them
        ({f"{NODES}/has_cpu": "1\n"}, 2048, 320, {}),
        ({f"{NODES}/has_cpu": ""}, 2048, 320, {}),
        # its CPUs are offline, and the kernel still has its links to them
        ({f"{CPUS}/online": "0-2\n", f"{NODES}/node2/cpu3/online": "0\n"}, 2048, 320, {}),
        ({f"{CPUS}/online": "0-2\n", f"{NODES}/node0/cpu3/online": "0\n"}, 1536, 320, {2: 512}),
        # two of them, one without a word about its memory
        (
            {
                f"{NODES}/has_memory": "0,2-4\n",
                f"{NODES}/node3/meminfo": "Node 3 MemTotal:  256 kB\n",
            },
            1280,
            320,
            {2: 512, 3: 256, 4: 0},
        ),
    ],
)
def test_memory_of_nodes_without_cpus_is_left_out(
    files: dict[str, str], total: int, hugetlb: int, left_out: dict[int, int]
) -> None:
    memory = Memory.read({**FAR, **files}.get)
    assert (memory.total, memory.hugetlb) == (total * 1024, hugetlb * 1024)
    assert memory.left_out == {node: kib * 1024 for node, kib in left_out.items()}


def test_nodes_are_looked_at_only_where_one_has_no_cpus() -> None:
    asked: list[str] = []

    def read(path: str) -> str | None:
        asked.append(path)
        return {**FAR, f"{NODES}/has_cpu": "0-2\n"}.get(path)

    Memory.read(read)
    assert asked == ["/proc/meminfo", f"{NODES}/has_cpu", f"{NODES}/has_memory"]


@pytest.mark.parametrize(
    ("total", "pools", "kept"),
    [
        (1, 0, 0.5),
        (2, 0, 1),
        (20, 0, 1),
        (40, 0, 2),
        (160, 0, 8),
        (1024, 0, 8),
        (256, 200, 8),
        (256, 244, 6),
        (256, 256, 0),
    ],
)
def test_auto_memory(total: int, pools: int, kept: float) -> None:
    assert auto_memory(Memory(total * GIB, pools * GIB)) == kept * GIB


@pytest.mark.parametrize(
    ("name", "count", "cpus"),
    [
        ("smt", 0, ""),
        ("smt", 1, "0,4"),
        ("smt", 8, "0-7"),
        ("smt", 99, "0-7"),
        ("numa", 2, "0,4"),
        ("numa", 5, "0-2,4-5"),
        ("v2", 2, "0-1"),
    ],
)
def test_take_whole_cores_spread_over_the_nodes(name: str, count: int, cpus: str) -> None:
    assert str(topology(name).take(count)) == cpus


@pytest.mark.parametrize(
    ("isolated", "count", "cpus"),
    [
        ("", 2, "0,4"),
        ("0", 2, "1,5"),
        ("0,4", 2, "1,5"),
        ("0-1,4-5", 4, "2-3,6-7"),
        # cores with a free CPU come before those without
        ("0-3", 2, "0,4"),
        ("0,4,1-3", 2, "1,5"),
        ("1-3,5-7", 4, "0-1,4-5"),
        ("0-7", 2, "0,4"),
    ],
)
def test_isolated_cpus_come_last(isolated: str, count: int, cpus: str) -> None:
    host = big(4, 2, {f"{CPUS}/isolated": isolated})
    assert str(host.take(count)) == cpus
    assert host.take(8) == host.online


@pytest.mark.parametrize(
    ("isolated", "cpus"),
    [
        ("", "0-1,64-65"),
        ("0-1,64-65", "2-3,66-67"),
        ("0-1,3-65,67-127", "2,66"),  # there is no other core
        ("1-127", "0"),  # nor a whole one
        ("1-63,65-127", "0,64"),
    ],
)
def test_auto_takes_no_isolated_cpus(isolated: str, cpus: str) -> None:
    assert str(big(64, 2, {f"{CPUS}/isolated": isolated}).auto_cpus()) == cpus


def test_auto_takes_no_offline_cpus() -> None:
    """The kernel names an offline CPU neither as online nor as a sibling."""
    host = made(
        {
            f"{CPUS}/online": "1-3\n",
            f"{CPUS}/present": "0-3\n",
            f"{CPUS}/cpu1/topology/thread_siblings_list": "1,3\n",
            f"{CPUS}/cpu2/topology/thread_siblings_list": "2\n",  # 0 is its sibling
            f"{CPUS}/cpu3/topology/thread_siblings_list": "1,3\n",
            f"{NODES}/online": "0\n",
            f"{NODES}/node0/cpulist": "1-3\n",
        }
    )
    assert str(host.auto_cpus()) == "1,3"


@pytest.mark.parametrize(
    ("first", "count", "cpus"),
    [(None, 1, "0"), (0, 1, "0"), (1, 1, "4"), (1, 2, "0,4"), (1, 3, "0,4-5"), (7, 1, "0")],
)
def test_which_node_is_first(first: int | None, count: int, cpus: str) -> None:
    assert str(topology("numa").take(count, first)) == cpus


@pytest.mark.parametrize(
    ("cpulists", "nodes"),
    [
        (["0-3"] * 8, {0: "0-3"}),
        (["0-1", "0-1", "2-3", "2-3"], {0: "0-1", 2: "2-3"}),
        (["0-2", "2-3"], {0: "0-2", 1: "3"}),
        (["0-3", "0-3", ""], {0: "0-3", 2: ""}),  # one with memory alone
    ],
)
def test_nodes_that_share_cpus(cpulists: list[str], nodes: dict[int, str]) -> None:
    """Each CPU is counted once."""
    files = {f"{NODES}/online": f"0-{len(cpulists) - 1}"}
    files.update({f"{NODES}/node{node}/cpulist": cpus for node, cpus in enumerate(cpulists)})
    host = big(4, 1, files)
    assert {node: str(cpus) for node, cpus in host.nodes.items()} == nodes
    assert str(host.take(4)) == "0-3"


def big(cores: int, threads: int, more: dict[str, str] | None = None) -> Topology:
    """CPU n and n + CORES are siblings, as on x86; MORE files."""
    files = {f"{CPUS}/online": f"0-{cores * threads - 1}", **(more or {})}
    for cpu in range(cores * threads):
        siblings = [cpu % cores + cores * thread for thread in range(threads)]
        files[f"{CPUS}/cpu{cpu}/topology/thread_siblings_list"] = ",".join(map(str, siblings))
    return made(files)


@pytest.mark.parametrize(
    ("cores", "threads", "cpus"),
    [
        (1, 1, "0"),
        (2, 2, "0,2"),
        (32, 2, "0,32"),
        (63, 1, "0"),
        (64, 2, "0-1,64-65"),
        (96, 1, "0-2"),
    ],
)
def test_auto_cpus_are_one_core_in_32(cores: int, threads: int, cpus: str) -> None:
    assert str(big(cores, threads).auto_cpus()) == cpus


def test_online() -> None:
    assert str(read_online({f"{CPUS}/online": "0-63\n"}.get)) == "0-63"
