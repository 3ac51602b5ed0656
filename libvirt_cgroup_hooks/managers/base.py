# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every manager is asked: where a VM is, how it gets there, and how a limit is set there."""

from __future__ import annotations

from .. import kernel
from ..cgroups import placements
from ..cpuset import CpuSet
from ..kinds import CPUS, LOW, MEMORY, MIN, PRESSURE, VM_CPUS, in_bytes
from ..state import Record, Records
from ..steps import RemoveCgroup, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeVar

    from ..cgroups import Cgroups
    from ..config import Config
    from ..domain import Domain
    from ..errors import Error
    from ..fence import Fence
    from ..host import Host
    from ..kernel.tree import Tree
    from ..kinds import Kind, Value
    from ..plan import Plan
    from ..threads import Thread

    M = TypeVar("M", bound="Manager")
    Limits = dict[Kind, Value]


class Manager:
    """HOST under one configuration. It serves one plan."""

    name = ""
    machine = ""  # the cgroup in which libvirt itself puts VMs

    def __init__(
        self, host: Host, config: Config, cgroups: Cgroups, fence: Fence, daemon: dict[str, str]
    ) -> None:
        """DAEMON: the daemon's cgroup by hierarchy key."""
        self.host = host
        self.config = config
        self.fence = fence
        self.layout = config.cgroup_layout
        self.daemon = daemon
        self.systemd_key = cgroups.systemd_key
        self.hierarchies = cgroups.hierarchies
        # whether the memory limit has to have room for the hugepages of VMs
        self.limits_hugepages = cgroups.charges_hugepages and fence.memory is not None
        self.trees = kernel.trees(host, cgroups)
        self.records = Records(host, config.memory_admission)
        self._places: list[dict[str, str]] | None = None  # of the VMs that run, by hierarchy
        self._running: list[list[Domain]] = []
        self.unknown: dict[str, Error] = {}
        self._of_all: Manager | None = None  # that of all VMs, where this is one VM's own

    def for_domain(self: M, domain: Domain) -> M:
        """The manager with DOMAIN's own settings; what it knows of the host is shared.

        Raises Refusal for impossible ones.
        """
        if not domain.settings:
            return self
        from ..own_settings import for_domain

        own = object.__new__(type(self))
        own.__dict__.update(self.__dict__)
        own._of_all = self._of_all or self
        own.config = for_domain(self.config, domain, self.present())
        own.layout = own.config.cgroup_layout
        if own.config.dedicated != "no":
            from ..dedicated import keep_off
            from ..memory import read_online

            keep_off(own.config, own.fence, domain, read_online(self.host.read_optional))
        return own

    # limits: `path` is that of a cgroup in the hierarchy of the limit's controller

    def parents(self, kind: Kind, domains: list[Domain]) -> list[str]:
        """Where VMs are, or start: the VM parent, and what else holds DOMAINS."""
        raise NotImplementedError

    def decided_elsewhere(self, kind: Kind, path: str) -> tuple[str, Value] | None:
        """The file, other than ours, that decides the limit of PATH when systemd reads its files
        again, and the limit that it names.
        """
        return None

    def forgets(self, kind: Kind, path: str, value: Value) -> bool:
        """Whether systemd lifts the limit VALUE of PATH, which is there, when it reads its files
        again, and may be told of it now.
        """
        return False

    def hosts_own(self, path: str) -> list[str]:
        """What of the host's own work will be in PATH by its name, whatever is there now."""
        return []

    def host_units(self, kind: Kind) -> list[str]:
        """The cgroups of the host's own work that can have a limit of KIND."""
        raise NotImplementedError

    def shared_paths(self) -> list[str]:
        """The cgroups that VMs are below, or start in, whether they have them for themselves or
        not.
        """
        raise NotImplementedError

    @property
    def protection(self) -> Kind | None:
        """Of the host's own units, while VMs run."""
        return {"low": LOW, "min": MIN}.get(self.config.protect_host_mem)

    @property
    def counts(self) -> bool:
        """Whether something follows from which VMs run, and from what they have."""
        config = self.config
        return bool(config.memory_admission or config.confine_host != "no" or self.protection)

    @property
    def remembers(self) -> bool:
        """Whether each VM has a record, as there is something to do for it until it has ended."""
        return self.counts

    @property
    def asks_to_confine(self) -> bool:
        """Of a VM: whether the host is to keep to its own CPUs while it runs."""
        return self.config.confine_host == "yes"

    def directories(self, domains: list[Domain]) -> list[tuple[Tree, str]]:
        """The cgroups that have to be there for DOMAINS to start, whatever is limited."""
        return []

    def makes(self, kind: Kind) -> bool:
        """Whether the cgroups that carry a limit of KIND are ours to make and to remove.

        Such a limit ends with the last VM; another stays, for the VMs to come.
        """
        raise NotImplementedError

    def removes(self, tree: Tree) -> bool:
        """Whether the cgroups that are made in TREE are ours to remove."""
        return True

    def vacate(self, path: str) -> list[Step]:
        """Has the VM parent PATH go, which has no limit of ours any more, where nobody uses it and
        it is not ours to remove.
        """
        return []

    def tree_of(self, kind: Kind) -> Tree | None:
        """The hierarchy that has limits of KIND; None where the host has none."""
        return next((tree for tree in self.trees if tree.limits(kind)), None)

    def exists(self, kind: Kind, path: str) -> bool:
        tree = self.tree_of(kind)
        return tree is not None and tree.exists(tree.hierarchy.directory(path))

    def holds_vms(self, tree: Tree, path: str) -> bool:
        """Whether a VM that runs is in the cgroup PATH of TREE, or may be: containers, too, can be
        where libvirt puts VMs.
        """
        from .. import threads

        if self._places is None:
            unknown: dict[str, Error] = {}
            pids = [domain.pid or 0 for domain in threads.running(self.host, unknown)]
            self._places = [threads.process_cgroups(self.host, pid) or {} for pid in pids]
            self._places += [{} for _ in unknown]
        key = tree.hierarchy.key
        return any(
            key not in place or f"{place[key]}/".startswith(f"{path}/") for place in self._places
        )

    def is_limit(self, kind: Kind, value: Value) -> bool:
        """Whether VALUE keeps anything back: all CPUs are what is left where systemd has taken a
        limit away (`properties`).
        """
        return value is not None and not (kind.of_cpus and value == self.present())

    def before(self, kind: Kind, path: str) -> Value:
        """What PATH was limited to before the plan."""
        tree = self.tree_of(kind)
        if tree and kind.of_vm and not tree.clips:
            return None  # a v1 cpuset has a list in any case: what is above it
        return tree.before(kind, tree.hierarchy.directory(path)) if tree else None

    def read(self, kind: Kind, path: str) -> Value:
        """What PATH is limited to; None: nothing, or there is no such cgroup."""
        tree = self.tree_of(kind)
        return tree.read(kind, tree.hierarchy.directory(path)) if tree else None

    def set(self, path: str, wanted: Limits) -> list[Step]:
        """PATH has the limits WANTED. Falling memory has room first.

        Raises Error where the kernel would refuse, or kill.
        """
        there = {kind: self.read(kind, path) for kind in wanted}
        changed = {kind: value for kind, value in wanted.items() if there[kind] != value}
        if not changed:
            return []
        steps = self.write(path, changed, there)
        limit = in_bytes(changed.get(MEMORY))
        if limit is None or MEMORY.rises(there[MEMORY], limit):
            return steps
        return self._with_room(path, limit, steps)

    def _with_room(self, path: str, limit: int, steps: list[Step]) -> list[Step]:
        """STEPS lower the memory limit of PATH to LIMIT bytes: what comes before and after them."""
        tree = self.tree_of(MEMORY)
        directory = tree.hierarchy.directory(path) if tree else ""
        if tree is None or not self.host.exists(directory):
            return steps
        from ..kernel import lowering

        if not lowering.needs_pressure(tree, directory, limit):
            return steps
        high = tree.read(PRESSURE, directory)
        pressed = lowering.pressure(limit, high)
        return [
            *self.write(path, {PRESSURE: pressed}, {PRESSURE: high}),
            lowering.HaveRoom(directory, limit),
            *steps,
            *self.take_back(path, PRESSURE, high, pressed),
        ]

    def put_back(self, path: str, kind: Kind, value: Value) -> list[Step]:
        """PATH is limited as it was, to VALUE; of CPUs to those that are to be had now."""
        raise NotImplementedError

    def take_back(self, path: str, kind: Kind, value: Value, there: Value) -> list[Step]:
        """From THERE, which the steps of `write` before these make of it, to VALUE again."""
        return self.write(path, {kind: value}, {kind: there})

    def write(self, path: str, wanted: Limits, there: Limits) -> list[Step]:
        """The steps that make WANTED of the limits THERE, with nothing before or after."""
        raise NotImplementedError

    def memory_in_use(self) -> int:
        """Bytes that all VMs have now; 0 without a VM parent."""
        for tree, path in self.parent_paths().items():
            if tree.has_memory:
                return tree.memory_in_use(tree.hierarchy.directory(path))
        return 0

    def hugepages_in_use(self) -> int:
        """Bytes of the hugepages that the kernel has charged to the VM parent."""
        for tree, path in self.parent_paths().items():
            if tree.has_memory:
                return tree.hugepages_in_use(tree.hierarchy.directory(path))
        return 0

    # a VM

    @property
    def reaches_into_vms(self) -> bool:
        """Whether the fence is also something that each VM has of its own."""
        raise NotImplementedError

    def prepare(self, plan: Plan, domain: Domain) -> None:
        """Before QEMU exists: the VM's record. Raises Error for a VM that cannot have its place."""
        raise NotImplementedError

    def start(self, plan: Plan, domain: Domain) -> None:
        """Just before QEMU is made: what `prepare` could not do yet, or no longer holds."""

    @property
    def awaits_start(self) -> bool:
        """Whether `prepare` may leave something to `start` for a VM with a record, where no VM has
        CPUs for itself alone.
        """
        return bool(self.fence.lent)

    def place(self, plan: Plan, domain: Domain, running: Domain, vm_threads: list[Thread]) -> None:
        """QEMU runs, with all its threads. RUNNING is DOMAIN as `threads.status` tells it."""
        raise NotImplementedError

    def imagined(self, plan: Plan, domain: Domain) -> None:
        """As `place`, for a VM that does not run."""

    def stopped(self, plan: Plan, record: Record) -> None:
        """QEMU has ended, and libvirt still knows the VM."""

    def begin_record(self, plan: Plan, domain: Domain) -> Record | None:
        """The VM's record as it starts, if it has to say something; what an earlier run of it has
        left is removed, and returned.
        """
        stale = Record.read(self.host, domain.uuid)
        if stale:
            plan.add(*self.remains(stale))
        new = Record.of(domain)
        new.confines = self.asks_to_confine
        new.dedicated = self.dedicated_to(domain)
        if domain.id is not None:  # none where it is only planned for
            self.claim(new, domain)
        if self.remembers or domain.settings or new.hugepages:
            self.records.save(plan, new, stale)
        elif stale:
            self.records.forget(plan, domain.uuid, stale)
        return stale

    def claim(self, record: Record, domain: Domain) -> None:
        """Names in RECORD what is to be DOMAIN's own before QEMU exists."""

    def remains(self, record: Record) -> list[Step]:
        """Removes what is the VM's own."""
        return [RemoveCgroup(path) for path in record.groups if self.host.exists(path)]

    def opened(self, running: list[Domain]) -> list[Step]:
        """Takes away what steers VMs, and the CPU fence that those that are RUNNING carry
        themselves: nothing but their parent limits them.
        """
        return self._opened_in([tree for tree in self.trees if tree.has_cpus], running)

    def _opened_in(self, trees: list[Tree], running: list[Domain]) -> list[Step]:
        from .. import threads

        steps: list[Step] = []
        for domain in running:
            record, main = Record.read(self.host, domain.uuid), threads.threads(self.host, domain)
            if record is None or not main:
                continue
            for tree in trees:
                directory = tree.hierarchy.directory(self.vm_of(main[0], tree))
                if any(f"{directory}/".startswith(f"{top}/") for top in record.groups):
                    steps += tree.set_cpus(directory, None)
        return steps

    # the CPUs of threads

    def allowed(self, domain: Domain, groups: Iterable[str]) -> dict[str, CpuSet | None]:
        """The CPUs of each thread group, inside the fence: its pin in the XML, else the configured
        set.

        None: all that the VM has.
        """
        pins = domain.pins()
        found: dict[str, CpuSet | None] = {}
        for group in groups:
            cpus, reach = pins.get(group) or self.config.set_of(group), self.reach(domain, group)
            if cpus and reach is not None:
                cpus = cpus & reach
            found[group] = cpus or None
        return found

    def reach(self, domain: Domain, group: str) -> CpuSet | None:
        """The CPUs that thread GROUP of DOMAIN may be put on. None: all."""
        cpus = self.fence.cpus
        if self.fence.lent:
            from .. import lending

            cpus = lending.reach(self.config, self.fence, domain, group)
        taken = self.taken(domain)
        return (cpus or self.everything) - taken if taken else cpus

    @property
    def carries(self) -> bool:
        """Whether each VM carries the CPU fence itself."""
        return bool(self.fence.lent)

    def carried(self, domain: Domain) -> CpuSet | None:
        """The CPU limit of DOMAIN's own cgroup; None: none."""
        taken = self.taken(domain)
        if not taken:
            return self.carried_alone(domain)
        cpus = self.carried_alone(domain) or self.fence.cpus
        if self.fence.lent and self.fence.cpus and self.carried_alone(domain) is None:
            cpus = self.fence.cpus | self.fence.lent
        return ((cpus or self.everything) - taken) or None

    def taken(self, domain: Domain) -> CpuSet:
        """The CPUs that other VMs have for themselves alone."""
        found = CpuSet()
        for uuid, record in self.records.dedicated().items():
            if uuid != domain.uuid:
                found |= record.dedicated
        return found

    def dedicated_to(self, domain: Domain) -> CpuSet:
        """The CPUs that DOMAIN is to have for itself alone."""
        if self.config.dedicated == "no":
            return CpuSet()
        from .. import dedicated

        return dedicated.asked_for(self.config, domain)

    @property
    def everything(self) -> CpuSet:
        """The CPUs that a VM has where nothing limits it; those that are offline, too, where the
        kernel takes them.
        """
        tree = self.tree_of(VM_CPUS)
        if tree is None or tree.clips:
            return self.present()
        return tree.cpus_in_effect(tree.hierarchy.mount) or self.present()

    def running(self) -> list[Domain]:
        """The VMs that run; asked once for a plan. `unknown` has those that are not understood."""
        if not self._running:
            from .. import threads

            self._running.append(threads.running(self.host, self.unknown))
        return self._running[0]

    def own_cgroups(self, domain: Domain, pid: int | None) -> list[str]:
        """The cgroups that are DOMAIN's alone, and hold its CPU limit, in the hierarchy of that;
        those where it will be, too. PID: of its process, if that runs.
        """
        raise NotImplementedError

    def carried_alone(self, domain: Domain) -> CpuSet | None:
        """The CPU fence that DOMAIN carries, whatever other VMs have for themselves; None: none."""
        if self.fence.lent:
            from .. import lending

            if lending.borrows(self.config, self.fence, domain):
                return None
        return self.fence.cpus if self.carries or self.strays(domain) else None

    def runs_in(self, domain: Domain, kind: Kind) -> str | None:
        """The cgroup of DOMAIN's process, in the hierarchy that has limits of KIND; None where it
        does not run.
        """
        tree = self.tree_of(kind)
        text = self.host.read_optional(f"/proc/{domain.pid}/cgroup") if domain.pid else None
        return placements(text).get(tree.hierarchy.key) if tree and text else None

    def strays(self, domain: Domain) -> bool:
        """Whether DOMAIN runs where no CPU limit of all VMs is above it: below the parent of an
        earlier layout that has lost its own, or where somebody has moved it.
        """
        here = self.runs_in(domain, CPUS)
        if here is None or self.fence.cpus is None:
            return False
        tops = (self._of_all or self).parents(CPUS, [domain])
        tops += [path for kind, path in self.records.remembered().before if kind is CPUS]
        return not any(f"{here}/".startswith(f"{top}/") for top in tops)

    def pinnable(self, cpus: CpuSet) -> CpuSet:
        """What VMs may be pinned to: the fence's CPUS, and those that would be in it but are
        offline.
        """
        return cpus | self.present() - self.kept

    @property
    def kept(self) -> CpuSet:
        """The CPUs that the host keeps."""
        return self.config.reserved_host_cpus or CpuSet()

    def present(self) -> CpuSet:
        """The CPUs that the host has, offline ones too."""
        return CpuSet.parse(self.host.read("/sys/devices/system/cpu/present"))

    # where things are

    def parent_paths(self, domain: Domain | None = None) -> dict[Tree, str]:
        """The VM parent's cgroup in each tree that can limit it; none without a VM parent.

        With DOMAIN, the top of where its XML puts it, which `<partition>` may have elsewhere.
        """
        raise NotImplementedError

    def place_of(self, domain: Domain, tree: Tree, thread: Thread) -> str | None:
        """The cgroup of TREE that THREAD has to be in; None: anywhere."""
        raise NotImplementedError

    def cgroup_of(self, thread: Thread, tree: Tree | None = None) -> str:
        """The cgroup that the thread is in; that which decides its CPUs, if no TREE is given."""
        tree = tree or min(self.trees, key=lambda one: (not one.has_cpus, not one.splits))
        return thread.cgroups.get(tree.hierarchy.key, "")

    def vm_of(self, thread: Thread, tree: Tree | None = None) -> str:
        """The cgroup of the VM that has THREAD."""
        return self.cgroup_of(thread, tree).removesuffix(f"/{thread.group}")

    def notes(self, vm_threads: list[Thread]) -> list[str]:
        """What is worth knowing about a VM, given its threads."""
        return []
