# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a VM may start: its pins against the CPUs that there are, and its memory against what is
left.
"""

from __future__ import annotations

from .errors import Refusal, printable, size

SHOWN = 16  # pins in a message: a VM may have 65536 vCPUs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .cpuset import CpuSet
    from .domain import Domain


class Cpus:
    """What VMs have of the host's CPUs.

    `fence`: what they may use; `pinnable`: that, and CPUs that are offline and not reserved;
    `reserved`: what the host keeps; `taken`: what others have for themselves alone, by cgroup
    directory; `all_online`: whether every CPU of a pin has to be online.
    """

    __slots__ = ("all_online", "fence", "pinnable", "reserved", "taken")

    def __init__(
        self,
        fence: CpuSet,
        pinnable: CpuSet,
        reserved: CpuSet,
        taken: dict[str, CpuSet],
        all_online: bool,
    ) -> None:
        self.fence = fence
        self.pinnable = pinnable
        self.reserved = reserved
        self.taken = taken
        self.all_online = all_online


def check_pins(domain: Domain, cpus: CpuSet, pin_conflict: str) -> list[str]:
    """Warnings about DOMAIN's pins to CPUs outside CPUS. Raises Refusal as PIN_CONFLICT says."""
    outside = pins_outside(domain, cpus)
    if not outside:
        return []
    text = f"VM {printable(domain.name)} is pinned to reserved CPUs: {', '.join(outside)}"
    if pin_conflict == "refuse":
        raise Refusal(text, f"pin it within {cpus}, or reserve other CPUs")
    return [text]


def check_cpus(domain: Domain, cpus: Cpus, pin_conflict: str) -> list[str]:
    """The warnings. Raises Refusal for a VM whose pins libvirt could not set, or that PIN_CONFLICT
    forbids.
    """
    warnings: list[str] = []
    if pins_outside(domain, cpus.fence):
        warnings = check_pins(domain, cpus.pinnable, pin_conflict)
        # v1 takes no CPU that is offline into a cpuset; v2 and the scheduler want one that is not
        _check_online(domain, cpus)
    _check_taken(domain, cpus)
    return warnings


def check_memory(domain: Domain, needed: int, others: int, limit: int) -> None:
    """Raises Refusal where DOMAIN, which NEEDED is for, does not fit under LIMIT beside OTHERS.

    All in bytes; OTHERS are the VMs that run.
    """
    if others + needed > limit:
        raise Refusal(
            f"VM {printable(domain.name)} needs {size(needed)} including QEMU's overhead; "
            f"running VMs already account for {size(others)} of the {size(limit)} available to VMs",
            "stop another VM, give this one less memory, or set memory_admission = 0",
        )


def pins_outside(domain: Domain, cpus: CpuSet) -> list[str]:
    """The first pins of DOMAIN to CPUs outside CPUS: "vcpu0 to 0-1 (reserved: 0)"."""
    outside = {group: pin - cpus for group, pin in domain.pins().items() if not pin <= cpus}
    return _told(domain, outside, "reserved")


def pins_to(domain: Domain, cpus: CpuSet) -> list[str]:
    """The first pins of DOMAIN to some of CPUS, which are to be reserved."""
    taken = {group: pin & cpus for group, pin in domain.pins().items() if pin & cpus}
    return _told(domain, taken, "reserved")


def _check_online(domain: Domain, cpus: Cpus) -> None:
    """A CPU that is offline is neither in the fence nor reserved."""
    online = cpus.fence | cpus.reserved
    offline: dict[str, CpuSet] = {}
    for group, pin in domain.pins().items():
        missing = pin - online
        if missing and (cpus.all_online or missing == pin):
            offline[group] = missing
    if offline:
        told = ", ".join(_told(domain, offline, "offline"))
        raise Refusal(
            f"VM {printable(domain.name)} is pinned to CPUs that are offline: {told}",
            f"bring them online, or pin it within {cpus.fence}",
        )


def _check_taken(domain: Domain, cpus: Cpus) -> None:
    """Others may have all that DOMAIN is pinned to for themselves alone: libvirt could not set such
    a pin.
    """
    for directory, taken in cpus.taken.items():
        pins = {group: pin & cpus.fence for group, pin in domain.pins().items()}
        groups = [group for group, pin in pins.items() if pin and pin <= taken]
        if groups:
            raise Refusal(
                f"VM {printable(domain.name)} is pinned to CPUs {taken} "
                f"({', '.join(groups[:SHOWN])}), of which {printable(directory)} has exclusive use",
                f"take them back from it, or pin it within {cpus.fence - taken}",
            )


def _told(domain: Domain, cpus: dict[str, CpuSet], what: str) -> list[str]:
    """One item a group of CPUS: its pin, and the CPUs of it that are WHAT."""
    pins = domain.pins()
    told: list[str] = []
    for group in list(cpus)[:SHOWN]:
        told.append(f"{group} to {_short(pins[group])} ({what}: {_short(cpus[group])})")
    if len(cpus) > SHOWN:
        told.append(f"and {len(cpus) - SHOWN} more")
    return told


def _short(cpus: CpuSet) -> str:
    text = str(cpus)
    return text if len(text) < 200 else f"{text[:200]}..."
