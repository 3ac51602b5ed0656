# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cgroup v2 hierarchy: what to write where, in which order."""

from __future__ import annotations

from ..cpuset import CpuSet
from ..errors import Error, printable
from ..host import ABSENT, EAGAIN, Refused
from ..kinds import MEMORY, SWAP, in_bytes
from ..steps import MakeDirectory, Move, Step, Write
from .tree import Tree, parent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..cgroups import Hierarchy
    from ..host import Host
    from ..kinds import Kind, Value

# Enabled on the way down to the VMs, where the root has them
ENABLED = ("cpu", "cpuset", "io", "memory", "pids")
HYBRID = "/sys/fs/cgroup/unified"  # where systemd keeps its units on v2, and limits on v1
THREADED = ("cpu", "cpuset")  # inside a VM
NESTED = "libvirt"  # libvirt's own cgroup inside a scope, since 7.1
RECLAIM_AT_ONCE = 256 << 20  # bytes; a larger amount would leave no word of progress for long
# What libvirt writes for <cputune>, <numatune>, <memtune> and <blkiotune>, by controller, and what
# is there if it does not
TUNING = {
    "cpu": {"cpu.weight": "100", "cpu.max": "max 100000"},
    "cpuset": {"cpuset.mems": ""},
    "memory": {
        "memory.max": "max",
        "memory.high": "max",
        "memory.low": "0",
        "memory.swap.max": "max",
    },
    "io": {"io.weight": "default 100", "io.bfq.weight": "default 100", "io.max": ""},
}


