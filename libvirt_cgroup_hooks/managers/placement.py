# SPDX-License-Identifier: LGPL-2.1-or-later
"""Moving a running VM's processes and threads into thread groups."""

from __future__ import annotations

from ..plan import Move, Pin, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..cpuset import CpuSet
    from ..host import Host
    from ..threads import Thread
    from .base import Tree


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
