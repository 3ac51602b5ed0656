# SPDX-License-Identifier: LGPL-2.1-or-later
"""Questions: what is in effect on the VM parent and in a VM, and how it differs from what is
wanted.
"""

from __future__ import annotations

from .admission import Cpus
from .cpuset import CpuSet
from .errors import Error, Refusal, printable
from .kernel.tree import InEffect
from .kinds import CPU_WEIGHT, CPUS, HOST_CPUS, MEMORY, as_cpus, in_bytes
from .managers.units import VM_SCOPE
from .state import Remembered

SHOWN = 3  # cgroups or processes in a message
KEEPS_PINS = [6, 2]  # Linux
# Why a VM is not as configured: its own settings cannot be; no limit of ours of memory, or of CPUs,
# is above it, or one of memory apart from that of other VMs; a thread is in another cgroup, may use
# more CPUs than it is to, or fewer; or the VM has other CPUs for itself than it asks for.
SETTINGS, MEMORY_LIMIT, MEMORY_APART = "settings", "memory-limit", "memory-apart"
CPU_LIMIT = "cpu-limit"
PLACE, MORE_CPUS, FEWER_CPUS, DEDICATED = "place", "more-cpus", "fewer-cpus", "dedicated"
REASONS = (SETTINGS, MEMORY_LIMIT, MEMORY_APART, CPU_LIMIT, PLACE, MORE_CPUS, FEWER_CPUS, DEDICATED)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .domain import Domain
    from .host import Host
    from .kernel.tree import Tree
    from .managers.base import Manager
    from .state import Row
    from .threads import Thread


class Parent(InEffect):
    """What is in effect on the VM parent, and its cgroup (None where each VM carries the fence)."""

    __slots__ = ("path",)

    path: str | None


class Difference:
    """How something is not as configured: one of REASONS, and the text for people."""

    __slots__ = ("reason", "text")

    def __init__(self, reason: str, text: str) -> None:
        self.reason = reason
        self.text = text


def parent(manager: Manager) -> Parent:
    """The VM parent, over all hierarchies that limit it."""
    found = Parent()
    found.path = None
    for tree, path in manager.parent_paths().items():
        found.path = path
        one = tree.in_effect(tree.hierarchy.directory(path))
        if tree.has_cpus:
            found.cpus = one.cpus
        if tree.has_memory:
            found.memory_limit = one.memory_limit
            found.memory_current = one.memory_current
            found.swap_limit = one.swap_limit
            found.swap_current = one.swap_current
    return found


def taken(manager: Manager) -> dict[str, CpuSet]:
    """The CPUs of the fence that others have for themselves alone, by the directories of their
    cgroups.
    """
    fence = manager.fence.cpus
    found: dict[str, CpuSet] = {}
    if fence is None:
        return found
    for tree, path in manager.parent_paths().items():
        if not tree.has_cpus:
            continue
        for directory, cpus in tree.taken(tree.hierarchy.directory(path)).items():
            if cpus & fence:
                found[directory] = cpus & fence
    return found


def cpus_for_pins(manager: Manager, fence: CpuSet) -> Cpus:
    """What a VM's pins are held against."""
    in_effect = parent(manager).cpus
    # others can have taken CPUs only where fewer are in effect
    others = taken(manager) if in_effect and not fence <= in_effect else {}
    all_online = any(tree.has_cpus and not tree.clips for tree in manager.trees)
    lent_to = manager.config.host_cpus_for
    return Cpus(fence, manager.pinnable(fence), manager.kept, others, all_online, lent_to)


def others_in(manager: Manager, rows: Iterable[Row]) -> dict[str, list[str]]:
    """By the cgroup of each of ROWS that holds, or will hold, more than VMs: the first of what that
    is, cgroups or units.

    Containers are beside VMs in the cgroup that libvirt itself takes, which is left out.
    """
    found: dict[str, list[str]] = {}
    for kind, path in rows:
        tree = manager.tree_of(kind)
        if tree is None or path == manager.machine or path in found:
            continue
        mount, top = len(tree.hierarchy.mount), tree.hierarchy.directory(path)
        others = manager.hosts_own(path) or [one[mount:] for one in _beside(manager.host, top)]
        if others:
            found[path] = others
    return found