class V2(Tree):
    """The v2 hierarchy. A limit above holds for all that is below, whatever that says itself."""

    thread_file = "cgroup.threads"
    memory_use = "memory.current"

    def __init__(self, host: Host, hierarchy: Hierarchy) -> None:
        super().__init__(host, hierarchy)
        root = (host.read_optional(f"{hierarchy.mount}/cgroup.controllers") or "").split()
        self._available = [name for name in ENABLED if name in root]
        self.has_cpus = "cpuset" in self._available
        self.has_memory = "memory" in self._available

    # where things are

    @property
    def daemon_path(self) -> str:
        """A cgroup with processes has no children to speak of, so this is the parent of the
        daemon's, unless that is the root, which alone may have both.
        """
        return parent(self.hierarchy.placement)

    def systemd_sets(self, kind: Kind) -> bool:
        return self.hierarchy.systemd

    @property
    def systemd_makes(self) -> bool:
        return self.hierarchy.systemd or self.hierarchy.mount == HYBRID

    # cgroups

    def make(self, path: str, cpus: CpuSet | None = None) -> list[Step]:
        """The controllers are enabled on the way down to PATH."""
        steps: list[Step] = []
        directory = self.hierarchy.mount
        for child in self.hierarchy.directories(path):
            steps += self._enable(directory)
            directory = child
            if not self.exists(directory):
                steps.append(MakeDirectory(directory))
                self._made.add(directory)
        if cpus and self.has_cpus:
            steps += self.set_cpus(directory, cpus)
        return steps

    def _enable(self, directory: str) -> list[Step]:
        """Passes the controllers on to what is below DIRECTORY."""
        if directory in self._made:
            return [Write(f"{directory}/cgroup.subtree_control", _signed("+", self._available))]
        enabled = self.host.read(f"{directory}/cgroup.subtree_control").split()
        missing = [name for name in self._available if name not in enabled]
        if not missing:
            return []
        if self._has_inner_processes(directory):
            raise Error(
                f"cannot make cgroups for VMs below {printable(directory)}: it has processes of "
                f"its own, and the kernel then enables no {'/'.join(missing)} below it",
                "choose a cgroup_layout elsewhere, such as /vms/$DRIVER-$NAME",
            )
        enable, disable = _signed("+", missing), _signed("-", missing)
        return [Write(f"{directory}/cgroup.subtree_control", enable, disable)]

    def _has_inner_processes(self, directory: str) -> bool:
        """The real root, which alone has no cgroup.type, may have processes and pass controllers
        on.
        """
        if not self.host.exists(f"{directory}/cgroup.type"):
            return False
        return bool(self.host.read_optional(f"{directory}/cgroup.procs"))

    def make_threads(self, path: str, groups: dict[str, CpuSet | None]) -> list[Step]:
        root = self.hierarchy.directory(path)
        threaded = [name for name in THREADED if name in self._available]
        steps: list[Step] = []
        if not self._passes_on(root, threaded):
            steps.append(Write(f"{root}/cgroup.subtree_control", _signed("+", threaded)))
        for group, cpus in groups.items():
            directory = f"{root}/{group}"
            steps += self._make_threaded(directory)
            if self.has_cpus:
                steps += self.set_cpus(directory, cpus)
        return steps

    def _make_threaded(self, directory: str) -> list[Step]:
        steps: list[Step] = []
        if not self.exists(directory):
            self._made.add(directory)
            steps.append(MakeDirectory(directory))
        elif self.host.read(f"{directory}/cgroup.type").strip() == "threaded":
            return []
        return [*steps, Write(f"{directory}/cgroup.type", "threaded")]

    def _passes_on(self, directory: str, names: list[str]) -> bool:
        """Whether DIRECTORY is there and enables these controllers; who was killed may have made
        it, and no more.
        """
        return set(names) <= set(self._text(f"{directory}/cgroup.subtree_control").split())

    def nest(self, path: str, processes: list[int]) -> tuple[str, list[Step]]:
        """PROCESSES move into a first cgroup inside PATH: a cgroup with processes cannot have
        controllers for its children. libvirt's own name for it keeps the VM recognised.
        """
        nested = f"{path}/{NESTED}"
        outer, inner = self.hierarchy.directory(path), self.hierarchy.directory(nested)
        names = [name for name in THREADED if name in self._available]
        if self.exists(inner) and self._passes_on(outer, names):
            return nested, []
        self._made.add(inner)
        steps: list[Step] = [MakeDirectory(inner)]
        for pid in processes:
            back = Move("process", pid, f"{outer}/cgroup.procs", [])
            steps.append(Move("process", pid, f"{inner}/cgroup.procs", [back]))
        enable, disable = _signed("+", names), _signed("-", names)
        return nested, [*steps, Write(f"{outer}/cgroup.subtree_control", enable, disable)]

    # CPUs

    def set_cpus(
        self, directory: str, wanted: CpuSet | None, may_be_gone: bool = False
    ) -> list[Step]:
        """The kernel clips what is below.

        A limit is taken away by the full list: an empty one is refused while there are processes
        (ENOSPC).
        """
        file = f"{directory}/cpuset.cpus"
        if directory in self._made:
            return [self._write(file, str(wanted))] if wanted else []
        old = self._text(file)  # not there before the controller is enabled
        value = ""
        if wanted:
            value = str(wanted)
        elif old:
            value = self._all_cpus()
        if old == value:
            return []
        self._planned[file] = value
        return [Write(file, value, old or self._all_cpus(), may_be_gone)]

    def _all_cpus(self) -> str:
        """Those that are offline, too: they may come back."""
        return self.host.read("/sys/devices/system/cpu/present").strip()

    def taken(self, directory: str) -> dict[str, CpuSet]:
        """The CPUs of partitions beside the way down to DIRECTORY."""
        found: dict[str, CpuSet] = {}
        above = self.hierarchy.mount
        for component in directory[len(above) :].strip("/").split("/"):
            for name in self.host.directories(above):
                if name != component:
                    found.update(self._partitions(f"{above}/{name}"))
            above = f"{above}/{component}"
        return found

    def _partitions(self, directory: str) -> dict[str, CpuSet]:
        """DIRECTORY, or the remote partitions below it, for which it holds CPUs without being a
        partition itself.
        """
        # "root invalid (why)", too
        kind = (self.host.read_optional(f"{directory}/cpuset.cpus.partition") or "").strip()
        # since Linux 6.7
        held = self.host.read_optional(f"{directory}/cpuset.cpus.exclusive.effective")
        if kind in ("root", "isolated"):
            if held is None:
                held = self.host.read(f"{directory}/cpuset.cpus")
            return {directory: CpuSet.parse(held)}
        found: dict[str, CpuSet] = {}
        if held and held.strip():
            for name in self.host.directories(directory):
                found.update(self._partitions(f"{directory}/{name}"))
        return found

    # limits

    def limits(self, kind: Kind) -> bool:
        return bool(kind.v2) and kind.controller in self._available

    def file(self, kind: Kind, directory: str) -> str:
        return f"{directory}/{kind.v2}"

    def set_bytes(self, kind: Kind, directory: str, value: Value, old: Value) -> list[Step]:
        new, before = kind.text_v2(value), kind.text_v2(old)
        return [Write(self.file(kind, directory), new, None if directory in self._made else before)]

    def not_passed_down(self, path: str, controllers: list[str]) -> list[tuple[str, str]]:
        """A cgroup has a controller only if each cgroup above it enables it for its children."""
        found: list[tuple[str, str]] = []
        for directory in [self.hierarchy.mount, *self.hierarchy.directories(path)[:-1]]:
            enabled = self._text(f"{directory}/cgroup.subtree_control").split()
            found += [(directory, name) for name in controllers if name not in enabled]
        return found

    # memory

    def hugepages_in_use(self, directory: str) -> int:
        stat = self.host.read_optional(f"{directory}/memory.stat") or ""
        found = [line for line in stat.splitlines() if line.startswith("hugetlb ")]
        return int(found[0].split()[1]) if found else 0

    def is_populated(self, directory: str) -> bool:
        return "populated 1" in (self.host.read_optional(f"{directory}/cgroup.events") or "")

    def has_room(self, directory: str, limit: int) -> bool:
        from .lowering import fits

        return fits(limit, self.memory_in_use(directory))

    def reclaim(self, directory: str, limit: int) -> None:
        """EAGAIN: there is nothing more to be had now."""
        from .lowering import pressed

        excess = min(self.memory_in_use(directory) - pressed(limit), RECLAIM_AT_ONCE)
        try:
            if excess > 0:
                self.host.write(f"{directory}/memory.reclaim", str(excess))
        except Refused as error:
            if error.errno in ABSENT:  # before Linux 5.19; a write of memory.high reclaims as well
                self.host.write(f"{directory}/memory.high", str(pressed(limit)))
            elif error.errno != EAGAIN:
                raise

    @property
    def counts_swap(self) -> bool:
        """The root's own cgroup has no limits."""
        if not self.limits(SWAP):
            return False
        mount = self.hierarchy.mount
        with_memory = [
            f"{mount}/{name}"
            for name in self.host.directories(mount)
            if self.host.exists(self.file(MEMORY, f"{mount}/{name}"))
        ]
        return not with_memory or self.host.exists(self.file(SWAP, with_memory[0]))

    def swap_in_effect(self, directory: str) -> tuple[int | None, int | None]:
        used = self.host.read_optional(f"{directory}/memory.swap.current")
        return in_bytes(self.read(SWAP, directory)), int(used) if used else None

    # the VM

    def tuning(self, old: str, new: str, wanted: set[str]) -> list[Step]:
        steps: list[Step] = []
        for controller in sorted(wanted):
            for name, untuned in TUNING.get(controller, {}).items():
                text = self.host.read_optional(f"{old}/{name}") or ""
                for line in text.splitlines():
                    if line != untuned:
                        steps.append(Write(f"{new}/{name}", line))
        return steps

    def devices(self, old: str, new: str) -> list[Step]:
        """libvirt's list of devices is a BPF program attached to the cgroup."""
        from .devices import CarryDevices

        return [CarryDevices(old, new)]

    def cpus_in_effect(self, directory: str) -> CpuSet | None:
        text = self.host.read_optional(f"{directory}/cpuset.cpus.effective") or ""
        return CpuSet.parse(text.strip()) or None


def _signed(sign: str, names: list[str]) -> str:
    return " ".join(sign + name for name in names)
