# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host whose cgroups are systemd's: VMs are steered, never moved.

machined makes a scope for every VM. A drop-in for that scope, written before it is made, names the slice it goes to,
and libvirt then works where systemd has put it. The fence is a property of the VM parent's slice, set by systemctl and
only where the kernel's files do not say it already. What systemd does not manage is written: on cgroup v1 the cpuset
hierarchy, and everywhere the thread groups inside the scope, which is delegated.
"""

from __future__ import annotations

from .. import state, threads
from ..cpuset import CpuSet
from ..errors import Error, printable
from ..host import NEW
from ..plan import LoadUnit, MakeDirectory, Plan, Remove, RemoveEmpty, Replace, Step, Systemctl, Touch
from . import placement, units
from .base import Manager
from .limits import HaveRoom, as_property

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..domain import Domain
    from ..threads import Thread
    from .base import Tree
    from .v2 import V2

UNITS = "/run/systemd/system"
CONTROL = ("/etc/systemd/system.control", "/run/systemd/system.control")  # where set-property keeps what it was told
DROP_IN = "50-libvirt-cgroup-hooks.conf"
MACHINE = "machine.slice"
VM_SCOPE = "machine-qemu"  # begins the name of each VM's scope
# systemd looks for drop-ins in the directories that it remembers, and loading a transient scope does not make it look
# again (247 to 257: unit_load_fragment returns before unit_file_build_name_map). Loading a unit that is not there does,
# if the directory has changed since; two changes in one tick of the kernel's clock look like one, so its time is set.
# libvirt happens to name such a unit, virtqemud.service, where Debian ships none; that is no promise.
REFRESH = (Touch(UNITS), LoadUnit("libvirt-cgroup-hooks-no-such-unit.service"))
MANAGED_V1 = frozenset(("cpu", "cpuacct", "blkio", "memory", "devices", "pids"))  # the controllers that systemd uses
NESTED = "libvirt"  # libvirt's own cgroup inside the scope, since 7.1


class Systemd(Manager):
    name = "systemd"

    # where things are

    @property
    def base(self) -> str:
        """The slice that $LIBVIRTD stands for: a scope cannot be in the daemon's service."""
        if not self.layout.relative:
            return units.ROOT
        return units.slice_of(self.daemon.get("name=systemd") or self.daemon.get("", ""))

    def parent_slice(self) -> str | None:
        """The VM parent; None where VMs share a slice with other services, or hang below the root."""
        if self.layout.native:
            return MACHINE
        return units.slice_unit(self.layout.own, self.base) if self.layout.parent else None

    def vm_slice(self, domain: Domain) -> str | None:
        """The slice that DOMAIN's scope goes to; None: libvirt decides. Raises Error for one that libvirt misreads.

        The scope itself is the VM's cgroup where the layout names the VM in one last component without $UUID, which a
        scope's name cannot say; else the VM has a slice of its own.
        """
        if self.layout.native:
            return None
        unit = self._slice_of(domain, len(self.layout.components) if self.own_slice else 0)
        if "/libvirt" in units.slice_path(unit):
            raise Error(
                f'cgroup_layout "{printable(self.layout.preset)}" makes the slice {unit}',
                "libvirt loses VMs in a cgroup whose name begins with libvirt; choose another name",
            )
        if len(unit) > units.UNIT_NAME_MAX:
            raise Error(
                f"the slice of VM {printable(domain.name)} would have a name over 255 bytes", "use $UUID in the layout"
            )
        return unit

    @property
    def own_slice(self) -> bool:
        of_vm = self.layout.components[len(self.layout.own) :]
        return len(of_vm) > 1 or "$UUID" in of_vm[0]

    def _own_slice(self, domain: Domain) -> str | None:
        """The slice that goes with DOMAIN, and all below it: that of the first component with its UUID, else the last.

        One that is named by the VM alone may be another's, too: system, for a VM of that name.
        """
        of_vm = self.layout.components[len(self.layout.own) :]
        depth = next((n for n, name in enumerate(of_vm, 1) if "$UUID" in name), len(of_vm))
        return self._slice_of(domain, depth) if self.own_slice else None

    def _slice_of(self, domain: Domain, depth: int) -> str:
        """The slice of the first DEPTH components that name DOMAIN; of none of them, the one that holds all VMs."""
        return units.slice_unit(self.layout.of_vm(domain)[:depth], units.slice_unit(self.layout.own, self.base))

    def scope_path(self, domain: Domain) -> str:
        return units.slice_path(self.vm_slice(domain) or MACHINE).rstrip("/") + "/" + self._scope(domain)

    def _scope(self, domain: Domain) -> str:
        if domain.id is None:
            raise Error(f"VM {printable(domain.name)} has no id yet, which its scope is named by", "start it first")
        return units.scope_unit(domain.name, domain.id)

    # prepare

    def prepare(self, plan: Plan, domain: Domain) -> None:
        self.vm_slice(domain)  # an impossible one is told now
        old = state.Record.read(self.host, domain.uuid)
        self.begin_record(plan, domain)
        self._sweep(plan, old)

    @property
    def reaches_into_vms(self) -> bool:
        return self.config.has_sets or self.parent_slice() is None or self._cpuset_v1 is not None

    def _sweep(self, plan: Plan, old: state.Record | None) -> None:
        """Drop-ins that no VM's record names: of VMs that ended without a release."""
        names = [name for name in self.host.names(UNITS) if name.startswith(VM_SCOPE) and name.endswith(".scope.d")]
        found = [f"{UNITS}/{name}/{DROP_IN}" for name in names if self._ours(f"{UNITS}/{name}")]
        records = [state.Record.read(self.host, uuid) for uuid in state.recorded(self.host)] if found else []
        known = {path for record in [*records, old] if record for path in record.files}
        for path in found:
            if path not in known:
                plan.add_shared(*self._remove_drop_in(path))

    def fence_parent(self, plan: Plan, domains: list[Domain]) -> None:
        shared = state.Shared(self.host)
        steps: list[Step] = []
        fenced: set[str] = set()
        for unit in self._parents(shared, domains):
            steps += self._fence_cpuset(units.slice_path(unit), shared, fenced)
            steps += self._fence_unit(unit, units.slice_path(unit), self._properties(), shared, fenced)
        self.add_fence(plan, shared, fenced, steps)

    def _parents(self, shared: state.Shared, domains: list[Domain]) -> list[str]:
        """The slices that are fenced: the VM parent, DOMAINS' own, and those of earlier layouts, where VMs may still run."""
        units = [self.parent_slice(), *(self.of(domain).parent_slice() for domain in domains)]
        before = [name.partition(" ")[0] for name in shared.before if not name.startswith("/")]
        before += [name.split("/")[-2] for name in shared.before if name.startswith("/") and self.host.exists(name)]
        return list(dict.fromkeys([*filter(None, units), *before]))

    def _properties(self) -> dict[str, str]:
        """What systemd is to enforce on the VM parent. On v1 it has no cpuset."""
        found = {}
        if self.fence.cpus is not None and not self._cpuset_v1:
            found["AllowedCPUs"] = str(self.fence.cpus)
        if self.fence.memory is not None:
            found["MemoryMax"] = str(self.fence.memory)
        return found

    @property
    def _cpuset_v1(self) -> Tree | None:
        return next((tree for tree in self.trees if tree.has_cpus and tree.hierarchy.version == 1), None)

    def _fence_cpuset(self, path: str, shared: state.Shared, fenced: set[str]) -> list[Step]:
        """The cgroup v1 cpuset at PATH, which is not systemd's. What it said goes to SHARED, its file to FENCED."""
        tree = self._cpuset_v1
        if tree is None or self.fence.cpus is None:
            return []
        steps = self.make_parent(tree, path, shared)
        file = f"{tree.hierarchy.directory(path)}/cpuset.cpus"
        fenced.add(file)
        shared.before.setdefault(file, tree.before(file))
        return steps

    def _fence_unit(
        self, unit: str, path: str, wanted: dict[str, str], shared: state.Shared | None, fenced: set[str]
    ) -> list[Step]:
        """The properties WANTED of UNIT, whose cgroup is PATH; what opens them again goes to SHARED."""
        opens = {"AllowedCPUs": self._all_cpus(), "MemoryMax": "infinity"}
        fenced.update(f"{unit} {name}" for name in wanted)
        if shared:
            shared.before.update({f"{unit} {name}": opens[name] for name in wanted})
        present = self._in_effect(unit, path, list(wanted))
        changed = {name: value for name, value in wanted.items() if present.get(name) != value}
        if not changed:
            return []
        back = {name: present.get(name) or opens[name] for name in changed}
        steps: list[Step] = [_set(unit, changed, back)]
        return self._guarded(steps, unit, path, int(changed["MemoryMax"])) if "MemoryMax" in changed else steps

    def _guarded(self, steps: list[Step], unit: str, path: str, limit: int) -> list[Step]:
        """STEPS that set the memory LIMIT of UNIT, with what has to come before and after where that lowers it."""
        for tree in self.trees:
            directory = tree.hierarchy.directory(path)
            if not tree.has_memory or not self.host.exists(directory) or not tree.lowers(directory, limit):
                continue
            if tree.version == 1:  # systemd would not say that the kernel refused
                return [*tree.set_limit(directory, limit), *steps]
            if tree.crowded(directory, limit):
                new, old = tree.pressure(directory, limit)
                return [_high(unit, new, old), HaveRoom(directory, limit), *steps, _high(unit, old, new)]
        return steps

    def pressing(self, directory: str, tree: V2, new: str, old: str) -> tuple[str, Step]:
        unit = directory.rpartition("/")[2]
        return f"{unit} MemoryHigh", _high(unit, new, old)

    def _all_cpus(self) -> str:
        """An empty AllowedCPUs= does not take the limit away from what runs; the full list does, with CPUs that may yet
        come online."""
        return str(self._present())

    def _in_effect(self, unit: str, path: str, names: list[str]) -> dict[str, str]:
        """What the kernel's files say of UNIT; while it has no cgroup at PATH, what systemd will do when it has."""
        found = {}
        for tree in self.trees:
            files = {"AllowedCPUs": "cpuset.cpus"} if tree.has_cpus else {}
            files.update({"MemoryMax": tree.limit_file, "MemoryHigh": "memory.high"} if tree.has_memory else {})
            for name, file in files.items():
                if name in names:
                    value = self.host.read_optional(f"{tree.hierarchy.directory(path)}/{file}")
                    found[name] = self._promised(unit, name) if value is None else as_property(value.strip())
        return found

    def _promised(self, unit: str, name: str) -> str:
        for directory in CONTROL:
            text = self.host.read_optional(f"{directory}/{unit}.d/50-{name}.conf") or ""
            values = [line.partition("=")[2].strip() for line in text.splitlines() if line.startswith(f"{name}=")]
            if values:
                return str(CpuSet.parse(values[-1].replace(" ", ","))) if name == "AllowedCPUs" else values[-1]
        return ""

    def opened(self, shared: state.Shared, names: list[str]) -> list[Step]:
        """They are properties ("UNIT NAME") and v1 files."""
        steps: list[Step] = []
        tree = self._cpuset_v1
        for name in names:
            value = shared.before.pop(name)
            if name.startswith("/"):
                steps += tree.put_back(name, value) if tree and self.host.exists(name) else []
                continue
            unit, _, key = name.partition(" ")
            wanted = self._all_cpus() if key == "AllowedCPUs" else as_property(value)
            present = self._in_effect(unit, units.slice_path(unit), [key]).get(key)
            if present and present != wanted:
                steps.append(_set(unit, {key: wanted}, {key: present}))
        return steps

    # start: the id is known, and machined has not been asked yet

    def start(self, plan: Plan, domain: Domain) -> None:
        unit = self.vm_slice(domain)
        if unit is None:
            if domain.id is not None:  # one of an earlier VM of that id and name would steer this one
                plan.add(*self._remove_drop_in(self._drop_in(domain)))
            return
        record, old = self.record(domain)
        path, scope = self._drop_in(domain), self.scope_path(domain)
        own = self._own_slice(domain)
        top = units.slice_path(own) if own else scope
        record.files = [path]
        record.slices = [own] if own else []
        record.groups = self._unmanaged(top) if own or self._carries else []
        text = self._drop_in_text(unit)
        self.save_record(plan, record, old)
        plan.add(MakeDirectory(path.rpartition("/")[0]))
        plan.add(Replace(path, text, self.host.read_optional(path), mode=0o644), *REFRESH)
        tree = self._cpuset_v1
        if tree and self._carries:
            plan.add_below(tree.hierarchy.directory(top), *tree.make(scope, self.fence.cpus))

    def _unmanaged(self, path: str) -> list[str]:
        """Directories of the cgroup PATH that systemd does not make, and so does not remove. libvirt leaves slices, too."""
        hierarchies = [tree.hierarchy for tree in self.trees if tree.version == 1]
        return [one.directory(path) for one in hierarchies if not one.controllers & MANAGED_V1]

    @property
    def _carries(self) -> bool:
        """Whether each VM carries the CPU fence, for want of a parent."""
        return self.fence.cpus is not None and self.parent_slice() is None

    def _drop_in(self, domain: Domain) -> str:
        return f"{UNITS}/{self._scope(domain)}.d/{DROP_IN}"

    def _ours(self, directory: str) -> bool:
        """Whether all in it is from us: an empty one, or half a file, is what one that was killed has left."""
        return set(self.host.names(directory)) <= {DROP_IN, DROP_IN + NEW}

    def _remove_drop_in(self, path: str) -> list[Step]:
        texts = [(file, self.host.read_optional(file)) for file in (path, path + NEW)]
        steps: list[Step] = [Remove(file, text, mode=0o644) for file, text in texts if text is not None]
        directory = path.rpartition("/")[0]
        return [*steps, RemoveEmpty(directory)] if self.host.exists(directory) else []

    # started, reconnect: systemd has put the VM somewhere

    def started(self, plan: Plan, domain: Domain, running: Domain, found: list[Thread]) -> None:
        expected = self.scope_path(domain)
        actual = self._systemd_path(found[0])
        if not self.layout.native and not _within(actual, expected):
            plan.warnings.append(f"systemd has put the VM in {printable(actual)}, not in {expected}; restart it to move it")
        elif self.parent_slice() is None:
            self._fence_scope(plan, domain, expected)
        placement.set_cpus_in_place(self, plan, domain, found)
        for tree in self.trees:
            at = found[0].cgroups.get(tree.hierarchy.key, "")
            if tree.has_cpus and not at.endswith("/emulator"):  # cgroup_controllers = []
                self._make_groups(plan, domain, found, tree, expected if tree.hierarchy.version == 1 else at)

    def _fence_scope(self, plan: Plan, domain: Domain, path: str) -> None:
        """The fence that the VM carries; where no CPUs are kept any more, it gets back what our drop-in has taken.

        The drop-in follows: systemd goes by it when it reloads.
        """
        tree = self._cpuset_v1
        if tree and tree.exists(tree.hierarchy.directory(path)):
            plan.add(*tree.set_cpus(tree.hierarchy.directory(path), self.fence.cpus))
        unit, file = self.vm_slice(domain), self._drop_in(domain)
        old = self.host.read_optional(file)
        if tree or old is None or unit is None:
            return
        text = self._drop_in_text(unit)
        plan.add(*([Replace(file, text, old, mode=0o644)] if text != old else []))
        if self.fence.cpus is not None or "AllowedCPUs=" in old:
            wanted = self._all_cpus() if self.fence.cpus is None else str(self.fence.cpus)
            plan.add(*self._fence_unit(self._scope(domain), path, {"AllowedCPUs": wanted}, None, set()))

    def _drop_in_text(self, unit: str) -> str:
        carried = f"AllowedCPUs={self.fence.cpus}\n" if self._carries and not self._cpuset_v1 else ""
        return f"[Scope]\nSlice={unit}\n{carried}"

    def _systemd_path(self, thread: Thread) -> str:
        return thread.cgroups.get("name=systemd") or thread.cgroups.get("", "")

    def _make_groups(self, plan: Plan, domain: Domain, found: list[Thread], tree: Tree, scope: str) -> None:
        """With cgroup_controllers = [] libvirt makes no groups in the SCOPE, and on v1 leaves the VM in its own cpuset."""
        names = threads.groups_of(found)
        groups = self.allowed_of(domain, names)
        if tree.version == 1 and self.fence.cpus is not None:
            record, old = self.record(domain)
            record.groups = list(dict.fromkeys([*record.groups, tree.hierarchy.directory(scope)]))
            self.save_record(plan, record, old)
            plan.add_below(tree.hierarchy.directory(scope), *tree.make(scope, self.fence.cpus))
            plan.add(*tree.make_threads(scope, groups))
            plan.add(*placement.move(tree, scope, found[0].tid, found, {}))
        elif tree.version == 2 and self.config.has_sets:
            path = f"{scope}/{NESTED}"  # libvirt's own name for it keeps the VM recognised
            plan.add(*tree.nest(path, threads.members(self.host, tree.hierarchy.directory(scope))))
            plan.add(*tree.make_threads(path, groups))
            nested = [thread.moved(tree.hierarchy.key, path) for thread in found]
            plan.add(*placement.move(tree, path, found[0].tid, nested, {}))

    # stopped, release

    def stopped(self, plan: Plan, record: state.Record, last: bool) -> None:
        if not last:
            return
        plan.add(*self.remains(record))
        self.forget_record(plan, record)
        if self._cpuset_v1 and self.is_last(record):
            shared = state.Shared(self.host)
            plan.add_shared(*self.opened(shared, [name for name in shared.before if name.startswith("/")]))
            plan.add_shared(*(RemoveEmpty(path) for path in sorted(shared.made, reverse=True)))
            shared.made = []
            plan.add_shared(*shared.save())

    def remains(self, record: state.Record) -> list[Step]:
        steps = super().remains(record)
        for path in record.files:
            steps += self._remove_drop_in(path)
        return steps + [Systemctl(["stop", "--no-block", unit]) for unit in record.slices]

    # what virt-cgroup status shows

    def parent_paths(self) -> dict[Tree, str]:
        unit = self.parent_slice()
        return {tree: units.slice_path(unit) for tree in self.trees if unit and (tree.has_cpus or tree.has_memory)}

    def place_of(self, domain: Domain, tree: Tree, thread: Thread) -> str | None:
        if self.layout.native:
            return None
        actual = thread.cgroups.get(tree.hierarchy.key, "")
        expected = self.scope_path(domain)
        systemds_own = tree.has_cpus or tree.has_memory
        return actual if _within(actual, expected) or not systemds_own else expected

    def vm_of(self, thread: Thread, tree: Tree | None = None) -> str:
        components = self.cgroup_of(thread, tree).split("/")
        scopes = [number for number, name in enumerate(components) if name.endswith(".scope")]
        return "/".join(components[: scopes[-1] + 1] if scopes else components)


def _within(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


def _set(unit: str, wanted: dict[str, str], present: dict[str, str]) -> Systemctl:
    """The properties WANTED of UNIT; PRESENT ones are put back to undo it."""
    texts = ([f"{name}={value}" for name, value in one.items()] for one in (wanted, present))
    return Systemctl(*(["set-property", "--runtime", unit, *text] for text in texts))


def _high(unit: str, new: str, old: str) -> Systemctl:
    """memory.high of UNIT, as systemd has to know it."""
    return _set(unit, {"MemoryHigh": as_property(new)}, {"MemoryHigh": as_property(old)})
