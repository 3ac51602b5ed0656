"""One table, measured on the host that this program runs on, and printed as a line of JSON."""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable

from . import growth, hook, instructions, nesting, peers, storm, vm, wakeups
from .machine import describe
from .table import RESULT, Row, Table


def tables(arguments: argparse.Namespace) -> dict[str, Callable[[], list[Row]]]:
    rounds = arguments.rounds
    return {
        "latency": lambda: hook.latency(rounds),
        "instructions": lambda: instructions.instructions(rounds),
        "hyperfine": lambda: hook.hyperfine(rounds),
        "peers": lambda: peers.peers(rounds, arguments.vfio_isolate),
        "start": lambda: vm.start(rounds),
        "storm": lambda: storm.storm(arguments.vms),
        "threads": lambda: growth.threads(rounds),
        "status": lambda: growth.status(rounds),
        "configuration": lambda: growth.configuration(rounds),
        "nesting": lambda: nesting.levels(rounds),
        "layouts": lambda: nesting.layouts(rounds),
        "wakeups": lambda: wakeups.wakeups(rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    parser.add_argument("host", help="how the result names this host")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--vms", type=int, required=True)
    parser.add_argument("--vfio-isolate", default="")
    arguments = parser.parse_args()
    machine = describe()  # before the measuring makes a load of its own
    rows = tables(arguments)[arguments.table]()
    today = datetime.date.today().isoformat()
    table = Table(arguments.table, arguments.host, machine, today, rows)
    print(RESULT + json.dumps(table.json()), flush=True)


if __name__ == "__main__":
    main()
