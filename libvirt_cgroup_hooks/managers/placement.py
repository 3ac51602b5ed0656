# SPDX-License-Identifier: LGPL-2.1-or-later
"""A running VM's processes and threads: moved into thread groups, and the CPUs of those that
libvirt made.
"""

from __future__ import annotations

from ..kinds import CPUS, as_cpus
from ..steps import Move, Pin, Step
from ..threads import groups_of, home, members, process_cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..cpuset import CpuSet
    from ..domain import Domain
    from ..host import Host
    from ..kernel.tree import Tree
    from ..plan import Plan
    from ..threads import Thread
    from .base import Manager


def move(
    tree: Tree,
    path: str,
    pid: int,
    vm_threads: list[Thread],
    helpers: dict[int, dict[str, str]],
) -> list[Step]:
    """Process PID with VM_THREADS, and its HELPERS (cgroups by process id), to the VM cgroup PATH
    of TREE.

    Whole processes first, which takes every thread along; then each vCPU and I/O thread to its
    group.
    """
    key = tree.hierarchy.key
    arrival = f"{path}/emulator" if tree.splits else path
    places = {thread.tid: thread.cgroups[key] for thread in vm_threads}
    outside = any(not _within(place, path) for place in places.values())
    steps: list[Step] = []
    if outside and places[pid] != arrival:
        steps.append(_move_vm(tree, pid, places, arrival))
        places = dict.fromkeys(places, arrival)
    for number, cgroups in helpers.items():
        if cgroups[key] != arrival:
            back = Move("process", number, _procs(tree, cgroups[key]), [])
            steps.append(Move("process", number, _procs(tree, arrival), [back]))
    if not tree.splits:
        return steps
    for thread in vm_threads:
        group = f"{path}/{thread.group}"
        if places[thread.tid] != group:
            # a thread that came with its process goes back with it
            undo = (
                []
                if outside
                else [Move("thread", thread.tid, _tasks(tree, places[thread.tid]), [])]
            )
            steps.append(Move("thread", thread.tid, _tasks(tree, group), undo))
    return steps


def _move_vm(tree: Tree, pid: int, places: dict[int, str], target: str) -> Move:
    """Process PID to TARGET, and back: the process, then the threads that were elsewhere (PLACES by
    id).
    """
    undo = [Move("process", pid, _procs(tree, places[pid]), [])]
    for tid, place in places.items():
        if place != places[pid]:
            undo.append(Move("thread", tid, _tasks(tree, place), []))
    return Move("process", pid, _procs(tree, target), undo)


def _procs(tree: Tree, path: str) -> str:
    return f"{tree.hierarchy.directory(path)}/cgroup.procs"


def _tasks(tree: Tree, path: str) -> str:
    return f"{tree.hierarchy.directory(path)}/{tree.thread_file}"


