# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMs kept off the CPUs that one VM has for itself alone: the rows of their cgroups, and what is
asked of a VM that starts.

The rows are limits as any other: `limits` sets them and puts them back.
"""

from __future__ import annotations

from . import dedicated, threads
from .cpuset import CpuSet
from .errors import Error, Refusal, printable
from .kinds import VM_CPUS
from .state import STATUS, Record
from .topology import Topology

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .domain import Domain
    from .kinds import Value
    from .managers.base import Manager
    from .plan import Plan
    from .state import Remembered, Row

    Table = dict[Row, Value]


def owners(manager: Manager, but: str = "") -> list[dedicated.Owner]:
    """The VMs that have CPUs for themselves alone; not the one with the UUID BUT."""
    return [
        dedicated.Owner(record.name, record.dedicated)
        for uuid, record in manager.records.dedicated().items()
        if uuid != but
    ]


def taken(manager: Manager) -> CpuSet:
    """All CPUs that VMs have for themselves alone."""
    found = CpuSet()
    for owner in owners(manager):
        found |= owner.cpus
    return found


# the rows


class Rows:
    """The `table` of the cgroups of the VMs that run, and of DOMAINS, which start: each has
    all CPUs but those that others have for themselves alone.

    `alone`: by row, what it has once nobody has some for itself any more, where each VM carries the
    fence. ONLY those of DOMAINS are found if so asked.
    """

    def __init__(self, manager: Manager, domains: list[Domain], only: bool = False) -> None:
        self.table: Table = {}
        self.alone: Table = {}
        self.all: list[Row] = []
        self.starting: list[Row] = []  # of DOMAINS
        for domain, own in _vms(manager, domains, only):
            is_starting = any(domain.uuid == one.uuid for one in domains)
            cpus = own.carried(domain) if own.taken(domain) else None
            for path in own.own_cgroups(domain, domain.pid):
                self.all.append((VM_CPUS, path))
                self.starting += [(VM_CPUS, path)] if is_starting else []
                if cpus is not None:
                    self.table[VM_CPUS, path] = cpus
                    self.alone[VM_CPUS, path] = own.carried_alone(domain)


class Change:
    """What is to become of the cgroups of VMs: of all, if other CPUs are whose own than before, or
    EVERYONE is asked for, and else of those of DOMAINS alone, which start.

    `table` is for `limits.reconcile`, and `untouched` the rows that stay as they are.
    """

    def __init__(
        self, manager: Manager, remembered: Remembered, domains: list[Domain], everyone: bool
    ) -> None:
        owning = manager.records.dedicated()
        self.manager = manager
        self.remembered = remembered
        self.had = dict(remembered.dedicated)
        self.whole = everyone or self._has_changed()
        self.whole = self.whole or any(domain.uuid in owning for domain in domains)
        rows = Rows(manager, domains, only=not self.whole)
        self.table = rows.table
        known = [row for row in remembered.before if row[0].of_vm]
        if not self.whole:
            known = [row for row in known if row in rows.all]
        known = [row for row in known if row not in rows.table and row not in rows.starting]
        self.untouched = _coming(manager, known)
        if not self.whole:
            others = [row for row in remembered.before if row[0].of_vm and row not in rows.all]
            self.untouched += others
        # Until all is done, those who had CPUs for themselves are remembered with those who have: a
        # later run goes on where a killed one has ended.
        remembered.dedicated.update({uuid: one.dedicated for uuid, one in owning.items()})
        alone = {row: cpus for row, cpus in rows.alone.items() if cpus is not None}
        remembered.before.update(alone)

    def _has_changed(self) -> bool:
        now = {uuid: one.dedicated for uuid, one in self.manager.records.dedicated().items()}
        shared_out = str(self.manager.fence.cpus or "")
        return now != self.had or self.remembered.shared_out != shared_out

    def finish(self, plan: Plan) -> None:
        """Once the rows of all VMs are as they are to be."""
        if not self.whole:
            return
        records = self.manager.records.dedicated()
        self.remembered.dedicated = {uuid: one.dedicated for uuid, one in records.items()}
        self.remembered.shared_out = str(self.manager.fence.cpus or "")
        if not self.had.keys() <= records.keys():
            _give_back(plan, self.manager)
        plan.add_shared(*self.remembered.save())


def has_gone(manager: Manager, row: Row) -> bool:
    """Whether the VM with the cgroup of ROW has ended."""
    return not manager.exists(*row) and not _some_start(manager)


def _some_start(manager: Manager) -> bool:
    """Whether there is a VM with a record that libvirt has no status XML of yet. While another has
    CPUs for itself, each VM that starts has one.
    """
    for uuid in manager.records.living():
        record = Record.read(manager.host, uuid)
        if record and not manager.host.exists(f"{STATUS}/{record.name}.xml"):
            return True
    return False


def _coming(manager: Manager, rows: list[Row]) -> list[Row]:
    """Those of ROWS, which are not wanted any more, whose cgroup is not there and may yet be made,
    with the limit: they are put back when the VM has started.
    """
    absent = [row for row in rows if not manager.exists(*row)]
    if not absent or _some_start(manager):
        return absent
    awaited = Rows(manager, []).all
    return [row for row in absent if row in awaited]


def _give_back(plan: Plan, manager: Manager) -> None:
    """Threads of VMs have again what was cut where others had CPUs for themselves: their configured
    sets, and on v1 whatever somebody who was killed has left of their cpusets.
    """
    from .managers import placement

    tree = manager.tree_of(VM_CPUS)
    cut = tree is not None and not tree.clips
    for domain, own in _vms(manager, []):
        vm_threads: list[threads.Thread] = []
        if cut or own.config.has_sets:
            vm_threads = threads.threads(manager.host, domain)
        if vm_threads:
            plan.add(*placement.widened(own, vm_threads))
            placement.set_cpus_in_place(own, plan, domain, vm_threads)


def _vms(
    manager: Manager, domains: list[Domain], only: bool = False
) -> list[tuple[Domain, Manager]]:
    """The VMs that run, and DOMAINS, or ONLY these, each with its own manager; as libvirt's status
    has them, where that is known.
    """
    known = {domain.uuid: domain for domain in domains}
    if only:
        stati = [threads.status(manager.host, domain.name) for domain in domains]
        known.update({domain.uuid: domain for domain in stati if domain})
    else:
        known.update({domain.uuid: domain for domain in manager.running()})
    found: list[tuple[Domain, Manager]] = []
    for domain in known.values():
        try:
            found.append((domain, manager.for_domain(domain)))
        except Error:  # of its own settings, which `validate` tells
            found.append((domain, manager))
    return found


# who may start


def admit(manager: Manager, own: Manager, domain: Domain) -> None:
    """Raises Refusal where DOMAIN, which is about to run, cannot do so beside the VMs that run.
    OWN is the manager with its settings.
    """
    if own.config.dedicated == "no":
        others = owners(manager, but=domain.uuid)
        if others:  # else the record is what an earlier run of it has left
            dedicated.check_beside(domain, own.config, others, own.carried(domain) or CpuSet())
        return
    if manager.tree_of(VM_CPUS) is None:
        raise Refusal(
            f"VM {printable(domain.name)} is to have its CPUs for itself (dedicated), and there is "
            "no cpuset controller",
            "mount or enable it",
        )
    cpus = own.dedicated_to(domain)
    fence = manager.fence.cpus
    pinnable = manager.everything if fence is None else manager.pinnable(fence)
    dedicated.check_cpus(domain, cpus, pinnable, owners(manager, but=domain.uuid))
    if own.config.dedicated != "threads":
        dedicated.check_cores(domain, cpus, Topology.read(manager.host.read_optional).cores)
    dedicated.check_own_threads(own.config, domain)
    for other, its_own in _vms(manager, []):
        if other.uuid != domain.uuid:
            left = (its_own.carried(other) or fence or manager.everything) - cpus
            dedicated.check_other(domain, cpus, other, its_own.config, left)
    for error in manager.unknown.values():
        raise Refusal(f"{error.message}, so its pins are not known", error.hint)


def check_fence(manager: Manager) -> None:
    """Raises Error where CPUs that a VM has for itself alone are to be the host's, or nothing is
    left for the other VMs.
    """
    fence = manager.fence.cpus
    records = manager.records.dedicated()
    if fence is None or not records:
        return
    for record in records.values():
        lost = record.dedicated - manager.pinnable(fence)
        if lost:
            raise Error(
                f"cannot take CPUs {lost} from VM {printable(record.name)}, which has "
                f"{record.dedicated} for itself (dedicated)",
                "reserve others, or stop it first",
            )
    others = [vm for vm in manager.running() if vm.uuid not in records]
    if others and not fence - taken(manager):
        raise Error(
            f"reserving CPUs {manager.kept} leaves none for VM {printable(others[0].name)}: other "
            f"VMs have CPUs for themselves (dedicated): {dedicated.told(owners(manager))}",
            "reserve fewer CPUs, or stop one of them first",
        )


def dedicate(plan: Plan, manager: Manager, own: Manager, domain: Domain) -> None:
    """DOMAIN runs: its record says what it has for itself, by its settings now."""
    known = manager.records.dedicated().get(domain.uuid)
    if own.config.dedicated == "no" and known is None:
        return
    try:
        cpus = own.dedicated_to(domain)
        if cpus and not (known and known.dedicated == cpus):
            admit(manager, own, domain)
    except Refusal as error:
        plan.warnings.append(f"its CPUs stay as they are: {error}")
        return
    record, old = own.records.of(domain)
    record.dedicated = cpus
    own.records.save(plan, record, old)
