# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host whose cgroups are systemd's: VMs are steered, never moved.

machined makes a scope for every VM. A drop-in for that scope, written before it is made, names the
slice it goes to, and libvirt then works where systemd has put it. The fence is a property of the VM
parent's slice, set by systemctl and only where the kernel's files do not say it already. What
systemd does not manage is written: on cgroup v1 the cpuset hierarchy, and everywhere the thread
groups inside the scope, which is delegated.
"""

from __future__ import annotations

from .. import state
from ..errors import Error, printable
from ..kinds import CPUS, MEMORY, VM_CPUS, in_bytes
from ..steps import Step, Systemctl
from . import units
from .base import Manager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..cpuset import CpuSet
    from ..domain import Domain
    from ..kernel.tree import Tree
    from ..kinds import Kind, Value
    from ..plan import Plan
    from ..threads import Thread
    from .base import Limits

MACHINE = "machine.slice"


class Systemd(Manager):
    """Hosts where libvirt has machined make a scope for each VM; limits are properties of units."""

    name = "systemd"
    machine = units.slice_path(MACHINE)

    # where things are

    @property
    def base(self) -> str:
        """The slice that $LIBVIRTD stands for: a scope cannot be in the daemon's service."""
        if not self.layout.relative:
            return units.ROOT
        return units.slice_of(self.daemon.get(self.systemd_key, ""))

    def parent_slice(self, domain: Domain | None = None) -> str | None:
        """The VM parent; None where VMs share a slice with services, or hang below the root.

        A layout of ours goes before the `<partition>` of DOMAIN: its scope's drop-in names the
        slice.
        """
        if self.layout.native:
            return units.slice_unit([domain.partition_top]) if domain else MACHINE
        return units.slice_unit(self.layout.own, self.base) if self.layout.parent else None

    def vm_slice(self, domain: Domain) -> str | None:
        """The slice that DOMAIN's scope goes to; None: libvirt decides. Raises Error for one that
        libvirt misreads.
        """
        if self.layout.native:
            return None
        from . import slices

        return slices.of_scope(self.layout, self.base, domain)

    def scope_path(self, domain: Domain) -> str:
        libvirts = units.slice_unit((domain.partition.strip("/") or "machine").split("/"))
        unit = self.vm_slice(domain) or libvirts
        return units.slice_path(unit).rstrip("/") + "/" + self._scope(domain)

    def _scope(self, domain: Domain) -> str:
        if domain.id is None:
            raise Error(
                f"VM {printable(domain.name)} has no id here, and its scope's name needs one",
                f"use what the running VM says: virsh dumpxml {domain.handle}",
            )
        return units.scope_unit(domain.name, domain.id)

    # limits

    def parents(self, kind: Kind, domains: list[Domain]) -> list[str]:
        if self.tree_of(kind) is None:
            return []
        unit = self.parent_slice()
        paths = [units.slice_path(unit)] if unit else []
        for domain in domains:
            unit = self.for_domain(domain).parent_slice(domain)
            path = units.slice_path(unit) if unit else None
            if path and path not in paths and not self._runs_elsewhere(domain, kind, path):
                paths.append(path)
        return paths

    def _runs_elsewhere(self, domain: Domain, kind: Kind, path: str) -> bool:
        """Whether DOMAIN runs, and not below PATH: it comes there when it is started again."""
        here = self.runs_in(domain, kind)
        return here is not None and not units.within(here, path)

    def hosts_own(self, path: str) -> list[str]:
        from . import unitfiles

        return unitfiles.hosts_own(self.host, units.unit_of(path))

    def makes(self, kind: Kind) -> bool:
        """On v1 the cpusets, which are not systemd's."""
        return not kind.of_host and not kind.of_vm and self._writes(kind)

    def removes(self, tree: Tree) -> bool:
        """systemd takes a cgroup that it finds for its own, and takes a slice for limited that it
        has limited once.
        """
        return not tree.systemd_makes

    def vacate(self, path: str) -> list[Step]:
        """systemd keeps a slice that a layout has had it make. It ends what is in one that it
        stops, so none is stopped while a VM may be about to come there.
        """
        if path in self.shared_paths() or state.may_be_starting(self.host):
            return []
        if any(domain.is_starting for domain in self.running()):
            return []
        from . import slices

        trees = [tree for tree in self.trees if tree.systemd_makes]
        unused = slices.unused(self.host, trees, path)
        return [Systemctl(["stop", "--no-block", unit]) for unit in unused]

    def _writes(self, kind: Kind) -> bool:
        """Whether limits of KIND are not systemd's, but written into the kernel's files."""
        tree = self.tree_of(kind)
        return tree is not None and not tree.systemd_sets(kind)

    def host_units(self, kind: Kind) -> list[str]:
        """Those without a cgroup, too: systemd limits them when they get one."""
        if self.tree_of(kind) is None:
            return []
        names = self.config.host_units
        return [units.slice_path(name) if name.endswith(".slice") else f"/{name}" for name in names]

    def read(self, kind: Kind, path: str) -> Value:
        """Of a slice without a cgroup, what systemd will do when it has one."""
        tree = self.tree_of(kind)
        if tree is None:
            return None
        directory = tree.hierarchy.directory(path)
        promised = tree.systemd_sets(kind) and not tree.is_new(directory)
        if promised and not self.host.exists(tree.file(kind, directory)):
            return self._promised(units.unit_of(path), kind)
        return tree.read(kind, directory)

    def shared_paths(self) -> list[str]:
        if self.layout.native:
            return [self.machine]
        return [units.slice_path(units.slice_unit(self.layout.own, self.base))]

    def before(self, kind: Kind, path: str) -> Value:
        if self._writes(kind):
            return super().before(kind, path)
        value = self.read(kind, path)
        return value if self.is_limit(kind, value) else None

    def decided_elsewhere(self, kind: Kind, path: str) -> tuple[str, Value] | None:
        """Nobody writes files for the scope of a VM: its name has the VM's id."""
        if kind.of_vm:
            return None
        from . import unitfiles

        unit = units.unit_of(path)
        found = unitfiles.decided(self.host, unit, kind)
        return None if found is None or found[0] == unitfiles.own_file(unit, kind) else found

    def forgets(self, kind: Kind, path: str, value: Value) -> bool:
        tree = self.tree_of(kind)
        limit = in_bytes(value) if kind is MEMORY else None
        if kind.of_vm:
            from . import scopes

            return not self._writes(kind) and scopes.forgets(self, path, value)
        if tree is None or self._writes(kind) or self._promised(units.unit_of(path), kind) == value:
            return False
        # it writes what it is told into the kernel's file, and one that is exceeded kills
        return limit is None or tree.memory_in_use(tree.hierarchy.directory(path)) <= limit

    def _promised(self, unit: str, kind: Kind) -> Value:
        key = kind.unit_property
        for directory in units.CONTROL:
            text = self.host.read_optional(f"{directory}/{unit}.d/50-{key}.conf") or ""
            for line in reversed(text.splitlines()):
                if line.startswith(f"{key}="):
                    return kind.parse(line.partition("=")[2])
        return None

    def write(self, path: str, wanted: Limits, there: Limits) -> list[Step]:
        if VM_CPUS in wanted and not self._writes(VM_CPUS):
            from . import scopes

            return scopes.write(self, path, wanted[VM_CPUS], there[VM_CPUS])
        from . import properties

        return properties.write(self, path, wanted, there)

    def put_back(self, path: str, kind: Kind, value: Value) -> list[Step]:
        if kind.of_vm and not self._writes(kind):
            there = self.read(kind, path)
            known = there is not None and there != value
            return self.write(path, {kind: value}, {kind: there}) if known else []
        from . import properties

        return properties.put_back(self, path, kind, value)

    def take_back(self, path: str, kind: Kind, value: Value, there: Value) -> list[Step]:
        if self._writes(kind):
            return super().take_back(path, kind, value, there)
        from . import properties

        return properties.take_back(self, path, kind, value, there)

    # prepare, start: the id is known, and machined has not been asked yet

    def prepare(self, plan: Plan, domain: Domain) -> None:
        self.vm_slice(domain)  # an impossible one is told now
        stale = self.begin_record(plan, domain)
        self._remove_stray_drop_ins(plan, stale.files if stale else [])
        if domain.id is not None:
            self._steer(plan, domain)
        elif self._drop_in_text(domain):  # only `virt-cgroup plan` can come here
            plan.warnings.append(
                f"VM {printable(domain.name)} has no id here, so the drop-in for its scope is left "
                f"out: to see it, use what the running VM says (virsh dumpxml {domain.handle})"
            )

    def start(self, plan: Plan, domain: Domain) -> None:
        """Others may have taken CPUs for themselves meanwhile. libvirt takes a cpuset of v1 as it
        finds it.
        """
        self._steer(plan, domain)
        tree, cpus = self._own_cpusets, self.carried(domain)
        if tree and cpus:
            steps = tree.make(self.scope_path(domain), cpus)
            plan.add_below(tree.hierarchy.directory(self._top(domain)), *steps)

    @property
    def awaits_start(self) -> bool:
        return self._own_cpusets is not None

    @property
    def reaches_into_vms(self) -> bool:
        carried = bool(self.fence.lent) or self.parent_slice() is None
        return self.config.has_sets or carried or not all(tree.clips for tree in self.trees)

    def _remove_stray_drop_ins(self, plan: Plan, known: list[str]) -> None:
        """Drop-ins that no VM's record names, and that are not KNOWN: of VMs that ended without a
        release.
        """
        if not self.host.names(units.DROP_INS):
            return
        from . import dropins

        found = dropins.found(self.host)
        if not found:
            return
        for uuid in state.recorded(self.host):
            record = state.Record.read(self.host, uuid)
            if record:
                known = [*known, *record.files]
        for path in found:
            if path not in known:
                plan.add_shared(*dropins.remove(self.host, path))

    def claim(self, record: state.Record, domain: Domain) -> None:
        """A slice of its own goes with its VM, and so do those between that and its scope."""
        text, own, cpus = self._drop_in_text(domain), self._own_slice(domain), self.carried(domain)
        record.slices = [own] if own else []
        record.files = [self._drop_in(domain), *self._going(domain)] if text else []
        record.groups = self._unmanaged(self._top(domain)) if own or cpus else []

    def _steer(self, plan: Plan, domain: Domain) -> None:
        """The drop-in of DOMAIN's scope, after the record that names it."""
        text, path = self._drop_in_text(domain), self._drop_in(domain)
        there = self.host.read_optional(path) or ""
        record, old = self.records.of(domain)
        self.claim(record, domain)
        if str(record) != str(old) and (old or text or record.groups):
            self.records.save(plan, record, old)
        elif text == there and plan.operation == "start":
            return  # as `prepare` has left it
        if not text and not there:
            return
        from . import dropins

        if not text:
            plan.add(*dropins.remove(self.host, path))
            return
        plan.add(*dropins.write(self.host, path, text))
        for file in self._going(domain):
            plan.add(*dropins.write(self.host, file, dropins.GOES_WITH_ITS_VM))
        plan.add(*dropins.REFRESH)

    def _own_slice(self, domain: Domain) -> str | None:
        """The slice that is DOMAIN's alone, where the layout has one for each VM."""
        if self.layout.native:
            return None
        from . import slices

        return slices.of_vm(self.layout, self.base, domain)

    def _going(self, domain: Domain) -> list[str]:
        """Drop-ins for the slices from DOMAIN's own to that of its scope."""
        own, unit = self._own_slice(domain), self.vm_slice(domain)
        if not own or not unit:
            return []
        from . import slices

        return [units.drop_in(name) for name in slices.between(own, unit)]

    def _top(self, domain: Domain) -> str:
        """The cgroup that is all DOMAIN's own."""
        own = self._own_slice(domain)
        return units.slice_path(own) if own else self.scope_path(domain)

    def _unmanaged(self, path: str) -> list[str]:
        """Directories of the cgroup PATH that systemd does not make, and so does not remove.
        libvirt leaves slices, too.
        """
        return [tree.hierarchy.directory(path) for tree in self.trees if not tree.systemd_makes]

    @property
    def _own_cpusets(self) -> Tree | None:
        """The hierarchy with cpusets where systemd keeps none there."""
        tree = self.tree_of(CPUS)
        return None if tree is None or tree.systemd_sets(CPUS) else tree

    @property
    def remembers(self) -> bool:
        """Where systemd keeps the limits, and libvirt decides where VMs are, nothing is to be done
        for most of them.
        """
        clips = all(tree.clips for tree in self.trees)
        return super().remembers or self.carries or not self.layout.native or not clips

    @property
    def carries(self) -> bool:
        """For want of a parent, too."""
        return super().carries or (self.fence.cpus is not None and self.parent_slice() is None)

    def _drop_in(self, domain: Domain) -> str:
        return units.drop_in(self._scope(domain))

    def _drop_in_text(self, domain: Domain) -> str:
        """What systemd is told of DOMAIN's scope; nothing where libvirt and the VM parent say all.

        Cpusets are no matter of systemd's on v1.
        """
        unit = self.vm_slice(domain)
        cpus = None if self._own_cpusets else self.carried(domain)
        lines = [f"Slice={unit}\n"] if unit else []
        lines += [f"AllowedCPUs={cpus}\n"] if cpus else []
        return "".join(["[Scope]\n", *lines]) if lines else ""

    # started, reconnect: systemd has put the VM somewhere

    def place(self, plan: Plan, domain: Domain, running: Domain, vm_threads: list[Thread]) -> None:
        from . import placement

        expected = self.scope_path(domain)
        actual = self._systemd_path(vm_threads[0])
        in_place = self.layout.native or units.within(actual, expected)
        if not in_place:
            plan.warnings.append(
                f"systemd has put the VM in {printable(actual)}, not in {expected}; "
                "shut it down and start it again to move it"
            )
        may_carry = self.carries or not in_place or plan.operation != "started"
        # what other VMs have for themselves is kept by limits.py
        if may_carry and not self.taken(domain):
            self._fence_scope(plan, running, vm_threads[0])
        placement.set_cpus_in_place(self, plan, domain, vm_threads)
        for tree in self.trees:
            at = vm_threads[0].cgroups.get(tree.hierarchy.key, "")
            if tree.has_cpus and not at.endswith("/emulator"):  # cgroup_controllers = []
                scope = at if tree.systemd_sets(CPUS) else expected
                placement.make_groups(self, plan, domain, vm_threads, tree, scope)
        plan.add(*placement.unpin(self, domain, vm_threads))

    def _fence_scope(self, plan: Plan, domain: Domain, main: Thread) -> None:
        """The fence that the VM carries; where it carries none any more, it gets back what our
        drop-in has taken.

        The drop-in follows: systemd goes by it when it reloads.
        """
        own, cpus = self._own_cpusets, self.carried(domain)
        there = self.vm_of(main, own)  # where an earlier layout has it, perhaps
        is_scope = there.endswith(f"/{self._scope(domain)}")
        path = there if is_scope else self.scope_path(domain)
        if own:
            self._fence_cpuset(plan, domain, own, path, cpus)
            return
        file = self._drop_in(domain)
        old = self.host.read_optional(file)
        if old is None and not cpus:
            return
        text = self._drop_in_text(domain)
        if text != old:
            from . import dropins

            record, known = self.records.of(domain)
            record.files = list(dict.fromkeys([*record.files, file]))
            self.records.save(plan, record, known)
            if text:
                plan.add(*dropins.write(self.host, file, text))
            else:
                plan.add(*dropins.remove(self.host, file))
        if cpus or "AllowedCPUs=" in (old or ""):
            plan.add(*self.set(path, {CPUS: cpus or self.present()}))

    def _fence_cpuset(
        self, plan: Plan, domain: Domain, tree: Tree, path: str, cpus: CpuSet | None
    ) -> None:
        """As `_fence_scope`, where systemd keeps no cpusets."""
        directory = tree.hierarchy.directory(path)
        if not tree.exists(directory):
            return
        record, known = self.records.of(domain)
        ours = self.carries or any(units.within(directory, group) for group in record.groups)
        if cpus and not ours:
            record.groups.append(directory)
            self.records.save(plan, record, known)
        if ours or cpus or self.parent_slice() is None:
            plan.add(*tree.set_cpus(directory, cpus))

    def _systemd_path(self, thread: Thread) -> str:
        return thread.cgroups.get(self.systemd_key, "")

    # the end of a VM, and of all of it

    def remains(self, record: state.Record) -> list[Step]:
        steps = super().remains(record)
        if record.files:
            from . import dropins

            for path in record.files:
                steps += dropins.remove(self.host, path)
        for unit in record.slices:
            steps.append(Systemctl(["stop", "--no-block", unit]))
        return steps

    def opened(self, running: list[Domain]) -> list[Step]:
        from . import dropins, properties

        scopes = [self._scope(domain) for domain in running if domain.id is not None]
        own = self._own_cpusets
        steps = self._opened_in([own], running) if own else []
        for name in self.host.names(units.DROP_INS):
            unit = name.removesuffix(".d")
            path = units.drop_in(unit)
            text = self.host.read_optional(path)
            goes_yet = unit.endswith(".slice") and running
            if text is None or goes_yet:
                continue
            if unit in scopes and "AllowedCPUs=" in text:
                cpus: Limits = {CPUS: self.present()}
                steps.append(properties.set_property(self, unit, cpus, cpus))
            steps += dropins.remove(self.host, path)
        return steps

    # where things are

    def own_cgroups(self, domain: Domain, pid: int | None) -> list[str]:
        """The scope, where an earlier layout has put it, too."""
        tree = self.tree_of(VM_CPUS)
        if tree is None or domain.id is None:
            return []
        from .. import threads

        places = threads.process_cgroups(self.host, pid) if pid else None
        here = (places or {}).get(tree.hierarchy.key, "")
        above, name, _ = f"{here}/".partition(f"/{self._scope(domain)}/")
        return [f"{above}{name.rstrip('/')}"] if name else [self.scope_path(domain)]

    def parent_paths(self, domain: Domain | None = None) -> dict[Tree, str]:
        unit = self.parent_slice(domain)
        if unit is None:
            return {}
        trees = [tree for tree in self.trees if tree.has_cpus or tree.has_memory]
        return dict.fromkeys(trees, units.slice_path(unit))

    def place_of(self, domain: Domain, tree: Tree, thread: Thread) -> str | None:
        if self.layout.native:
            return None
        actual = thread.cgroups.get(tree.hierarchy.key, "")
        expected = self.scope_path(domain)
        systemds_own = tree.has_cpus or tree.has_memory
        return actual if units.within(actual, expected) or not systemds_own else expected

    def vm_of(self, thread: Thread, tree: Tree | None = None) -> str:
        components = self.cgroup_of(thread, tree).split("/")
        scopes = [number for number, name in enumerate(components) if name.endswith(".scope")]
        return "/".join(components[: scopes[-1] + 1] if scopes else components)
