# SPDX-License-Identifier: LGPL-2.1-or-later
"""A running VM's processes and threads: moved into thread groups, and the CPUs of those that libvirt made."""

from __future__ import annotations

from ..plan import Move, Pin, Plan, Step, Write
from ..threads import groups_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..cpuset import CpuSet
    from ..domain import Domain
    from ..host import Host
    from ..threads import Thread
    from .base import Manager, Tree


def move(tree: Tree, path: str, pid: int, found: list[Thread], helpers: dict[int, dict[str, str]]) -> list[Step]:
    """Process PID, whose threads are FOUND, and its HELPERS (cgroups by process id) to the VM cgroup PATH of TREE.

    Whole processes first, which takes every thread along; then each vCPU and I/O thread to its group.
    """
    key, directory = tree.hierarchy.key, tree.hierarchy.directory
    home = f"{path}/emulator" if tree.splits else path
    here = {thread.tid: thread.cgroups[key] for thread in found}
    back = {tid: f"{directory(at)}/{tree.thread_file}" for tid, at in here.items()}
    outside = any(at != path and not at.startswith(f"{path}/") for at in here.values())
    places = {number: place[key] for number, place in helpers.items()}
    if outside:
        places = {pid: found[0].cgroups[key], **places}
    steps: list[Step] = []
    for number, at in places.items():
        if at == home:
            continue
        undo = [Move("process", number, f"{directory(at)}/cgroup.procs", [])]
        if number == pid:
            undo += [Move("thread", tid, file, []) for tid, file in back.items() if here[tid] != at]
            here = dict.fromkeys(here, home)
        steps.append(Move("process", number, f"{directory(home)}/cgroup.procs", undo))
    for thread in found if tree.splits else ():
        target = f"{path}/{thread.group}"
        if here[thread.tid] != target:
            undo = [] if outside else [Move("thread", thread.tid, back[thread.tid], [])]
            steps.append(Move("thread", thread.tid, f"{directory(target)}/{tree.thread_file}", undo))
    return steps


def pin(host: Host, pins: dict[str, CpuSet | None], found: list[Thread], moved: bool) -> list[Step]:
    """The CPUs of each thread whose group has PINS, again.

    Before Linux 6.2 a change of cpuset undoes sched_setaffinity; since then it is kept. Setting it serves both.
    """
    steps: list[Step] = []
    for thread in found:
        cpus = pins.get(thread.group)
        old = host.affinity(thread.tid) if cpus else None
        if cpus and old and (moved or old != cpus):
            steps.append(Pin(thread.tid, cpus, old))
    return steps


def set_cpus_in_place(manager: Manager, plan: Plan, domain: Domain, found: list[Thread]) -> None:
    """The configured sets, in the thread groups that libvirt made, for threads that the XML does not pin; where there
    is none any more, all CPUs of the VM.

    On v1 pins as well, as far as the fence allows now: there it has cut what libvirt wrote.
    """
    pins = domain.pins()
    everywhere = manager.config.has_sets or plan.operation != "started"  # a VM that has just started has no earlier sets
    for tree in [tree for tree in manager.trees if tree.has_cpus]:
        if not everywhere and (not pins or tree.hierarchy.version == 2):
            continue
        homes = {thread.tid: home(manager.host, tree, thread) for thread in found}
        places = {thread.group: homes[thread.tid] for thread in reversed(found)}
        for group, cpus in manager.allowed_of(domain, groups_of(found)).items():
            libvirts = tree.hierarchy.version == 2 if group in pins else domain.auto_placement and not cpus
            place = places.get(group, "")
            directory = tree.hierarchy.directory(place)
            if place.endswith(f"/{group}") and not libvirts and manager.host.exists(directory):
                plan.add(*map(_may_be_gone, tree.set_cpus(directory, cpus)))
        for thread in found:
            here = thread.cgroups[tree.hierarchy.key]
            if homes[thread.tid] != here:
                back, there = (f"{tree.hierarchy.directory(at)}/{tree.thread_file}" for at in (here, homes[thread.tid]))
                plan.add(Move("thread", thread.tid, there, [Move("thread", thread.tid, back, [])]))


def home(host: Host, tree: Tree, thread: Thread) -> str:
    """Where THREAD belongs. v1 moves what is in a cpuset that has lost its last CPU to the cpuset above."""
    place = thread.cgroups.get(tree.hierarchy.key, "")
    own = f"{place}/{thread.group}"
    lost = tree.version == 1 and tree.has_cpus and not place.endswith(f"/{thread.group}")
    return own if lost and host.exists(tree.hierarchy.directory(own)) else place


def _may_be_gone(step: Step) -> Step:
    """A thread group is libvirt's, which removes it with its thread."""
    if isinstance(step, Write):
        step.may_be_gone = True
    return step
