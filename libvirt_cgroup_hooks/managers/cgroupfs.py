# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host where nobody else owns cgroups: the fence is written, and VMs are moved.

libvirt makes every VM's cgroup below /machine. The VM parent has its fence before QEMU exists; once
the VM has started, its processes and threads move to the cgroup that the layout names. Until then
they run below /machine, which therefore has the same fence; and so does it with the native layout,
where it is the VM parent.
"""

from __future__ import annotations

from ..kinds import HOST_CPUS, VM_CPUS
from ..layout import escaped
from ..steps import RemoveCgroup
from .base import Manager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..domain import Domain
    from ..kernel.tree import Tree
    from ..kinds import Kind, Value
    from ..plan import Plan
    from ..state import Record
    from ..steps import Step
    from ..threads import Thread
    from .base import Limits

# Suffix of the cgroups that libvirt makes itself where there is no machined
LIBVIRT_SUFFIX = ".libvirt-qemu"
MACHINE = "/machine"
FIRST_LEVEL = ("machine", "system", "user")
TUNED_BY = {
    "cputune": {"cpu"},
    "numatune": {"cpuset"},
    "memtune": {"memory"},
    "blkiotune": {"blkio", "io"},
}
NOT_TUNED = (
    "virsh schedinfo, memtune, blkiotune, numatune and domstats do not reach a VM that was moved "
    "out of the cgroup libvirt made for it, and setvcpus --live and iothreadadd fail on cgroup v2; "
    "vcpupin, emulatorpin and iothreadpin do"
)


class Cgroupfs(Manager):
    """Hosts where libvirt makes the cgroups itself; limits are files of the kernel's."""

    name = "cgroupfs"
    machine = MACHINE

    # limits

    def parents(self, kind: Kind, domains: list[Domain]) -> list[str]:
        """libvirt starts VMs below /machine, which is therefore fenced like the VM parent."""
        tree = self.tree_of(kind)
        if tree is None:
            return []
        start = [staging(domain) for domain in domains] or [MACHINE]
        return [*start, *self._own_parents(tree, domains)]

    def _own_parents(self, tree: Tree, domains: list[Domain]) -> list[str]:
        """The VM parents of the configured layout and of DOMAINS' own."""
        layouts = [self.layout, *(self.for_domain(domain).layout for domain in domains)]
        paths = [layout.parent_path(tree.daemon_path) for layout in layouts]
        return [path for path in paths if path]

    def directories(self, domains: list[Domain]) -> list[tuple[Tree, str]]:
        return [(tree, path) for tree in self.trees for path in self._own_parents(tree, domains)]

    def makes(self, kind: Kind) -> bool:
        return not kind.of_host and not kind.of_vm

    def host_units(self, kind: Kind) -> list[str]:
        tree = self.tree_of(kind)
        paths = [f"/{name}" for name in self.config.host_units]
        return [path for path in paths if tree and tree.exists(tree.hierarchy.directory(path))]

    def put_back(self, path: str, kind: Kind, value: Value) -> list[Step]:
        tree = self.tree_of(kind)
        if tree is None:
            return []
        directory = tree.hierarchy.directory(path)
        there = tree.read(kind, directory)
        if there == value or not self.host.exists(directory):
            return []
        return tree.put_back(kind, directory, value, there)

    def write(self, path: str, wanted: Limits, there: Limits) -> list[Step]:
        steps: list[Step] = []
        for kind, value in wanted.items():
            tree = self.tree_of(kind)
            if tree:
                steps += tree.set(kind, tree.hierarchy.directory(path), value, there[kind])
        return steps

    def shared_paths(self) -> list[str]:
        tree = self.tree_of(HOST_CPUS)
        if tree is None or self.layout.native:
            return [MACHINE]
        return [MACHINE, self.layout.shared_path(tree.daemon_path)]

    @property
    def remembers(self) -> bool:
        """With the last of them the limits go that VMs had."""
        return True

    @property
    def carries(self) -> bool:
        """For want of a parent, too."""
        alone = not self.layout.native and self.layout.parent is None
        return super().carries or (self.fence.cpus is not None and alone)

    # a VM

    @property
    def reaches_into_vms(self) -> bool:
        inside = self.carries or not self.layout.native or self.config.has_sets
        return inside or not all(tree.clips for tree in self.trees)

    def prepare(self, plan: Plan, domain: Domain) -> None:
        for tree in self.trees:  # an impossible name is told now, not when the VM runs
            self.layout.vm_path(domain, tree.daemon_path)
        self.begin_record(plan, domain)

    def start(self, plan: Plan, domain: Domain) -> None:
        """libvirt takes the cgroup of the VM as it finds it: with the fence, where its parent has
        none.
        """
        cpus = self.carried(domain) if self.fence.lent or self.taken(domain) else None
        if not cpus or domain.id is None:
            return
        path = libvirts_path(domain, domain.id)
        places = {tree.hierarchy.directory(path): tree for tree in self.trees if tree.has_cpus}
        record, old = self.records.of(domain)
        record.groups = list(dict.fromkeys([*record.groups, *places]))
        self.records.save(plan, record, old)
        for directory, tree in places.items():
            plan.add_below(directory, *tree.make(path, cpus))

    def place(self, plan: Plan, domain: Domain, running: Domain, vm_threads: list[Thread]) -> None:
        from .. import threads  # only now: the other operations do without
        from . import placement

        if self.layout.native:
            # what other VMs have for themselves is kept by limits.py
            if (self.carries or plan.operation != "started") and not self.taken(domain):
                self._carry(plan, running, vm_threads[0])
            placement.set_cpus_in_place(self, plan, domain, vm_threads)
            plan.add(*placement.unpin(self, domain, vm_threads))
            return
        main = vm_threads[0]
        libvirt = self._libvirt_directories(main)
        self._remember(plan, domain, list(libvirt.values()))
        helpers = placement.helpers(self.host, list(libvirt.values()), running)
        groups = threads.groups_of(vm_threads)
        moves: list[Step] = []
        for tree in self.trees:
            path = self.layout.vm_path(domain, tree.daemon_path)
            self._make_place(plan, tree, path, domain, groups, libvirt.get(tree.hierarchy.key))
            steps = placement.move(tree, path, main.tid, vm_threads, helpers)
            plan.add(*steps)
            moves += steps
        pins = self.allowed(domain, domain.pins())
        plan.add(*placement.pin(self.host, pins, vm_threads, moved=bool(moves)))
        plan.add(*placement.unpin(self, domain, vm_threads))

    def strays(self, domain: Domain) -> bool:
        """Where a layout is configured it is about to be moved there."""
        return self.layout.native and super().strays(domain)

    def _carry(self, plan: Plan, domain: Domain, main: Thread) -> None:
        """The fence of a VM that stays where libvirt, or an earlier layout, has put it; where it
        carries none any more, it gets back what that has taken.
        """
        cpus = self.carried(domain)
        record, old = self.records.of(domain)
        for tree in self.trees:
            directory = tree.hierarchy.directory(self.vm_of(main, tree))
            known = any(f"{directory}/".startswith(f"{group}/") for group in record.groups)
            if tree.has_cpus and (known or (cpus and directory.endswith(LIBVIRT_SUFFIX))):
                record.groups = list(dict.fromkeys([*record.groups, directory]))
                self.records.save(plan, record, old)
                plan.add(*tree.set_cpus(directory, cpus))

    def imagined(self, plan: Plan, domain: Domain) -> None:
        if self.layout.native:
            return
        for tree in self.trees:
            path = self.layout.vm_path(domain, tree.daemon_path)
            self._make_place(plan, tree, path, domain, domain.group_names(), None)

    def stopped(self, plan: Plan, record: Record) -> None:
        """libvirt removes its own cgroup of the VM itself."""
        for path in record.groups:
            if self.host.exists(path) and not path.endswith(LIBVIRT_SUFFIX):
                plan.add(RemoveCgroup(path))

    def _remember(self, plan: Plan, domain: Domain, libvirt: list[str]) -> None:
        """Before anything is made: the cgroups that have to go with the VM, libvirt's own among
        them.
        """
        record, old = self.records.of(domain)
        own: list[str] = []
        for tree in self.trees:
            own.append(tree.hierarchy.directory(self.layout.vm_top(domain, tree.daemon_path)))
        record.groups = list(dict.fromkeys([*own, *record.groups, *libvirt]))
        self.records.save(plan, record, old)

    def _libvirt_directories(self, main: Thread) -> dict[str, str]:
        """By hierarchy key, the directory of the cgroup that libvirt made for the VM, while it is
        in it.
        """
        directories: dict[str, str] = {}
        for hierarchy in self.hierarchies:
            path = main.cgroups.get(hierarchy.key, "").removesuffix("/emulator")
            if path.endswith(LIBVIRT_SUFFIX):
                directories[hierarchy.key] = hierarchy.directory(path)
        return directories

    def _make_place(
        self,
        plan: Plan,
        tree: Tree,
        path: str,
        domain: Domain,
        groups: list[str],
        libvirt: str | None,
    ) -> None:
        """The VM cgroup PATH of TREE with its thread GROUPS.

        It is tuned like LIBVIRT, the directory of the cgroup that libvirt made, where there is one.
        """
        directory = tree.hierarchy.directory(path)
        existed = tree.exists(directory)
        top = tree.hierarchy.directory(self.layout.vm_top(domain, tree.daemon_path))
        cpus = self.carried(domain) if tree.has_cpus else None
        plan.add_below(top, *tree.make(path, cpus))
        if tree.has_cpus and existed and not cpus:  # it carries none any more
            plan.add(*tree.set_cpus(directory, None))
        if libvirt is not None:  # thread groups get a copy of a v1 device list
            plan.add(*tree.devices(libvirt, directory))
        plan.add(*tree.make_threads(path, self.allowed(domain, groups)))
        if libvirt is None:
            return
        tuned = set().union(*(TUNED_BY[element] for element in domain.tuned))
        if tuned:
            for group in ["", *(f"/{name}" for name in groups)]:
                plan.add(*tree.tuning(libvirt + group, directory + group, tuned))

    # where things are

    def own_cgroups(self, domain: Domain, pid: int | None) -> list[str]:
        """Where libvirt starts the VM, where it is, and where it is moved to."""
        tree = self.tree_of(VM_CPUS)
        if tree is None or domain.id is None:
            return []
        from .. import threads

        found = [] if self.layout.native else [self.layout.vm_path(domain, tree.daemon_path)]
        places = threads.process_cgroups(self.host, pid) if pid else None
        here = (places or {}).get(tree.hierarchy.key, "").removesuffix("/emulator")
        record, _ = self.records.of(domain)
        directory = tree.hierarchy.directory(here)
        known = any(f"{directory}/".startswith(f"{group}/") for group in record.groups)
        if here.endswith(LIBVIRT_SUFFIX) or known:
            found.append(here)
        elif here not in found:
            found.append(libvirts_path(domain, domain.id))
        return list(dict.fromkeys(found))

    def parent_paths(self, domain: Domain | None = None) -> dict[Tree, str]:
        paths: dict[Tree, str] = {}
        native = staging(domain) if domain else MACHINE
        for tree in self.trees:
            path = native if self.layout.native else self.layout.parent_path(tree.daemon_path)
            if path and (tree.has_cpus or tree.has_memory):
                paths[tree] = path
        return paths

    def place_of(self, domain: Domain, tree: Tree, thread: Thread) -> str | None:
        if self.layout.native:
            return None
        path = self.layout.vm_path(domain, tree.daemon_path)
        return f"{path}/{thread.group}" if tree.splits else path

    def notes(self, vm_threads: list[Thread]) -> list[str]:
        if not vm_threads or self.layout.native:
            return []
        return [] if LIBVIRT_SUFFIX in self.cgroup_of(vm_threads[0]) else [NOT_TUNED]


def staging(domain: Domain) -> str:
    """The top of where libvirt starts DOMAIN: "/machine" unless its XML names another partition."""
    return _partition([domain.partition_top])


def libvirts_path(domain: Domain, number: int) -> str:
    """The cgroup that libvirt makes for DOMAIN, which has the id NUMBER."""
    from .units import machine_name

    name = machine_name(domain.name, number) + LIBVIRT_SUFFIX
    components = (domain.partition.strip("/") or "machine").split("/")
    return f"{_partition(components)}/{escaped(name)}"


def _partition(components: list[str]) -> str:
    """By the rules of virCgroupSetPartitionSuffix."""
    path = ""
    for name in components:
        fixed = not path and name in FIRST_LEVEL
        path += "/" + escaped(name if fixed or "." in name else f"{name}.partition")
    return path