def beside_vms(manager: Manager, tree: Tree, path: str) -> list[str]:
    """The cgroups right below PATH that hold something else than VMs: processes, or memory that
    ended ones have left.
    """
    host, top = manager.host, tree.hierarchy.directory(path)
    found: list[str] = []
    for name in host.directories(top):
        directory = f"{top}/{name}"
        left = tree.has_memory and not name.endswith(".slice") and tree.memory_in_use(directory)
        if _beside(host, directory) or (left and not _is_vms(host, directory)):
            found.append(f"{path.rstrip('/')}/{name}")
    return found


def _beside(host: Host, directory: str) -> list[str]:
    """The first cgroups at or below DIRECTORY that have processes and are no VM's."""
    from . import threads

    found: list[str] = []
    left = [directory]
    # no recursion: a container, or a user, may nest cgroups deeper than Python goes
    while left and len(found) < SHOWN:
        one = left.pop()
        if _is_vms(host, one):
            continue
        if threads.members(host, one):
            found.append(one)
        else:
            left += reversed(_below(host, one))
    return found


def _below(host: Host, directory: str) -> list[str]:
    """The cgroups right below DIRECTORY."""
    return [f"{directory}/{name}" for name in host.directories(directory)]


def _is_vms(host: Host, directory: str) -> bool:
    """Whether DIRECTORY is the cgroup of one VM: a scope of libvirt's, or one with QEMU in it or in
    its emulator group.
    """
    from . import threads

    if directory.rpartition("/")[2].startswith(VM_SCOPE):
        return True
    for place in (directory, f"{directory}/emulator"):
        for pid in threads.members(host, place):
            if (host.read_optional(f"/proc/{pid}/comm") or "").startswith(threads.QEMU):
                return True
    return False


# the host's own work


def host_cpus(manager: Manager) -> dict[str, CpuSet]:
    """By the cgroup of each host unit that has one, the CPUs that it may use."""
    tree = manager.tree_of(HOST_CPUS)
    found: dict[str, CpuSet] = {}
    if tree is None:
        return found
    for path in manager.host_units(HOST_CPUS):
        cpus = tree.cpus_in_effect(tree.hierarchy.directory(path))
        if cpus:
            found[path] = cpus
    return found


def confined(manager: Manager) -> CpuSet | None:
    """The CPUs of the host units, where all of them keep to those of the host."""
    cpus = CpuSet()
    for one in host_cpus(manager).values():
        cpus = cpus | one
    return cpus if cpus and cpus <= manager.kept else None


def pinned_elsewhere(manager: Manager) -> Error | None:
    """What is wrong where processes of host units are pinned to CPUs of VMs alone.

    The kernel runs them on the host's CPUs while those are all that their unit has.
    """
    from . import threads

    host, tree = manager.host, manager.tree_of(HOST_CPUS)
    found: list[str] = []
    if tree is None:
        return None
    for path in manager.host_units(HOST_CPUS):
        for pid in _members_below(host, tree.hierarchy.directory(path)):
            cpus = threads.allowed_in(host, f"/proc/{pid}/status")
            if cpus and not cpus & manager.kept:
                name = (host.read_optional(f"/proc/{pid}/comm") or "").strip()
                found.append(f"{printable(name)} ({pid}) to {cpus}")
    if not found:
        return None
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    for_good = ""
    if _forgets_pins(host):
        for_good = ", afterwards too, since this kernel forgets such a pin (Linux 6.2 does not)"
    return Error(
        "processes of the host are pinned to CPUs of VMs, and would run on the host's instead"
        f"{for_good}: {', '.join(found[:SHOWN])}{more}",
        "put their services into a slice that host_units does not name (Slice=)",
    )


