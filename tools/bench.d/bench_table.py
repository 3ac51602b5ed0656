"""A table of results: what a run of `tools/bench` measures, keeps as JSON and writes into the document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench_stats import Spread, quartiles, ratio

UNITS = {"ms": 1e-6, "s": 1e-9, "µs": 1e-3, "ns": 1.0}  # of a nanosecond


@dataclass(frozen=True)
class Goal:
    baseline: str  # "": the value itself is limited
    limit: float

    def met(self, row: Row) -> bool:
        return (row.ratios[self.baseline] if self.baseline else row.value).median <= self.limit


@dataclass(frozen=True)
class Row:
    case: str
    unit: str
    value: Spread
    ratios: Mapping[str, Spread] = field(default_factory=dict)  # by baseline
    goal: Goal | None = None
    note: str = ""


@dataclass(frozen=True)
class Table:
    name: str
    host: str
    machine: Mapping[str, str]
    taken: str
    rows: Sequence[Row]

    def json(self) -> dict[str, Any]:
        return asdict(self)


def measured(
    case: str,
    nanoseconds: Sequence[float],
    baselines: Mapping[str, Sequence[float]],
    goal: Goal | None = None,
    unit: str = "ms",
    note: str = "",
) -> Row:
    value = quartiles([one * UNITS[unit] for one in nanoseconds])
    ratios = {name: ratio(nanoseconds, base) for name, base in baselines.items()}
    return Row(case, unit, value, ratios, goal, note)


def from_json(data: Mapping[str, Any]) -> Table:
    return Table(**{**data, "rows": [_row(one) for one in data["rows"]]})


def _row(data: Mapping[str, Any]) -> Row:
    ratios = {name: Spread(**one) for name, one in data["ratios"].items()}
    goal = Goal(**data["goal"]) if data["goal"] else None
    return Row(**{**data, "value": Spread(**data["value"]), "ratios": ratios, "goal": goal})


def markdown(table: Table) -> str:
    baselines = list(dict.fromkeys(name for row in table.rows for name in row.ratios))
    goals, notes = any(row.goal for row in table.rows), any(row.note for row in table.rows)
    head = ["", "n", "median", "spread", *(f"/ {name}" for name in baselines), *["goal"] * goals, *[""] * notes]
    lines = [head, ["---"] * len(head)]
    for row in table.rows:
        cells = [row.case, str(row.value.count), f"{shown(row.value.median)} {row.unit}", span(row.value)]
        cells += [_ratio(row.ratios.get(name)) for name in baselines]
        lines.append(cells + [_goal(row)] * goals + [row.note] * notes)
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def shown(number: float) -> str:
    """Three digits that mean something, and no more than three after the point."""
    decimals = next((digits for least, digits in ((100, 0), (10, 1), (0.1, 2)) if abs(number) >= least), 3)
    return f"{number:.{decimals}f}"


def span(spread: Spread) -> str:
    return "" if spread.count == 1 else f"{shown(spread.low)} to {shown(spread.high)}"


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return shown(spread.median) + (f" ({span(spread)})" if spread.count > 1 else "")


def _goal(row: Row) -> str:
    if row.goal is None:
        return ""
    of = f" / {row.goal.baseline}" if row.goal.baseline else f" {row.unit}"
    return f"{row.goal.limit:g}{of}: {'met' if row.goal.met(row) else '**missed**'}"
