# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the picture shows, and how its cells and rows are made: the same for text and SVG."""

from __future__ import annotations

import enum
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ... import apart, conformance, lending, managers, state, threads
from ...config import Config
from ...cpuset import CpuSet
from ...domain import Domain
from ...errors import Error, printable
from ...host import Host, page_size
from ...lending import class_of
from ...managers.base import Manager
from ...topology import Topology
from ..output import count
from . import memory


@dataclass(frozen=True)
class Node:
    """A NUMA node, or some of its cores; `number` is None for CPUs that are in no node, as when
    they are offline.
    """

    number: int | None
    cores: tuple[CpuSet, ...]

    @property
    def cpus(self) -> CpuSet:
        return union(self.cores)


@dataclass(frozen=True)
class Group:
    """A thread group of a VM: the online CPUs it may run on, its pin in the VM's XML, and whether
    the host's CPUs are for it, too.
    """

    name: str
    threads: int
    cpus: CpuSet
    pinned: CpuSet | None
    lent: bool = False


@dataclass(frozen=True)
class Vm:
    """A running VM."""

    name: str
    uuid: str
    id: int | None
    groups: tuple[Group, ...]
    others: CpuSet | None = None  # that belong to other VMs alone


@dataclass(frozen=True)
class Map:
    """The CPUs of the host and who may use them; `fence` is None where VMs may use all, and `host`
    what its own units may use, None where confine_host is not set. Of VMs that are `unreadable`
    nothing is known.
    """

    online: CpuSet
    offline: CpuSet
    isolated: CpuSet
    reserved: CpuSet
    fence: CpuSet | None
    nodes: tuple[Node, ...]
    vms: tuple[Vm, ...]
    memory: memory.Bar
    host: CpuSet | None = None
    unreadable: int = 0
    dedicated: tuple[tuple[str, CpuSet], ...] = ()  # VMs, and the CPUs that are theirs alone

    @property
    def no_vms(self) -> str:
        """What is told in place of VMs."""
        if self.unreadable:
            return f"{count(self.unreadable, 'VM')} cannot be shown."
        return "" if self.vms else "No VM is running."


@dataclass(frozen=True)
class Row:
    """Thread groups of a VM that may run on the same CPUs and have the same pin."""

    label: str
    cpus: CpuSet
    pinned: CpuSet
    lent: bool = False
    others: CpuSet | None = None  # that belong to other VMs alone


class Mark(enum.Enum):
    """What a cell says: its character on the terminal, and the meaning."""

    HOST = "H", "reserved for the host"
    OURS = "-", "reserved, so not for this VM"
    ISOLATED = "i", "isolated from the scheduler"
    OFFLINE = "/", "offline"
    DEDICATED = "D", "one VM's alone"
    PINNED = "#", "pinned here"
    ALLOWED = "o", "may run here"
    NEITHER = ".", "may not run here"
    MISSED = "x", "pinned here, but may not run here"
    TRESPASS = "!", "may run here, though reserved for the host"
    INTRUDER = "?", "may run here, though one VM's alone"

    def __init__(self, symbol: str, meaning: str) -> None:
        self.symbol = symbol
        self.meaning = meaning


def read(host: Host, config: Config, errors: dict[str, Error]) -> Map:
    """What is wrong with a VM is told in ERRORS by its name. Raises Error where the kernel's files
    are not understood.
    """
    topology = Topology.read(host.read_optional)
    shared = state.Remembered(host)
    asked = config.confine_host != "no" or config.host_cpus_for or shared.dedicated
    manager = managers.choose(host, config, managers.daemon(host)) if asked else None
    fence = config.fence(topology.online, topology.memory, page_size())
    running = threads.running(host, errors)
    return Map(
        topology.online,
        topology.present - topology.online,
        topology.isolated,
        config.reserved_host_cpus or CpuSet(),
        fence.cpus,
        tuple(_nodes(topology)),
        tuple(_vm(host, manager, domain, topology.online) for domain in running),
        memory.read(host, config, topology.memory, fence.memory, running),
        _own(manager, topology.online),
        len(errors),
        tuple((one.name, one.cpus) for one in apart.owners(manager)) if manager else (),
    )


def _own(manager: Manager | None, online: CpuSet) -> CpuSet | None:
    if manager is None or manager.config.confine_host == "no":
        return None
    return union(conformance.host_cpus(manager).values()) or online


