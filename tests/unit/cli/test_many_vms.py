"""Commands on a host with 1000 VMs: what they do grows with the VMs, and no faster."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from libvirt_cgroup_hooks.host import Host

from ..conftest import Command
from ..support.machines import add_vm, unpack

MANY = 1000
CONF = 'reserved_host_cpus = "0,16"\nreserved_host_mem = "2 GiB"\n'
COMMANDS = ("status", "recommend", "validate", "map", "metrics")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Path]]:
    """By how many VMs they have."""
    folder = tmp_path_factory.mktemp("many")
    yield {number: host(folder / str(number), number) for number in (0, MANY // 10, MANY)}
    shutil.rmtree(folder)


def host(root: Path, vms: int) -> Path:
    unpack("hugepages", root)
    for number in range(1, vms + 1):
        add_vm(root, number, f"vm{number}", 1024, vcpus=1)
    (root / "etc/libvirt").mkdir(parents=True)
    (root / "etc/libvirt/cgroup-hooks.conf").write_text(CONF)
    return root


class Count:
    """Of calls of Python functions, and of files that are read through the host."""

    def __init__(self) -> None:
        self.calls = 0
        self.reads = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.calls += 1
            self.reads += frame.f_code is Host.read_bytes.__code__

    def __enter__(self) -> Count:
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


@pytest.mark.parametrize("name", COMMANDS)
def test_linear(command: Command, hosts: dict[int, Path], name: str) -> None:
    """Ten times as many VMs cost ten times as much, without what no VM costs."""
    command("--root", hosts[0], name, "--json")  # and have its modules loaded
    counts = {}
    for vms, root in hosts.items():
        with Count() as counts[vms]:
            command("--root", root, name, "--json")
    none, few, many = counts.values()
    print({vms: (count.calls, count.reads) for vms, count in counts.items()})
    assert many.calls - none.calls < 10.5 * (few.calls - none.calls)
    assert many.reads - none.reads < 10.5 * (few.reads - none.reads)


def test_problems_of_many_vms_are_summed_up(command: Command, hosts: dict[int, Path]) -> None:
    status, out, _ = command("--root", hosts[MANY], "validate", "-q")
    assert status == 1
    alike = [line for line in out.splitlines() if "[vm-escaped]" in line]
    assert len(alike) == 11
    assert alike[-1] == (
        "Checking that VMs match the configuration: 990 more like these [vm-escaped]; "
        "virt-cgroup validate --json lists all"
    )
    found = json.loads(command("--root", hosts[MANY], "validate", "--json")[1])
    assert [problem["code"] for problem in found].count("vm-escaped") == MANY


def test_few_lines_of_many_vms(command: Command, hosts: dict[int, Path]) -> None:
    out = command("--root", hosts[MANY], "recommend")[1]
    assert " 991 others, in all   991 GiB " in out
    assert len(out.splitlines()) < 70