def _forgets_pins(host: Host) -> bool:
    """Before Linux 6.2 a change of a cpuset undoes sched_setaffinity."""
    release = (host.read_optional("/proc/sys/kernel/osrelease") or "").split(".")
    numbers = [int(part) for part in release[:2] if part.isdigit()]
    return len(numbers) == len(KEEPS_PINS) and numbers < KEEPS_PINS


def _members_below(host: Host, directory: str) -> list[int]:
    from . import threads

    found: list[int] = []
    left = [directory]
    while left:
        one = left.pop()
        found += threads.members(host, one)
        left += reversed(_below(host, one))
    return found


def protected(manager: Manager) -> dict[str, int]:
    """By the cgroup of each host unit, the bytes that the kernel keeps from reclaim; none where
    nothing is configured.
    """
    kind = manager.protection
    paths = manager.host_units(kind) if kind else []
    return {path: in_bytes(manager.read(kind, path)) or 0 for path in paths if kind}


def cpu_weight(manager: Manager) -> int | None:
    """That of the VM parent; None where it has the default, or is not there."""
    paths = manager.parents(CPU_WEIGHT, [])
    return in_bytes(manager.read(CPU_WEIGHT, paths[-1])) if paths else None


# VMs that have CPUs for themselves alone


def dedicated(manager: Manager) -> dict[str, CpuSet]:
    """By the UUID of each VM that has CPUs for itself alone, those."""
    return {uuid: record.dedicated for uuid, record in manager.records.dedicated().items()}


def not_dedicated(manager: Manager, domain: Domain) -> list[Difference]:
    """Where DOMAIN, whose own MANAGER this is, has other CPUs for itself than it asks for."""
    try:
        asked = manager.dedicated_to(domain)
    except Refusal as error:
        return [Difference(DEDICATED, str(error))]
    has = dedicated(manager).get(domain.uuid, CpuSet())
    if has == asked:
        return []
    mine, wanted = (f"CPUs {cpus}" if cpus else "no CPUs" for cpus in (has, asked))
    return [Difference(DEDICATED, f"it has {mine} for itself, not {wanted} (dedicated)")]


# memory


def memory_parents(manager: Manager) -> dict[str, Tree]:
    """The directories of the VM parent that count its memory, those that exist."""
    found: dict[str, Tree] = {}
    for tree, path in manager.parent_paths().items():
        directory = tree.hierarchy.directory(path)
        if tree.has_memory and manager.host.exists(directory):
            found[directory] = tree
    return found


def memory_in_use(manager: Manager, domain: Domain) -> int:
    """Bytes that the running DOMAIN has now; 0 where it has ended."""
    found = _memory_cgroup(manager, domain)
    return found[0].memory_in_use(found[1]) if found else 0


def pages_in_use(manager: Manager, domain: Domain) -> int:
    """As `memory_in_use`, without hugepages where the kernel charges those."""
    found = _memory_cgroup(manager, domain)
    if found is None:
        return 0
    tree, directory = found
    return max(0, tree.memory_in_use(directory) - tree.hugepages_in_use(directory))


def _memory_cgroup(manager: Manager, domain: Domain) -> tuple[Tree, str] | None:
    """The hierarchy and the directory that count the memory of the running DOMAIN."""
    from . import threads  # only now: the hook asks nothing of it

    cgroups = threads.process_cgroups(manager.host, domain.pid or 0)
    tree = next((tree for tree in manager.trees if tree.has_memory), None)
    if cgroups is None or tree is None:
        return None
    main = threads.Thread(domain.pid or 0, "", "emulator", cgroups)
    return tree, tree.hierarchy.directory(manager.vm_of(main, tree))