def _nodes(topology: Topology) -> list[Node]:
    """The kernel takes a CPU that goes offline out of its node and its core, so such CPUs come
    last.
    """
    cores = [*topology.cores, *(CpuSet([cpu]) for cpu in topology.present - topology.online)]
    nodes, rest = [], topology.present
    for number, cpus in topology.nodes.items():
        nodes.append(Node(number, tuple(core & cpus for core in cores if core & cpus)))
        rest -= cpus
    return nodes + (
        [Node(None, tuple(core & rest for core in cores if core & rest))] if rest else []
    )


def _vm(host: Host, manager: Manager | None, domain: Domain, online: CpuSet) -> Vm:
    lent = _lent(manager, domain) if manager else set()
    allowed: dict[str, list[CpuSet]] = {}
    for thread in threads.threads(host, domain):
        allowed.setdefault(thread.group, []).append(
            threads.cpus_allowed(host, domain, thread) & online
        )
    pins = domain.pins()
    names = sorted(
        allowed,
        key=lambda name: (class_of(name) != "emulator", class_of(name) != "vcpu", _number(name)),
    )
    groups = [
        Group(
            name,
            len(allowed[name]),
            union(allowed[name]),
            pins.get(name),
            class_of(name) in lent,
        )
        for name in names
    ]
    others = manager.taken(domain) if manager else None
    return Vm(domain.name, domain.uuid, domain.id, tuple(groups), others)


def _lent(manager: Manager, domain: Domain) -> set[str]:
    """The classes of DOMAIN's threads that the host's CPUs are for, too."""
    try:
        own = manager.for_domain(domain)
    except Error:  # in its own settings; status and validate tell it
        return set()
    return (
        set(own.config.host_cpus_for) if lending.borrows(own.config, own.fence, domain) else set()
    )


def union(sets: Iterable[CpuSet]) -> CpuSet:
    """All CPUs of the SETS."""
    return CpuSet(cpu for cpus in sets for cpu in cpus)


def _number(group: str) -> int:
    return int(group[len(class_of(group)) :] or 0)


def as_json(found: Map) -> dict[str, object]:
    """As `map --json` prints it."""
    return {
        "cpus": str(found.online),
        "offline": str(found.offline),
        "isolated": str(found.isolated),
        "reservation": {"cpus": str(found.reserved)},
        "fence": {"cpus": "" if found.fence is None else str(found.fence)},
        "host": {"cpus": "" if found.host is None else str(found.host)},
        "dedicated": [{"name": name, "cpus": str(cpus)} for name, cpus in found.dedicated],
        "nodes": [
            {"node": node.number, "cpus": str(node.cpus), "cores": list(map(str, node.cores))}
            for node in found.nodes
        ],
        "memory": memory.as_json(found.memory),
        "domains": [_vm_json(vm) for vm in found.vms],
    }


def _vm_json(vm: Vm) -> dict[str, object]:
    groups = [
        {
            "group": group.name,
            "threads": group.threads,
            "cpus": str(group.cpus),
            "pinned": None if group.pinned is None else str(group.pinned),
        }
        for group in vm.groups
    ]
    return {"name": vm.name, "uuid": vm.uuid, "id": vm.id, "groups": groups}


# rows


def rows(vm: Vm) -> list[Row]:
    """One for each class of threads that are alike, and one for the whole VM where all are."""
    alike: dict[tuple[str, CpuSet, CpuSet, bool], list[int]] = {}
    for group in vm.groups:
        key = class_of(group.name), group.cpus, group.pinned or CpuSet(), group.lent
        alike.setdefault(key, []).append(_number(group.name))
    if len(vm.groups) > 1 and len({key[1:] for key in alike}) == 1:
        one = vm.groups[0]
        return [Row("all threads", one.cpus, one.pinned or CpuSet(), others=vm.others)]
    return [
        Row(
            kind if kind == "emulator" else f"{kind}{CpuSet(numbers)}",
            cpus,
            pinned,
            lent,
            vm.others,
        )
        for (kind, cpus, pinned, lent), numbers in alike.items()
    ]


