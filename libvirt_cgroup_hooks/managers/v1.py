# SPDX-License-Identifier: LGPL-2.1-or-later
"""One cgroup v1 hierarchy: what to write where, in which order."""

from __future__ import annotations

from ..cpuset import CpuSet
from ..errors import Error, printable
from ..host import EBUSY, Refused
from ..plan import MakeDirectory, Step, Write
from .limits import UNLIMITED, LowerLimit, over_limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from ..cgroups import Hierarchy
    from ..host import Host

# libvirt makes thread groups where these are, and nowhere else
SPLIT_BY = frozenset(("cpu", "cpuacct", "cpuset"))
# What libvirt writes for <cputune>, <memtune>, <blkiotune> and <numatune>, by controller, in an order that works
TUNING = {
    "cpu": ("cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"),
    "cpuset": ("cpuset.mems",),
    "memory": ("memory.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.memsw.limit_in_bytes"),
    "blkio": (
        "blkio.weight",
        "blkio.bfq.weight",
        "blkio.weight_device",
        "blkio.throttle.read_bps_device",
        "blkio.throttle.write_bps_device",
        "blkio.throttle.read_iops_device",
        "blkio.throttle.write_iops_device",
    ),
}


class V1:
    """Plans for one hierarchy. A V1 serves one plan: it knows what its own earlier steps will have written."""

    version: Literal[1] = 1
    thread_file = "tasks"
    limit_file = "memory.limit_in_bytes"

    def __init__(self, host: Host, hierarchy: Hierarchy) -> None:
        self.host = host
        self.hierarchy = hierarchy
        self.has_cpus = "cpuset" in hierarchy.controllers
        self.has_memory = "memory" in hierarchy.controllers
        self.splits = bool(hierarchy.controllers & SPLIT_BY)
        self.forced = False
        self._planned: dict[str, str] = {}
        self._made: set[str] = set()

    def make(self, path: str, cpus: CpuSet | None = None) -> list[Step]:
        """PATH and what is missing above it. A new cpuset has the parent's CPUs; PATH has CPUS, if given, new or not.

        v1 takes no task into a cpuset without CPUs and memory nodes (ENOSPC).
        """
        directories = self.hierarchy.directories(path)
        if not directories or (self.exists(directories[-1]) and not self._is_half_made(directories[-1])):
            return self.set_cpus(directories[-1], cpus) if directories and cpus and self.has_cpus else []
        steps: list[Step] = []
        for directory in directories:
            new = not self.exists(directory)
            if new or self._is_half_made(directory):
                steps += [MakeDirectory(directory)] if new else []
                steps += self._fill(directory, _parent(directory), cpus if directory == directories[-1] else None)
        return steps

    def _is_half_made(self, directory: str) -> bool:
        """A cpuset without CPUs or memory nodes: who made it was killed, or is just making it."""
        return self.has_cpus and not all(self._value(f"{directory}/{name}") for name in ("cpuset.cpus", "cpuset.mems"))

    def _fill(self, directory: str, parent: str, cpus: CpuSet | None) -> list[Step]:
        self._made.add(directory)
        steps: list[Step] = []
        if self.has_cpus:
            wanted = str(cpus) if cpus else self._value(f"{parent}/cpuset.cpus")
            steps.append(self._write(f"{directory}/cpuset.mems", self._value(f"{parent}/cpuset.mems")))
            steps.append(self._write(f"{directory}/cpuset.cpus", wanted))
        # Before Linux 5.11 the limit of a cgroup does not cover its children unless it, or one above it, says so.
        flat = f"{parent}/memory.use_hierarchy"
        if self.has_memory and (self._planned.get(flat) or self.host.read_optional(flat) or "").strip() == "0":
            steps.append(self._write(f"{directory}/memory.use_hierarchy", "1"))
        return steps

    def make_threads(self, path: str, groups: dict[str, CpuSet | None]) -> list[Step]:
        """The thread GROUPS below the VM cgroup PATH, each with its CPUs (None: all that the VM has)."""
        steps: list[Step] = []
        for group, cpus in groups.items() if self.splits else ():
            if cpus is None and self.has_cpus:
                cpus = CpuSet.parse(self._value(f"{self.hierarchy.directory(path)}/cpuset.cpus"))
            steps += self.make(f"{path}/{group}", cpus)
        return steps

    def set_cpus(self, directory: str, wanted: CpuSet | None) -> list[Step]:
        """An existing cpuset and those below it; None: all that its parent has.

        The kernel wants each inside its parent after every single write.

        A child that had all of its parent's CPUs goes on having them; another keeps those that are left. One that would
        be left with none gets its parent's where `forced`, as on v2; else Error is raised.
        """
        present = CpuSet.parse(self._value(f"{directory}/cpuset.cpus"))
        wanted = wanted or CpuSet.parse(self._value(f"{_parent(directory)}/cpuset.cpus"))
        if present == wanted:
            return []
        tree = self._tree(directory, present)
        after = {directory: wanted}
        for path, (cpus, follows) in tree.items():
            after[path] = wanted if follows else cpus & wanted
            if cpus and not after[path]:
                if not self.forced:
                    raise Error(
                        f"cannot set the CPUs of {printable(directory)} to {wanted}: {printable(path)} is limited to {cpus}",
                        "stop or re-pin the VM it belongs to first",
                    )
                after[path] = after[_parent(path)]
        writes: list[tuple[str, CpuSet]] = []
        if not wanted <= present:  # grow: parents first
            writes += ((path, cpus | wanted) for path, (cpus, follows) in tree.items() if follows)
        writes += ((path, after[path]) for path in reversed(list(tree)))  # shrink: children first
        steps: list[Step] = []
        for path, cpus in writes:
            step = self._write(f"{path}/cpuset.cpus", str(cpus), path != directory)
            if step.value != step.old:
                steps.append(SetCpus(step, [tree[path][0], tree[path][0] | wanted, after[path]]))
        return steps

    def regain(self, wanted: dict[str, CpuSet | None]) -> list[Step]:
        """The CPUs WANTED by directory, those above first; None: all that its parent has.

        The kernel takes CPUs that go offline from every cpuset, and gives none back.
        """
        found = {one: cpus for one, cpus in sorted(wanted.items()) if self.has_cpus and self.exists(one)}
        return [step for one, cpus in found.items() for step in self.set_cpus(one, cpus)]

    def check_free(self, directory: str, cpus: CpuSet) -> None:
        """Raises Error where others have some of CPUS for themselves alone; the kernel would say no more than EINVAL."""
        for other, taken in self.taken(directory).items() if self.has_cpus else ():
            if taken & cpus:
                raise Error(
                    f"cannot give CPUs {taken & cpus} to VMs: {printable(other)} has them for itself alone "
                    "(cpuset.cpu_exclusive)",
                    "take them back from it, or reserve them",
                )

    def _tree(self, directory: str, present: CpuSet) -> dict[str, tuple[CpuSet, bool]]:
        """(CPUs, whether it follows its parent) of DIRECTORY and all below it, parents first."""
        tree = {directory: (present, True)}
        for name in self.host.directories(directory):
            child = f"{directory}/{name}"
            text = self._planned.get(f"{child}/cpuset.cpus") or self.host.read_optional(f"{child}/cpuset.cpus")
            if not text or not text.strip():  # removed meanwhile, or just being made
                continue
            self._planned[f"{child}/cpuset.cpus"] = text.strip()  # it may yet be removed
            cpus = CpuSet.parse(text)
            below = self._tree(child, cpus)
            follows = cpus == present
            tree.update((path, (own, own_follows and follows)) for path, (own, own_follows) in below.items())
        return tree

    def set_limit(self, directory: str, limit: int) -> list[Step]:
        """The memory limit in bytes. Raises Error where more is in use."""
        file = f"{directory}/memory.limit_in_bytes"
        if directory in self._made:
            return [self._write(file, str(limit))]
        old = int(self._value(file))
        if limit >= old:
            return [] if limit == old else [self._write(file, str(limit))]
        used = self.memory_in_use(directory)
        if used > limit:
            raise over_limit(directory, limit, used)
        self._planned[file] = str(limit)
        return [LowerLimit(directory, limit, old)]

    def lowers(self, directory: str, limit: int) -> bool:
        """Whether LIMIT bytes are less than DIRECTORY may have now."""
        return int(self._value(f"{directory}/memory.limit_in_bytes")) > limit

    def memory_in_use(self, directory: str) -> int:
        """Bytes."""
        return int(self.host.read_optional(f"{directory}/memory.usage_in_bytes") or 0)

    def has_room(self, directory: str, limit: int) -> bool:
        """Whether LIMIT bytes can be set: the kernel refuses them where they cannot, so that it is enough to use no more."""
        return self.memory_in_use(directory) <= limit

    def reclaim(self, directory: str, limit: int) -> None:
        """One attempt to bring the use down to LIMIT bytes: the kernel makes it while it considers a new limit."""
        file = f"{directory}/memory.limit_in_bytes"
        old = self.host.read(file).strip()
        try:
            self.host.write(file, str(limit))
        except Refused as error:
            if error.errno != EBUSY:
                raise
        finally:
            try:
                self.host.write(file, old)
            except BaseException:  # Ctrl-C just now
                self.host.write(file, old)
                raise

    def before(self, file: str) -> str:
        """What a limit FILE says before this plan; of a new cgroup, what it would say without us. For `put_back`."""
        directory = file.rpartition("/")[0]
        if directory not in self._made:
            value = self.host.read(file).strip()
            return "-1" if value.isdigit() and int(value) > UNLIMITED else value
        return self._value(f"{_parent(directory)}/cpuset.cpus") if file.endswith("/cpuset.cpus") else "-1"

    def put_back(self, file: str, value: str) -> list[Step]:
        if file.endswith("/cpuset.cpus"):
            directory = file.rpartition("/")[0]
            parent = CpuSet.parse(self._value(f"{_parent(directory)}/cpuset.cpus"))
            return self.set_cpus(directory, CpuSet.parse(value) & parent)
        return [self._write(file, value)]

    def tuning(self, old: str, new: str, wanted: set[str]) -> list[Step]:
        """Copies from directory OLD to NEW what libvirt had written for the controllers WANTED."""
        steps: list[Step] = []
        for controller in sorted(self.hierarchy.controllers & wanted):
            for name in TUNING.get(controller, ()):
                value = self.host.read_optional(f"{old}/{name}")
                for line in (value or "").splitlines():
                    if line and line != "-1" and not (line.isdigit() and int(line) > UNLIMITED):
                        steps.append(Write(f"{new}/{name}", line))
        return steps

    def devices(self, old: str, new: str) -> list[Step]:
        """The device list is a hierarchy of its own here, in which the VM stays where libvirt put it."""
        return []

    def in_effect(self, directory: str) -> dict[str, object]:
        """What this hierarchy limits at DIRECTORY, under the names of `virt-cgroup status`."""
        found: dict[str, object] = {}
        if self.has_cpus:
            found["cpus"] = (self.host.read_optional(f"{directory}/cpuset.cpus") or "").strip() or None
        if self.has_memory:
            limit = self.host.read_optional(f"{directory}/memory.limit_in_bytes")
            used = self.host.read_optional(f"{directory}/memory.usage_in_bytes")
            found["memory_limit"] = int(limit) if limit and int(limit) < UNLIMITED else None
            found["memory_current"] = int(used) if used else None
        return found

    def taken(self, directory: str) -> dict[str, CpuSet]:
        """The CPUs that cpusets beside the way down to DIRECTORY have for themselves alone, by their directories."""
        found: dict[str, CpuSet] = {}
        above = self.hierarchy.mount
        for component in directory[len(above) :].strip("/").split("/"):
            others = [f"{above}/{name}" for name in self.host.directories(above) if name != component]
            for other in others:
                if (self.host.read_optional(f"{other}/cpuset.cpu_exclusive") or "").strip() == "1":
                    found[other] = CpuSet.parse(self.host.read(f"{other}/cpuset.cpus"))
            above = f"{above}/{component}"
        return found

    def exists(self, directory: str) -> bool:
        return directory in self._made or (_parent(directory) not in self._made and self.host.exists(directory))

    def _value(self, path: str) -> str:
        planned = self._planned.get(path)
        return self.host.read(path).strip() if planned is None else planned

    def _write(self, path: str, value: str, may_be_gone: bool = False) -> Write:
        new = path.rpartition("/")[0] in self._made
        step = Write(path, value, None if new else self._value(path), may_be_gone)
        self._planned[path] = value
        return step


