"""libvirt makes cpusets as copies of what is above them while a v1 cpuset is changed: at any
moment, none in the way.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.host import Refused
from libvirt_cgroup_hooks.kernel.v1 import V1
from libvirt_cgroup_hooks.plan import Plan
from libvirt_cgroup_hooks.steps import Write

from ..support.hosts import Kernel

TOP = "/sys/fs/cgroup/cpuset/machine"
FILE = "cpuset.cpus"


class Busy(Kernel):
    """Between two writes of ours, at READ, somebody reads the parent's CPUs, and at MADE gives them
    to a new cpuset.
    """

    def __init__(self, root: Path, read: int, made: int) -> None:
        super().__init__(root, "v1")
        self.moments = {"read": read, "made": made}
        self.count = 0
        self.copied = ""

    def pass_time(self) -> None:
        self.count += 1
        if self.count == self.moments["read"]:
            self.copied = self.get(f"{TOP}/{FILE}")
        if self.count == self.moments["made"] and CpuSet.parse(self.copied) <= CpuSet.parse(
            self.get(f"{TOP}/{FILE}")
        ):
            for child in (f"{TOP}/new", f"{TOP}/new/emulator"):
                self.cpuset(child, self.copied)

    def cpuset(self, directory: str, cpus: str) -> None:
        super().make_directory(directory)
        self.put(f"{directory}/{FILE}", cpus)
        self.put(f"{directory}/cpuset.mems", "0")

    def write(self, path: str, value: str) -> None:
        self.pass_time()
        super().write(path, value)


def busy(root: Path, before: str, read: int, made: int) -> Busy:
    host = Busy(root, read, made)
    for directory in (TOP, f"{TOP}/a", f"{TOP}/b", f"{TOP}/a/emulator"):
        host.cpuset(directory, before)
    return host


def change(host: Busy, cpus: str) -> Plan:
    hierarchy = next(one for one in host.hierarchies if "cpuset" in one.controllers)
    plan = Plan("reserve")
    plan.add(*V1(host, hierarchy).set_cpus(TOP, CpuSet.parse(cpus)))
    return plan


def all_cpus(host: Busy, directory: str = TOP) -> set[str]:
    below = [all_cpus(host, f"{directory}/{name}") for name in host.directories(directory)]
    return {host.get(f"{directory}/{FILE}")}.union(*below)


MOMENTS = [(read, made) for made in range(1, 10) for read in range(1, made + 1)]


@pytest.mark.parametrize(("before", "after"), [("0", "1"), ("0-1", "1"), ("1", "0-1")])
def test_a_newborn_follows(tmp_path: Path, before: str, after: str) -> None:
    seen = 0
    for read, made in MOMENTS:
        host = busy(tmp_path / f"{read}-{made}", before, read, made)
        change(host, after).run(host)
        # one that has less may stay
        follows = all_cpus(host) == {after} or (before, after) == ("1", "0-1")
        assert follows, (read, made)
        seen += host.exists(f"{TOP}/new")
    assert seen > 5


@pytest.mark.parametrize("at", range(1, 9))
def test_a_newborn_is_no_obstacle_to_undoing(tmp_path: Path, at: int) -> None:
    for read, made in MOMENTS:
        host = busy(tmp_path / f"{read}-{made}", "0", read, made)
        plan = change(host, "1")
        plan.steps = [*plan.steps[:at], Write(f"{TOP}/absent", "1")]
        with pytest.raises(Refused, match="absent"):
            plan.run(host)
        assert plan.warnings == []
        assert all_cpus(host) == {"0"}, (read, made)
