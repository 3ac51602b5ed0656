# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a VM may start: its pins against the CPUs that there are, and its memory against what is left."""

from __future__ import annotations

from ..cpuset import CpuSet
from ..errors import Refusal, printable
from ..fence import SHOWN, check_memory, check_online, check_pins, pins_outside
from ..state import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..domain import Domain
    from ..plan import Plan
    from .base import Manager


def check(manager: Manager, plan: Plan, domain: Domain) -> None:
    """Raises Refusal for DOMAIN. What is only to be told goes to the warnings of PLAN."""
    fence = manager.fence
    if fence.cpus is not None and domain.pins():
        if pins_outside(domain, fence.cpus):
            _check_outside(manager, plan, domain, fence.cpus)
        _check_taken(manager, domain, fence.cpus)
    if manager.config.memory_admission and fence.memory is not None:
        stale = Record.read(manager.host, domain.uuid)
        check_memory(domain, manager.admitted.total - (stale.memory if stale else 0), fence.memory)


def _check_outside(manager: Manager, plan: Plan, domain: Domain, cpus: CpuSet) -> None:
    pinnable = manager.pinnable(cpus)
    if manager.config.pin_conflict == "refuse":
        check_pins(domain, pinnable)
    elif pins_outside(domain, pinnable):
        plan.warnings.append(f"VM {printable(domain.name)} is pinned to CPUs that are kept for the host")
    # v1 takes no CPU that is offline into a cpuset; v2 and the scheduler want one that is not
    check_online(domain, cpus, manager.kept, all_of_them=manager.has_v1_cpusets)


def _check_taken(manager: Manager, domain: Domain, cpus: CpuSet) -> None:
    """Others may have all of the fence's CPUS that DOMAIN is pinned to: libvirt could not set such a pin."""
    pins = {group: pin & cpus for group, pin in domain.pins().items()}
    present = CpuSet.parse(str(manager.parent()["cpus"] or ""))
    if not present or all(pin <= present for pin in pins.values()):
        return
    for directory, taken in manager.taken().items():
        told = [group for group, pin in pins.items() if pin and pin <= taken]
        if told:
            raise Refusal(
                f"VM {printable(domain.name)} is pinned to CPUs {taken} ({', '.join(told[:SHOWN])}), which "
                f"{printable(directory)} has for itself alone",
                f"take them back from it, or pin it within {cpus - taken}",
            )
