# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host where nobody else owns cgroups: the fence is written, and VMs are moved.

libvirt makes every VM's cgroup below /machine. The VM parent has its fence before QEMU exists; once the VM has
started, its processes and threads move to the cgroup that the layout names. Until then they run below /machine,
which therefore has the same fence; and so does it with the native layout, where it is the VM parent.
"""

from __future__ import annotations

from .. import state, threads
from ..layout import escaped
from ..plan import Move, RemoveCgroup, RemoveEmpty
from . import placement
from .base import Manager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..domain import Domain
    from ..plan import Plan, Step
    from ..threads import Thread
    from .base import Tree

# Suffix of the cgroups that libvirt makes itself where there is no machined
LIBVIRT_SUFFIX = ".libvirt-qemu"
MACHINE = "/machine"
FIRST_LEVEL = ("machine", "system", "user")
TUNED_BY = {"cputune": {"cpu"}, "numatune": {"cpuset"}, "memtune": {"memory"}, "blkiotune": {"blkio", "io"}}
NOT_TUNED = (
    "virsh schedinfo, memtune, blkiotune, numatune and domstats do not reach a VM that was moved out of the cgroup "
    "libvirt made for it, and setvcpus --live and iothreadadd fail on cgroup v2; vcpupin, emulatorpin and iothreadpin do"
)


class Cgroupfs(Manager):
    name = "cgroupfs"

    def base(self, tree: Tree) -> str:
        """Where $LIBVIRTD is. On v2 a cgroup with processes has no children to speak of, so there it is the parent
        of the daemon's own, unless that is the root, which alone may have both."""
        placement = tree.hierarchy.placement
        return placement.rpartition("/")[0] if tree.hierarchy.version == 2 else placement

    def prepare(self, plan: Plan, domain: Domain) -> None:
        for tree in self.trees:
            self.layout.vm_path(domain, self.base(tree))  # an impossible name is told now, not when the VM runs
        self.begin_record(plan, domain)

    @property
    def reaches_into_vms(self) -> bool:
        return self.config.has_sets or not self.layout.native or any(tree.hierarchy.version == 1 for tree in self.trees)

    def started(self, plan: Plan, domain: Domain, running: Domain, found: list[Thread]) -> None:
        if self.layout.native:
            placement.set_cpus_in_place(self, plan, domain, found)
            return
        libvirt = self._libvirt_directories(found[0])
        paths = {tree: self.layout.vm_path(domain, self.base(tree)) for tree in self.trees}
        self._remember(plan, domain, list(libvirt.values()))
        helpers = self._helpers(libvirt, running)
        for tree, path in paths.items():
            self._make_place(plan, tree, path, domain, threads.groups_of(found), libvirt.get(tree.hierarchy.key))
            plan.add(*placement.move(tree, path, found[0].tid, found, helpers))
        pins = self.allowed_of(domain, domain.pins())
        moved = any(isinstance(step, Move) for step in plan.steps)
        plan.add(*placement.pin(self.host, pins, found, moved))

    def imagined(self, plan: Plan, domain: Domain) -> None:
        for tree in () if self.layout.native else self.trees:
            self._make_place(plan, tree, self.layout.vm_path(domain, self.base(tree)), domain, domain.group_names(), None)

    def stopped(self, plan: Plan, record: state.Record, last: bool) -> None:
        for path in record.groups:
            if self.host.exists(path) and (last or not path.endswith(LIBVIRT_SUFFIX)):
                plan.add(RemoveCgroup(path))
        if last:
            self.forget_record(plan, record)
            if self.is_last(record):
                shared = state.Shared(self.host)
                plan.add_shared(*self.opened(shared, list(shared.before)))
                plan.add_shared(*(RemoveEmpty(path) for path in sorted(shared.made, reverse=True)))
                shared.made = []
                plan.add_shared(*shared.save())

    # the VM parent

    def fence_parent(self, plan: Plan, domains: list[Domain]) -> None:
        """Libvirt starts VMs below /machine, which is therefore fenced like the VM parent."""
        shared = state.Shared(self.host)
        steps: list[Step] = []
        fenced: set[str] = set()
        for tree in self.trees:
            for path in self._parents(tree, domains, shared):
                steps += self._fenced(tree, path, shared, fenced)
        self.add_fence(plan, shared, fenced, steps)

    def opened(self, shared: state.Shared, names: list[str]) -> list[Step]:
        steps: list[Step] = []
        for file in names:
            value = shared.before.pop(file)
            for tree in self.trees:
                if tree.hierarchy.holds(file) and self.host.exists(file):
                    steps += tree.put_back(file, value)
        return steps

    def _parents(self, tree: Tree, domains: list[Domain], shared: state.Shared) -> list[str]:
        """Where VMs are or start: what has to be there, fenced if anything is reserved."""
        layouts = [self.layout, *(self.of(domain).layout for domain in domains)]
        own = [path for layout in layouts if (path := layout.parent_path(self.base(tree)))]
        if not self._limits(tree):
            return list(dict.fromkeys(own))
        files = [file for file in shared.before if tree.hierarchy.holds(file)]
        before = [file.rpartition("/")[0] for file in files if self.host.exists(file)]
        start = [staging(domain) for domain in domains] or [MACHINE]
        return list(dict.fromkeys([*start, *own, *(path[len(tree.hierarchy.mount) :] for path in before)]))

    def _limits(self, tree: Tree) -> list[str]:
        """Names of the files that hold the fence."""
        cpus = ["cpuset.cpus"] if self.fence.cpus is not None and tree.has_cpus else []
        return cpus + ([tree.limit_file] if self.fence.memory is not None and tree.has_memory else [])

    def _fenced(self, tree: Tree, path: str, shared: state.Shared, fenced: set[str]) -> list[Step]:
        """Makes PATH with the fence. Limit files go to FENCED, and what they said to SHARED if it is not known yet."""
        directory = tree.hierarchy.directory(path)
        files = [f"{directory}/{name}" for name in self._limits(tree)]
        steps = self.make_parent(tree, path, shared)
        fenced.update(files)
        shared.before.update((file, tree.before(file)) for file in files if file not in shared.before)
        if self.fence.memory is not None and tree.has_memory:
            steps += tree.set_limit(directory, self.fence.memory)
        return steps

    # the VM

    def _remember(self, plan: Plan, domain: Domain, libvirt: list[str]) -> None:
        """Before anything is made: the cgroups of the VM that have to go with it, libvirt's own among them."""
        record, old = self.record(domain)
        own = [tree.hierarchy.directory(self.layout.vm_top(domain, self.base(tree))) for tree in self.trees]
        record.groups = list(dict.fromkeys([*own, *record.groups, *libvirt]))
        self.save_record(plan, record, old)

    def _libvirt_directories(self, main: Thread) -> dict[str, str]:
        """By hierarchy key, the directory of the cgroup that libvirt made for the VM, where the VM still is in it."""
        directories = {}
        for hierarchy in self.all:
            path = main.cgroups.get(hierarchy.key, "").removesuffix("/emulator")
            if path.endswith(LIBVIRT_SUFFIX):
                directories[hierarchy.key] = hierarchy.directory(path)
        return directories

    def _helpers(self, libvirt: dict[str, str], running: Domain) -> dict[int, dict[str, str]]:
        """swtpm, virtiofsd and so on: the other processes of the VM's cgroup, and where each is."""
        numbers: dict[int, None] = {}
        for directory in libvirt.values():
            numbers.update(dict.fromkeys(threads.members(self.host, directory)))
            numbers.update(dict.fromkeys(threads.members(self.host, f"{directory}/emulator")))
        numbers.pop(running.pid or 0, None)
        places = {number: threads.process_cgroups(self.host, number) for number in numbers}
        return {number: place for number, place in places.items() if place is not None}

    def _make_place(self, plan: Plan, tree: Tree, path: str, domain: Domain, names: list[str], libvirt: str | None) -> None:
        """The VM cgroup with its thread groups, and what LIBVIRT, the directory of its own cgroup, has been tuned to."""
        directory = tree.hierarchy.directory(path)
        carries = self.layout.parent is None and tree.has_cpus
        opens = carries and self.fence.cpus is None and tree.exists(directory)
        top = tree.hierarchy.directory(self.layout.vm_top(domain, self.base(tree)))
        plan.add_below(top, *tree.make(path, self.fence.cpus if carries else None))
        plan.add(*(tree.set_cpus(directory, None) if opens else []))
        groups = self.allowed_of(domain, names)
        plan.add(*tree.make_threads(path, groups))
        if libvirt is not None:
            tuned = set().union(*(TUNED_BY[element] for element in domain.tuned))
            for group in ("", *(f"/{name}" for name in groups)) if tuned else ():
                plan.add(*tree.tuning(libvirt + group, directory + group, tuned))
            plan.add(*tree.devices(libvirt, directory))

    # what virt-cgroup status shows

    def parent_paths(self) -> dict[Tree, str]:
        paths = {tree: MACHINE if self.layout.native else self.layout.parent_path(self.base(tree)) for tree in self.trees}
        return {tree: path for tree, path in paths.items() if path and (tree.has_cpus or tree.has_memory)}

    def place_of(self, domain: Domain, tree: Tree, thread: Thread) -> str | None:
        if self.layout.native:
            return None
        path = self.layout.vm_path(domain, self.base(tree))
        return f"{path}/{thread.group}" if tree.splits else path

    def notes(self, found: list[Thread]) -> list[str]:
        moved = found and not self.layout.native and LIBVIRT_SUFFIX not in self.cgroup_of(found[0])
        return [NOT_TUNED] if moved else []


def staging(domain: Domain) -> str:
    """The top of where libvirt starts DOMAIN: "/machine" unless its XML says else (virCgroupSetPartitionSuffix)."""
    first = domain.partition.strip("/").partition("/")[0] or "machine"
    if first not in FIRST_LEVEL and "." not in first:
        first += ".partition"
    return "/" + escaped(first)