def _within(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


def helpers(host: Host, directories: list[str], running: Domain) -> dict[int, dict[str, str]]:
    """swtpm, virtiofsd and so on: the other processes of a VM's cgroup DIRECTORIES, and where each
    is.
    """
    numbers: dict[int, None] = {}
    for directory in directories:
        numbers.update(dict.fromkeys(members(host, directory)))
        numbers.update(dict.fromkeys(members(host, f"{directory}/emulator")))
    numbers.pop(running.pid or 0, None)
    places = {number: process_cgroups(host, number) for number in numbers}
    return {number: place for number, place in places.items() if place is not None}


def pin(
    host: Host, pins: dict[str, CpuSet | None], vm_threads: list[Thread], moved: bool
) -> list[Step]:
    """The CPUs of each thread whose group has PINS, again.

    Before Linux 6.2 a change of cpuset undoes sched_setaffinity; since then it is kept. Setting it
    serves both.
    """
    steps: list[Step] = []
    for thread in vm_threads:
        cpus = pins.get(thread.group)
        old = host.affinity(thread.tid) if cpus else None
        if cpus and old and (moved or old != cpus):
            steps.append(Pin(thread.tid, cpus, old))
    return steps


def unpin(manager: Manager, domain: Domain, vm_threads: list[Thread]) -> list[Step]:
    """A thread that has a configured set, and no pin in the XML, may use all of that set.

    libvirt 12.8 sets no affinity of such a thread, so that it keeps that of the thread that made
    it: `<emulatorpin>`.
    """
    pins = domain.pins()
    groups = [group for group in groups_of(vm_threads) if group not in pins]
    allowed = manager.allowed(domain, groups) if manager.config.has_sets else {}
    steps: list[Step] = []
    for thread in vm_threads:
        cpus = allowed.get(thread.group)
        old = manager.host.affinity(thread.tid) if cpus else None
        if cpus and old and not cpus <= old:
            steps.append(Pin(thread.tid, manager.present(), old))
    return steps


def set_cpus_in_place(
    manager: Manager, plan: Plan, domain: Domain, vm_threads: list[Thread]
) -> None:
    """The configured sets, in the thread groups that libvirt made, for threads that the XML does
    not pin.

    Where no set is configured any more, all CPUs of the VM. Where the kernel does not clip what is
    below a cgroup (v1), pins as well, as far as the fence allows now: there it has cut what libvirt
    wrote.
    """
    # a VM that has just started has no earlier sets
    everything = manager.config.has_sets or plan.operation != "started"
    pins = domain.pins()
    for tree in manager.trees:
        if tree.has_cpus and (everything or (pins and not tree.clips)):
            homes = {thread.tid: home(manager.host, tree, thread) for thread in vm_threads}
            _set_groups(manager, plan, tree, domain, vm_threads, homes)
            plan.add(*_returned(tree, vm_threads, homes))


def widened(manager: Manager, vm_threads: list[Thread]) -> list[Step]:
    """libvirt's own cgroup inside a scope (since 7.1) has all CPUs of the VM again, where the
    kernel does not see to that (v1).
    """
    steps: list[Step] = []
    main = vm_threads[0]
    for tree in manager.trees:
        if tree.has_cpus and not tree.clips:
            place = manager.vm_of(main, tree)
            within = home(manager.host, tree, main).rpartition("/")[0]
            if within != place and _within(within, place):
                steps += tree.set_cpus(tree.hierarchy.directory(within), None, may_be_gone=True)
    return steps


def _set_groups(
    manager: Manager,
    plan: Plan,
    tree: Tree,
    domain: Domain,
    vm_threads: list[Thread],
    homes: dict[int, str],
) -> None:
    """The CPUs of each thread group whose place (HOMES, by thread id) libvirt has made."""
    pins = domain.pins()
    places = {thread.group: homes[thread.tid] for thread in reversed(vm_threads)}
    for group, cpus in manager.allowed(domain, groups_of(vm_threads)).items():
        place = places.get(group, "")
        directory = tree.hierarchy.directory(place)
        if group in pins:
            # `apply` may have come between libvirt's setting a pin and its telling of it
            there = as_cpus(tree.read(CPUS, directory))
            is_libvirts = tree.clips and (there is None or there <= pins[group])
        else:
            is_libvirts = domain.auto_placement and not cpus
        if place.endswith(f"/{group}") and not is_libvirts and manager.host.exists(directory):
            # libvirt removes a thread group with its thread
            plan.add(*tree.set_cpus(directory, cpus, may_be_gone=True))


def _returned(tree: Tree, vm_threads: list[Thread], homes: dict[int, str]) -> list[Step]:
    """Each thread that is not where it belongs goes there."""
    steps: list[Step] = []
    for thread in vm_threads:
        here, there = thread.cgroups[tree.hierarchy.key], homes[thread.tid]
        if here != there:
            back = Move("thread", thread.tid, _tasks(tree, here), [])
            steps.append(Move("thread", thread.tid, _tasks(tree, there), [back]))
    return steps


def make_groups(
    manager: Manager,
    plan: Plan,
    domain: Domain,
    vm_threads: list[Thread],
    tree: Tree,
    scope: str,
) -> None:
    """With cgroup_controllers = [] libvirt makes no groups in the SCOPE, and on v1 leaves the
    VM in its own cpuset.
    """
    if tree.systemd_sets(CPUS):
        needed = manager.config.has_sets
    else:
        needed = manager.fence.cpus is not None or bool(manager.taken(domain))
    if not needed:
        return
    directory = tree.hierarchy.directory(scope)
    if not tree.systemd_makes:
        record, old = manager.records.of(domain)
        record.groups = list(dict.fromkeys([*record.groups, directory]))
        manager.records.save(plan, record, old)
        cpus = manager.carried(domain) or manager.fence.cpus
        plan.add_below(directory, *tree.make(scope, cpus))
    path, steps = tree.nest(scope, members(manager.host, directory))
    plan.add(*steps)
    groups = manager.allowed(domain, groups_of(vm_threads))
    plan.add(*tree.make_threads(path, groups))
    if path != scope:  # the processes have moved there
        vm_threads = [thread.moved(tree.hierarchy.key, path) for thread in vm_threads]
    plan.add(*move(tree, path, vm_threads[0].tid, vm_threads, {}))