class SetCpus(Write):
    """Sets the CPUs of a cpuset. What was made below it since the plan was made follows it.

    libvirt makes a VM's cpusets as copies of what is above them, at any moment, and the kernel takes no CPU that one below
    has (EBUSY).
    """

    TRIES = 20

    def __init__(self, write: Write, passed: list[CpuSet]) -> None:
        """PASSED: all that the cpuset has while the plan runs; a copy has one of these."""
        super().__init__(write.path, write.value, write.old, write.may_be_gone)
        self.passed = passed

    def run(self, host: Host) -> None:
        for attempt in range(1, self.TRIES + 1):
            try:
                if attempt > 1:
                    self._take(host, _parent(self.path), CpuSet.parse(self.value))
                super().run(host)
                break
            except Refused as error:
                if error.errno != EBUSY or attempt == self.TRIES:
                    raise

    def _take(self, host: Host, directory: str, cpus: CpuSet) -> None:
        """Leaves those below DIRECTORY no more than CPUS; one that would have none is left as it is."""
        for name in host.directories(directory):
            child = f"{directory}/{name}"
            present = CpuSet.parse(host.read_optional(f"{child}/cpuset.cpus") or "")
            left = cpus if present in self.passed else present & cpus
            if left and not present <= cpus:
                self._write(host, child, present | left)  # for those below to have what they get
                self._take(host, child, left)
                self._write(host, child, left)

    def _write(self, host: Host, directory: str, cpus: CpuSet) -> None:
        Write(f"{directory}/cpuset.cpus", str(cpus), may_be_gone=True).run(host)

    def undo(self) -> Step | None:
        undo = super().undo()
        return SetCpus(undo, self.passed) if isinstance(undo, Write) else None


def _parent(directory: str) -> str:
    return directory.rpartition("/")[0]
