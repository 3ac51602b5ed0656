# SPDX-License-Identifier: LGPL-2.1-or-later
"""CPUs that belong to one VM alone while it runs: which they are, and who may not start beside it.

They are those that its vCPUs are pinned to, in its XML or by `vcpu_cpus` in its metadata.
"""

from __future__ import annotations

from .cpuset import CpuSet
from .errors import Refusal, printable
from .lending import class_of, loose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .config import Config
    from .domain import Domain
    from .fence import Fence

SHOWN = 16  # thread groups in a message
OWN_THREADS = ("emulator", "iothread")  # classes of threads that keep off their VM's own CPUs


def asked_for(config: Config, domain: Domain) -> CpuSet:
    """The CPUs that DOMAIN, which has CONFIG, is to have for itself. Raises Refusal where a vCPU,
    or one that may be plugged in, is pinned nowhere.
    """
    pins = domain.pins()
    found = CpuSet()
    for number in range(domain.max_vcpus):
        group = f"vcpu{number}"
        cpus = pins.get(group) or domain.vcpu_cpus or _own_set(config, domain)
        if cpus is None:
            raise Refusal(
                f"VM {printable(domain.name)} is to have its CPUs for itself (dedicated), and "
                f"{group} is not pinned to any",
                f"pin each vCPU (virsh vcpupin {domain.handle} {number} CPUS --config), or all at "
                f"once: virt-cgroup domain {domain.handle} --set vcpu_cpus=CPUS --config",
            )
        found |= cpus
    return found


def _own_set(config: Config, domain: Domain) -> CpuSet | None:
    """The host's vcpu_cpus is for all VMs, and so for none alone."""
    return config.vcpu_cpus if "vcpu_cpus" in domain.settings else None


def keep_off(config: Config, fence: Fence, domain: Domain, online: CpuSet) -> None:
    """In CONFIG, DOMAIN's own, has its emulator and I/O threads run where other VMs do: not on
    those CPUs, unless a pin or a set in its metadata says so. VMs have the CPUs ONLINE without a
    fence.
    """
    try:
        own = asked_for(config, domain)
    except Refusal:  # told where it decides something
        return
    for name in OWN_THREADS:
        key = f"{name}_cpus"
        if key in domain.settings:
            continue
        cpus = (config.set_of(name) or fence.cpus or online) - own
        if config.lends_to(name) and fence.lent and not loose(config, domain):
            cpus = (config.set_of(name) or fence.lent) - own
        setattr(config, key, cpus or ((fence.cpus or online) - own) or None)


class Owner:
    """A VM that runs, with the CPUs that it has for itself alone."""

    __slots__ = ("cpus", "name")

    def __init__(self, name: str, cpus: CpuSet) -> None:
        self.name = name
        self.cpus = cpus


def check_cpus(domain: Domain, cpus: CpuSet, pinnable: CpuSet, owners: list[Owner]) -> None:
    """Raises Refusal where DOMAIN cannot have CPUS for itself: not all are VMs' (PINNABLE), or
    OWNERS have some.
    """
    subject = f"VM {printable(domain.name)} cannot have CPUs {cpus} for itself (dedicated)"
    if cpus - pinnable:
        raise Refusal(
            f"{subject}: VMs may not use {cpus - pinnable}",
            f"pin its vCPUs within {pinnable}, or reserve other CPUs",
        )
    for owner in owners:
        if owner.cpus & cpus:
            raise Refusal(
                f"{subject}: VM {printable(owner.name)} has {owner.cpus & cpus} for itself",
                f"pin its vCPUs to others, or stop {printable(owner.name)} first",
            )


def check_cores(domain: Domain, cpus: CpuSet, cores: Iterable[CpuSet]) -> None:
    """Raises Refusal where a sibling of one of CPUS in CORES stays with others."""
    for core in cores:
        if core & cpus and core - cpus:
            raise Refusal(
                f"VM {printable(domain.name)} is to have CPUs {cpus} for itself (dedicated), and "
                f"{core - cpus} shares a core with {core & cpus}",
                "pin its vCPUs to whole cores, or take threads of cores: virt-cgroup domain "
                f"{domain.handle} --set dedicated=threads --config",
            )


def check_own_threads(config: Config, domain: Domain) -> None:
    """Raises Refusal where the emulator or an I/O thread of DOMAIN would be left with no CPU."""
    pins = domain.pins()
    for group in domain.group_names():
        if class_of(group) in OWN_THREADS and group not in pins and not config.set_of(group):
            number = group[len(class_of(group)) :]
            command = " ".join(filter(None, [f"virsh {class_of(group)}pin", domain.handle, number]))
            raise Refusal(
                f"VM {printable(domain.name)} has all CPUs of VMs for itself (dedicated), and none "
                f"is left for its {group} thread",
                f"pin it, to one of the VM's own perhaps ({command} CPUS --config)",
            )


def check_other(domain: Domain, cpus: CpuSet, other: Domain, config: Config, left: CpuSet) -> None:
    """Raises Refusal where OTHER, which has CONFIG, needs some of the CPUS that DOMAIN is to have
    for itself. LEFT is what remains for it.
    """
    subject = f"VM {printable(domain.name)} cannot have CPUs {cpus} for itself (dedicated)"
    pinned = _pinned(other, cpus)
    if pinned:
        raise Refusal(
            f"{subject}: VM {printable(other.name)} is pinned there: {pinned}",
            f"pin {printable(other.name)} elsewhere, or stop it first",
        )
    missing = _left_out(other, config, left)
    if missing:
        raise Refusal(
            f"{subject}: nothing would be left of {missing} of VM {printable(other.name)}",
            f"pin its vCPUs to others, or stop {printable(other.name)} first",
        )


def check_beside(domain: Domain, config: Config, owners: list[Owner], left: CpuSet) -> None:
    """Raises Refusal where DOMAIN, which has CONFIG, needs CPUs that OWNERS have for themselves.
    LEFT is what remains for it.
    """
    for owner in owners:
        pinned = _pinned(domain, owner.cpus)
        if pinned:
            remedy = f"stop {printable(owner.name)} first"
            if left:
                remedy = f"pin it within {left}, or {remedy}"
            raise Refusal(
                f"VM {printable(domain.name)} is pinned to CPUs that VM {printable(owner.name)} "
                f"has for itself (dedicated): {pinned}",
                remedy,
            )
    missing = _left_out(domain, config, left)
    if missing:
        raise Refusal(
            f"nothing is left of {missing} for VM {printable(domain.name)}: other VMs have CPUs "
            f"for themselves (dedicated): {told(owners)}",
            "stop one of them first, or pin it to fewer",
        )


def _pinned(domain: Domain, cpus: CpuSet) -> str:
    """The pins of DOMAIN to some of CPUS, those of vCPUs that are offline as well."""
    pins = domain.pins()
    found = [f"{group} to {pins[group]}" for group in pins if pins[group] & cpus]
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return ", ".join(found[:SHOWN] + more)


def _left_out(domain: Domain, config: Config, left: CpuSet) -> str:
    """What of DOMAIN's would have no CPU if it had those that are LEFT."""
    pins = domain.pins()
    unpinned = [group for group in domain.group_names() if group not in pins]
    for group in unpinned:
        own = config.set_of(group)
        if not left:
            return "the VMs' CPUs"
        if own and not own & left:
            return f"{class_of(group)}_cpus ({own})"
    return ""


def told(owners: Iterable[Owner]) -> str:
    """OWNERS for people: "web 4-5, db 6"."""
    return ", ".join(f"{printable(owner.name)} {owner.cpus}" for owner in owners)
