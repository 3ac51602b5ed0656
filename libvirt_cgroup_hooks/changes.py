# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is done beside libvirt's operations: for the VM parent alone, and for all VMs at once."""

from __future__ import annotations

from . import conformance, idle, limits, threads
from .errors import Refusal
from .operations import (
    check_controllers,
    count,
    count_running,
    forget_left_behind,
    secure,
    tell_of_losses,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .domain import Domain
    from .managers.base import Manager
    from .plan import Plan


def parent(
    plan: Plan, manager: Manager, running: set[str], domains: list[Domain] | None = None
) -> None:
    """The VM parent alone: at boot, or as `virt-cgroup apply --parent`. RUNNING: names.

    DOMAINS, if given, are all VMs that run. They are seen to where the limit that they share is to
    become one of each.
    """
    check_controllers(manager)
    forget_left_behind(plan, manager, running=running)
    if domains and manager.fence.lent and limits.outgrown(manager):
        refit(plan, manager, domains)
        return
    count_running(plan, manager)
    _tell_of_pins(plan, manager, [])
    secure(plan, manager, [], everyone=True)
    idle.withdraw(plan, manager)


def refit(
    plan: Plan, manager: Manager, running: list[Domain], force: bool = False, whole: bool = True
) -> None:
    """A changed reservation, for the VM parent and for the VMs that are RUNNING.

    With FORCE Error is raised only where it cannot be by any means. WHOLE: no other VM runs.
    """
    check_controllers(manager)
    for tree in manager.trees:
        tree.forced = force
    managers_of = _managers_of(plan, manager, running)
    for domain, own in managers_of.items():
        count(plan, own, domain)
    _tell_of_pins(plan, manager, list(managers_of))
    complete = whole and len(managers_of) == len(running)
    secure(plan, manager, list(managers_of), complete, everyone=True)
    for domain, own in managers_of.items():
        record, _ = own.records.of(domain)
        is_limited = bool(record.files or record.groups)
        has_its_own = own.reaches_into_vms or is_limited or own.strays(domain)
        vm_threads = threads.threads(manager.host, domain) if has_its_own else []
        if vm_threads:
            own.place(plan, domain, domain, vm_threads)
            tell_of_losses(plan, manager, domain)
    idle.withdraw(plan, manager)


def _tell_of_pins(plan: Plan, manager: Manager, domains: list[Domain]) -> None:
    """Where the host is to be confined now: what has chosen CPUs itself, and is to lose them."""
    if limits.confines(manager, domains) and not manager.records.remembered().confined:
        pinned = conformance.pinned_elsewhere(manager)
        if pinned:
            plan.warnings.append(str(pinned))


def _managers_of(plan: Plan, manager: Manager, running: list[Domain]) -> dict[Domain, Manager]:
    """By VM. One of RUNNING whose own settings cannot be is left out, and told."""
    found: dict[Domain, Manager] = {}
    for domain in running:
        try:
            found[domain] = manager.for_domain(domain)
        except Refusal as error:
            left = "is left as it is"
            if manager.fence.cpus is not None and not manager.carries:
                left = f"runs within CPUs {manager.fence.cpus}, without its own settings"
            plan.warnings.append(f"{error.message}; until that is changed, it {left}: {error.hint}")
    return found
