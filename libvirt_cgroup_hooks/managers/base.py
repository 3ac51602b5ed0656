# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every manager does alike: the checks before a VM starts, the CPUs of its threads, and what `status` shows."""

from __future__ import annotations

from .. import state, threads
from ..cpuset import CpuSet
from ..errors import Error, Refusal, printable
from ..fence import memory_of
from ..plan import CLEAN_UP, Plan, RemoveCgroup, Step, Write
from ..threads import Thread
from .placement import home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeVar, Union

    from ..cgroups import Cgroups
    from ..config import Config
    from ..domain import Domain
    from ..fence import Fence
    from ..host import Host
    from .v1 import V1
    from .v2 import V2

    Tree = Union[V1, V2]
    M = TypeVar("M", bound="Manager")

PRESSURE = ("/memory.high", " MemoryHigh")  # how the names of such limits end


class Manager:
    """Plans what the hook does on HOST at each operation. One serves one plan."""

    name = ""

    def __init__(self, host: Host, config: Config, cgroups: Cgroups, fence: Fence, daemon: dict[str, str]) -> None:
        """DAEMON: the daemon's cgroup by hierarchy key."""
        self.host = host
        self.config = config
        self.fence = fence
        self.layout = config.cgroup_layout
        self.daemon = daemon
        self.admitted = state.Admitted(host)
        self.all = cgroups.hierarchies
        self.trees = _trees(host, cgroups)

    def plan(self, operation: str, domain: Domain, imagine: bool = False) -> Plan:
        """With IMAGINE, a VM that is not running is planned for as if it had just started.

        Raises Error where what is configured cannot be done.
        """
        plan = Plan(operation, transaction=operation not in CLEAN_UP)
        if operation in ("prepare", "release"):
            self.forget_left_behind(plan, domain.uuid)
        if operation in CLEAN_UP:
            record = state.Record.read(self.host, domain.uuid)
            if record:
                self.stopped(plan, record, last=operation == "release")
            return plan
        own = self.of(domain)
        if operation == "prepare":
            self.check_controllers()
            self._check_parent(own, domain)
            own.admit(plan, domain)
            own.prepare(plan, domain)
            self.fence_parent(plan, [domain])
        elif operation == "start":
            own.start(plan, domain)
        elif operation in ("started", "reconnect"):
            self.fence_parent(plan, [domain])
            running = threads.status(self.host, domain.name)
            found = threads.threads(self.host, running) if running else []
            if running and found:
                own.place(plan, domain, running, found)
            elif imagine:
                plan.warnings.append(f"VM {printable(domain.name)} is not running: no process of it is placed")
                own.imagined(plan, domain)
            else:
                raise Error(f"VM {printable(domain.name)} has no process", "it has ended meanwhile")
        return plan

    def of(self: M, domain: Domain) -> M:
        """This with DOMAIN's own settings; what it knows of the host is shared. Raises Refusal for impossible ones."""
        if not domain.settings:
            return self
        own = object.__new__(type(self))
        own.__dict__.update(self.__dict__)
        own.config = self.config.of(domain, self._present())
        own.layout = own.config.cgroup_layout
        return own

    def forget_left_behind(self, plan: Plan, but: str = "", running: set[str] | None = None) -> None:
        """What is left of VMs that are gone, where the hook or the daemon was killed before it had cleaned up.

        Not of the VM BUT; RUNNING is as for `state.left_behind`.
        """
        plan.add_shared(*state.half_written(self.host))
        for uuid in state.left_behind(self.host, running):
            record = state.Record.read(self.host, uuid)
            if uuid != but and record:
                plan.add_shared(*self.remains(record))
                self.forget_record(plan, record)
            elif uuid != but:
                plan.add_shared(state.forget(self.host, uuid))

    def is_last(self, record: state.Record) -> bool:
        """Whether no other VM runs or starts."""
        return set(state.recorded(self.host)) - set(state.left_behind(self.host)) <= {record.uuid}

    def refit(self, plan: Plan, running: list[Domain], force: bool = False) -> None:
        """A changed reservation, for the VM parent and for the VMs that are RUNNING (from `threads.running`).

        Raises Error where that cannot be, and with FORCE only where it cannot be by any means.
        """
        self.check_controllers()
        for tree in self.trees:
            if tree.version == 1:
                tree.forced = force
        self.fence_parent(plan, running)
        for domain in running:
            own = self.of(domain)
            found = threads.threads(self.host, domain) if own.reaches_into_vms else []
            if found:
                own.place(plan, domain, domain, found)

    def place(self, plan: Plan, domain: Domain, running: Domain, found: list[Thread]) -> None:
        """A VM that runs; one that started before there was a hook is to be counted from now on."""
        if self.config.memory_admission:
            record, old = self.record(domain)
            self.save_record(plan, record, old)
        self.started(plan, domain, running, found)

    # what each manager does itself

    @property
    def reaches_into_vms(self) -> bool:
        """Whether the fence is also something that each VM has of its own."""
        raise NotImplementedError

    def prepare(self, plan: Plan, domain: Domain) -> None:
        """Before QEMU exists: the VM's record. Raises Error for a VM that cannot have its place."""
        raise NotImplementedError

    def fence_parent(self, plan: Plan, domains: list[Domain]) -> None:
        """The VM parent and its fence, and those of DOMAINS where they are others'; what is reserved no more is opened.

        A cgroup that was fenced for an earlier layout keeps the fence: VMs may still run there.
        """
        raise NotImplementedError

    def start(self, plan: Plan, domain: Domain) -> None:
        """Just before QEMU is made; the domain's id is known."""

    def started(self, plan: Plan, domain: Domain, running: Domain, found: list[Thread]) -> None:
        """QEMU runs, with all its threads."""
        raise NotImplementedError

    def imagined(self, plan: Plan, domain: Domain) -> None:
        """As `started`, for a VM that does not run."""

    def stopped(self, plan: Plan, record: state.Record, last: bool) -> None:
        """QEMU has ended. LAST: libvirt has removed what it knew of, so what is left is ours to remove."""
        raise NotImplementedError

    def parent_paths(self) -> dict[Tree, str]:
        """The VM parent's cgroup in each tree that has one."""
        raise NotImplementedError

    # memory

    def memory_parents(self) -> dict[str, Tree]:
        """The directories of the VM parent that count its memory, those that exist."""
        trees = {tree.hierarchy.directory(path): tree for tree, path in self.parent_paths().items() if tree.has_memory}
        return {directory: tree for directory, tree in trees.items() if self.host.exists(directory)}

    def memory_in_use(self, domain: Domain) -> int:
        """Bytes that the running DOMAIN has now; 0 where it has ended."""
        cgroups = threads.process_cgroups(self.host, domain.pid or 0)
        tree = next((tree for tree in self.trees if tree.has_memory), None)
        if cgroups is None or tree is None:
            return 0
        main = Thread(domain.pid or 0, "", "emulator", cgroups)
        return tree.memory_in_use(tree.hierarchy.directory(self.vm_of(main, tree)))

    def press(self, plan: Plan) -> None:
        """Lowers memory.high of the VM parent, so that its use falls below the fence; `relieve` takes it back.

        What it was is remembered, so that the next run of the hook mends what a killed one has left.
        """
        shared = state.Shared(self.host)
        steps: list[Step] = []
        for directory, tree in self.memory_parents().items():
            if tree.version == 2 and self.fence.memory is not None:
                new, old = tree.pressure(directory, self.fence.memory)
                name, step = self.pressing(directory, tree, new, old)
                shared.before.setdefault(name, old)
                steps.append(step)
        plan.add(*shared.save(), *steps)

    def relieve(self, plan: Plan) -> None:
        self._relieve(plan, state.Shared(self.host))

    def _relieve(self, plan: Plan, shared: state.Shared) -> None:
        opened = self.opened(shared, [name for name in shared.before if name.endswith(PRESSURE)])
        plan.add_shared(*opened, *shared.save())

    def pressing(self, directory: str, tree: V2, new: str, old: str) -> tuple[str, Step]:
        """What is written, by the name under which it is put back, and the step that writes it."""
        file = f"{directory}/memory.high"
        return file, Write(file, new, old)

    def add_fence(self, plan: Plan, shared: state.Shared, fenced: set[str], steps: list[Step]) -> None:
        """STEPS make the limits FENCED; others that SHARED remembers are opened.

        The pressure goes last, since setting a memory limit puts back the memory.high that it has found.
        """
        opened = self.opened(shared, [name for name in shared.before if name not in fenced and not name.endswith(PRESSURE)])
        plan.add_shared(*shared.save(), *opened, *steps)
        self._relieve(plan, shared)

    def make_parent(self, tree: Tree, path: str, shared: state.Shared) -> list[Step]:
        """The cgroup PATH with the CPUs of the fence; what is new goes to SHARED."""
        directories, cpus = tree.hierarchy.directories(path), self.fence.cpus
        steps: list[Step] = []
        if tree.version == 1:
            fenced = {one: cpus for one in directories[:-1] if f"{one}/cpuset.cpus" in shared.before}
            steps += tree.regain({**{one: None for one in directories[:-1] if one in shared.made}, **fenced})
        shared.made += [directory for directory in directories if not tree.exists(directory)]
        made = tree.make(path, cpus)
        if made and cpus is not None and tree.version == 1:
            tree.check_free(directories[-1], cpus)
        return steps + made

    def opened(self, shared: state.Shared, names: list[str]) -> list[Step]:
        """Puts back what the limits NAMES of SHARED said before, and forgets them."""
        raise NotImplementedError

    def place_of(self, domain: Domain, tree: Tree, thread: Thread) -> str | None:
        """Where THREAD has to be; None: anywhere."""
        raise NotImplementedError

    # prepare

    def check_controllers(self) -> None:
        if self.fence.cpus is not None and not any(tree.has_cpus for tree in self.trees):
            raise Error("cannot keep CPUs for the host: there is no cpuset controller", "mount or enable it")
        if self.fence.memory is not None and not any(tree.has_memory for tree in self.trees):
            raise Error("cannot keep memory for the host: there is no memory controller", "mount or enable it")

    def _check_parent(self, own: Manager, domain: Domain) -> None:
        """Raises Refusal where DOMAIN's own layout would take it out of the one memory limit of all VMs."""
        tops = self.parent_paths() if own is not self and self.fence.memory is not None else {}
        for tree, path in own.parent_paths().items():
            if tree.has_memory and tree in tops and f"{path}/".partition(f"{tops[tree]}/")[0]:
                raise Refusal(
                    f'VM {printable(domain.name)} has layout = "{printable(own.layout.preset)}" in its metadata, and '
                    f"reserved_host_mem limits what is below {tops[tree]}",
                    "give it a layout below that, or none of its own",
                )

    def admit(self, plan: Plan, domain: Domain) -> None:
        if domain.pins() or self.config.memory_admission:
            from .admission import check  # most VMs have nothing to be asked for

            check(self, plan, domain)

    def pinnable(self, cpus: CpuSet) -> CpuSet:
        """What VMs may be pinned to: the fence's CPUS, and those that would be in it but are offline."""
        return cpus | self._present() - self.kept

    @property
    def has_v1_cpusets(self) -> bool:
        return any(tree.version == 1 and tree.has_cpus for tree in self.trees)

    @property
    def kept(self) -> CpuSet:
        return self.config.reserved_host_cpus or CpuSet()

    def _present(self) -> CpuSet:
        return CpuSet.parse(self.host.read("/sys/devices/system/cpu/present"))

    # records

    def begin_record(self, plan: Plan, domain: Domain) -> None:
        """The VM's record as it starts; what an earlier run of it has left is removed."""
        stale = state.Record.read(self.host, domain.uuid)
        if stale:
            plan.add(*self.remains(stale))
        self.save_record(plan, state.Record(domain.uuid, domain.name, memory_of(domain)), stale)

    def record(self, domain: Domain) -> tuple[state.Record, state.Record | None]:
        """DOMAIN's record, to be changed, and as it is."""
        old = state.Record.read(self.host, domain.uuid)
        new = state.Record.read(self.host, domain.uuid) or state.Record(domain.uuid, domain.name, memory_of(domain))
        return new, old

    def save_record(self, plan: Plan, record: state.Record, old: state.Record | None) -> None:
        begin = self.config.memory_admission
        plan.add_shared(*self.admitted.change(record.uuid, old.memory if old else 0, record.memory, begin))
        plan.add(*record.save(old))

    def forget_record(self, plan: Plan, record: state.Record) -> None:
        plan.add_shared(*self.admitted.change(record.uuid, record.memory, 0, begin=False), record.forget())

    def remains(self, record: state.Record) -> list[Step]:
        return [RemoveCgroup(path) for path in record.groups if self.host.exists(path)]

    # the CPUs of threads

    def allowed(self, domain: Domain, group: str) -> CpuSet | None:
        """The CPUs of a thread group, inside the fence: its pin in the XML, else the host-wide set, else None."""
        return self.allowed_of(domain, [group])[group]

    def allowed_of(self, domain: Domain, groups: Iterable[str]) -> dict[str, CpuSet | None]:
        """As `allowed`, for all GROUPS: a VM may have hundreds, each with its pin."""
        pins, fence = domain.pins(), self.fence.cpus
        wanted = {group: pins.get(group) or self.config.set_of(group) for group in groups}
        return {group: (cpus if fence is None else cpus & fence) or None if cpus else None for group, cpus in wanted.items()}

    # what virt-cgroup status shows

    def taken(self) -> dict[str, CpuSet]:
        """What others have for themselves alone of the CPUs of the fence, by the directories of their cgroups."""
        if self.fence.cpus is None:
            return {}
        trees = {tree: path for tree, path in self.parent_paths().items() if tree.has_cpus}
        found = [tree.taken(tree.hierarchy.directory(path)) for tree, path in trees.items()]
        taken = {path: cpus & self.fence.cpus for one in found for path, cpus in one.items()}
        return {path: cpus for path, cpus in taken.items() if cpus}

    def parent(self) -> dict[str, object]:
        """The VM parent and what is in effect on it; bytes, and None where there is no limit or no parent."""
        found: dict[str, object] = {"path": None, "cpus": None, "memory_limit": None, "memory_current": None}
        for tree, path in self.parent_paths().items():
            found["path"] = path
            found.update(tree.in_effect(tree.hierarchy.directory(path)))
        return found

    def cgroup_of(self, thread: Thread, tree: Tree | None = None) -> str:
        """The cgroup that the thread is in; that which decides its CPUs, if no TREE is given."""
        tree = tree or min(self.trees, key=lambda tree: (not tree.has_cpus, not tree.splits))
        return thread.cgroups.get(tree.hierarchy.key, "")

    def vm_of(self, thread: Thread, tree: Tree | None = None) -> str:
        """The VM's cgroup."""
        return self.cgroup_of(thread, tree).removesuffix(f"/{thread.group}")

    def problems(self, domain: Domain, thread: Thread, cpus: CpuSet) -> list[str]:
        """How the place of THREAD, and the CPUS it may use, differ from what is configured."""
        found = []
        for tree in self.trees:
            wanted, actual = self.place_of(domain, tree, thread), thread.cgroups.get(tree.hierarchy.key)
            if wanted in (None, actual):
                wanted = home(self.host, tree, thread) if actual is not None else None
            if wanted not in (None, actual):
                found.append(f"it is in {tree.hierarchy.key or 'cgroup'} {actual}, not in {wanted}")
        allowed = self.allowed(domain, thread.group) or self.fence.cpus
        if allowed and not cpus <= allowed:
            found.append(f"it may use CPUs {cpus}, not only {allowed}")
        return found

    def notes(self, found: list[Thread]) -> list[str]:
        """What is worth knowing about a VM, given its threads."""
        return []


def _trees(host: Host, cgroups: Cgroups) -> list[Tree]:
    """A hybrid host's v2 hierarchy stays as libvirt made it: its device program and CPU accounting sit there.

    Of v1 and v2 only the one that the host has is loaded.
    """
    if cgroups.v1 or not cgroups.unified:
        from .v1 import V1

        return [V1(host, hierarchy) for hierarchy in cgroups.v1 if "devices" not in hierarchy.controllers]
    from .v2 import V2

    return [V2(host, cgroups.unified)]
