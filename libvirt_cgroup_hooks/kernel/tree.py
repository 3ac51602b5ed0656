# SPDX-License-Identifier: LGPL-2.1-or-later
"""One cgroup hierarchy, whatever its version: what can be asked of it and planned for it."""

from __future__ import annotations

from ..kinds import MEMORY, as_cpus, in_bytes
from ..steps import Write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..cgroups import Hierarchy
    from ..cpuset import CpuSet
    from ..host import Host
    from ..kinds import Kind, Value
    from ..steps import Step


class InEffect:
    """What the kernel enforces on a cgroup, and what it uses.

    CPUs; limit and use of memory and of swap in bytes. None: no limit, no controller, no cgroup.
    """

    __slots__ = ("cpus", "memory_current", "memory_limit", "swap_current", "swap_limit")

    def __init__(
        self,
        cpus: CpuSet | None = None,
        memory_limit: int | None = None,
        memory_current: int | None = None,
    ) -> None:
        self.cpus = cpus
        self.memory_limit = memory_limit
        self.memory_current = memory_current
        self.swap_limit: int | None = None
        self.swap_current: int | None = None


class Tree:
    """Plans for one hierarchy. It serves one plan: it knows what its own earlier steps will have
    done.

    Directories are whole paths; the path of a cgroup begins at the hierarchy's root.
    """

    thread_file = ""  # where a thread's id is written to move it
    memory_use = ""  # the file that tells the bytes in use
    stat_prefix = ""  # in memory.stat, of lines with what is below, too
    splits = True  # whether libvirt makes thread groups here
    clips = True  # whether the kernel itself keeps what is below a cgroup within its CPUs
    refuses = False  # whether the kernel refuses a memory limit below what it can reclaim to
    forced = False  # whether a cpuset that would be left without CPUs gets those of its parent
    has_cpus = False
    has_memory = False

    def __init__(self, host: Host, hierarchy: Hierarchy) -> None:
        self.host = host
        self.hierarchy = hierarchy
        self._made: set[str] = set()  # directories that do not exist yet
        self._planned: dict[str, str] = {}  # what files will say, by path

    # where things are

    @property
    def daemon_path(self) -> str:
        """The cgroup that `$LIBVIRTD` stands for."""
        raise NotImplementedError

    def exists(self, directory: str) -> bool:
        """Whether DIRECTORY is there once the steps planned so far are made."""
        return directory in self._made or (
            parent(directory) not in self._made and self.host.exists(directory)
        )

    def is_new(self, directory: str) -> bool:
        """Whether DIRECTORY is made by the steps planned so far."""
        return directory in self._made

    def systemd_sets(self, kind: Kind) -> bool:
        """Whether systemd keeps limits of KIND in this hierarchy, so that others must not write."""
        raise NotImplementedError

    @property
    def systemd_makes(self) -> bool:
        """Whether systemd makes its units' cgroups in this hierarchy, and removes them."""
        raise NotImplementedError

    # files

    def _text(self, file: str) -> str:
        """What FILE says once the steps planned so far are made; "" where it is not there."""
        planned = self._planned.get(file)
        if planned is None and parent(file) not in self._made:
            planned = self.host.read_optional(file)
        return (planned or "").strip()

    def _write(self, file: str, value: str, may_be_gone: bool = False) -> Write:
        """What FILE said is put back by the undo; a new cgroup goes as a whole."""
        old = None if parent(file) in self._made else self._text(file)
        self._planned[file] = value
        return Write(file, value, old, may_be_gone)

    # cgroups

    def make(self, path: str, cpus: CpuSet | None = None) -> list[Step]:
        """The cgroup PATH and what is missing above it; PATH has CPUS afterwards, if given."""
        raise NotImplementedError

    def make_threads(self, path: str, groups: dict[str, CpuSet | None]) -> list[Step]:
        """The thread GROUPS below the VM cgroup PATH, with their CPUs (None: all of the VM's)."""
        raise NotImplementedError

    def nest(self, path: str, processes: list[int]) -> tuple[str, list[Step]]:
        """Where thread groups of PROCESSES, which are in the cgroup PATH, can be, and what that
        needs.
        """
        raise NotImplementedError

    def tuning(self, old: str, new: str, wanted: set[str]) -> list[Step]:
        """Copies from directory OLD to NEW what libvirt wrote for the controllers WANTED."""
        raise NotImplementedError

    def devices(self, old: str, new: str) -> list[Step]:
        """Has the device list of directory OLD hold for NEW, too."""
        raise NotImplementedError

    # limits

    def limits(self, kind: Kind) -> bool:
        """Whether a cgroup of this hierarchy can have a limit of KIND."""
        raise NotImplementedError

    def file(self, kind: Kind, directory: str) -> str:
        """The file of DIRECTORY that holds its limit of KIND."""
        raise NotImplementedError

    def read(self, kind: Kind, directory: str) -> Value:
        """What DIRECTORY is limited to; None where it is not, or is not there."""
        return self.value(kind, self._text(self.file(kind, directory)))

    def value(self, kind: Kind, text: str) -> Value:
        """What TEXT says in a file of KIND."""
        return kind.parse(text)

    def before(self, kind: Kind, directory: str) -> Value:
        """What DIRECTORY was limited to before this plan. For `put_back`."""
        if directory in self._made:
            return None
        return self.value(kind, self.host.read_optional(self.file(kind, directory)) or "")

    def set(self, kind: Kind, directory: str, value: Value, old: Value) -> list[Step]:
        """DIRECTORY is limited to VALUE instead of OLD. Raises Error where that cannot be."""
        if kind.of_cpus:
            return self.set_cpus(directory, as_cpus(value), may_be_gone=kind.of_vm)
        return self.set_bytes(kind, directory, value, old)

    def put_back(self, kind: Kind, directory: str, value: Value, old: Value) -> list[Step]:
        """As `set`, for a value that `before` told; of CPUs those that can be had now."""
        return self.set(kind, directory, value, old)

    def set_cpus(
        self, directory: str, wanted: CpuSet | None, may_be_gone: bool = False
    ) -> list[Step]:
        """The CPUs of DIRECTORY; None: all that are to be had. No step where it has them.

        MAY_BE_GONE: the cgroup is another's, who may remove it meanwhile.
        """
        raise NotImplementedError

    def set_bytes(self, kind: Kind, directory: str, value: Value, old: Value) -> list[Step]:
        """A limit that is a number."""
        raise NotImplementedError

    def regain(self, wanted: dict[str, CpuSet | None]) -> list[Step]:
        """CPUs by directory, those above first, that were lost while they were offline.

        None: all that its parent has.
        """
        return []

    def check_free(self, directory: str, cpus: CpuSet) -> None:
        """Raises Error where another cgroup has some of CPUS for itself alone, and DIRECTORY can
        have none.
        """

    def taken(self, directory: str) -> dict[str, CpuSet]:
        """The CPUs that cgroups beside the way to DIRECTORY have for themselves alone, by
        directory.
        """
        raise NotImplementedError

    def not_passed_down(self, path: str, controllers: list[str]) -> list[tuple[str, str]]:
        """(directory, controller) of each cgroup above PATH that does not pass one of CONTROLLERS
        on.
        """
        return []

    # memory

    def memory_in_use(self, directory: str) -> int:
        """Bytes; 0 where there is no such cgroup."""
        return int(self.host.read_optional(f"{directory}/{self.memory_use}") or 0)

    def hugepages_in_use(self, directory: str) -> int:
        """Bytes that are charged to DIRECTORY; 0 where the kernel does not tell."""
        return 0

    def memory_stat(self, directory: str) -> dict[str, int]:
        """Of DIRECTORY and all below it, by the names that v2 has.

        inactive_file is page cache that is not in active use, which the kernel drops first.
        """
        found: dict[str, int] = {}
        for line in (self.host.read_optional(f"{directory}/memory.stat") or "").splitlines():
            name, _, value = line.partition(" ")
            if name.startswith(self.stat_prefix) and value.isdigit():
                found[name[len(self.stat_prefix) :]] = int(value)
        return found

    def is_populated(self, directory: str) -> bool:
        """Whether there are processes in DIRECTORY or below it."""
        raise NotImplementedError

    def has_room(self, directory: str, limit: int) -> bool:
        """Whether DIRECTORY uses so little that LIMIT bytes can be set."""
        raise NotImplementedError

    def reclaim(self, directory: str, limit: int) -> None:
        """One attempt to bring the use of DIRECTORY down to LIMIT bytes. Raises Refused."""
        raise NotImplementedError

    # what `virt-cgroup status` shows

    def in_effect(self, directory: str) -> InEffect:
        """What this hierarchy limits at DIRECTORY."""
        found = InEffect()
        if self.has_cpus:
            found.cpus = self.cpus_in_effect(directory)
        if self.has_memory:
            found.memory_limit = in_bytes(self.read(MEMORY, directory))
            used = self.host.read_optional(f"{directory}/{self.memory_use}")
            found.memory_current = int(used) if used else None
            found.swap_limit, found.swap_current = self.swap_in_effect(directory)
        return found

    @property
    def counts_swap(self) -> bool:
        """Whether the kernel limits the swap of cgroups here."""
        raise NotImplementedError

    def swap_in_effect(self, directory: str) -> tuple[int | None, int | None]:
        """Limit and use of DIRECTORY in bytes."""
        raise NotImplementedError

    def cpus_in_effect(self, directory: str) -> CpuSet | None:
        """The CPUs that tasks of DIRECTORY may use."""
        raise NotImplementedError


def parent(directory: str) -> str:
    """The directory that has DIRECTORY; nothing is asked of the host."""
    return directory.rpartition("/")[0]