def first_killed(manager: Manager, running: list[Domain]) -> list[str]:
    """The names of those of RUNNING of which the kernel would kill one now, if the VM parent were
    at its memory limit and nothing could be reclaimed. More than one have the same score.

    The score is mostly what a process has in memory and in swap; with 0 it is never killed.
    """
    from . import threads

    tree = manager.tree_of(MEMORY)
    top = manager.parent_paths().get(tree) if tree else None
    scores: dict[str, int] = {}
    for domain in running:
        text = manager.host.read_optional(f"/proc/{domain.pid}/oom_score")
        places = threads.process_cgroups(manager.host, domain.pid or 0)
        if text is None or places is None or tree is None or top is None:
            continue
        if f"{places.get(tree.hierarchy.key, '')}/".startswith(f"{top}/"):
            scores[domain.name] = int(text)
    highest = max(scores.values(), default=0)
    return [name for name, score in scores.items() if score == highest > 0]


# a VM


def outside(manager: Manager, own: Manager, domain: Domain, main: Thread) -> Difference | None:
    """How DOMAIN, with the main thread MAIN, escapes a limit of all VMs, whose MANAGER this is;
    None where it does not, or there is none. OWN is the manager with its settings.
    """
    found = _outside_memory(manager, own, domain, main)
    return found or _outside_cpus(manager, own, domain, main)


def _outside_memory(
    manager: Manager, own: Manager, domain: Domain, main: Thread
) -> Difference | None:
    tree = manager.tree_of(MEMORY)
    tops = manager.parents(MEMORY, [])
    if tree is None or manager.fence.memory is None or not tops:
        return None
    place = manager.vm_of(main, tree)
    if _is_below(place, tops):
        return None
    limited = [path for kind, path in Remembered(manager.host).before if kind is MEMORY]
    if _is_below(place, limited):
        text = f"it is in {place}, not below {tops[-1]}, so its memory is counted apart from that "
        again = own.parent_paths(domain).get(tree)
        until = " until it is restarted" if again and _is_below(again, tops) else ""
        return Difference(MEMORY_APART, f"{text}of other VMs{until}")
    text = f"it is in {place}, where reserved_host_mem does not limit it"
    return Difference(MEMORY_LIMIT, text)


def _outside_cpus(
    manager: Manager, own: Manager, domain: Domain, main: Thread
) -> Difference | None:
    """Where it strays, and carries no limit itself. Its pins may hold, until they are changed."""
    tree, cpus = manager.tree_of(CPUS), manager.fence.cpus
    if tree is None or cpus is None or manager.carries or not own.strays(domain):
        return None
    place = above = manager.vm_of(main, tree)
    while above:
        limit = as_cpus(manager.read(CPUS, above))
        if limit and limit <= manager.pinnable(cpus):
            return None
        above = above.rpartition("/")[0]
    return Difference(CPU_LIMIT, f"it is in {place}, where reserved_host_cpus does not limit it")


def _is_below(path: str, tops: list[str]) -> bool:
    return any(f"{path}/".startswith(f"{top}/") for top in tops)


def differences(manager: Manager, domain: Domain, thread: Thread, cpus: CpuSet) -> list[Difference]:
    """How the place of THREAD, and the CPUS it may use, differ from what is configured."""
    from . import threads

    found: list[Difference] = []
    for tree in manager.trees:
        actual = thread.cgroups.get(tree.hierarchy.key)
        wanted = manager.place_of(domain, tree, thread)
        if wanted in (None, actual) and actual is not None:
            wanted = threads.home(manager.host, tree, thread)
        if wanted not in (None, actual):
            text = f"it is in {tree.hierarchy.key or 'cgroup'} {actual}, not in {wanted}"
            found.append(Difference(PLACE, text))
    reach = manager.reach(domain, thread.group)
    allowed = manager.allowed(domain, [thread.group])[thread.group] or reach
    if allowed and not cpus <= allowed:
        found.append(Difference(MORE_CPUS, f"it may use CPUs {cpus}, not only {allowed}"))
    has_set = manager.config.set_of(thread.group) and thread.group not in domain.pins()
    if allowed and has_set and not allowed <= cpus:
        text = f"it may use only CPUs {cpus}, not all of {allowed}"
        found.append(Difference(FEWER_CPUS, text))
    return found
