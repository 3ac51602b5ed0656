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
    directory; `all_online`: whether every CPU of a pin has to be online; `lent_to`: the classes of
    threads that may have reserved ones.
    """

    __slots__ = ("all_online", "fence", "lent_to", "pinnable", "reserved", "taken")

    def __init__(
        self,
        fence: CpuSet,
        pinnable: CpuSet,
        reserved: CpuSet,
        taken: dict[str, CpuSet],
        all_online: bool,
        lent_to: list[str],
    ) -> None:
        self.fence = fence
        self.pinnable = pinnable
        self.reserved = reserved
        self.taken = taken
        self.all_online = all_online
        self.lent_to = lent_to


def check_cpus(domain: Domain, cpus: Cpus, pin_conflict: str) -> list[str]:
    """The warnings. Raises Refusal for a VM whose pins PIN_CONFLICT forbids, or libvirt could not
    set.

    A pin of a vCPU that is offline is told alone: it matters when the vCPU comes online.
    """
    pins = domain.pins()
    starting = {group: pins[group] for group in domain.group_names() if group in pins}
    warnings: list[str] = []
    for groups in (starting, {group: pins[group] for group in pins if group not in starting}):
        for text, hint in _conflicts(domain, cpus, groups):
            if pin_conflict == "refuse" and groups is starting:
                raise Refusal(text, hint)
            warnings.append(f"{text}: {hint}")
    _check_online(domain, cpus, starting)
    _check_taken(domain, cpus, starting)
    return warnings


def _conflicts(domain: Domain, cpus: Cpus, pins: dict[str, CpuSet]) -> list[tuple[str, str]]:
    """What is wrong with PINS by thread group, and the remedy."""
    if all(pin <= cpus.fence for pin in pins.values()):
        return []
    from .lending import CLASSES, class_of

    found: list[tuple[str, str]] = []
    present = cpus.pinnable | cpus.reserved
    subject = f"VM {printable(domain.name)} is pinned to"
    missing = {group: pin - present for group, pin in pins.items() if pin - present}
    reserved = {group: pin & cpus.reserved for group, pin in pins.items() if pin & cpus.reserved}
    borrowed = [group for group in reserved if class_of(group) in cpus.lent_to]
    reserved = {group: taken for group, taken in reserved.items() if group not in borrowed}
    loose = [group for group in domain.unpinned() if class_of(group) not in cpus.lent_to]
    if missing:
        listed = ", ".join(told(pins, missing, "missing:"))
        hint = _within(domain, missing, cpus.fence)
        found.append((f"{subject} CPUs that do not exist: {listed}", hint))
    if reserved:
        listed = ", ".join(told(pins, reserved, "reserved:"))
        hint = f"{_within(domain, reserved, cpus.fence)}, or reserve other CPUs"
        classes = sorted({*map(class_of, reserved), *map(class_of, domain.unpinned())})
        if set(classes) <= set(CLASSES):
            allowed = ", ".join(f'"{name}"' for name in sorted({*classes, *cpus.lent_to}))
            hint += f", or allow it with host_cpus_for = [{allowed}]"
        found.append((f"{subject} reserved CPUs: {listed}", hint))
    elif borrowed and loose:
        text = (
            f"VM {printable(domain.name)} has {borrowed[0]} pinned to reserved CPUs, which needs "
            f"all its vCPUs pinned to others (host_cpus_for), and {loose[0]} is not pinned"
        )
        found.append((text, _within(domain, dict.fromkeys(loose, cpus.fence), cpus.fence)))
    return found


def _check_online(domain: Domain, cpus: Cpus, pins: dict[str, CpuSet]) -> None:
    """v1 takes no CPU that is offline into a cpuset; v2 and the scheduler want one that is not."""
    offline: dict[str, CpuSet] = {}
    for group, pin in pins.items():
        away = pin & cpus.pinnable - cpus.fence
        if away and (cpus.all_online or away == pin):
            offline[group] = away
    if offline:
        listed = ", ".join(told(pins, offline, "offline:"))
        raise Refusal(
            f"VM {printable(domain.name)} is pinned to CPUs that are offline: {listed}",
            f"bring them online, or pin it within {cpus.fence}",
        )


def _within(domain: Domain, groups: dict[str, CpuSet], cpus: CpuSet) -> str:
    """What to do, with the command for the first of GROUPS."""
    command = pin_command(domain, next(iter(groups)), cpus, "--config")
    return f"pin it within {cpus} ({command}, or in its XML)"


def pin_command(domain: Domain, group: str, cpus: CpuSet | None, options: str) -> str:
    """That which pins the thread GROUP of DOMAIN to CPUS."""
    kind = group.rstrip("0123456789")
    number = f" {group[len(kind) :]}" if kind != "emulator" else ""
    return f"virsh {kind}pin {domain.handle}{number} {cpus} {options}"


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


def may_exceed(may_take: int, limit: int) -> str | None:
    """What is told where running VMs MAY_TAKE more than LIMIT, in bytes."""
    if may_take <= limit:
        return None
    return (
        f"running VMs may come to use {size(may_take)}, more than their limit of {size(limit)}; "
        "the kernel would then kill one of them"
    )


def pins_outside(pins: dict[str, CpuSet], cpus: CpuSet) -> list[str]:
    """The first of PINS, by thread group, to CPUs outside CPUS: "vcpu0 to 0-1 (reserved: 0)"."""
    outside = {group: pin - cpus for group, pin in pins.items() if not pin <= cpus}
    return told(pins, outside, "reserved:")


def _check_taken(domain: Domain, cpus: Cpus, pins: dict[str, CpuSet]) -> None:
    """Others may have all that DOMAIN is pinned to for themselves alone: libvirt could not set such
    a pin.
    """
    for directory, taken in cpus.taken.items():
        left = {group: pin & cpus.fence for group, pin in pins.items()}
        groups = [group for group, pin in left.items() if pin and pin <= taken]
        if groups:
            raise Refusal(
                f"VM {printable(domain.name)} is pinned to CPUs {taken} "
                f"({', '.join(groups[:SHOWN])}), of which {printable(directory)} has exclusive use",
                f"take them back from it, or pin it within {cpus.fence - taken}",
            )


def told(pins: dict[str, CpuSet], cpus: dict[str, CpuSet], what: str) -> list[str]:
    """One item a group of CPUS: its pin, and the CPUs of it of which WHAT is said."""
    found: list[str] = []
    for group in list(cpus)[:SHOWN]:
        found.append(f"{group} to {_short(pins[group])} ({what} {_short(cpus[group])})")
    if len(cpus) > SHOWN:
        found.append(f"and {len(cpus) - SHOWN} more")
    return found


def _short(cpus: CpuSet) -> str:
    text = str(cpus)
    return text if len(text) < 200 else f"{text[:200]}..."
