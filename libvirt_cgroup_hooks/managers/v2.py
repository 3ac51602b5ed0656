# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cgroup v2 hierarchy: what to write where, in which order."""

from __future__ import annotations

from ..cpuset import CpuSet
from ..errors import Error, printable
from ..host import ABSENT, EAGAIN, Refused
from ..plan import MakeDirectory, Move, Step, Write
from .limits import HaveRoom, fits, over_limit, pressed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from ..cgroups import Hierarchy
    from ..host import Host

ENABLED = ("cpu", "cpuset", "io", "memory", "pids")  # on the way down to the VMs, where the root has them
THREADED = ("cpu", "cpuset")  # inside a VM
RECLAIM_AT_ONCE = 256 << 20  # bytes; a larger amount would leave no word of progress for long
# What libvirt writes for <cputune>, <numatune>, <memtune> and <blkiotune>, by controller, and what is there if it does not
TUNING = {
    "cpu": {"cpu.weight": "100", "cpu.max": "max 100000"},
    "cpuset": {"cpuset.mems": ""},
    "memory": {"memory.max": "max", "memory.high": "max", "memory.low": "0", "memory.swap.max": "max"},
    "io": {"io.weight": "default 100", "io.bfq.weight": "default 100", "io.max": ""},
}


class V2:
    """Plans for the hierarchy. A V2 serves one plan: it knows what its own earlier steps will have made."""

    version: Literal[2] = 2
    thread_file = "cgroup.threads"
    limit_file = "memory.max"
    splits = True

    def __init__(self, host: Host, hierarchy: Hierarchy) -> None:
        self.host = host
        self.hierarchy = hierarchy
        root = (host.read_optional(f"{hierarchy.mount}/cgroup.controllers") or "").split()
        self._available = [name for name in ENABLED if name in root]
        self.has_cpus = "cpuset" in self._available
        self.has_memory = "memory" in self._available
        self._made: set[str] = set()

    def make(self, path: str, cpus: CpuSet | None = None) -> list[Step]:
        """PATH and what is missing above it, with the controllers enabled down to PATH; PATH gets CPUS, if given."""
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
        new = directory in self._made
        enabled = "" if new else self.host.read(f"{directory}/cgroup.subtree_control")
        missing = [name for name in self._available if name not in enabled.split()]
        if not missing:
            return []
        if not new and self._inner_processes(directory):
            raise Error(
                f"cannot make cgroups for VMs below {printable(directory)}: it has processes of its own, and the kernel "
                f"then enables no {'/'.join(missing)} below it",
                "choose a cgroup_layout elsewhere, such as /vms/$DRIVER-$NAME",
            )
        undo = None if new else " ".join(f"-{name}" for name in missing)
        return [Write(f"{directory}/cgroup.subtree_control", " ".join(f"+{name}" for name in missing), undo)]

    def _inner_processes(self, directory: str) -> bool:
        """The real root, which alone has no cgroup.type, may have processes and enabled controllers both."""
        if not self.host.exists(f"{directory}/cgroup.type"):
            return False
        return bool(self.host.read_optional(f"{directory}/cgroup.procs"))

    def make_threads(self, path: str, groups: dict[str, CpuSet | None]) -> list[Step]:
        """The thread GROUPS below the VM cgroup PATH, each with its CPUs (None: all that the VM has)."""
        root = self.hierarchy.directory(path)
        steps: list[Step] = []
        threaded = [name for name in THREADED if name in self._available]
        if not self._has_enabled(root, threaded):
            steps.append(Write(f"{root}/cgroup.subtree_control", " ".join(f"+{name}" for name in threaded)))
        for group, cpus in groups.items():
            directory = f"{root}/{group}"
            if not self.exists(directory):
                self._made.add(directory)
                steps.append(MakeDirectory(directory))
            if directory in self._made or self.host.read(f"{directory}/cgroup.type").strip() != "threaded":
                steps.append(Write(f"{directory}/cgroup.type", "threaded"))
            if self.has_cpus:
                steps += self.set_cpus(directory, cpus)
        return steps

    def _has_enabled(self, directory: str, names: list[str]) -> bool:
        """Whether DIRECTORY is there with these controllers; one that was killed may have made it, and no more."""
        found = "" if directory in self._made else self.host.read_optional(f"{directory}/cgroup.subtree_control") or ""
        return set(names) <= set(found.split())

    def nest(self, path: str, processes: list[int]) -> list[Step]:
        """A first cgroup inside the one that holds PROCESSES, which move into it: a cgroup with processes cannot have
        controllers for its children."""
        outer, inner = (self.hierarchy.directory(one) for one in (path.rpartition("/")[0], path))
        names = [name for name in THREADED if name in self._available]
        if self.exists(inner) and self._has_enabled(outer, names):
            return []
        self._made.add(inner)
        enable, disable = (" ".join(sign + name for name in names) for sign in "+-")
        back = f"{outer}/cgroup.procs"
        return [
            MakeDirectory(inner),
            *(Move("process", pid, f"{inner}/cgroup.procs", [Move("process", pid, back, [])]) for pid in processes),
            Write(f"{outer}/cgroup.subtree_control", enable, disable),
        ]

    def set_cpus(self, directory: str, wanted: CpuSet | None) -> list[Step]:
        """The kernel clips what is below. None takes a limit away, by the full list: an empty one is refused while there
        are processes (ENOSPC)."""
        if directory in self._made:
            return [Write(f"{directory}/cpuset.cpus", str(wanted))] if wanted else []
        old = (self.host.read_optional(f"{directory}/cpuset.cpus") or "").strip()  # not there before it is enabled
        value = str(wanted) if wanted else self._all_cpus() if old else ""
        return [] if old == value else [Write(f"{directory}/cpuset.cpus", value, old or self._all_cpus())]

    def _all_cpus(self) -> str:
        """Those that are offline, too: they may come back."""
        return self.host.read("/sys/devices/system/cpu/present").strip()

    def set_limit(self, directory: str, limit: int) -> list[Step]:
        """The memory limit in bytes. Raises Error where more is in use."""
        file = f"{directory}/memory.max"
        if directory in self._made:
            return [Write(file, str(limit))]
        old = (self.host.read_optional(file) or "max").strip()
        if old == str(limit):
            return []
        write = Write(file, str(limit), old)
        if not self.lowers(directory, limit) or not self.crowded(directory, limit):
            return [write]
        high, (new, before) = f"{directory}/memory.high", self.pressure(directory, limit)
        return [Write(high, new, before), HaveRoom(directory, limit), write, Write(high, before, new)]

    def lowers(self, directory: str, limit: int) -> bool:
        """Whether LIMIT bytes are less than DIRECTORY may have now."""
        old = (self.host.read_optional(f"{directory}/memory.max") or "max").strip()
        return old == "max" or int(old) > limit

    def crowded(self, directory: str, limit: int) -> bool:
        """Whether what DIRECTORY uses could reach LIMIT bytes while that is being set. Raises Error where it is above."""
        used = self.memory_in_use(directory)
        if used > limit:
            raise over_limit(directory, limit, used)
        return used > limit // 2

    def pressure(self, directory: str, limit: int) -> tuple[str, str]:
        """What memory.high has to be while LIMIT is being set, and what it is."""
        old = (self.host.read_optional(f"{directory}/memory.high") or "max").strip()
        return old if old != "max" and int(old) < pressed(limit) else str(pressed(limit)), old

    def memory_in_use(self, directory: str) -> int:
        """Bytes."""
        return int(self.host.read_optional(f"{directory}/memory.current") or 0)

    def has_room(self, directory: str, limit: int) -> bool:
        """Whether LIMIT bytes can be set."""
        return fits(limit, self.memory_in_use(directory))

    def reclaim(self, directory: str, limit: int) -> None:
        """One attempt to bring the use down to LIMIT bytes. EAGAIN: there is nothing more to be had now."""
        excess = min(self.memory_in_use(directory) - pressed(limit), RECLAIM_AT_ONCE)
        try:
            if excess > 0:
                self.host.write(f"{directory}/memory.reclaim", str(excess))
        except Refused as error:
            if error.errno in ABSENT:  # before Linux 5.19; a write of memory.high reclaims as well
                self.host.write(f"{directory}/memory.high", str(pressed(limit)))
            elif error.errno != EAGAIN:
                raise

    def before(self, file: str) -> str:
        """What a limit FILE says before this plan; of a new cgroup, what it would say without us. For `put_back`."""
        if file.rpartition("/")[0] in self._made:
            return "max" if file.endswith(self.limit_file) else "-"
        return (self.host.read_optional(file) or ("max" if file.endswith(self.limit_file) else "-")).strip() or "-"

    def put_back(self, file: str, value: str) -> list[Step]:
        if file.endswith("/cpuset.cpus"):
            return self.set_cpus(file.rpartition("/")[0], CpuSet.parse(value) if value != "-" else None)
        return [Write(file, value, self.host.read(file).strip())]

    def tuning(self, old: str, new: str, wanted: set[str]) -> list[Step]:
        """Copies from directory OLD to NEW what libvirt had written for the controllers WANTED."""
        steps: list[Step] = []
        for controller in sorted(wanted):
            for name, untuned in TUNING.get(controller, {}).items():
                value = self.host.read_optional(f"{old}/{name}") or ""
                steps += [Write(f"{new}/{name}", line) for line in value.splitlines() if line != untuned]
        return steps

    def devices(self, old: str, new: str) -> list[Step]:
        """The BPF program that holds libvirt's list of devices goes along."""
        from ..bpf import CarryDevices

        return [CarryDevices(old, new)]

    def in_effect(self, directory: str) -> dict[str, object]:
        """What is limited at DIRECTORY, under the names of `virt-cgroup status`."""
        found: dict[str, object] = {}
        if self.has_cpus:
            found["cpus"] = (self.host.read_optional(f"{directory}/cpuset.cpus.effective") or "").strip() or None
        if self.has_memory:
            limit = (self.host.read_optional(f"{directory}/memory.max") or "max").strip()
            used = self.host.read_optional(f"{directory}/memory.current")
            found["memory_limit"] = int(limit) if limit != "max" else None
            found["memory_current"] = int(used) if used else None
        return found

    def taken(self, directory: str) -> dict[str, CpuSet]:
        """The CPUs that partitions beside the way down to DIRECTORY have for themselves alone, by their directories."""
        found: dict[str, CpuSet] = {}
        above = self.hierarchy.mount
        for component in directory[len(above) :].strip("/").split("/"):
            for name in self.host.directories(above):
                found.update(self._partitions(f"{above}/{name}") if name != component else {})
            above = f"{above}/{component}"
        return found

    def _partitions(self, directory: str) -> dict[str, CpuSet]:
        """DIRECTORY, or the remote partitions below it, for which it holds CPUs without being a partition itself."""
        kind = (self.host.read_optional(f"{directory}/cpuset.cpus.partition") or "").strip()  # "root invalid (why)", too
        held = self.host.read_optional(f"{directory}/cpuset.cpus.exclusive.effective")  # since Linux 6.7
        if kind in ("root", "isolated"):
            return {directory: CpuSet.parse(self.host.read(f"{directory}/cpuset.cpus") if held is None else held)}
        found: dict[str, CpuSet] = {}
        for name in self.host.directories(directory) if held and held.strip() else ():
            found.update(self._partitions(f"{directory}/{name}"))
        return found

    def exists(self, directory: str) -> bool:
        return directory in self._made or (directory.rpartition("/")[0] not in self._made and self.host.exists(directory))
