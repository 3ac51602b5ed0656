# SPDX-License-Identifier: LGPL-2.1-or-later
"""The picture as SVG: one file with nothing outside it, no scripts, and a background of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lxml import etree

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

NAMESPACE = "http://www.w3.org/2000/svg"
# All in pixels. A cell has CELL by CELL of room, shapes leave one free on each side.
CELL, CORE_GAP, NODE_GAP = 18, 6, 18
MARGIN, LINE, VM_GAP = 20, 20, 4
NODES_WIDTH = 740  # nodes go into one block up to this width
COLUMN = 7.5  # of a character, about: fonts differ, so labels are clipped as well
NAME_MOST, GROUP_MOST = 24, 14  # columns
BAR_WIDTH, AMOUNT_MOST = 360, 34  # of the bar of memory: pixels; columns beside it

# Each mark is a shape of its own, so that no colour is needed; X and Y are the corner of its cell.
SHAPES = {
    Mark.HOST: "M{x} {y}m2 2h14v14h-14z",
    Mark.ISOLATED: "M{x} {y}m9 3l6 6l-6 6l-6-6z",
    Mark.OFFLINE: "M{x} {y}m4 14l10-10",
    Mark.DEDICATED: "M{x} {y}m9 2a7 7 0 1 1 0 14a7 7 0 1 1 0-14",
    Mark.PINNED: "M{x} {y}m2 2h14v14h-14z",
    Mark.ALLOWED: "M{x} {y}m6 6h6v6h-6z",
    Mark.NEITHER: "M{x} {y}m8 8h2v2h-2z",
    Mark.MISSED: "M{x} {y}m4 4l10 10m0-10l-10 10",
    Mark.TRESPASS: "M{x} {y}m9 2l7 14h-14z",
    Mark.INTRUDER: "M{x} {y}m2 2h14l-7 14z",
}
STYLE = """
text { font-family: sans-serif; font-size: 13px; fill: #1f2328; }
.fact, .legend { fill: #424a53; }
.node { font-weight: bold; }
.number { font-size: 10px; fill: #57606a; text-anchor: middle; }
.paper { fill: #ffffff; stroke: #d0d7de; }
.panel { fill: #f3f5f7; }
.core { fill: #ffffff; }
.kept { fill: url(#hatch); }
.line { stroke: #d0d7de; }
.host { fill: #9a5b00; }
.dedicated { fill: none; stroke: #1a7f37; stroke-width: 2; }
.isolated { fill: none; stroke: #6b3fa0; stroke-width: 2; }
.offline { fill: none; stroke: #57606a; stroke-width: 2; }
.pinned { fill: #0a4a94; }
.allowed { fill: #2f81d8; }
.neither { fill: #afb8c1; }
.missed { fill: none; stroke: #c0182b; stroke-width: 3; }
.trespass, .intruder { fill: #c0182b; }
.hatching { fill: none; stroke: #e0a94a; stroke-width: 2; }
.memory-host { fill: url(#hatch); stroke: #9a5b00; }
.memory-pool { fill: #c8b6e2; stroke: #6b3fa0; }
.memory-limit { fill: #f3f5f7; stroke: #57606a; }
.memory-used { fill: #2f81d8; }
"""


def draw(found: Map) -> str:
    """In ASCII, with character references for what else names have."""
    return _Picture(found).whole()


class _Picture:
    """`x` by CPU is where its column begins in the block that is being drawn, `y` where the next
    line begins.

    `groups` is where the names of thread groups begin, `left` where nodes do.
    """

    def __init__(self, found: Map) -> None:
        self.found = found
        self.used: set[Mark] = set()
        self.names = [cut(shown(vm.name), NAME_MOST) for vm in found.vms]
        self.groups = MARGIN + max([len("isolated"), *map(width, self.names)]) * COLUMN + 12
        labels = [len(row.label) for vm in found.vms for row in rows(vm)]
        self.left = self.groups + (min(max(labels), GROUP_MOST) * COLUMN + 12 if labels else 0)
        self.lines = blocks(found.nodes, lambda nodes: _nodes_width(nodes) <= NODES_WIDTH)
        self.total = max(self.left + max(map(_nodes_width, self.lines)) + MARGIN, 640)
        bar = self.groups + BAR_WIDTH + AMOUNT_MOST * COLUMN + MARGIN
        self.total = max(self.total, bar)
        self.x: dict[int, float] = {}
        self.y: float = MARGIN
        self.svg: Any = etree.Element("svg", nsmap={None: NAMESPACE})
        self.parent: Any = self.svg

    def add(self, tag: str, text: str = "", **attributes: object) -> Any:
        """A new element in the one that is open; "class_" and "text_anchor" stand for "class" and
        "text-anchor".
        """
        named = {
            name.rstrip("_").replace("_", "-"): _number(value) for name, value in attributes.items()
        }
        element = etree.SubElement(self.parent, tag, named)
        element.text = text or None
        return element

    def whole(self) -> str:
        self.head()
        for nodes in self.lines:
            self.block(nodes)
        self.bar()
        if self.found.no_vms:
            self.text(MARGIN, self.found.no_vms, "fact")
            self.y += LINE
        self.legend()
        self.frame()
        return str(etree.tostring(self.svg, pretty_print=True).decode("ascii"))

    def head(self) -> None:
        self.add("title", "Where VMs run on this host", id="title")
        self.add("desc", " ".join(_sentences(self.found)), id="desc")
        self.add("style", STYLE)
        self.definitions = self.add("defs")
        self.paper = self.add("rect", class_="paper", x=0.5, y=0.5, rx=8)
        for name, value in facts(self.found):
            self.text(
                MARGIN, cut(f"{name}: {value}", int((self.total - 2 * MARGIN) / COLUMN)), "fact"
            )
            self.y += LINE
        self.y += LINE / 2

    def frame(self) -> None:
        """What needs the height of the whole."""
        height = self.y + MARGIN / 2
        size = {
            "viewBox": f"0 0 {_number(self.total)} {_number(height)}",
            "width": self.total,
            "height": height,
        }
        for name, value in {**size, "role": "img", "aria-labelledby": "title desc"}.items():
            self.svg.set(name, _number(value))
        self.paper.set("width", _number(self.total - 1))
        self.paper.set("height", _number(height - 1))
        self.parent = self.definitions
        self.parent = self.add(
            "pattern", id="hatch", width=6, height=6, patternUnits="userSpaceOnUse"
        )
        self.add("path", class_="hatching", d="M-1 1l2-2M0 6l6-6M5 7l2-2")
        for name, x, end in (("names", MARGIN, self.groups), ("groups", self.groups, self.left)):
            self.parent = self.definitions
            self.parent = self.add("clipPath", id=name)
            self.add("rect", x=x, y=0, width=max(end - x - 4, 0), height=height)

    # blocks

    def block(self, nodes: list[Node]) -> None:
        cpus = union(node.cpus for node in nodes)
        shown_rows = [(vm, name, rows_on(vm, cpus)) for vm, name in zip(self.found.vms, self.names)]
        told = [row for row in host_rows(self.found) if row[2] & cpus]
        lines = len(told) + sum(len(found) for _, _, found in shown_rows)
        self.panels(
            nodes, LINE * (lines + 1) + VM_GAP * sum(bool(found) for _, _, found in shown_rows)
        )
        for label, what, those in told:
            self.label(label, "")
            self.cells((cpu, what) for cpu in those & cpus)
            self.y += LINE
        for vm, name, found in shown_rows:
            if found:
                end = self.left + _nodes_width(nodes)
                self.add("line", class_="line", x1=MARGIN, y1=self.y + 2, x2=end, y2=self.y + 2)
                self.y += VM_GAP
                self.vm(vm.name, name, found, cpus)
        self.y += LINE

    def panels(self, nodes: list[Node], height: float) -> None:
        """Titles, the ground of nodes and cores, the columns that the host keeps, and the numbers
        of CPUs.
        """
        x = self.left
        top = self.y + LINE + 2
        self.x = {}
        for node in nodes:
            self.text(x + 4, title(node), "node")
            self.add(
                "rect", class_="panel", x=x, y=top, width=_node_width(node), height=height + 4, rx=6
            )
            for start, core in _cores(node, x):
                self.add(
                    "rect",
                    class_="core",
                    x=start,
                    y=top + 2,
                    width=CELL * len(core),
                    height=height,
                    rx=3,
                )
                self.x.update((cpu, start + CELL * number) for number, cpu in enumerate(core))
            x += _node_width(node) + NODE_GAP
        for cpu in self.found.reserved & union(node.cpus for node in nodes):
            self.add(
                "rect",
                class_="kept",
                x=self.x[cpu],
                y=top + LINE,
                width=CELL,
                height=height - LINE + 2,
            )
        self.y = top
        for cpu, start in self.x.items():
            fitting = (
                {"textLength": CELL - 2, "lengthAdjust": "spacingAndGlyphs"} if cpu > 99 else {}
            )
            self.add(
                "text", str(cpu), class_="number", x=start + CELL / 2, y=self.y + 15, **fitting
            )
        self.y += LINE

    def vm(self, full: str, name: str, found: list[Row], cpus: CpuSet) -> None:
        for number, row in enumerate(found):
            outside, self.parent = self.parent, self.add("g")
            self.add("title", f"{shown(full)} {_sentence(row)}")
            self.label("" if number else name, cut(row.label, GROUP_MOST))
            self.cells((cpu, mark(self.found, row, cpu)) for cpu in cpus)
            self.parent = outside
            self.y += LINE

    def label(self, name: str, group: str) -> None:
        for text, x, clip in ((name, MARGIN, "names"), (group, self.groups, "groups")):
            if text:
                self.add("text", text, x=x, y=self.y + 14, clip_path=f"url(#{clip})")

    def cells(self, marks: Iterable[tuple[int, Mark]]) -> None:
        """One path for all the cells of a line that say the same; what the hatching says needs
        none.
        """
        paths: dict[Mark, str] = {}
        for cpu, what in marks:
            if what is not Mark.OURS:
                paths[what] = paths.get(what, "") + _shape(what, self.x[cpu], self.y + 1)
        self.used.update(paths)
        for what, path in paths.items():
            self.add("path", class_=what.name.lower(), d=path)

    def text(self, x: float, text: str, kind: str) -> None:
        self.add("text", text, class_=kind, x=x, y=self.y + 14)

    # memory

    def bar(self) -> None:
        """A row for each part, with what it is in words: no legend is needed."""
        bar = self.found.memory
        self.text(self.groups, f"memory, {size(bar.total)}", "node")
        self.y += LINE + 2
        for row in memory.rows(bar):
            name = row.name if row.number is None else self.names[row.number]
            outside, self.parent = self.parent, self.add("g")
            self.add("title", f"{shown(row.name)}: {row.amount}")
            self.label(name, "")
            for span in row.spans:
                first, last = memory.cells(bar, span, BAR_WIDTH)
                self.add(
                    "rect",
                    class_=f"memory-{span.part.name.lower()}",
                    x=self.groups + first,
                    y=self.y + 3,
                    width=last - first,
                    height=CELL - 4,
                )
            self.text(self.groups + BAR_WIDTH + 10, row.amount, "fact")
            self.parent = outside
            self.y += LINE
        self.y += LINE / 2

    # legend

    def legend(self) -> None:
        x: float = MARGIN
        for what in (what for what in Mark if what in self.used):
            room = CELL + 6 + len(what.meaning) * 7 + 20
            if x > MARGIN and x + room > self.total - MARGIN:
                x = MARGIN
                self.y += LINE
            if what is Mark.HOST:
                self.add("rect", class_="kept", x=x, y=self.y + 1, width=CELL, height=CELL)
            self.add("path", class_=what.name.lower(), d=_shape(what, x, self.y + 1))
            self.text(x + CELL + 6, what.meaning, "legend")
            x += room
        self.y += LINE


def _nodes_width(nodes: Sequence[Node]) -> float:
    return sum(map(_node_width, nodes)) + NODE_GAP * (len(nodes) - 1)


def _node_width(node: Node) -> float:
    return max(
        sum(map(len, node.cores)) * CELL + CORE_GAP * len(node.cores), len("no node") * COLUMN + 8
    )


def _cores(node: Node, x: float) -> Iterator[tuple[float, CpuSet]]:
    x += CORE_GAP / 2
    for core in node.cores:
        yield x, core
        x += CELL * len(core) + CORE_GAP


def _shape(what: Mark, x: float, y: float) -> str:
    return SHAPES[what].format(x=_number(x), y=_number(y))


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sentences(found: Map) -> list[str]:
    told = [f"{name}: {value}." for name, value in facts(found)]
    return told + [f"{shown(vm.name)} {_sentence(row)}." for vm in found.vms for row in rows(vm)]


def _sentence(row: Row) -> str:
    pinned = f", pinned to {row.pinned}" if row.pinned else ""
    return f"{row.label}: may run on {row.cpus or 'no CPU'}{pinned}"
