"""What a level of nesting costs: the same work in cgroups of depth 0 to 10."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from libvirt_cgroup_hooks import managers
from libvirt_cgroup_hooks.cgroups import Hierarchy, detect
from libvirt_cgroup_hooks.configfile import parse, resolve
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.host import Host, page_size
from libvirt_cgroup_hooks.managers.systemd import Systemd
from libvirt_cgroup_hooks.topology import Topology

from .spread import growth
from .table import Row, measured
from .timing import in_turn, say
from .vm_host import LAYOUTS, have, remove_tree

DEPTHS = (0, 1, 2, 3, 4, 6, 8, 10)
WITH = {"cpu": ("cpu", "cpuacct")}  # two on cgroup v1, one on v2

PIPE = """\
import os
there, back = os.pipe(), os.pipe()
child = os.fork()
for _ in range(COUNT // 2):
    if child:
        os.write(there[1], b"x"), os.read(back[0], 1)
    else:
        os.read(there[0], 1), os.write(back[1], b"x")
if child:
    os.waitpid(child, 0)
"""
FAULTS = """\
import mmap
ones = bytes(COUNT // 4)
for _ in range(4):
    memory = mmap.mmap(-1, 4096 * len(ones), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(15)  # MADV_NOHUGEPAGE
    memory[::4096] = ones
    memory.close()
"""


@dataclass(frozen=True)
class Work:
    controller: str  # the one that could matter to it
    command: list[str]
    count: int  # of what is done, each of which is one figure


def works() -> dict[str, Work]:
    """By their titles."""
    found = {
        "page fault": Work("memory", _python(FAULTS, 1 << 16), 1 << 16),
        "message through a pipe (Python)": Work("cpu", _python(PIPE, 20_000), 20_000),
    }
    if have("perf"):
        bench = ["perf", "bench", "sched"]
        pipe = [*bench, "pipe", "-l", "30000"]
        found["perf bench sched pipe: one operation"] = Work("cpu", pipe, 30_000)
        # In each of 2 groups 20 senders send 100 messages to each of 20 receivers.
        messaging = [*bench, "messaging", "-g", "2", "-l", "100"]
        messages = 2 * 20 * 20 * 100
        found["perf bench sched messaging: one message"] = Work("cpu", messaging, messages)
    return found


def _python(program: str, count: int) -> list[str]:
    return ["/usr/bin/python3", "-I", "-S", "-c", program.replace("COUNT", str(count))]


class Chain:
    """DEPTH cgroups in one another, in every hierarchy.

    LEFT_OUT is a controller that none of them gets, or "".
    """

    def __init__(self, depth: int, left_out: str = "") -> None:
        self.depth = depth
        self.left_out = left_out
        self.name = f"bench-{depth}-no-{left_out}" if left_out else f"bench-{depth}"
        self.tops: list[str] = []
        self.ends: list[str] = []
        without = set(WITH.get(left_out, (left_out,)))
        for hierarchy in detect(Host().read_optional).hierarchies:
            if hierarchy.version == 2 or not without & hierarchy.controllers:
                self._make(hierarchy)

    def _make(self, hierarchy: Hierarchy) -> None:
        v2 = hierarchy.version == 2
        root = hierarchy.directory("/").rstrip("/")
        if self.depth == 0:
            if not v2 or _may_hold(Path(root)):
                self.ends.append(root)
            return  # else it stays where this program is
        here = root
        for level in (self.name, *map(str, range(2, self.depth + 1))):
            if v2:
                self._enable(Path(here))
            here = f"{here}/{level}"
            os.mkdir(here)
            if "cpuset" in hierarchy.controllers:
                for file in ("cpuset.cpus", "cpuset.mems"):
                    Path(here, file).write_text(Path(here).parent.joinpath(file).read_text())
        self.tops.append(f"{root}/{self.name}")
        self.ends.append(here)

    def _enable(self, directory: Path) -> None:
        """All controllers but the one left out, which is only where the host itself has it."""
        for name in (directory / "cgroup.controllers").read_text().split():
            if name == self.left_out:
                continue
            try:
                (directory / "cgroup.subtree_control").write_text(f"+{name}")
            except OSError as error:
                sys.exit(f"bench: cannot enable {name} below {directory}: {error.strerror}")

    def enter(self) -> None:
        for directory in self.ends:
            Path(directory, "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        for top in self.tops:
            remove_tree(top)

    def time(self, work: Work) -> float:
        """CPU time, which leaves out what other processes do; with the start of the program."""
        child = subprocess.Popen(work.command, preexec_fn=self.enter, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0, f"{work.command} has failed"
        return (usage.ru_utime + usage.ru_stime) * 1e9 / work.count


def _may_hold(directory: Path) -> bool:
    """Only the real root, which has no cgroup.type, may have both processes and controllers."""
    if not (directory / "cgroup.type").exists():
        return True
    return not (directory / "cgroup.subtree_control").read_text().split()


def levels(rounds: int) -> list[Row]:
    rows = []
    for name, work in works().items():
        say(name)
        chains = {
            (depth, left_out): Chain(depth, left_out)
            for depth in DEPTHS
            for left_out in ("", work.controller)
        }
        try:
            cases = {
                f"{depth} {left_out}": partial(chain.time, work)
                for (depth, left_out), chain in chains.items()
            }
            samples = in_turn(cases, rounds)
        finally:
            for chain in chains.values():
                chain.remove()
        for left_out in ("", work.controller):
            which = "without" if left_out else "with"
            title = f"{name}, {which} {work.controller} at each level"
            rows += _level_rows(title, {depth: samples[f"{depth} {left_out}"] for depth in DEPTHS})
    return rows


def _level_rows(title: str, samples: dict[int, list[float]]) -> list[Row]:
    base = {"depth 0": samples[0]}
    deepest = DEPTHS[-1]
    rounds = [[samples[depth][number] for depth in DEPTHS] for number in range(len(samples[0]))]
    level = growth(DEPTHS, rounds)
    share = growth(DEPTHS, [[one / ys[0] for one in ys] for ys in rounds])
    too_small = level.low <= 0 <= level.high
    note = "too small to see" if too_small else ""
    return [
        measured(f"{title}: depth 0", samples[0], {}, unit="ns"),
        measured(f"{title}: depth {deepest}", samples[deepest], base, unit="ns"),
        Row(f"**{title}: each level**", "ns", level, {"depth 0": share}, note=note),
    ]


def depths() -> dict[str, int]:
    """How deep a vCPU's cgroup is in each layout, here."""
    host = Host()
    domain = Domain()
    domain.name, domain.uuid, domain.id = "vm", "6a0e1f9c-7c5b-4d0a-9f7e-0123456789ab", 1
    found = {}
    for layout in LAYOUTS:
        text = f'cgroup_layout = "{layout}"\n'
        config = resolve(parse(text), Topology.read(host.read_optional), page_size())
        manager = managers.choose(host, config, managers.daemon(host))
        if isinstance(manager, Systemd):
            path = manager.scope_path(domain) + "/libvirt/vcpu0"
        elif layout == "native":
            path = "/machine/qemu-1-vm.libvirt-qemu/vcpu0"
        else:
            path = manager.layout.vm_path(domain, manager.trees[0].daemon_path) + "/vcpu0"
        found[layout] = path.strip("/").count("/") + 1
    return found


def layouts(rounds: int) -> list[Row]:
    """The same work at the depth that each layout gives a vCPU, with all controllers."""
    rows = []
    depth_of = depths()
    chains = {depth: Chain(depth) for depth in sorted(set(depth_of.values()))}
    try:
        for name, work in works().items():
            say(name)
            cases = {layout: partial(chains[depth_of[layout]].time, work) for layout in LAYOUTS}
            samples = in_turn(cases, rounds)
            native = {"`native`": samples["native"]}
            for layout in LAYOUTS:
                title, note = f"{name}: `{layout}`", f"depth {depth_of[layout]}"
                base = {} if layout == "native" else native
                rows.append(measured(title, samples[layout], base, unit="ns", note=note))
    finally:
        for chain in chains.values():
            chain.remove()
    return rows
