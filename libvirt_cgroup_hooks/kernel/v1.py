# SPDX-License-Identifier: LGPL-2.1-or-later
"""One cgroup v1 hierarchy: what to write where, in which order."""

from __future__ import annotations

from ..cpuset import CpuSet
from ..errors import Error, printable
from ..host import ABSENT, EBUSY, Refused
from ..kinds import CPUS, MEMORY, MEMSW, UNLIMITED, VM_CPUS, as_cpus, in_bytes
from ..steps import MakeDirectory, Step, Write
from .tree import Tree, parent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..cgroups import Hierarchy
    from ..host import Host
    from ..kinds import Kind, Value

# libvirt makes thread groups where these are, and nowhere else
SPLIT_BY = frozenset(("cpu", "cpuacct", "cpuset"))
# The controllers that systemd uses on v1 (CGROUP_MASK_V1); cpuset is not among them.
SYSTEMD = frozenset(("cpu", "cpuacct", "blkio", "memory", "devices", "pids"))
DEVICES = "devices.list"
ALL_DEVICES = "a *:* rwm"
# What libvirt writes for <cputune>, <memtune>, <blkiotune> and <numatune>, by controller, in an
# order that works
TUNING = {
    "cpu": ("cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"),
    "cpuset": ("cpuset.mems",),
    "memory": (
        "memory.limit_in_bytes",
        "memory.soft_limit_in_bytes",
        "memory.memsw.limit_in_bytes",
    ),
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


class V1(Tree):
    """A v1 hierarchy. Without a limit a cpuset has what its parent has."""

    thread_file = "tasks"
    memory_use = "memory.usage_in_bytes"
    stat_prefix = "total_"
    refuses = True

    def __init__(self, host: Host, hierarchy: Hierarchy) -> None:
        super().__init__(host, hierarchy)
        self.has_cpus = "cpuset" in hierarchy.controllers
        self.has_memory = "memory" in hierarchy.controllers
        self.clips = not self.has_cpus
        self.splits = bool(hierarchy.controllers & SPLIT_BY)

    # where things are

    @property
    def daemon_path(self) -> str:
        return self.hierarchy.placement

    def systemd_sets(self, kind: Kind) -> bool:
        return self.hierarchy.systemd and kind not in (CPUS, VM_CPUS, MEMSW)

    @property
    def systemd_makes(self) -> bool:
        return self.hierarchy.systemd and bool(self.hierarchy.controllers & SYSTEMD)

    def memory_stat(self, directory: str) -> dict[str, int]:
        """What v2 calls anon is rss here."""
        found = super().memory_stat(directory)
        if "rss" in found:
            found["anon"] = found.pop("rss")
        return found

    # cgroups

    def make(self, path: str, cpus: CpuSet | None = None) -> list[Step]:
        """A new cpuset has the parent's CPUs, and PATH has CPUS, if given.

        v1 takes no task into a cpuset without CPUs and memory nodes (ENOSPC).
        """
        directories = self.hierarchy.directories(path)
        if not directories:
            return []
        last = directories[-1]
        if self.exists(last) and not self._is_half_made(last):
            return self.set_cpus(last, cpus) if cpus and self.has_cpus else []
        steps: list[Step] = []
        for directory in directories:
            new = not self.exists(directory)
            if new:
                steps.append(MakeDirectory(directory))
            if new or self._is_half_made(directory):
                steps += self._fill(directory, cpus if directory == last else None)
        return steps

    def _is_half_made(self, directory: str) -> bool:
        """A cpuset without CPUs or memory nodes: who made it was killed, or is just making it."""
        if not self.has_cpus:
            return False
        return not (
            self._value(f"{directory}/cpuset.cpus") and self._value(f"{directory}/cpuset.mems")
        )

    def _fill(self, directory: str, cpus: CpuSet | None) -> list[Step]:
        above = parent(directory)
        self._made.add(directory)
        steps: list[Step] = []
        if self.has_cpus:
            mems = self._value(f"{above}/cpuset.mems")
            wanted = str(cpus) if cpus else self._value(f"{above}/cpuset.cpus")
            steps.append(self._write(f"{directory}/cpuset.mems", mems))
            steps.append(self._write(f"{directory}/cpuset.cpus", wanted))
        # Before Linux 5.11 the limit of a cgroup does not cover its children unless it, or one
        # above it, says so.
        if self.has_memory and self._text(f"{above}/memory.use_hierarchy") == "0":
            steps.append(self._write(f"{directory}/memory.use_hierarchy", "1"))
        return steps

    def make_threads(self, path: str, groups: dict[str, CpuSet | None]) -> list[Step]:
        steps: list[Step] = []
        if not self.splits:
            return steps
        for group, cpus in groups.items():
            if cpus is None and self.has_cpus:
                cpus = self._cpus(self.hierarchy.directory(path))
            steps += self.make(f"{path}/{group}", cpus)
        return steps

    def nest(self, path: str, processes: list[int]) -> tuple[str, list[Step]]:
        """A v1 cgroup may have both processes and others below it."""
        return path, []

    # CPUs

    def set_cpus(
        self, directory: str, wanted: CpuSet | None, may_be_gone: bool = False
    ) -> list[Step]:
        """An existing cpuset and those below it; None: all that its parent has.

        A cpuset below that had all of its parent's CPUs goes on having them; another keeps those
        that are left. One that would be left with none gets its parent's where `forced`, as on v2;
        else Error is raised.
        """
        try:
            present = self._cpus(directory)
            if wanted is None:
                wanted = self._cpus(parent(directory))
        except Refused as error:
            if may_be_gone and error.errno in ABSENT:
                return []
            raise
        if present == wanted:
            return []
        there = {directory: (present, True), **self._below(directory, present)}
        after = self._after(directory, wanted, there)
        # The kernel wants each cpuset inside its parent after every single write: what grows does
        # so from the top, what shrinks from below.
        writes: list[tuple[str, CpuSet]] = []
        if not wanted <= present:
            writes += [(path, cpus | wanted) for path, (cpus, follows) in there.items() if follows]
        writes += [(path, after[path]) for path in reversed(list(there))]
        steps: list[Step] = []
        for path, cpus in writes:
            gone = may_be_gone or path != directory
            step = self._write(f"{path}/cpuset.cpus", str(cpus), gone)
            if step.value != step.old:
                own = there[path][0]
                steps.append(SetCpus(step, [own, own | wanted, after[path]]))
        return steps

    def _below(self, directory: str, present: CpuSet) -> dict[str, tuple[CpuSet, bool]]:
        """(CPUs, whether it follows DIRECTORY, which has PRESENT) of all cpusets below, parents
        first.
        """
        found: dict[str, tuple[CpuSet, bool]] = {}
        for name in self.host.directories(directory):
            child = f"{directory}/{name}"
            text = self._text(f"{child}/cpuset.cpus")
            if not text:  # removed meanwhile, or just being made
                continue
            self._planned[f"{child}/cpuset.cpus"] = text  # it may yet be removed
            cpus = CpuSet.parse(text)
            follows = cpus == present
            found[child] = (cpus, follows)
            for path, (own, own_follows) in self._below(child, cpus).items():
                found[path] = (own, own_follows and follows)
        return found

    def _after(
        self, directory: str, wanted: CpuSet, there: dict[str, tuple[CpuSet, bool]]
    ) -> dict[str, CpuSet]:
        """What DIRECTORY, which is to have WANTED, and all below it will have."""
        after: dict[str, CpuSet] = {}
        for path, (cpus, follows) in there.items():
            after[path] = wanted if follows else cpus & wanted
            if after[path] or not cpus:
                continue
            if not self.forced:
                remedy = "stop the VM that it belongs to, or pin it to other CPUs, first"
                # libvirt leaves the cgroups of a VM that has ended while no daemon ran
                if self.host.read_optional(f"{path}/cgroup.procs") == "":
                    from shlex import quote  # the name of a VM may be in it

                    remedy = f"no process is in it, so remove it: rmdir {quote(printable(path))}"
                raise Error(
                    f"cannot set the CPUs of {printable(directory)} to {wanted}: "
                    f"{printable(path)} is limited to {cpus}",
                    remedy,
                )
            after[path] = after[parent(path)]
        return after

    def regain(self, wanted: dict[str, CpuSet | None]) -> list[Step]:
        """The kernel takes CPUs that go offline from every cpuset, and gives none back."""
        steps: list[Step] = []
        if self.has_cpus:
            for directory, cpus in sorted(wanted.items()):
                steps += self.set_cpus(directory, cpus) if self.exists(directory) else []
        return steps

    def check_free(self, directory: str, cpus: CpuSet) -> None:
        """The kernel would say no more than EINVAL."""
        if not self.has_cpus:
            return
        for other, taken in self.taken(directory).items():
            if taken & cpus:
                raise Error(
                    f"cannot give CPUs {taken & cpus} to VMs: {printable(other)} has "
                    "exclusive use of them (cpuset.cpu_exclusive)",
                    "take them back from it, or reserve them",
                )

    def taken(self, directory: str) -> dict[str, CpuSet]:
        found: dict[str, CpuSet] = {}
        above = self.hierarchy.mount
        for component in directory[len(above) :].strip("/").split("/"):
            for name in self.host.directories(above):
                other = f"{above}/{name}"
                exclusive = self.host.read_optional(f"{other}/cpuset.cpu_exclusive") or ""
                if name != component and exclusive.strip() == "1":
                    found[other] = CpuSet.parse(self.host.read(f"{other}/cpuset.cpus"))
            above = f"{above}/{component}"
        return found

    # limits

    def limits(self, kind: Kind) -> bool:
        return bool(kind.v1) and kind.controller in self.hierarchy.controllers

    def file(self, kind: Kind, directory: str) -> str:
        return f"{directory}/{kind.v1}"

    def value(self, kind: Kind, text: str) -> Value:
        return kind.parse_v1(text)

    def before(self, kind: Kind, directory: str) -> Value:
        """A new cpuset would have its parent's CPUs without us."""
        if kind is CPUS and directory in self._made:
            return self._cpus(parent(directory))
        return super().before(kind, directory)

    def put_back(self, kind: Kind, directory: str, value: Value, old: Value) -> list[Step]:
        cpus = as_cpus(value)
        if cpus:
            value = cpus & self._cpus(parent(directory)) or None
        return self.set(kind, directory, value, old)

    def set_bytes(self, kind: Kind, directory: str, value: Value, old: Value) -> list[Step]:
        step = self._write(self.file(kind, directory), kind.text_v1(value))
        may_be_refused = kind in (MEMORY, MEMSW) and directory not in self._made
        if not may_be_refused or value is None or kind.rises(old, value):
            return [step]
        from .lowering import LowerLimit

        return [LowerLimit(step, kind)]

    def is_populated(self, directory: str) -> bool:
        if (self.host.read_optional(f"{directory}/cgroup.procs") or "").strip():
            return True
        below = self.host.directories(directory)
        return any(self.is_populated(f"{directory}/{name}") for name in below)

    # memory

    def has_room(self, directory: str, limit: int) -> bool:
        """The kernel refuses a limit that it cannot reclaim to, so it is enough to use no more."""
        return self.memory_in_use(directory) <= limit

    def reclaim(self, directory: str, limit: int) -> None:
        """The kernel reclaims while it considers a new limit."""
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

    @property
    def counts_swap(self) -> bool:
        return self.host.exists(self.file(MEMSW, self.hierarchy.mount))

    def swap_in_effect(self, directory: str) -> tuple[int | None, int | None]:
        """What memory may have, and has, of the two together is left out."""
        limits = [in_bytes(self.read(kind, directory)) for kind in (MEMSW, MEMORY)]
        uses = [
            self.host.read_optional(f"{directory}/memory.{which}usage_in_bytes")
            for which in ("memsw.", "")
        ]
        return _less(*limits), _less(*(int(use) if use else None for use in uses))

    # the VM

    def tuning(self, old: str, new: str, wanted: set[str]) -> list[Step]:
        steps: list[Step] = []
        for controller in sorted(self.hierarchy.controllers & wanted):
            for name in TUNING.get(controller, ()):
                text = self.host.read_optional(f"{old}/{name}") or ""
                for line in text.splitlines():
                    unlimited = line.isdigit() and int(line) > UNLIMITED
                    if line and line != "-1" and not unlimited:
                        steps.append(Write(f"{new}/{name}", line))
        return steps

    def devices(self, old: str, new: str) -> list[Step]:
        """A list that is in a hierarchy of its own stays: the VM does, too.

        The kernel takes "a" only before there is a cgroup below, which then gets a copy of the list
        (devcgroup_update_access).
        """
        text = self._text(f"{old}/{DEVICES}")
        if text in ("", ALL_DEVICES, self._text(f"{new}/{DEVICES}")):
            return []
        allow = [Write(f"{new}/devices.allow", line) for line in text.splitlines()]
        return [Write(f"{new}/devices.deny", "a"), *allow]

    def cpus_in_effect(self, directory: str) -> CpuSet | None:
        return CpuSet.parse(self.host.read_optional(f"{directory}/cpuset.cpus") or "") or None

    def _cpus(self, directory: str) -> CpuSet:
        return CpuSet.parse(self._value(f"{directory}/cpuset.cpus"))

    def _value(self, file: str) -> str:
        """As `_text`. Raises Refused where there is no such file."""
        planned = self._planned.get(file)
        return self.host.read(file).strip() if planned is None else planned


def _less(both: int | None, one: int | None) -> int | None:
    return None if both is None or one is None else max(0, both - one)


class SetCpus(Write):
    """Sets the CPUs of a cpuset. What was made below it since the plan was made follows it.

    libvirt makes a VM's cpusets as copies of what is above them, at any moment, and the kernel
    takes no CPU that one below has (EBUSY).
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
                    self._take(host, parent(self.path), CpuSet.parse(self.value))
                super().run(host)
                break
            except Refused as error:
                if error.errno != EBUSY or attempt == self.TRIES:
                    raise

    def _take(self, host: Host, directory: str, cpus: CpuSet) -> None:
        """Leaves those below DIRECTORY no more than CPUS; one that would have none is left as it
        is.
        """
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
