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

Planning = Callable[[Config], Plan]
PARENT = "parent"  # among the names of VMs; one that is called so is told by its UUID


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "apply",
        run,
        "apply the configuration to the VM parent and running VMs",
        "virt-cgroup apply --all",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print only what is changed")
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
    together = None
    if arguments.all:
        # the hook sees to those that start, when libvirt has made all of their cgroups
        settled = [domain for domain in domains if not domain.is_starting]
        together = domains if settled == domains and not errors else None
        domains = [domain for domain in settled if _is_ours(host, config, domain)]
    else:
        domains = [threads.named(domains, name) for name in arguments.domains]
        errors.clear()
    parent = work(host, config, _parent(host, known, together), warnings)
    steps = {PARENT: parent}
    for domain in domains:
        key = domain.name if domain.name != PARENT else domain.uuid
        try:
            made = work(host, config, _domain(host, domain), warnings)
            # a dry run finds again what the VM parent still needs
            steps[key] = [step for step in made if step not in parent]
        except Error as error:
            if arguments.all and not threads.has_process(host, domain):  # it has ended meanwhile
                continue
            errors[domain.name] = error
    print_warnings(dict.fromkeys(warnings))  # each plan may find the same
    if arguments.json:
        print_json(steps)
    else:
        _show(steps, arguments.quiet)
    for text in map(str, errors.values()):
        print(f"error: {printable(text)}", file=sys.stderr)
    return 1 if errors else 0


def _config(arguments: argparse.Namespace, host: Host, warnings: list[str]) -> Config:
    if arguments.proposed is None:
        return snapshot.load(host, warnings)
    text, at_run_time = given_configuration(arguments.proposed), snapshot.Live(host).changes
    return snapshot.compiled(host, text, at_run_time, warnings, arguments.proposed)


def _is_ours(host: Host, config: Config, domain: Domain) -> bool:
    """Whether something is configured for DOMAIN, or was when it started."""
    return bool(config or domain.settings) or state.Record.exists(host, domain.uuid)


def _show(steps: dict[str, list[str]], quiet: bool) -> None:
    for name, lines in steps.items():
        title = "VM parent" if name == PARENT else f"VM {printable(name)}"
        if lines:
            print("\n  ".join([f"{title}:", *lines]))
        elif not quiet:
            print(f"{title}: nothing to do")


def _parent(host: Host, running: set[str], domains: list[Domain] | None) -> Planning:
    def make(config: Config) -> Plan:
        plan = Plan("apply")
        if config or host.exists(state.SHARED):
            manager = managers.choose(host, config, managers.daemon(host))
            changes.parent(plan, manager, running, domains)
        return plan

    return make


def _domain(host: Host, domain: Domain) -> Planning:
    def make(config: Config) -> Plan:
        now = threads.status(host, domain.name) or domain  # pins may have changed meanwhile
        return operations.plan(host, config, "reconnect", now, managers.daemon(host))

    return make


def _imagined(host: Host, config: Config, make: Planning, warnings: list[str]) -> list[str]:
    plan = make(config)
    warnings += plan.warnings
    return [str(step) for step in plan.steps]


def _made(host: Host, config: Config, make: Planning, warnings: list[str]) -> list[str]:
    """What was done. Hooks wait for the lock, and libvirtd for them: it is taken only where there
    is something to do.
    """
    if _is_settled(config, make):
        return []
    state.prepare_directory(host)
    with host.locked(state.LOCK):
        current = snapshot.load(host, [])  # whoever held the lock may have changed it
        plan = run_settled(host, lambda: make(current), warnings)
    return [str(step) for step in plan.steps]


def _is_settled(config: Config, make: Planning) -> bool:
    try:
        plan = make(config)
    except Error:  # of something that changes meanwhile, perhaps; with the lock it is told
        return False
    return not plan.steps and not plan.warnings
