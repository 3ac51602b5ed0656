"""The formulas of virt-cgroup recommend: values in, values out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from libvirt_cgroup_hooks.cli.recommend import cpu, memory, parsing, rules
from libvirt_cgroup_hooks.cli.recommend.counts import Sample, Use
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.memory import Memory
from libvirt_cgroup_hooks.topology import Topology

from ..support.hosts import topology
from ..support.recommending import GIB, INTERRUPTS, MIB, STAT

EMPTY = Sample(1000, {}, Use(), 0, 0, True, {}, {}, 0, 0, {}, {})


# the kernel's texts


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("MemTotal:  4 kB\nHugePages_Total:  2\n", {"MemTotal": 4096, "HugePages_Total": 2048}),
        ("Node 2 MemTotal:   4 kB\n", {"MemTotal": 4096}),
        ("Odd:\n\nOther: many kB\nno colon 4", {}),
    ],
)
def test_meminfo(text: str, found: dict[str, int]) -> None:
    assert parsing.meminfo(text) == found


def test_texts() -> None:
    assert parsing.keyed("anon 5\nodd\nx y\nslab 7\n") == {"anon": 5, "slab": 7}
    assert parsing.arcstats("13 1 0x01 1 2 3 4\nname type data\nsize 4 12\n") == {"size": 12}
    assert (parsing.number("12\n"), parsing.number("max"), parsing.number("")) == (12, None, None)
    assert parsing.busy(STAT) == 7.0
    assert (parsing.busy(""), parsing.busy("cpu0 1 2")) == (0, 0)
    assert parsing.interrupts(INTERRUPTS) == {0: 1000, 1: 0, 2: 29000, 3: 0}
    assert parsing.interrupts("") == {}


# memory


@pytest.mark.parametrize(
    ("use", "counted"),
    [
        (Use(100 * MIB, 900 * MIB, 60 * MIB), 80),  # the peak may have been page cache
        (Use(100 * MIB, 110 * MIB, 10 * MIB), 110),
        (Use(100 * MIB, None, 10 * MIB), 180),
        (Use(100 * MIB, 100 * MIB, 100 * MIB), 0),
    ],
)
def test_what_is_counted_of_a_unit(use: Use, counted: int) -> None:
    [line] = memory.lines(replace(EMPTY, units={"a.slice": use}))
    assert line.counted == counted * MIB


def test_nothing_is_counted_twice() -> None:
    """What cgroups have been charged is not the kernel's own once more, and never less than 0."""
    there = {"Slab": 100 * MIB, "KernelStack": 8 * MIB, "VmallocUsed": 0, "PageTables": 2 * MIB}
    one = replace(EMPTY, meminfo=there, kernel=60 * MIB)
    assert [(line.name, line.now) for line in memory.lines(one)] == [
        ("kernel, in no cgroup", 50 * MIB)
    ]
    assert memory.lines(replace(one, kernel=200 * MIB)) == []


def test_the_most_of_all_looks_is_counted() -> None:
    def look(held: int) -> list[memory.Line]:
        return memory.lines(replace(EMPTY, units={"a.slice": Use(held * MIB)}))

    found = memory.merged(memory.merged(look(10), look(50)), look(20))
    assert [(line.now / MIB, line.counted / MIB) for line in found] == [(20, 100)]
    assert memory.merged(look(10), []) == []


@pytest.mark.parametrize(
    ("counted", "hugetlb", "proposed"),
    [
        (0, 0, 1024),
        (1025, 0, 1280),
        (1280, 0, 1280),
        (9000, 0, 8192),
        (9000, 6 * GIB, 5120),
        (0, 15 * GIB, 512),
    ],
)
def test_steps_least_and_most(counted: int, hugetlb: int, proposed: int) -> None:
    line = memory.Line("a", 0, None, None, counted * MIB, "")
    assert memory.proposed([line], Memory(16 * GIB, hugetlb)) == proposed * MIB


# CPU time


