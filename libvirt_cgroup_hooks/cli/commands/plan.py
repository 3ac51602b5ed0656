# SPDX-License-Identifier: LGPL-2.1-or-later
"""virt-cgroup plan: the steps that the hook would run, from the same code, and not run."""

from __future__ import annotations

import argparse
from typing import Any

from ... import managers, operations, snapshot
from ...domain import Domain
from ...domainxml import LIMIT, parse
from ...host import Host
from ...plan import Plan
from ..command import add as add_command
from ..command import given
from ..output import print_json, print_warnings

OPERATIONS = (
    "prepare",
    "start",
    "started",
    "stopped",
    "release",
    "reconnect",
    "migrate",
    "restore",
    "attach",
)


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "plan",
        run,
        "show the steps that the hook would run for a VM, without running them",
        "virsh dumpxml web | virt-cgroup plan prepare -",
    )
    parser.add_argument(
        "operation", metavar="OPERATION", choices=OPERATIONS, help=", ".join(OPERATIONS)
    )
    parser.add_argument(
        "file",
        metavar="DOMAIN-XML-FILE",
        help="the VM's XML, as virsh dumpxml prints it; - for standard input",
    )


def run(arguments: argparse.Namespace, host: Host) -> int:
    warnings: list[str] = []
    domain = parse(given(arguments.file, LIMIT, "a file with the VM's XML (virsh dumpxml)"))
    config = snapshot.load(host, warnings)
    plan = Plan(arguments.operation)
    if operations.concerns(host, config, arguments.operation) or domain.settings:
        plan = operations.plan(
            host, config, arguments.operation, domain, managers.daemon(host), imagine=True
        )
    print_warnings(warnings + plan.warnings)
    if arguments.json:
        print_json(_json(plan, domain))
    else:
        print(plan if plan.steps else "Nothing to do.")
    return 0


def _json(plan: Plan, domain: Domain) -> dict[str, object]:
    return {
        "operation": plan.operation,
        "domain": domain.name,
        "steps": [str(step) for step in plan.steps],
    }
