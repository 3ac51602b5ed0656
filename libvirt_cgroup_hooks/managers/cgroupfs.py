# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host where nobody else owns cgroups: the fence is written, and VMs are moved.

libvirt makes every VM's cgroup below /machine. The VM parent has its fence before QEMU exists; once the VM has
started, its processes and threads move to the cgroup that the layout names. Until then they run below /machine,
which therefore has the same fence; and so does it with the native layout, where it is the VM parent.
"""

from __future__ import annotations

from .. import state, threads
from ..errors import Error, printable
from ..fence import check_pins, pins_outside
from ..layout import escaped
from ..plan import Move, Pin, Plan, RemoveCgroup, RemoveEmpty, Step
from .v1 import V1
from .v2 import V2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..cgroups import Cgroups
    from ..config import Config
    from ..cpuset import CpuSet
    from ..domain import Domain
    from ..fence import Fence
    from ..host import Host
    from ..threads import Thread

# Suffix of the cgroups that libvirt makes itself where there is no machined
LIBVIRT_SUFFIX = ".libvirt-qemu"
MACHINE = "/machine"
CLEAN_UP = ("stopped", "release")
FIRST_LEVEL = ("machine", "system", "user")
TUNED_BY = {"cputune": {"cpu"}, "numatune": {"cpuset"}, "memtune": {"memory"}, "blkiotune": {"blkio", "io"}}


NOT_TUNED = (
    "virsh schedinfo, memtune, blkiotune, numatune and domstats do not reach a VM that was moved out of the cgroup "
    "libvirt made for it, and setvcpus --live and iothreadadd fail on cgroup v2; vcpupin, emulatorpin and iothreadpin do"
)


class Cgroupfs:
    """Plans what the hook does on HOST at each operation. One serves one plan."""

    name = "cgroupfs"

    def __init__(self, host: Host, config: Config, cgroups: Cgroups, fence: Fence) -> None:
        self.host = host
        self.config = config
        self.fence = fence
        self.layout = config.cgroup_layout
        # A hybrid host's v2 hierarchy stays as libvirt made it: its device program and CPU accounting sit there.
        v1 = [V1(host, hierarchy) for hierarchy in cgroups.v1 if "devices" not in hierarchy.controllers]
        self.all = cgroups.hierarchies
        self.hierarchies: list[V1 | V2] = [*v1] if cgroups.v1 or not cgroups.unified else [V2(host, cgroups.unified)]

    def plan(self, operation: str, domain: Domain, imagine: bool = False) -> Plan:
        """With IMAGINE, a VM that is not running is planned for as if it had just started.

        Raises Error where what is configured cannot be done.
        """
        plan = Plan(operation, transaction=operation not in CLEAN_UP)
        if self.fence.cpus is not None and not any(hierarchy.has_cpus for hierarchy in self.hierarchies):
            raise Error("cannot keep CPUs for the host: there is no cpuset controller", "mount or enable it")
        if self.fence.memory is not None and not any(hierarchy.has_memory for hierarchy in self.hierarchies):
            raise Error("cannot keep memory for the host: there is no memory controller", "mount or enable it")
        if operation == "prepare":
            self._prepare(plan, domain)
        elif operation in ("started", "reconnect"):
            self._started(plan, domain, imagine)
        elif operation in CLEAN_UP:
            self._release(plan, domain, last=operation == "release")
        return plan

    # prepare: no QEMU yet

    def _prepare(self, plan: Plan, domain: Domain) -> None:
        if self.fence.cpus is not None:
            if self.config.pin_conflict == "refuse":
                check_pins(domain, self.fence.cpus)
            elif pins_outside(domain, self.fence.cpus):
                plan.warnings.append(f"VM {printable(domain.name)} is pinned to CPUs that are kept for the host")
        for hierarchy in self.hierarchies:
            self.layout.vm_path(domain, hierarchy.hierarchy.placement)  # an impossible name is told now, not when it runs
        stale = state.Record.read(self.host, domain.uuid)
        plan.add(*(RemoveCgroup(path) for path in stale.groups if self.host.exists(path)) if stale else ())
        plan.add(*state.Record(domain.uuid, domain.name, []).save(stale))
        self._add_parents(plan, domain)

    def _add_parents(self, plan: Plan, domain: Domain) -> None:
        """The VM parent and the place where libvirt starts the VM, both with the fence; what is fenced no more is opened."""
        shared = state.Shared(self.host)
        steps: list[Step] = []
        fenced: set[str] = set()
        for hierarchy in self.hierarchies:
            for path in self._parents(hierarchy, domain):
                shared.made += _missing(hierarchy, path)
                steps += self._fenced(hierarchy, path, shared.before, fenced)
        self._open(plan, shared, [file for file in shared.before if file not in fenced])
        plan.add(*shared.save(), *steps)

    def _open(self, plan: Plan, shared: state.Shared, files: list[str]) -> None:
        """Puts back what the limit FILES said before."""
        for file in files:
            value = shared.before.pop(file)
            for hierarchy in self.hierarchies:
                if file.startswith(hierarchy.hierarchy.mount + "/") and self.host.exists(file):
                    plan.add(*hierarchy.put_back(file, value))

    def _parents(self, hierarchy: V1 | V2, domain: Domain) -> list[str]:
        """Where libvirt starts the VM, if there is anything to enforce there, and the VM parent."""
        cpus = self.fence.cpus is not None and hierarchy.has_cpus
        memory = self.fence.memory is not None and hierarchy.has_memory
        parent = self.layout.parent_path(hierarchy.hierarchy.placement)
        return ([staging(domain)] if cpus or memory else []) + ([parent] if parent else [])

    def _fenced(self, hierarchy: V1 | V2, path: str, before: dict[str, str], fenced: set[str]) -> list[Step]:
        """Makes PATH with the fence. Limit files go to FENCED, and what they said to BEFORE if it is not known yet."""
        directory = hierarchy.hierarchy.directory(path)
        files = [f"{directory}/cpuset.cpus"] if self.fence.cpus is not None and hierarchy.has_cpus else []
        files += [f"{directory}/{hierarchy.limit_file}"] if self.fence.memory is not None and hierarchy.has_memory else []
        steps = hierarchy.make(path, self.fence.cpus)
        fenced.update(files)
        before.update((file, hierarchy.before(file)) for file in files if file not in before)
        if self.fence.memory is not None and hierarchy.has_memory:
            steps += hierarchy.set_limit(directory, self.fence.memory)
        return steps

    # started, reconnect: QEMU and all its threads are there

    def _started(self, plan: Plan, domain: Domain, imagine: bool) -> None:
        running = threads.status(self.host, domain.name)
        found = threads.threads(self.host, running) if running else []
        if not found and not imagine:
            raise Error(f"VM {printable(domain.name)} has no process", "it has ended meanwhile")
        self._add_parents(plan, domain)
        if running is None or not found:
            self._place_to_be(plan, domain)
            return
        if self.layout.native:
            self._set_cpus_in_place(plan, domain, found)
        else:
            self._place(plan, domain, running, found)

    def _place(self, plan: Plan, domain: Domain, running: Domain, found: list[Thread]) -> None:
        record = state.Record.read(self.host, domain.uuid)
        libvirt = self._libvirt_directories(found[0])
        targets = {h: self.layout.vm_path(domain, h.hierarchy.placement) for h in self.hierarchies}
        own = [h.hierarchy.directory(self.layout.vm_top(domain, h.hierarchy.placement)) for h in targets]
        kept = [path for path in record.groups if path not in own] if record else []
        groups = [*own, *(kept + [path for path in libvirt.values() if path not in kept])]
        plan.add(*state.Record(domain.uuid, domain.name, groups).save(record))
        helpers = self._helpers(libvirt, running)
        names = _groups(found)
        for hierarchy, path in targets.items():
            self._make_place(plan, hierarchy, path, domain, names, libvirt.get(hierarchy.hierarchy.key))
            self._move(plan, hierarchy, path, running, found, helpers)
        self._pin(plan, domain, found)

    def _place_to_be(self, plan: Plan, domain: Domain) -> None:
        """For a VM that is not running: where its threads would go."""
        plan.warnings.append(f"VM {printable(domain.name)} is not running: no process of it is placed")
        for hierarchy in () if self.layout.native else self.hierarchies:
            path = self.layout.vm_path(domain, hierarchy.hierarchy.placement)
            self._make_place(plan, hierarchy, path, domain, domain.group_names(), None)

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

    def _make_place(
        self, plan: Plan, hierarchy: V1 | V2, path: str, domain: Domain, names: list[str], libvirt: str | None
    ) -> None:
        directory = hierarchy.hierarchy.directory(path)
        carries = self.fence.cpus is not None and self.layout.parent is None and hierarchy.has_cpus
        plan.add(*hierarchy.make(path, self.fence.cpus if carries else None))
        groups = {group: self.allowed(domain, group) for group in names}
        plan.add(*hierarchy.make_threads(path, groups))
        if libvirt is not None:
            tuned = set().union(*(TUNED_BY[element] for element in domain.tuned))
            for group in ("", *(f"/{name}" for name in groups)) if tuned else ():
                plan.add(*hierarchy.tuning(libvirt + group, directory + group, tuned))
            plan.add(*hierarchy.devices(libvirt, directory))

    def _move(
        self,
        plan: Plan,
        hierarchy: V1 | V2,
        path: str,
        running: Domain,
        found: list[Thread],
        helpers: dict[int, dict[str, str]],
    ) -> None:
        """Whole processes first, which takes every thread along; then each vCPU and I/O thread to its group."""
        key, directory = hierarchy.hierarchy.key, hierarchy.hierarchy.directory
        home = f"{path}/emulator" if hierarchy.splits else path
        back = {thread.tid: f"{directory(thread.cgroups[key])}/{hierarchy.thread_file}" for thread in found}
        here = {thread.tid: thread.cgroups[key] for thread in found}
        outside = any(at != path and not at.startswith(f"{path}/") for at in here.values())
        places = {number: place[key] for number, place in helpers.items()}
        if outside:
            places = {running.pid or 0: found[0].cgroups[key], **places}
        for number, at in places.items():
            if at == home:
                continue
            undo = [Move("process", number, f"{directory(at)}/cgroup.procs", [])]
            if number == running.pid:
                undo += [Move("thread", tid, file, []) for tid, file in back.items() if here[tid] != at]
                here = dict.fromkeys(here, home)
            plan.add(Move("process", number, f"{directory(home)}/cgroup.procs", undo))
        for thread in found if hierarchy.splits else ():
            target = f"{path}/{thread.group}"
            if here[thread.tid] != target:
                undo = [] if outside else [Move("thread", thread.tid, back[thread.tid], [])]
                plan.add(Move("thread", thread.tid, f"{directory(target)}/{hierarchy.thread_file}", undo))

    def _pin(self, plan: Plan, domain: Domain, found: list[Thread]) -> None:
        """Before Linux 6.2 a change of cpuset undoes sched_setaffinity; since then it is kept. Setting it serves both."""
        pins = domain.pins()
        moved = any(isinstance(step, Move) for step in plan.steps)
        for thread in found:
            cpus = self.allowed(domain, thread.group) if thread.group in pins else None
            old = self.host.affinity(thread.tid) if cpus else None
            if cpus and old and (moved or old != cpus):
                plan.add(Pin(thread.tid, cpus, old))

    def _set_cpus_in_place(self, plan: Plan, domain: Domain, found: list[Thread]) -> None:
        """With the native layout nothing moves; the host-wide sets go into libvirt's own thread groups."""
        pins = domain.pins()
        for hierarchy in self.hierarchies if self.config.has_sets else ():
            for group in _groups(found) if hierarchy.has_cpus else ():
                if group in pins or self.config.set_of(group) is None:
                    continue
                cpus = self.allowed(domain, group)
                place = next((t.cgroups[hierarchy.hierarchy.key] for t in found if t.group == group), "")
                if cpus and place.endswith(f"/{group}"):
                    plan.add(*hierarchy.set_cpus(hierarchy.hierarchy.directory(place), cpus))

    def allowed(self, domain: Domain, group: str) -> CpuSet | None:
        """The CPUs of a thread group, inside the fence: its pin in the XML, else the host-wide set, else None."""
        wanted = domain.pins().get(group) or self.config.set_of(group)
        if wanted and self.fence.cpus is not None:
            wanted &= self.fence.cpus
        return wanted or None

    # stopped, release: QEMU has ended

    def _release(self, plan: Plan, domain: Domain, last: bool) -> None:
        """LAST: libvirt too has removed its cgroups, if it still knew them; those that it left are removed here."""
        record = state.Record.read(self.host, domain.uuid)
        if record is None:
            return
        for path in record.groups:
            if self.host.exists(path) and (last or not path.endswith(LIBVIRT_SUFFIX)):
                plan.add(RemoveCgroup(path))
        if last:
            plan.add(record.forget())
            if state.recorded(self.host) == [domain.uuid]:
                shared = state.Shared(self.host)
                self._open(plan, shared, list(shared.before))
                plan.add(*(RemoveEmpty(path) for path in sorted(shared.made, reverse=True)))
                shared.made = []
                plan.add(*shared.save())

    # what virt-cgroup status shows

    def parent(self) -> dict[str, object]:
        """The VM parent and what is in effect on it; bytes, and None where there is no limit or no parent."""
        found: dict[str, object] = {"path": None, "cpus": None, "memory_limit": None, "memory_current": None}
        for hierarchy in self.hierarchies:
            path = MACHINE if self.layout.native else self.layout.parent_path(hierarchy.hierarchy.placement)
            if path is None or not (hierarchy.has_cpus or hierarchy.has_memory):
                continue
            found["path"] = path
            found.update(hierarchy.in_effect(hierarchy.hierarchy.directory(path)))
        return found

    def cgroup_of(self, thread: Thread) -> str:
        """The cgroup that decides the thread's CPUs."""
        return thread.cgroups.get(self._main.hierarchy.key, "")

    def vm_of(self, thread: Thread) -> str:
        return self.cgroup_of(thread).removesuffix(f"/{thread.group}")

    def problems(self, domain: Domain, thread: Thread, cpus: CpuSet) -> list[str]:
        """How the place of THREAD, and the CPUS it may use, differ from what is configured."""
        found = []
        for hierarchy in () if self.layout.native else self.hierarchies:
            path = self.layout.vm_path(domain, hierarchy.hierarchy.placement)
            wanted = f"{path}/{thread.group}" if hierarchy.splits else path
            actual = thread.cgroups.get(hierarchy.hierarchy.key)
            if actual != wanted:
                found.append(f"it is in {hierarchy.hierarchy.key or 'cgroup'} {actual}, not in {wanted}")
        allowed = self.allowed(domain, thread.group) or self.fence.cpus
        if allowed and not cpus <= allowed:
            found.append(f"it may use CPUs {cpus}, not only {allowed}")
        return found

    def notes(self, found: list[Thread]) -> list[str]:
        moved = found and not self.layout.native and LIBVIRT_SUFFIX not in self.cgroup_of(found[0])
        return [NOT_TUNED] if moved else []

    @property
    def _main(self) -> V1 | V2:
        """The hierarchy that decides CPUs, else any that has thread groups."""
        return min(self.hierarchies, key=lambda hierarchy: (not hierarchy.has_cpus, not hierarchy.splits))


def staging(domain: Domain) -> str:
    """The top of where libvirt starts DOMAIN: "/machine" unless its XML says else (virCgroupSetPartitionSuffix)."""
    first = domain.partition.strip("/").partition("/")[0] or "machine"
    if first not in FIRST_LEVEL and "." not in first:
        first += ".partition"
    return "/" + escaped(first)


def _missing(hierarchy: V1 | V2, path: str) -> list[str]:
    """The directories down to PATH that are not there yet."""
    missing = []
    directory = hierarchy.hierarchy.mount
    for component in path.strip("/").split("/"):
        directory = f"{directory}/{component}"
        if not hierarchy.exists(directory):
            missing.append(directory)
    return missing


def _groups(found: list[Thread]) -> list[str]:
    """The thread groups that the VM has threads for, emulator first."""
    return ["emulator", *sorted({thread.group for thread in found} - {"emulator"})]
