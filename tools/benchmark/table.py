"""A table of results: what `tools/bench` measures, keeps as JSON and writes as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .spread import Spread, quartiles, ratio, single

RESULT = "bench-result:"  # begins the line with the table, among all that a host prints
# Of a nanosecond; for M, of one instruction.
UNITS = {"ms": 1e-6, "s": 1e-9, "µs": 1e-3, "ns": 1.0, "M": 1e-6}
OTHER_TREE = "the other tree"


@dataclass(frozen=True)
class Goal:
    baseline: str  # "": the value itself is limited
    limit: float

    def met(self, row: Row) -> bool:
        judged = row.ratios[self.baseline] if self.baseline else row.value
        return judged.median <= self.limit


@dataclass(frozen=True)
class Row:
    case: str
    unit: str
    value: Spread
    ratios: Mapping[str, Spread] = field(default_factory=dict)  # by baseline
    goal: Goal | None = None
    note: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        value = Spread(**data["value"])
        ratios = {name: Spread(**one) for name, one in data["ratios"].items()}
        goal = Goal(**data["goal"]) if data["goal"] else None
        return cls(data["case"], data["unit"], value, ratios, goal, data["note"])


@dataclass(frozen=True)
class Table:
    name: str
    host: str
    machine: dict[str, str]
    taken: str
    rows: Sequence[Row]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        rows = [Row.from_json(one) for one in data["rows"]]
        return cls(data["name"], data["host"], data["machine"], data["taken"], rows)

    def json(self) -> dict[str, Any]:
        return asdict(self)


def measured(
    case: str,
    samples: Sequence[float],
    baselines: Mapping[str, Sequence[float]],
    goal: Goal | None = None,
    unit: str = "ms",
    note: str = "",
) -> Row:
    """SAMPLES and BASELINES are nanoseconds, or whole instructions."""
    value = quartiles([one * UNITS[unit] for one in samples])
    ratios = {name: ratio(samples, base) for name, base in baselines.items()}
    return Row(case, unit, value, ratios, goal, note)


def compared(table: Table, other: Table, limit: float) -> Table:
    """With the ratio of each row's median to the OTHER tree's, and LIMIT as its goal."""
    medians = {row.case: row.value.median for row in other.rows}
    rows = []
    for row in table.rows:
        share = row.value.median / medians[row.case]
        ratios = {**row.ratios, OTHER_TREE: single(share)}
        note = ", ".join(filter(None, [f"{share - 1:+.2%}", row.note]))
        rows.append(replace(row, ratios=ratios, goal=Goal(OTHER_TREE, limit), note=note))
    return replace(table, rows=rows)


def markdown(table: Table) -> str:
    baselines = list(dict.fromkeys(name for row in table.rows for name in row.ratios))
    head = ["", "n", "median", "spread", *(f"/ {name}" for name in baselines)]
    with_goals = any(row.goal for row in table.rows)
    if with_goals:
        head.append("goal")
    with_notes = any(row.note for row in table.rows)
    if with_notes:
        head.append("")
    lines = [head, ["---"] * len(head)]
    for row in table.rows:
        median = f"{shown(row.value.median)} {row.unit}"
        cells = [row.case, str(row.value.count), median, span(row.value)]
        cells += [_ratio(row.ratios.get(name)) for name in baselines]
        if with_goals:
            cells.append(_goal(row))
        if with_notes:
            cells.append(row.note)
        lines.append(cells)
    return "".join(line(cells) for cells in lines)


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def shown(number: float) -> str:
    """Three digits that mean something, and no more than three after the point."""
    decimals = 3
    for least, digits in ((0.1, 2), (10, 1), (100, 0)):
        if abs(number) >= least:
            decimals = digits
    return f"{number:.{decimals}f}"


def span(spread: Spread) -> str:
    return "" if spread.count == 1 else f"{shown(spread.low)} to {shown(spread.high)}"


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread.count == 1:
        return shown(spread.median)
    return f"{shown(spread.median)} ({span(spread)})"


def _goal(row: Row) -> str:
    if row.goal is None:
        return ""
    limited = f"/ {row.goal.baseline}" if row.goal.baseline else row.unit
    verdict = "met" if row.goal.met(row) else "**missed**"
    return f"{row.goal.limit:g} {limited}: {verdict}"
