"""What virt-cgroup recommend proposes for ten kinds of hosts, beside what "auto" would keep.

What the machines are: tests/data/machines/README.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.memory import GIB

from ..conftest import Command
from ..support.machines import NAMES, unpack

AS_AUTO = 'as many as "auto" takes, one core in 32'
TWICE = "twice the CPU time of the host's own work"
# CPUs and GiB that are proposed, those of "auto", how many CPUs and why, which and why
TABLE = {
    # 8 cores with 2 threads: the session at the screen works and holds memory, as a service does
    "desktop": ("0-1,8-9", 10.75, "0,8", 1.6, TWICE, None),
    # P cores come first, and "one core" is the largest kind: 2 threads
    "hybrid": ("0-1", 5.25, "0-1", 1.5, AS_AUTO, None),
    # 8 nodes of 6 cores: the host's one core is where the network's interrupts are
    "epyc": ("30,78", 5.75, "0,48", 8, AS_AUTO, "on NUMA node 5, where most device interrupts are"),
    # a core is 8 threads; nodes are 0 and 8
    "power": ("80-87", 6, "0-7", 8, AS_AUTO, "on NUMA node 8, where most device interrupts are"),
    # no nodes at all
    "s390": ("0", 1.75, "0", 3.1, AS_AUTO, None),
    # 128 cores: four of them, one on each node
    "arm": ("0,32,64,96", 3.25, "0,32,64,96", 8, AS_AUTO, "spread over the NUMA nodes 0, 1, 2, 3"),
    # of 8 CPUs that are not isolated VMs may need half
    "isolated": (
        "0-1,40-41",
        3.25,
        "0,40",
        8,
        "half of the CPUs that are not isolated: the host's own work would like more",
        "none of the isolated CPUs 4-39,44-79",
    ),
    # ZFS may fill its cache up to zfs_arc_max, 6 GiB
    "zfs": ("0,8", 9.75, "0,8", 3.1, AS_AUTO, None),
    # twelve OSDs: "auto" cannot know of them
    "server": (
        "0-3,32-35,64-67,96-99",
        66,
        "0,32,64,96",
        8,
        TWICE,
        "spread over the NUMA nodes 0, 1",
    ),
    # 11.6 GiB are not in the pool, and VMs need some of that for QEMU itself
    "hugepages": (
        "0,16",
        2,
        "0,16",
        5.8,
        AS_AUTO,
        "on NUMA node 0, where most device interrupts are",
    ),
}


def test_every_machine_is_in_the_table() -> None:
    assert sorted(TABLE) == NAMES


@pytest.mark.parametrize("name", TABLE)
def test_proposal(tmp_path: Path, command: Command, name: str) -> None:
    status, out, err = command("--root", unpack(name, tmp_path), "recommend", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    proposed, auto = found["proposed"], found["auto"]
    cpus, memory, auto_cpus, auto_memory, count, place = TABLE[name]
    assert (proposed["cpus"], proposed["memory"] / GIB) == (cpus, memory)
    assert (auto["cpus"], round(auto["memory"] / GIB, 1)) == (auto_cpus, auto_memory)
    assert {"whole cores", count} <= set(proposed["reasons"])
    assert place is None or place in proposed["reasons"]


@pytest.mark.parametrize("name", TABLE)
def test_what_vms_have_is_not_the_hosts(tmp_path: Path, command: Command, name: str) -> None:
    """Neither their memory nor their CPU time."""
    found = json.loads(command("--root", unpack(name, tmp_path), "recommend", "--json")[1])
    assert "machine.slice" not in {line["name"] for line in found["memory"]}
    times = {line["name"]: line["since_boot"] for line in found["cpu"]}
    assert times["VMs"] > 0
    assert "machine.slice" not in times
