# SPDX-License-Identifier: LGPL-2.1-or-later
"""virt-cgroup validate: whether all that the reservation depends on is in place, in the form of
virt-host-validate.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import Any

from ...errors import printable
from ...host import Host
from ..checks import Check, results
from ..checks.codes import CODES, FAIL, NOTE, PASS, WARN, explained
from ..checks.subject import Problem, Subject
from ..command import add as add_command
from ..command import given_configuration
from ..output import print_json, print_table

LIST = "list"
MOST_ALIKE = 10  # lines of one check with the same code, since every VM may have one
COLOURS = {PASS: 32, FAIL: 31, WARN: 33, NOTE: 34}  # virt-host-validate's


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "validate",
        run,
        "check that the host is set up for what is configured",
        "virt-cgroup validate -q",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print only what does not pass")
    parser.add_argument(
        "--config",
        dest="proposed",
        metavar="FILE",
        help="check FILE, before it becomes the configuration: is it right for this host, and for "
        "the VMs that run; - for standard input",
    )
    parser.add_argument(
        "--explain",
        nargs="?",
        const=LIST,
        type=code,
        choices=[*CODES, LIST],
        metavar="CODE",
        help="say what CODE, the word in brackets after a problem, means and what to do; "
        "without CODE: list the codes",
    )


def code(text: str) -> str:
    """One of `CODES`, or LIST."""
    if text not in (*CODES, LIST):
        raise argparse.ArgumentTypeError(
            f'there is no code "{printable(text)}"; virt-cgroup validate --explain lists them'
        )
    return text


def run(arguments: argparse.Namespace, host: Host) -> int:
    """1 if anything failed."""
    if arguments.explain:
        _explain(arguments.explain, arguments.json)
        return 0
    found = []
    alike: Counter[tuple[str, str]] = Counter()
    for check, problem in results(_subject(arguments, host)):
        found.append((check, problem))
        alike[check.title, problem.code] += 1
        told = alike[check.title, problem.code] <= MOST_ALIKE
        if told and not arguments.json and not (arguments.quiet and problem.result == PASS):
            print(_line(check, problem), flush=True)
    if not arguments.json:
        _print_untold(alike)
    if arguments.json:
        print_json(
            [_json(*one) for one in found if not (arguments.quiet and one[1].result == PASS)]
        )
    return int(any(problem.result == FAIL for _, problem in found))


def _print_untold(alike: Counter[tuple[str, str]]) -> None:
    for (title, code), number in alike.items():
        if code and number > MOST_ALIKE:
            print(
                f"Checking {title}: {number - MOST_ALIKE} more like these [{code}]; "
                "virt-cgroup validate --json lists all"
            )


def _subject(arguments: argparse.Namespace, host: Host) -> Subject:
    path = arguments.proposed
    if path is None:
        return Subject(host)
    return Subject(host, (given_configuration(path), "standard input" if path == "-" else path))


def _explain(name: str, as_json: bool) -> None:
    names = list(CODES) if name == LIST else [name]
    if as_json:
        print_json([{"code": one, **CODES[one]._asdict()} for one in names])
    elif name == LIST:
        print_table(("Code", "Result", "Meaning"), [(one, *CODES[one][:2]) for one in names])
    else:
        print(explained(name))


def _line(check: Check, problem: Problem) -> str:
    result = problem.result
    if sys.stdout.isatty():
        result = f"\033[{COLOURS[result]}m{result}\033[0m"
    text = ": ".join(printable(part) for part in (problem.message, problem.remedy) if part)
    told = f" ({text}) [{problem.code}]" if text else ""
    return f"{check.area:>6}: Checking {check.title:<60}: {result}{told}"


def _json(check: Check, problem: Problem) -> dict[str, str | None]:
    return {
        "area": check.area,
        "check": check.title,
        "result": problem.result,
        "code": problem.code or None,
        "message": problem.message or None,
        "remedy": problem.remedy or None,
    }
