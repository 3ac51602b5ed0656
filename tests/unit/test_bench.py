"""What `tools/bench` makes of its samples: figures, goals and the tables of docs/performance.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark import peers, vm
from benchmark.counting import collected, counted
from benchmark.document import EMULATED, PEER, WITHOUT, keep, kept, text
from benchmark.spread import Spread, growth, interval, quantile, quartiles, ratio, slope
from benchmark.table import Goal, Row, Table, compared, markdown, measured, shown

MACHINE = {"kernel": "6.12", "load at the beginning": "0.1"}
BASE = [10e6, 20e6, 30e6]


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([7], 0.5, 7),
        ([1, 2], 0.5, 1.5),
        ([3, 1, 2], 0.5, 2),
        ([1, 2, 3, 4, 5], 0.25, 2),
        ([1, 2, 3, 4], 0.75, 3.25),
    ],
)
def test_quantile(values: Sequence[float], share: float, expected: float) -> None:
    assert quantile(values, share) == expected


def test_one_outlier_moves_neither_the_median_nor_the_quartiles() -> None:
    assert quartiles([10, 11, 12, 13, 14]) == Spread(12, 11, 13, 5)
    assert quartiles([10, 11, 12, 13, 1400]) == Spread(12, 11, 13, 5)


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [
        (1, 0, 0),
        (3, 0, 2),
        (5, 0, 4),
        (25, 7, 17),
        (100, 40, 59),
    ],
)
def test_interval_of_the_median(count: int, low: int, high: int) -> None:
    """With 25 samples the 95 % interval is from the 8th to the 18th."""
    found = interval(list(range(count)))
    assert (found.low, found.high, found.count) == (low, high, count)


def test_ratio_is_taken_within_a_round_so_that_drift_cancels() -> None:
    slower_and_slower = [10.0, 100, 1000, 10000]
    assert ratio([2 * one for one in slower_and_slower], slower_and_slower) == Spread(2, 2, 2, 4)


def test_slope() -> None:
    assert slope([0, 1, 2, 10], [5, 8, 11, 35]) == pytest.approx(3)
    assert slope([0, 5, 10], [7, 7, 7]) == 0


def test_growth_is_the_median_of_the_rounds_slopes() -> None:
    found = growth([0, 10], [[100, 110], [200, 220], [300, 600]])
    assert (found.median, found.low, found.high) == (2, 1, 30)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0.000"),
        (0.0123, "0.012"),
        (0.5, "0.50"),
        (9.876, "9.88"),
        (-36.44, "-36.4"),
        (812.3, "812"),
        (4117.2, "4117"),
    ],
)
def test_shown(number: float, text: str) -> None:
    assert shown(number) == text


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal("bare", 1.5), True),
        (Goal("bare", 1.4), False),
        (Goal("", 30), True),
        (Goal("", 29), False),
    ],
)
def test_goal_is_judged_by_the_median(goal: Goal, met: bool) -> None:
    row = measured("case", [15e6, 30e6, 90e6], {"bare": BASE}, goal)
    assert goal.met(row) is met


def table(host: str = "here", name: str = "latency") -> Table:
    rows = [
        measured("bare", BASE, {}),
        measured("held", [15e6, 30e6, 90e6], {"bare": BASE}, Goal("bare", 1.4), note="so"),
        Row("total", "s", Spread(2, 2, 2, 1)),
    ]
    return Table(name, host, MACHINE, "2026-01-31", rows)


def test_markdown_has_a_cell_for_every_column() -> None:
    assert markdown(table()).splitlines() == [
        "|  | n | median | spread | / bare | goal |  |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| bare | 3 | 20.0 ms | 15.0 to 25.0 |  |  |  |",
        "| held | 3 | 30.0 ms | 22.5 to 60.0 | 1.50 (1.50 to 3.00) | 1.4 / bare: **missed** | so |",
        "| total | 1 | 2.00 s |  |  |  |  |",
    ]


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("==7== Events    : Ir\n==7== Collected : 31521777\n==7== \n", 31521777),
        ("==7== Command: sh -c Collected : 5\n==7== Process terminating (SIGKILL)\n", 0),
        ("", 0),
    ],
)
def test_instructions_of_a_process(log: str, expected: int) -> None:
    assert collected(log) == expected


def _counted(instructions: int) -> Row:
    return measured("start", [instructions], {}, unit="M", note="why")


@pytest.mark.parametrize(
    ("instructions", "verdict"),
    [
        (30_900_000, "1.03 | 1.03 / the other tree: met | +3.00%, why"),
        (31_000_000, "1.03 | 1.03 / the other tree: **missed** | +3.33%, why"),
        (27_000_000, "0.90 | 1.03 / the other tree: met | -10.00%, why"),
    ],
)
def test_comparison_with_another_tree(instructions: int, verdict: str) -> None:
    now, before = (replace(table(), rows=[_counted(one)]) for one in (instructions, 30_000_000))
    last = markdown(compared(now, before, 1.03)).splitlines()[-1]
    assert last.endswith(f"| {verdict} |")


def test_results_survive_being_kept(tmp_path: Path) -> None:
    keep(tmp_path, table())
    assert [one.json() for one in kept(tmp_path)] == [table().json()]
    assert Table.from_json(json.loads(json.dumps(table().json()))).json() == table().json()


def test_a_later_result_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    for _ in range(2):
        keep(tmp_path, table())
    keep(tmp_path, table("13"))
    assert len(kept(tmp_path)) == 2


def test_document_has_the_machines_and_the_commands_and_no_section_without_a_result() -> None:
    document = text([table("13"), table()])
    assert "|  | The machine of the run, on a private host | Lab host 13 |\n" in document
    assert "| kernel | 6.12 | 6.12 |\n" in document
    here = document.index("(`tools/bench latency`, 2026-01-31)")
    lab = document.index("(`tools/bench --lab 13 latency`")
    assert here < lab
    missed = "- latency, Lab host 13: held\n- latency, The machine"
    assert f"0 of 2 are met. Missed:\n\n{missed}" in document
    assert "What nesting costs" not in document


def test_document_says_of_an_emulated_host_that_only_its_ratios_count() -> None:
    title = "Lab host 13, emulated: ratios only"
    emulated = replace(table("13"), machine={**MACHINE, "CPU": "8 x QEMU TCG CPU version 2.5+"})
    document = text([table(), emulated])
    assert f"| {title} |\n" in document
    assert f"{title} (`tools/bench --lab 13 latency`" in document
    assert EMULATED in document
    assert "emulated" not in text([table(), table("13")])


def test_document_gives_the_range_of_the_loads_by_number() -> None:
    loads = {"latency": "9.4 1.0 1.0", "start": "21.6 1.0 1.0", "storm": "8.9 1.0 1.0"}
    tables = [replace(table(name=name), machine={"load": loads[name]}) for name in loads]
    assert "| load | 8.9 1.0 1.0 to 21.6 1.0 1.0 |\n" in text(tables)


def test_the_document_begins_with_what_most_readers_want_to_know() -> None:
    short = {
        "start": Row(
            "`native`: added", "ms", Spread(14, 13, 15, 9), {WITHOUT: Spread(0.04, 0.03, 0.05, 9)}
        ),
        "peers": Row("vfio-isolate", "ms", Spread(90, 80, 95, 9), {PEER: Spread(3, 2, 4, 9)}),
        "nesting": Row(
            "**page fault, with memory at each level: each level**",
            "ns",
            Spread(5, -1, 9, 9),
            {"depth 0": Spread(0.002, 0, 0.004, 9)},
            note="too small to see",
        ),
    }
    tables = [replace(table(name=name), rows=[row]) for name, row in short.items()]
    begin = text(tables).partition("`tools/bench --write`")[0]
    assert "| A VM's start takes longer, `native` | 14.0 ms, 4.0 % |\n" in begin
    assert "| vfio-isolate | 90.0 ms, 3.00 of the dispatcher's CPU time |\n" in begin
    what = "Each level of cgroups, page fault, with memory at each level"
    assert f"| {what} | too small to see |\n" in begin


def test_instructions_as_perf_tells_them() -> None:
    log = "# started on Mon\n\n31521777,,instructions:u,1203944,100.00,,\n"
    assert counted(log) == 31521777
    with pytest.raises(AssertionError, match="has counted nothing"):
        counted("<not supported>,,instructions:u,0,100.00,,\n")


def test_what_the_document_looks_for_is_what_is_measured() -> None:
    assert (WITHOUT, PEER) == (vm.WITHOUT, peers.CPU)
