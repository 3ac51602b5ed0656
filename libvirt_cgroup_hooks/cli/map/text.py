# SPDX-License-Identifier: LGPL-2.1-or-later
"""The picture on a terminal: a row for each thread group, a character for each CPU, siblings
together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...cpuset import CpuSet
from ...errors import size
from . import memory
from .model import (
    Map,
    Mark,
    Node,
    Row,
    blocks,
    cut,
    facts,
    host_rows,
    mark,
    rows,
    rows_on,
    shown,
    title,
    union,
    width,
)

Cell = Callable[[int], "str | Mark"]  # what is drawn for a CPU

BOLD = "1"
COLOURS = {  # codes of ISO 6429; whatever they say the characters say too
    Mark.HOST: "33",
    Mark.OURS: "33",
    Mark.ISOLATED: "35",
    Mark.OFFLINE: "2",
    Mark.DEDICATED: "32",
    Mark.PINNED: "1;34",
    Mark.ALLOWED: "36",
    Mark.NEITHER: "2",
    Mark.MISSED: "1;31",
    Mark.TRESPASS: "1;31",
    Mark.INTRUDER: "1;31",
}
PARTS = {
    memory.Part.HOST: "33",
    memory.Part.POOL: "35",
    memory.Part.LIMIT: "2",
    memory.Part.USED: "36",
}
BAR_LEAST, BAR_MOST = 16, 64  # columns
NODE_GAP = " | "
# columns: of "isolated", beside a node that has to be cut, of any name
NAME_LEAST, NAME_CUT, NAME_MOST = 8, 16, 24
GROUP_MOST = 14


def draw(found: Map, columns: int, encoding: str, colour: bool) -> str:
    """FOUND in lines of at most COLUMNS, or of one core each where that is too few."""
    return "\n".join(_Picture(found, columns, encoding, colour).lines())


class _Picture:
    def __init__(self, found: Map, columns: int, encoding: str, colour: bool) -> None:
        self.found = found
        self.columns = columns
        self.colour = colour
        self.names = [cut(shown(vm.name, encoding), NAME_MOST) for vm in found.vms]
        self.used: set[Mark] = set()  # for the legend
        self.siblings = any(len(core) > 1 for node in found.nodes for core in node.cores)
        self.core_gap = " "
        self.cpu_gap = ""  # between the siblings of a core
        self._measure()

    def _measure(self) -> None:
        """Cells come first: names are cut as far as the widest node asks for."""
        labels = [width(row.label) for vm in self.found.vms for row in rows(vm)]
        self.group_width = min(max(labels, default=0), GROUP_MOST)
        left = self.columns - self.group_width - len("   ")
        if not self.siblings and max(map(self.node_width, self.found.nodes)) > left - NAME_LEAST:
            self.core_gap = ""
        if self.siblings:  # apart where there is room, so that 0 and 4 are not read as 04
            self.core_gap, self.cpu_gap = "  ", " "
            if self.block_width(self.found.nodes) > left - NAME_LEAST:
                self.core_gap, self.cpu_gap = " ", ""
        widest = max(map(self.node_width, self.found.nodes))
        told = [label for label, _, _ in host_rows(self.found)]
        longest = max([NAME_LEAST, *map(width, [*self.names, *told])])
        self.name_width = min(longest, left - widest if left - widest >= NAME_LEAST else NAME_CUT)
        self.room = left - self.name_width

    def node_width(self, node: Node) -> int:
        return max(self.cells_width(node), len(title(node)))

    def cells_width(self, node: Node) -> int:
        within = sum(len(core) + len(self.cpu_gap) * (len(core) - 1) for core in node.cores)
        return within + len(self.core_gap) * (len(node.cores) - 1)

    def fits(self, nodes: Sequence[Node]) -> bool:
        return self.block_width(nodes) <= self.room

    def block_width(self, nodes: Sequence[Node]) -> int:
        return sum(map(self.node_width, nodes)) + len(NODE_GAP) * (len(nodes) - 1)

    # lines

    def lines(self) -> list[str]:
        lines = [f"{name + ':':<16}{value}" for name, value in facts(self.found)]
        for nodes in blocks(self.found.nodes, self.fits):
            lines += ["", *self.block(nodes)]
        lines += ["", *self.bar()]
        if self.found.no_vms:
            lines += ["", self.found.no_vms]
        return [*lines, "", *self.legend()]

    def block(self, nodes: list[Node]) -> list[str]:
        cpus = union(node.cpus for node in nodes)
        titles = [
            self.paint(title(node), BOLD) + " " * (self.node_width(node) - len(title(node)))
            for node in nodes
        ]
        lines = [self.line("", "", titles)]
        for label, those in self.numbered(nodes, cpus):
            for place in reversed(range(len(str(max(those))))):
                cell = _among(those, _digit(place))
                lines.append(self.row("" if place else label, "", nodes, cell))
        for label, what, those in host_rows(self.found):
            if those & cpus:
                lines.append(self.row(label, "", nodes, _told(what, set(those))))
        for vm, name in zip(self.found.vms, self.names):
            for number, row in enumerate(rows_on(vm, cpus)):
                lines.append(
                    self.row("" if number else name, row.label, nodes, _marks(self.found, row))
                )
        return lines

    def numbered(self, nodes: list[Node], cpus: CpuSet) -> list[tuple[str, CpuSet]]:
        """The CPUs whose numbers stand in lines of their own. Where siblings stand side by side
        without a gap, as 0 and 64 do, theirs are apart, so that nobody reads 04.
        """
        cores = [core for node in nodes for core in node.cores]
        if self.cpu_gap or max(map(len, cores)) != 2:
            return [("CPU", cpus)]
        first = CpuSet(min(core) for core in cores)
        return [("CPU", first), ("sibling", cpus - first)]

    def row(self, name: str, group: str, nodes: list[Node], cell: Cell) -> str:
        return self.line(name, group, [self.cells(node, cell) for node in nodes])

    def line(self, name: str, group: str, parts: Sequence[str]) -> str:
        labels = (
            [(name, self.name_width), (group, self.group_width)]
            if self.group_width
            else [(name, self.name_width)]
        )
        start = " ".join(_padded(text, room) for text, room in labels)
        return f" {start} {NODE_GAP.join(parts)}".rstrip()

    def cells(self, node: Node, cell: Cell) -> str:
        cores = [
            self.cpu_gap.join(self.character(cell(cpu)) for cpu in core) for core in node.cores
        ]
        return self.core_gap.join(cores) + " " * (self.node_width(node) - self.cells_width(node))

    def character(self, what: str | Mark) -> str:
        if isinstance(what, str):
            return what
        self.used.add(what)
        return self.paint(what.symbol, COLOURS[what])

    def paint(self, text: str, style: str) -> str:
        return f"\033[{style}m{text}\033[m" if self.colour else text

    # legend

    def legend(self) -> list[str]:
        lines: list[str] = []
        end = self.columns
        for symbol, style, meaning in self.entries():
            entry = f" {self.paint(symbol, style)} {meaning}"
            if end + len("  ") + len(f" {symbol} {meaning}") > self.columns:
                lines, end = [*lines, entry], 0
            else:
                lines[-1] += "  " + entry
            end += len(f" {symbol} {meaning}") + (len("  ") if end else 0)
        columns = " A column is a CPU"
        if max(self.found.online | self.found.offline) > 9:
            columns += ", its number reads downwards"
        if self.siblings:
            columns += "; siblings stand together"
        return [*lines, f"{columns}."]

    def entries(self) -> list[tuple[str, str, str]]:
        """The character, style and meaning of each mark and part that was drawn."""
        marks = [(what.symbol, COLOURS[what], what.meaning) for what in Mark if what in self.used]
        drawn = {span.part for row in memory.rows(self.found.memory) for span in row.spans}
        parts = [(part.symbol, PARTS[part], part.meaning) for part in memory.Part if part in drawn]
        return marks + [entry for entry in parts if entry not in marks]

    # memory

    def bar(self) -> list[str]:
        """A row for each part, then what its characters mean."""
        bar = self.found.memory
        rows = memory.rows(bar)
        rest = self.columns - self.name_width - max(len(row.amount) for row in rows) - len("    ")
        room = max(BAR_LEAST, min(BAR_MOST, rest))
        head = f"{self.paint('memory', BOLD)} {size(bar.total)}, {size(bar.total // room)} a column"
        lines = [f" {_padded('', self.name_width)} {head}"]
        for row in rows:
            name = row.name if row.number is None else self.names[row.number]
            cells = self.bar_cells(row, room)
            lines.append(f" {_padded(name, self.name_width)} {cells}  {row.amount}")
        return lines

    def bar_cells(self, row: memory.Row, room: int) -> str:
        found, end = "", 0
        for span in row.spans:
            first, last = memory.cells(self.found.memory, span, room)
            first = max(first, end)
            found += " " * (first - end)
            found += self.paint(span.part.symbol * (last - first), PARTS[span.part])
            end = max(end, last)
        return found + " " * (room - end)


def _digit(place: int) -> Cell:
    """The decimal digit of a CPU's number: place 0 is the last."""
    return lambda cpu: str(cpu // 10**place % 10) if cpu >= 10**place or not place else " "


def _among(cpus: CpuSet, cell: Cell) -> Cell:
    """CELL of those CPUS, and nothing of others."""
    those = set(cpus)
    return lambda cpu: cell(cpu) if cpu in those else " "


def _told(what: Mark, cpus: set[int]) -> Cell:
    return lambda cpu: what if cpu in cpus else " "


def _marks(found: Map, row: Row) -> Cell:
    return lambda cpu: mark(found, row, cpu)


def _padded(text: str, room: int) -> str:
    short = cut(text, room)
    return short + " " * (room - width(short))