def test_cpu_time_of_a_look() -> None:
    first = replace(
        EMPTY,
        units={"a.slice": Use(MIB, cpu=100, waited={"cpu": 1.0}), "b.mount": Use(cpu=1)},
        vms=Use(cpu=400),
        busy=600,
        waited={"cpu": 5.0, "io": 1.0},
    )
    last = replace(
        first,
        uptime=1010,
        units={
            "a.slice": Use(MIB, cpu=102, waited={"cpu": 1.5}),
            "b.mount": Use(cpu=1),
            "new.slice": Use(cpu=1),
        },
        vms=Use(cpu=415),
        busy=620,
        waited={"cpu": 6.0, "io": 1.0},
    )
    found = {line.name: line for line in cpu.lines(first, last)}
    assert {name: line.now for name, line in found.items()} == pytest.approx(
        {
            "a.slice": 0.2,
            "new.slice": 0.1,
            "other cgroups": 0.0,
            "kernel, in no cgroup": 0.2,  # 20 s, less 2, 1 and 15
            "VMs": 1.5,
            "whole host": 2.0,
        }
    )
    assert found["a.slice"].since_boot == pytest.approx(102 / 1010)
    assert found["a.slice"].waited == {"cpu": 0.05}
    assert found["whole host"].waited == {"cpu": 0.1, "io": 0.0}
    own = list(found.values())
    assert cpu.used(own, 1010) == pytest.approx((0.5, 0))
    assert cpu.used(own, 3600) == pytest.approx((0.5, (102 + 1 + 1) / 1010))


def test_a_kernel_that_counts_ticks_for_the_host() -> None:
    """The host is never less than its parts."""
    first = replace(EMPTY, units={"a.slice": Use(cpu=100)}, busy=50)
    last = replace(first, uptime=1010, units={"a.slice": Use(cpu=105)}, busy=51)
    [_, rest, _, whole] = cpu.lines(first, last)
    assert (rest.now, whole.now, whole.since_boot) == (0, 0.5, 105 / 1010)


def test_vms_that_end_during_a_look() -> None:
    first = replace(EMPTY, vms=Use(cpu=400), busy=600)
    found = cpu.lines(first, replace(first, uptime=1010, vms=Use(cpu=10), busy=601))
    assert [line.now for line in found] == [0.1, 0.0, 0.1]


def test_the_first_vm_starts_during_a_look() -> None:
    first = replace(EMPTY, busy=600)
    found = cpu.lines(first, replace(first, uptime=1010, vms=Use(cpu=10), busy=611))
    assert [line.now for line in found] == pytest.approx([0.1, 1.0, 1.1])


def test_interrupts_of_a_look() -> None:
    first = replace(EMPTY, interrupts={0: 100, 1: 100})
    last = replace(first, uptime=1010, interrupts={0: 200, 1: 100})
    assert cpu.interrupts(first, last) == {0: 10.0}
    assert cpu.interrupts(last, last) == {0: 200 / 1010, 1: 100 / 1010}


# the CPUs


@pytest.mark.parametrize(
    ("name", "used", "served", "cpus", "reason"),
    [
        ("smt", 0.2, {}, "0,4", 'as many as "auto" takes, one core in 32'),
        ("smt", 1.2, {}, "0-1,4-5", "twice the CPU time of the host's own work"),
        ("smt", 5.0, {}, "0-1,4-5", "half of the CPUs: the host's own work would like more"),
        ("numa", 0.2, {}, "0", "on NUMA node 0"),
        ("numa", 0.2, {5: 9, 0: 1}, "0", "on NUMA node 0"),  # too few
        ("numa", 0.2, {5: 90, 0: 10}, "4", "on NUMA node 1, where most device interrupts are"),
        ("numa", 0.2, {4: 90, 0: 10}, "4", "they serve 90% of device interrupts"),
        ("numa", 0.2, {5: 50, 0: 50}, "0", "they serve 50% of device interrupts"),
        ("numa", 1.0, {5: 900}, "0,4", "spread over the NUMA nodes 0, 1"),
    ],
)
def test_which_cpus(
    name: str, used: float, served: dict[int, float], cpus: str, reason: str
) -> None:
    found = cpu.proposal(topology(name), used, served)
    assert str(found.cpus) == cpus
    assert reason in found.reasons


