"""Measure what the hook costs, and what nesting cgroups costs.

  tools/bench                   every table, on this machine; results are kept in build/bench
  tools/bench latency nesting   these tables
  tools/bench --lab 13 latency  on a lab host
  tools/bench instructions --against ../before
                                the hook of this tree, and that of another checkout
  tools/bench --write           also write docs/performance.md, from all results that are kept
  tools/bench --write none      write it again without measuring anything

Must be run as root. It changes nothing but a private host (tools/private-host) or a lab host. Every
figure comes with ratios to baselines measured in turn with it, so other load on the machine spreads
the figures more than it shifts the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labhost.tree import SOURCE

from . import document
from .machine import LOAD, describe
from .table import RESULT, Table, compared, markdown
from .timing import PYTHON, say

TREE = Path(__file__).resolve().parents[2]
KEPT = TREE / "build" / "bench"
VFIO_ISOLATE = KEPT / "vfio-isolate"
NAMES = [*document.SECTIONS]
MOST_INSTRUCTIONS = 1.03  # of those that the other tree's hook takes
ON_THE_LAB = ["latency", "peers", "start", "nesting"]
CARRIED = TREE / "vfio-isolate"  # part of the tree that a lab host gets


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = result.add_argument
    option("tables", nargs="*", metavar="TABLE", help=f"{', '.join(NAMES)}; none")
    option("--rounds", type=int, default=25, metavar="N", help="samples per figure (default 25)")
    option("--vms", type=int, default=50, metavar="N", help="storm: VMs started at once (50)")
    option("--lab", metavar="RELEASE", default="", help="run on this lab host: 13, newest, ...")
    option(
        "--against",
        type=Path,
        metavar="DIR",
        help="instructions: compare with the hook of this other source tree",
    )
    option("--write", action="store_true", help="write docs/performance.md")
    option("--json", action="store_true", help="print JSON, one line per table")
    return result


def main() -> int:
    arguments = parser().parse_args()
    chosen = chosen_tables(arguments)
    if arguments.against:
        check_against(arguments.against, chosen, arguments.lab)
    if chosen and os.geteuid():
        sys.exit("bench: cannot make cgroups: run it as root")
    for name in chosen:
        table = measure(name, arguments)
        document.keep(KEPT, table)
        if arguments.against:
            say(f"{name}, {arguments.against}")
            other = run_on([private_host(arguments.against)], name, arguments)
            table = compared(table, other, MOST_INSTRUCTIONS)
        show(table, arguments.json)
    if arguments.write:
        document.write(TREE / "docs" / "performance.md", KEPT)
    return 0


def chosen_tables(arguments: argparse.Namespace) -> list[str]:
    if arguments.tables == ["none"]:
        return []
    if arguments.tables:
        unknown = sorted(set(arguments.tables) - set(NAMES))
        if unknown:
            parser().error(f"no table {', '.join(unknown)}; choose from {', '.join(NAMES)}")
        return list(arguments.tables)
    return ON_THE_LAB if arguments.lab else NAMES


def check_against(tree: Path, chosen: list[str], lab: str) -> None:
    if chosen != ["instructions"] or lab:
        parser().error("--against: only for the table instructions, on this machine")
    if not os.access(private_host(tree), os.X_OK):
        parser().error(f"--against {tree}: it has no tools/private-host; give a checkout")


def measure(name: str, arguments: argparse.Namespace) -> Table:
    """On a private host or a lab host."""
    load = describe()[LOAD]
    if arguments.lab:
        say(f"{name}, lab {arguments.lab}")
        host = ["tools/lab", "run", arguments.lab, "--timeout", "5400", "--"]
    else:
        say(f"{name}, on this machine")
        host = [private_host(TREE)]
    result = run_on(host, name, arguments)
    if arguments.lab:  # the guest does not know how busy the machine below it is
        result.machine[LOAD] = load
    return result


def private_host(tree: Path) -> str:
    """The program; it installs its own tree's hook."""
    return str(tree.resolve() / "tools" / "private-host")


def run_on(host: list[str], name: str, arguments: argparse.Namespace) -> Table:
    """HOST is the command that runs another command there."""
    program = [PYTHON, "-m", "tools.benchmark.measure", name, arguments.lab or document.HERE]
    program += ["--rounds", str(arguments.rounds), "--vms", str(arguments.vms)]
    if name == "peers" and fetched():
        folder = f"{SOURCE}/{CARRIED.name}" if arguments.lab else str(VFIO_ISOLATE)
        program += ["--vfio-isolate", folder]
    result = ""
    with (
        carried(name == "peers" and bool(arguments.lab)),
        subprocess.Popen([*host, *program], cwd=TREE, stdout=subprocess.PIPE, text=True) as running,
    ):
        for line in running.stdout or ():
            if line.startswith(RESULT):
                result = line.removeprefix(RESULT)
            else:  # a lab host has one stream for both
                sys.stderr.write(line)
                sys.stderr.flush()
    if running.returncode or not result:
        sys.exit(f"bench: {name} ended with exit status {running.returncode}")
    return Table.from_json(json.loads(result))


def fetched() -> bool:
    """Whether vfio-isolate from PyPI is in VFIO_ISOLATE."""
    if not VFIO_ISOLATE.exists():
        install = [PYTHON, "-m", "pip", "install", "--quiet", "--target", str(VFIO_ISOLATE)]
        subprocess.run([*install, "vfio-isolate"], check=False)
    return VFIO_ISOLATE.exists()


@contextmanager
def carried(wanted: bool) -> Iterator[None]:
    """A lab host has no network: vfio-isolate comes with the source tree, if it is WANTED there."""
    if wanted and VFIO_ISOLATE.exists():
        shutil.copytree(VFIO_ISOLATE, CARRIED, ignore=shutil.ignore_patterns("__pycache__"))
    try:
        yield
    finally:
        shutil.rmtree(CARRIED, ignore_errors=True)


def show(table: Table, as_json: bool) -> None:
    text = json.dumps(table.json()) if as_json else f"\n{table.name}\n\n{markdown(table)}"
    print(text, flush=True)
