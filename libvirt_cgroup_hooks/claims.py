# SPDX-License-Identifier: LGPL-2.1-or-later
"""CPUs that a running VM asks for, by pins or by thread sets of its own, and that it is to lose."""

from __future__ import annotations

from . import settings, threads
from .admission import pin_command, told
from .cpuset import CpuSet
from .errors import Error, printable
from .lending import class_of, held_pins
from .state import DEFINED

SETS = [key for key in settings.OF_VM if key.endswith("_cpus")]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .domain import Domain
    from .managers.base import Manager

    Claims = dict[str, CpuSet]  # by thread group, or by key of a thread set of the VM's own


class Loss:
    """What DOMAIN has ASKED for, and what it has LOST of that, or is to lose."""

    __slots__ = ("asked", "domain", "lost")

    def __init__(self, domain: Domain, asked: Claims, lost: Claims) -> None:
        self.domain = domain
        self.asked = asked
        self.lost = lost

    def __str__(self) -> str:
        return f"{printable(self.domain.name)} ({self.pins})"

    @property
    def pins(self) -> str:
        """As "vcpu0 to 0-1 (reserved: 0)", the first of them."""
        return ", ".join(told(self.asked, self.lost, "reserved:"))

    def remedy(self, manager: Manager, whom: str = "it") -> str:
        """With the command for the first claim."""
        cpus, key = manager.fence.cpus, next(iter(self.lost))
        options = "--live"
        if manager.host.exists(f"{DEFINED}/{self.domain.name}.xml"):  # a transient VM has none
            options += " --config"
        if key in SETS:
            command = f"virt-cgroup domain {self.domain.handle} --set {key}={cpus} {options}"
        else:
            command = pin_command(self.domain, key, cpus, options)
        return f"pin {whom} within {cpus} ({command})"


def losses(manager: Manager, running: list[Domain], taken: CpuSet) -> list[Loss]:
    """Of each of RUNNING that asks for some of the CPUs TAKEN, which MANAGER's configuration
    reserves.
    """
    found: list[Loss] = []
    for domain in running:
        asked = _asked(manager, domain)
        lost = {key: cpus & taken for key, cpus in asked.items() if cpus & taken}
        if lost:
            found.append(Loss(domain, asked, lost))
    return found


def tell(manager: Manager, domain: Domain) -> list[str]:
    """The warning, where threads of the running DOMAIN may use CPUs now that it asks for and that
    are reserved: what was taken before is not told again.
    """
    if manager.fence.cpus is None:
        return []
    asked = _asked(manager, domain)
    pinnable = manager.pinnable(manager.fence.cpus)
    outside = {key: cpus - pinnable for key, cpus in asked.items() if not cpus <= pinnable}
    if not outside:
        return []
    used = _used(manager, domain)
    lost = {key: cpus & used[key] for key, cpus in outside.items() if key in used}
    lost = {key: cpus for key, cpus in lost.items() if cpus}
    if not lost:
        return []
    loss = Loss(domain, asked, lost)
    return [
        f"VM {printable(domain.name)} loses CPUs that it is pinned to: {loss.pins}; "
        f"{loss.remedy(manager)}"
    ]


def _asked(manager: Manager, domain: Domain) -> Claims:
    """Its pins, and of its own thread sets those of which nothing is left: of others the threads
    have the rest, as is meant.
    """
    found = dict(held_pins(manager.config, manager.fence, domain))
    for key in SETS:
        try:
            cpus = CpuSet.parse(domain.settings.get(key, ""))
        except Error:  # told where its settings are applied
            continue
        if manager.config.all_reserved(key.removesuffix("_cpus"), cpus):
            found[key] = cpus
    return found


def _used(manager: Manager, domain: Domain) -> Claims:
    """The CPUs that its threads may use now."""
    found: Claims = {}
    pins = domain.pins()
    for thread in threads.threads(manager.host, domain):
        cpus = threads.cpus_allowed(manager.host, domain, thread)
        keys = [thread.group]
        if thread.group not in pins:
            keys.append(f"{class_of(thread.group)}_cpus")
        for key in keys:
            found[key] = found.get(key, CpuSet()) | cpus
    return found
