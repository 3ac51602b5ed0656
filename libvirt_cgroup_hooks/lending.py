# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's CPUs that threads of some VMs may have besides (host_cpus_for).

A VM borrows them whose threads are to run there, by pin or by set, while all its other threads are
pinned in its XML: it has no limit of its own then, and nothing else would hold those.
"""

from __future__ import annotations

from .cpuset import CpuSet
from .errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .config import Config
    from .domain import Domain
    from .fence import Fence

CLASSES = ("emulator", "iothread")  # of threads; vCPUs never


def class_of(group: str) -> str:
    """The class of a thread group: "vcpu" of "vcpu3"."""
    return group.rstrip("0123456789")


def loose(config: Config, domain: Domain) -> list[str]:
    """The thread groups of DOMAIN that would run anywhere if it had no limit, and may not."""
    return [group for group in domain.unpinned() if not config.lends_to(group)]


def borrows(config: Config, fence: Fence, domain: Domain) -> bool:
    """Whether DOMAIN, which has CONFIG, may have CPUs of the host's, and asks for some."""
    if not fence.lent or loose(config, domain):
        return False
    pins = domain.pins()
    groups = [group for group in domain.group_names() if config.lends_to(group)]
    wanted = [pins.get(group) or config.set_of(group) or CpuSet() for group in groups]
    return any(cpus & fence.lent for cpus in wanted)


def reach(config: Config, fence: Fence, domain: Domain, group: str) -> CpuSet | None:
    """The CPUs that thread GROUP of DOMAIN may be put on. None: all."""
    if fence.cpus is None or not (config.lends_to(group) and borrows(config, fence, domain)):
        return fence.cpus
    return fence.cpus | fence.lent


def held_pins(config: Config, fence: Fence, domain: Domain) -> dict[str, CpuSet]:
    """The pins of DOMAIN that have to be within the fence."""
    pins = domain.pins()
    if not borrows(config, fence, domain):
        return pins
    return {group: pin for group, pin in pins.items() if not config.lends_to(group)}


def not_lent(config: Config, fence: Fence, domain: Domain) -> str | None:
    """What is told where DOMAIN has sets with the host's CPUs, and cannot have those."""
    sets = {name: config.set_of(name) or CpuSet() for name in config.host_cpus_for}
    keys = [f"{name}_cpus" for name, cpus in sets.items() if cpus & fence.lent]
    unpinned = loose(config, domain)
    if not keys or not unpinned:
        return None
    return (
        f"VM {printable(domain.name)} does not get the reserved CPUs of {', '.join(keys)}: that "
        f"needs all its vCPUs pinned in its XML (host_cpus_for), and {unpinned[0]} is not"
    )