@pytest.mark.parametrize(
    ("isolated", "cpus", "reason"),
    [
        ("0", "1", "none of the isolated CPUs 0"),
        ("1-3", "0", "none of the isolated CPUs 1-3"),
        ("0-2", "3", "whole cores"),
    ],
)
def test_isolated_cpus_are_left(isolated: str, cpus: str, reason: str) -> None:
    """However much the host would like."""
    host = host_of("0-3", ["0", "1", "2", "3"], isolated)
    found = cpu.proposal(host, 0.2, {})
    assert str(found.cpus) == cpus
    assert reason in found.reasons
    assert not cpu.proposal(host, 9.0, {}).cpus & CpuSet.parse(isolated)


def test_part_of_a_core() -> None:
    found = cpu.proposal(host_of("0-3", ["0,2", "1,3"], "1-3"), 0, {})
    assert (str(found.cpus), found.reasons[0]) == ("0", "what is not isolated of a core")


@pytest.mark.parametrize("cores", [["0"], ["0-1"]])
def test_one_core_is_not_given_away(cores: list[str]) -> None:
    found = cpu.proposal(host_of(cores[0], cores, ""), 0.5, {0: 9})
    assert (found.cpus, found.reasons) == (
        CpuSet(),
        ("this host has one core, which VMs need, too",),
    )


def host_of(online: str, cores: list[str], isolated: str) -> Topology:
    cpus = CpuSet.parse(online)
    return Topology(
        cpus,
        cpus,
        CpuSet.parse(isolated),
        [CpuSet.parse(core) for core in cores],
        {0: cpus},
        CpuSet([0]),
        Memory(GIB, 0),
    )


# what others keep


@pytest.mark.parametrize(
    ("gib", "kept"),
    [
        (0.5, 355),  # 255 MiB and the 100 MiB of the eviction threshold
        (4, 1024 + 100),
        (8, 1024 + 819 + 100),
        (16, 1024 + 819 + 819 + 100),
        (128, 1024 + 819 + 819 + 6881 + 100),
        (256, 1024 + 819 + 819 + 6881 + 2621 + 100),
    ],
)
def test_gke_memory(gib: float, kept: int) -> None:
    found = rules.rules(4, int(gib * GIB), zfs=False)[0]
    assert found.memory is not None
    assert found.memory / MIB == pytest.approx(kept, abs=2)


@pytest.mark.parametrize(("cpus", "kept"), [(1, 0.06), (2, 0.07), (4, 0.08), (64, 0.23)])
def test_cpus_of_a_kubelet(cpus: int, kept: float) -> None:
    gke, eks = rules.rules(cpus, GIB, zfs=False)[:2]
    assert gke.cpus == eks.cpus == pytest.approx(kept)


def test_the_other_rules() -> None:
    found = {rule.name: rule for rule in rules.rules(64, 256 * GIB, zfs=True)}
    kept = {name: (rule.memory or 0) // MIB for name, rule in found.items() if name != "GKE node"}
    assert kept == {
        "EKS node": 1465,
        "OpenStack": 512,
        "KubeVirt node": 360,
        "Proxmox VE": 2048,
        "Proxmox VE, ZFS": 16384,
    }
    assert rules.kubevirt_overhead(1000 * MIB, 2, 1) == (2 + 218 + 16 + 16) * MIB


def test_cpus_that_vms_have_for_themselves_are_left() -> None:
    host = host_of("0-7", [f"{core},{core + 4}" for core in range(4)], "")
    found = cpu.proposal(host, 0.2, {}, CpuSet.parse("0,4"))
    assert str(found.cpus) == "1,5"
    assert "none of CPUs 0,4, which VMs have for themselves" in found.reasons
