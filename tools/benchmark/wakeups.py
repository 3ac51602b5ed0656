"""How late a vCPU thread wakes up while the host is busy, confined to its own CPUs and not; and
while other VMs are busy as well, its CPU dedicated to it and not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from libvirt_cgroup_hooks.cgroups import detect
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.memory import read_online

from .table import Row, measured
from .timing import PYTHON, in_turn, say
from .vm_host import remove_tree

MILLISECOND = 1_000_000  # in ns: how long the thread sleeps each time
WAKEUPS = 2000
# A vCPU that wakes up each millisecond. Prints by how many ns it was late, in ascending order.
CYCLE = f"""\
import os, sys, time
os.sched_setaffinity(0, [int(sys.argv[1])])
late = []
for _ in range({WAKEUPS}):
    before = time.monotonic_ns()
    time.sleep({MILLISECOND} / 1e9)
    late.append(time.monotonic_ns() - before - {MILLISECOND})
print(*sorted(late))
"""
BUSY = ("sh", "-c", "while :; do :; done")
SHARES = {"median": 0.5, "99.9th percentile": 0.999}


class Cpuset:
    """A cgroup at the top with CPUS, as confine_host and the fence set them."""

    def __init__(self, name: str, cpus: str) -> None:
        hierarchies = detect(Host().read_optional).hierarchies
        hierarchy = next(one for one in hierarchies if "cpuset" in one.controllers)
        root = Path(hierarchy.directory("/"))
        self.directory = root / name
        if hierarchy.version == 2:
            (root / "cgroup.subtree_control").write_text("+cpuset")
        self.directory.mkdir()
        if hierarchy.version == 1:
            mems = (root / "cpuset.mems").read_text()
            (self.directory / "cpuset.mems").write_text(mems)
        (self.directory / "cpuset.cpus").write_text(cpus)

    def enter(self) -> None:
        (self.directory / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        remove_tree(str(self.directory))


def lateness(cpu: int, busy: int, host_cpus: str, others_cpus: str = "") -> list[int]:
    """Of a thread on CPU, in ns, while BUSY processes of the host have HOST_CPUS, and as many of
    other VMs OTHERS_CPUS, if given.
    """
    with ExitStack() as stack:
        vms = Cpuset("bench-vms", str(cpu))
        stack.callback(vms.remove)
        for name, cpus in (("bench-host", host_cpus), ("bench-others", others_cpus)):
            if not cpus:
                continue
            group = Cpuset(name, cpus)
            stack.callback(group.remove)
            for _ in range(busy):
                process = subprocess.Popen(BUSY, preexec_fn=group.enter)
                stack.callback(process.wait)
                stack.callback(process.kill)
        command = [PYTHON, "-I", "-c", CYCLE, str(cpu)]
        cycle = subprocess.run(command, preexec_fn=vms.enter, capture_output=True, check=True)
    return [int(one) for one in cycle.stdout.split()]


def share(late: Sequence[int], part: float) -> float:
    return float(late[int(len(late) * part)])


def wakeups(rounds: int) -> list[Row]:
    """The host's processes are as many as two for each CPU; the first CPU is the host's own."""
    online = read_online(Host().read_optional)
    cpus, everywhere = sorted(online), str(online)
    if len(cpus) < 2:
        sys.exit("bench: wakeups: the host needs two CPUs")
    first, last, busy = str(cpus[0]), cpus[-1], 2 * len(cpus)
    beside = str(online - CpuSet([last]))
    say(f"{busy} busy processes of the host, and as many of other VMs")
    cases = {
        "an idle host": partial(lateness, last, 0, first),
        "a busy host, confined": partial(lateness, last, busy, first),
        "a busy host": partial(lateness, last, busy, everywhere),
        "busy VMs and host, pins only": partial(lateness, last, busy, everywhere, everywhere),
        "busy VMs and host, dedicated": partial(lateness, last, busy, everywhere, beside),
        "busy VMs and host, dedicated and confined": partial(lateness, last, busy, first, beside),
    }
    found: dict[str, list[list[int]]] = {name: [] for name in cases}

    def one(name: str) -> float:
        found[name].append(cases[name]())
        return 0.0

    in_turn({name: partial(one, name) for name in cases}, rounds)
    rows = []
    for title, part in SHARES.items():
        samples = {name: [share(late, part) for late in found[name][1:]] for name in cases}
        idle = {"an idle host": samples["an idle host"]}
        for name in cases:
            base = {} if name == "an idle host" else idle
            rows.append(measured(f"{name}: {title}", samples[name], base, unit="µs"))
    return rows
