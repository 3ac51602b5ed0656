"""On a host whose CPUs are all busy, what a service of the host gets beside VMs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .guests import SPIN, firmware
from .harness import cgroup_directory, domain_xml, start_vm
from .reserving import COMMAND

CPUS = sorted(os.sched_getaffinity(0))
SECONDS = 4.0
DIFFERENCE = 0.15  # half of what it is on a machine that does nothing else: 0.5 and 0.8


@pytest.fixture
def service() -> Iterator[list[int]]:
    """The ids of processes, a busy one on each CPU, in a cgroup at the top."""
    directory = cgroup_directory("cpu") / "services"
    directory.mkdir()
    busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in CPUS]
    for process, cpu in zip(busy, CPUS):
        (directory / "cgroup.procs").write_text(str(process.pid))
        os.sched_setaffinity(process.pid, [cpu])
    yield [process.pid for process in busy]
    for process in busy:
        process.kill()
        process.wait()
    directory.rmdir()


def cpu_time(pids: list[int]) -> int:
    """Ticks that they have had."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields)


def share(service: list[int], vm: list[int]) -> float:
    """Of the CPU time that both have had, what the service has."""
    before = cpu_time(service), cpu_time(vm)
    time.sleep(SECONDS)
    had, others = cpu_time(service) - before[0], cpu_time(vm) - before[1]
    return had / (had + others)


@pytest.mark.parametrize("layout", ["native", "/vms/$NAME"])
def test_what_a_service_gets(
    configure: Callable[[str], None], service: list[int], layout: str
) -> None:
    pins = {number: str(cpu) for number, cpu in enumerate(CPUS)}
    xml = domain_xml("web", vcpus=len(CPUS), vcpupin=pins).replace(firmware(), firmware(SPIN))
    configure(f'cgroup_layout = "{layout}"\n')
    vm = [start_vm("web", xml=xml).pid]
    without = share(service, vm)
    configure(f'vm_cpu_weight = 25\ncgroup_layout = "{layout}"\n')
    subprocess.run([*COMMAND, "apply", "--all"], check=True, capture_output=True)
    lowered = share(service, vm)
    print(f"without: {without:.2f}, with a weight of 25: {lowered:.2f}")
    assert lowered > without + DIFFERENCE
