# SPDX-License-Identifier: LGPL-2.1-or-later
"""virt-cgroup apply: applies the configuration to the VM parent and running VMs, as the hook."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ... import changes, managers, operations, snapshot, state, threads
from ...config import Config
from ...domain import Domain
from ...errors import Error, printable
from ...host import Host
from ...plan import Plan, run_settled
from ..command import add as add_command
from ..command import given_configuration
from ..output import print_json, print_warnings


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "apply",
        run,
        "apply the configuration to the VM parent and running VMs",
        "virt-cgroup apply --all",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--parent", action="store_true", help="only the VM parent")
    which.add_argument("--all", action="store_true", help="the VM parent and every running VM")
    which.add_argument(
        "domains", metavar="DOMAIN", nargs="*", default=[], help="a running VM's name, id or UUID"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the steps, and run none")
    parser.add_argument(
        "--config",
        dest="proposed",
        metavar="FILE",
        help="with --dry-run: as if FILE were the configuration; - for standard input",
    )


def run(arguments: argparse.Namespace, host: Host) -> int:
    if not host.real:
        raise Error("apply cannot be used with --root", "virt-cgroup plan shows what would be done")
    if arguments.proposed is not None and not arguments.dry_run:
        raise Error("Option --dry-run is required by option --config")
    warnings: list[str] = []
    config = _config(arguments, host, warnings)
    work = _imagined if arguments.dry_run else _made
    errors: dict[str, Error] = {}
    domains = threads.running(host, errors)
    known = {*errors, *(domain.name for domain in domains)}
    together = domains if arguments.all and not errors else None
    if not arguments.all:
        domains = [threads.named(domains, name) for name in arguments.domains]
        errors.clear()
    parent = work(host, _parent(host, config, known, together), warnings)
    steps = {"parent": parent}
    for domain in domains:
        try:
            made = work(host, _domain(host, config, domain), warnings)
            # a dry run finds again what the VM parent still needs
            steps[domain.name] = [step for step in made if step not in parent]
        except Error as error:
            errors[domain.name] = error
    print_warnings(warnings)
    if arguments.json:
        print_json(steps)
    else:
        for name, lines in steps.items():
            title = "VM parent" if name == "parent" else f"VM {printable(name)}"
            print("\n  ".join([f"{title}:", *lines]) if lines else f"{title}: nothing to do")
    for text in map(str, errors.values()):
        print(f"error: {printable(text)}", file=sys.stderr)
    return 1 if errors else 0


def _config(arguments: argparse.Namespace, host: Host, warnings: list[str]) -> Config:
    if arguments.proposed is None:
        return snapshot.load(host, warnings)
    text, changes = given_configuration(arguments.proposed), snapshot.Live(host).changes
    return snapshot.compiled(host, text, changes, warnings, arguments.proposed)


def _parent(
    host: Host, config: Config, running: set[str], domains: list[Domain] | None
) -> Callable[[], Plan]:
    def make() -> Plan:
        plan = Plan("apply")
        if config or host.exists(state.SHARED):
            manager = managers.choose(host, config, managers.daemon(host))
            changes.parent(plan, manager, running, domains)
        return plan

    return make


def _domain(host: Host, config: Config, domain: Domain) -> Callable[[], Plan]:
    def make() -> Plan:
        return operations.plan(host, config, "reconnect", domain, managers.daemon(host))

    return make


def _imagined(host: Host, make: Callable[[], Plan], warnings: list[str]) -> list[str]:
    plan = make()
    warnings += plan.warnings
    return [str(step) for step in plan.steps]


def _made(host: Host, make: Callable[[], Plan], warnings: list[str]) -> list[str]:
    state.prepare_directory(host)
    with host.locked(state.LOCK):
        plan = run_settled(host, make, warnings)
    return [str(step) for step in plan.steps]