def rows_on(vm: Vm, cpus: CpuSet) -> list[Row]:
    """The rows that have anything to say about CPUS, and those that have nothing to say at all."""
    return [row for row in rows(vm) if (row.cpus | row.pinned) & cpus or not row.cpus | row.pinned]


def host_rows(found: Map) -> list[tuple[str, Mark, CpuSet]]:
    """What is told of CPUs themselves: label, mark, and the CPUs that have it."""
    told = (
        ("host", Mark.HOST, found.reserved),
        ("isolated", Mark.ISOLATED, found.isolated),
        ("offline", Mark.OFFLINE, found.offline),
        ("dedicated", Mark.DEDICATED, union(cpus for _, cpus in found.dedicated)),
    )
    return [row for row in told if row[2]]


def mark(found: Map, row: Row, cpu: int) -> Mark:
    """How the map shows CPU in ROW."""
    one = CpuSet([cpu])
    is_anothers = row.others is not None and one <= row.others
    if one <= row.cpus:
        if is_anothers:
            return Mark.INTRUDER
        if one <= found.reserved and not row.lent:
            return Mark.TRESPASS
        return Mark.PINNED if one <= row.pinned else Mark.ALLOWED
    if one <= row.pinned:
        return Mark.MISSED
    if one <= found.offline:
        return Mark.OFFLINE
    if is_anothers:
        return Mark.DEDICATED
    return Mark.OURS if one <= found.reserved else Mark.NEITHER


def facts(found: Map) -> list[tuple[str, str]]:
    """The picture in words."""
    numbered = [node for node in found.nodes if node.number is not None]
    cores = sum(bool(core & found.online) for node in found.nodes for core in node.cores)
    empty = CpuSet(node.number or 0 for node in numbered if not node.cores)
    told = [
        (
            "CPUs",
            f"{found.online} in {count(cores, 'core')} on {count(len(numbered), 'NUMA node')}",
        ),
        ("Host keeps", str(found.reserved) or "nothing"),
        ("Host may use", "" if found.host is None else str(found.host)),
        ("VMs may use", "all CPUs" if found.fence is None else str(found.fence)),
        ("Dedicated", ", ".join(f"{cpus} ({shown(name)})" for name, cpus in found.dedicated)),
        ("Isolated", str(found.isolated)),
        ("Offline", str(found.offline)),
        ("Without CPUs", f"NUMA node {empty}" if empty else ""),
    ]
    return [(name, value) for name, value in told if value]


# columns


def title(node: Node) -> str:
    """Of the block of columns that shows NODE."""
    return "no node" if node.number is None else f"node {node.number}"


def blocks(nodes: Sequence[Node], fits: Callable[[Sequence[Node]], bool]) -> list[list[Node]]:
    """Nodes side by side as far as they fit; one that does not fit alone is cut between cores."""
    lines: list[list[Node]] = []
    for node in (node for node in nodes if node.cores):
        if lines and fits([*lines[-1], node]):
            lines[-1].append(node)
        else:
            lines += [[part] for part in _parts(node, fits)]
    return lines


def _parts(node: Node, fits: Callable[[Sequence[Node]], bool]) -> list[Node]:
    parts: list[Node] = []
    for core in node.cores:
        longer = Node(node.number, (*parts[-1].cores, core)) if parts else None
        if longer and fits([longer]):
            parts[-1] = longer
        else:
            parts.append(Node(node.number, (core,)))
    return parts


# names


def shown(name: str, encoding: str = "utf-8") -> str:
    """NAME, which may hold anything, as one line of characters whose width all agree on and
    ENCODING has.
    """
    composed = unicodedata.normalize("NFC", printable(name))
    # variation selectors: terminals differ
    plain = "".join(c for c in composed if not "\ufe00" <= c <= "\ufe0f")
    return plain.encode(encoding, "backslashreplace").decode(encoding)


def width(text: str) -> int:
    """Columns of a terminal."""
    return sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, room: int) -> str:
    """TEXT in at most ROOM columns: without its middle, since names often differ at their ends."""
    if width(text) <= room:
        return text
    tail = _start(text[::-1], (room - 2) // 2)[::-1]
    return f"{_start(text, room - 2 - width(tail))}..{tail}"


def _start(text: str, room: int) -> str:
    end, used = 0, 0
    while end < len(text) and used + _width(text[end]) <= room:
        used += _width(text[end])
        end += 1
    return text[:end]
