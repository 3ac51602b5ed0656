# SPDX-License-Identifier: LGPL-2.1-or-later
"""The limits that are kept on cgroups that VMs share: one table, and the steps from what is there
to it.

A row is a kind of limit and the cgroup that carries it. What is wanted follows from the
configuration, the host, and the VMs that run or start. What was there before is remembered with the
row, and is put back when the row is no longer wanted. A limit is set here and nowhere else.
"""

from __future__ import annotations

from .errors import Error, printable
from .fence import shared_out
from .host import page_size
from .kinds import CPUS, HOST_CPUS, PRESSURE, as_cpus
from .state import SHARED, may_be_starting
from .steps import RemoveEmpty, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

    from .cpuset import CpuSet
    from .domain import Domain
    from .kernel.tree import Tree
    from .kinds import Kind, Value
    from .managers.base import Manager
    from .plan import Plan
    from .state import Remembered, Row

    Table = dict[Row, Value]


def wanted(
    manager: Manager, domains: list[Domain], remembered: Remembered, whole: bool = False
) -> Table:
    """All limits; DOMAINS run or start, and WHOLE is as for `_shared`."""
    table = _shared(manager, domains, remembered, whole)
    if manager.records.dedicated():
        from . import apart

        table.update(apart.Rows(manager, domains).table)
    return table


def _shared(manager: Manager, domains: list[Domain], remembered: Remembered, whole: bool) -> Table:
    """The fence, on the VM parent, on what else holds DOMAINS, and on parents of earlier layouts;
    what the host keeps, on its units.

    In parents of earlier layouts VMs may still run, or be about to: they keep the fence for as
    long. So does a VM parent whose VMs are each to carry it, unless DOMAINS are the WHOLE of them.
    """
    table: Table = {}
    if manager.fence.lent and not whole:
        table.update(dict.fromkeys(outgrown(manager, remembered), manager.fence.cpus))
    for kind, value in manager.fence.limits().items():
        paths = manager.parents(kind, domains)
        for known, path in remembered.before:
            if known is kind and path not in paths and _may_hold_vms(manager, kind, path):
                paths.append(path)
        table.update({(kind, path): value for path in paths})
    table.update(of_host(manager, domains))
    return table


def of_host(manager: Manager, domains: list[Domain]) -> Table:
    """What is wanted on the host's own units; DOMAINS run or start, and all with a record."""
    table: Table = {}
    if confines(manager, domains):
        table.update({(HOST_CPUS, path): manager.kept for path in manager.host_units(HOST_CPUS)})
    kind = manager.protection
    if kind and (domains or manager.records.living()):
        shares = shared_out(manager.fence.protected, manager.host_units(kind), page_size())
        table.update({(kind, path): amount for path, amount in shares.items()})
    return table


def confines(manager: Manager, domains: list[Domain]) -> bool:
    """Whether the host keeps to its own CPUs now; DOMAINS run or start, and all with a record."""
    how = manager.config.confine_host
    if how == "running":
        return bool(domains) or bool(manager.records.living())
    if how == "asked":
        asking = [domain for domain in domains if manager.for_domain(domain).asks_to_confine]
        return bool(asking) or manager.records.confining()
    return how == "always"


def outgrown(manager: Manager, remembered: Remembered | None = None) -> list[Row]:
    """The CPU limits of VM parents that hold VMs, while host_cpus_for has each VM carry its own."""
    before = (remembered or manager.records.remembered()).before
    return [row for row in before if row[0] is CPUS and _may_hold_vms(manager, *row)]


def _may_hold_vms(manager: Manager, kind: Kind, path: str) -> bool:
    tree = manager.tree_of(kind)
    directory = tree.hierarchy.directory(path) if tree else ""
    if tree is None or not tree.exists(directory):
        return False
    if may_be_starting(manager.host):
        return True
    return tree.is_populated(directory) and manager.holds_vms(tree, path)


def unwanted(manager: Manager) -> Table:
    """The limits of ours that are in the kernel, and that nobody wants any more, with their values.

    The next run of the hook, and `virt-cgroup apply --parent`, put back what was there before.
    """
    remembered = manager.records.remembered()
    table = wanted(manager, [], remembered)
    there = {row: manager.read(*row) for row in remembered.before if row not in table}
    return {
        row: value
        for row, value in there.items()
        if value != remembered.before[row] and manager.is_limit(row[0], value)
    }


def held(manager: Manager, table: Table) -> dict[Kind, bool]:
    """By kind of TABLE, whether the kernel has its limits, or narrower ones, on all of its cgroups
    that are there; not where none is.
    """
    found: dict[Kind, bool] = {}
    for kind in dict.fromkeys(kind for kind, _ in table):
        tree = manager.tree_of(kind)
        if tree is None:
            found[kind] = False
            continue
        there: list[bool] = []
        for (row_kind, path), value in table.items():
            directory = tree.hierarchy.directory(path)
            if row_kind is kind and tree.exists(directory):
                there.append(_keeps(kind, tree.read(kind, directory), value))
        found[kind] = bool(there) and all(there)
    return found


def _keeps(kind: Kind, there: Value, value: Value) -> bool:
    if there is None or there == value:
        return there == value
    return kind.narrower(there, value) == there


def enforce(
    plan: Plan,
    manager: Manager,
    domains: list[Domain],
    whole: bool = False,
    everyone: bool = False,
) -> list[Row]:
    """The VM parent, the cgroups in which DOMAINS start, and all limits; WHOLE is as for `_shared`.
    Returns the new rows. EVERYONE: the cgroups of other VMs are seen to in any case.

    Raises Error where that cannot be, before anything is changed.
    """
    remembered = manager.records.remembered()
    if remembered.is_foreign:
        plan.warnings.append(
            f"{SHARED} was written by another version: the values from before the limits are "
            "not known and will not be restored"
        )
    table = _shared(manager, domains, remembered, whole)
    steps: list[Step] = []
    for tree, path in _directories(manager, domains, table):
        made, fresh = _make(tree, path, as_cpus(table.get((CPUS, path))), table, remembered)
        steps += made
        remembered.made += fresh if manager.removes(tree) else []
    new = [row for row in table if row not in remembered.before and not row[0].of_host]
    if not (manager.records.dedicated() or remembered.of_vms):
        reconcile(plan, manager, remembered, table, steps)
        return new
    from . import apart

    change = apart.Change(manager, remembered, domains, everyone)
    if change.whole:
        apart.check_fence(manager)
    rows = {**table, **change.table}
    reconcile(plan, manager, remembered, rows, steps, change.untouched)
    change.finish(plan)
    return new


def reconcile(
    plan: Plan,
    manager: Manager,
    remembered: Remembered,
    table: Table,
    before: list[Step],
    untouched: Container[Row] = (),
) -> None:
    """From what is there and REMEMBERED to TABLE, after the steps BEFORE; rows that are UNTOUCHED
    stay as they are.

    What may be more comes before what may be less: VMs always have something to run on. Pressure
    goes last, since lowering a limit puts back the pressure that it has found.
    """
    obsolete = [row for row in remembered.before if row not in table and row not in untouched]
    _narrow(manager, remembered, table)
    plan.add_shared(*remembered.save(), *before)
    # what makes the cgroup of a VM that starts gives it its CPUs
    table = {row: table[row] for row in table if not row[0].of_vm or manager.exists(*row)}
    pressure = [row for row in obsolete if row[0] is PRESSURE]
    _put_back(plan, manager, remembered, [row for row in obsolete if row not in pressure])
    present = {row: manager.read(*row) for row in table}
    for (kind, path), value in table.items():
        is_there = present[kind, path] == value
        is_ours = value != remembered.before[kind, path]
        if is_there and not (is_ours and manager.forgets(kind, path, value)):
            continue
        decided = manager.decided_elsewhere(kind, path)
        if decided is None:
            if is_there:
                plan.add_shared(*manager.write(path, {kind: value}, {kind: value}))
            continue
        replaced = replaced_at_reload(decided, kind, value)
        if replaced:
            plan.warnings.append(f"{path}: {replaced}")
        if not is_there and decided[1] is not None:  # the administrator's, and newer than ours
            remembered.before[kind, path] = decided[1]
            table[kind, path] = _narrowed(manager, kind, path, value, decided[1])
    if present != table:
        for path, values in _in_order(table, present):
            plan.add_shared(*manager.set(path, values))
    if before or present != table:
        plan.warnings += _taken_from_vms(manager, table)
    _put_back(plan, manager, remembered, pressure)
    for row in obsolete:
        del remembered.before[row]
    _vacate(plan, manager, remembered, obsolete, [])
    plan.add_shared(*remembered.save())


def _taken_from_vms(manager: Manager, table: Table) -> list[str]:
    """What is told of running VMs that ask for CPUs where those above them fall to TABLE."""
    falling = [
        path
        for (kind, path), value in table.items()
        if kind is CPUS and not kind.rises(manager.before(kind, path), value)
    ]
    if not falling:
        return []
    told: list[str] = []
    for domain in manager.running():
        from . import claims

        place = manager.runs_in(domain, CPUS) or ""
        if any(f"{place}/".startswith(f"{path}/") for path in falling):
            told += claims.tell(manager, domain)
    return told


def replaced_at_reload(decided: tuple[str, Value], kind: Kind, value: Value) -> Error | None:
    """What is wrong where DECIDED, a file of the administrator's and what it sets, opens the limit
    VALUE when systemd reads its files again.
    """
    file, theirs = decided
    if theirs is not None and kind.narrower(theirs, value) == theirs:
        return None
    return Error(
        f"{file} sets {kind.assigned(theirs)}, which replaces the limit "
        f"{kind.shown(value)} at the next daemon-reload",
        f"remove that line from {file}, then run systemctl daemon-reload",
    )


def stays(manager: Manager, kind: Kind, before: Value) -> bool:
    """Whether what a cgroup was limited to BEFORE is somebody's limit, which ours is kept within.

    v1 cpusets always have a list, which may as well have lost CPUs that were offline.
    """
    tree = manager.tree_of(kind)
    return before is not None and not (kind.of_cpus and tree and not tree.clips)


def _narrow(manager: Manager, remembered: Remembered, table: Table) -> None:
    """TABLE is within what was there before, which is REMEMBERED."""
    for (kind, path), value in table.items():
        if (kind, path) not in remembered.before:
            there = manager.before(kind, path)
            # ours, of a time that is forgotten
            remembered.before[kind, path] = None if there == value else there
        table[kind, path] = _narrowed(manager, kind, path, value, remembered.before[kind, path])


def _narrowed(manager: Manager, kind: Kind, path: str, ours: Value, before: Value) -> Value:
    """OURS within what the administrator had limited PATH to BEFORE. Raises Error for no CPU."""
    if not stays(manager, kind, before):
        return ours
    value = kind.narrower(ours, before)
    if value is None:
        raise Error(
            f"cannot limit {printable(path)} to CPUs {ours}: it was limited to {before} before",
            "reserve other CPUs, or change that limit",
        )
    return value


def _in_order(table: Table, present: Table) -> list[tuple[str, dict[Kind, Value]]]:
    """TABLE by cgroup, parents first: the limits that rise, then those that fall. The host grows
    before VMs do, and shrinks after them.
    """
    changes: tuple[dict[str, dict[Kind, Value]], ...] = ({}, {}, {}, {})
    for row in sorted(table, key=lambda row: (row[1], row[0].rank)):
        kind, path = row
        if kind.rises(present[row], table[row]):
            group = 0 if kind.of_host else 1
        else:
            group = 3 if kind.of_host else 2
        changes[group].setdefault(path, {})[kind] = table[row]
    rising = [change for group in changes[:2] for change in group.items()]
    falling = [change for group in changes[2:] for change in group.items()]
    return rising + [(path, dict(reversed(list(values.items())))) for path, values in falling]


def _put_back(plan: Plan, manager: Manager, remembered: Remembered, rows: list[Row]) -> None:
    for kind, path in sorted(rows, key=lambda row: row[0].rank):
        plan.add_shared(*manager.put_back(path, kind, remembered.before[kind, path]))


def _directories(manager: Manager, domains: list[Domain], table: Table) -> list[tuple[Tree, str]]:
    """What has to be there: cgroups in which VMs start, and those that carry a limit and are ours
    to make.
    """
    found: list[tuple[Tree, str]] = []
    for kind, path in table:
        tree = manager.tree_of(kind)
        if tree and manager.makes(kind):
            found.append((tree, path))
    return list(dict.fromkeys([*found, *manager.directories(domains)]))


def _make(
    tree: Tree, path: str, cpus: CpuSet | None, table: Table, remembered: Remembered
) -> tuple[list[Step], list[str]]:
    """The cgroup PATH, with CPUS from the beginning, and the directories that are new."""
    hierarchy = tree.hierarchy
    directories = hierarchy.directories(path)
    # those above it may have lost CPUs that were offline; one of an earlier time may be left so
    above: dict[str, CpuSet | None] = {}
    for directory in directories[:-1]:
        row = (CPUS, directory[len(hierarchy.mount) :])
        if row in table:
            above[directory] = as_cpus(table[row])
        elif directory in remembered.made or _lacks(tree, directory, cpus):
            above[directory] = None
    steps = tree.regain(above)
    new = [directory for directory in directories if not tree.exists(directory)]
    made = tree.make(path, cpus)
    if made and cpus is not None:
        tree.check_free(directories[-1], cpus)
    return [*steps, *made], new


def _lacks(tree: Tree, directory: str, cpus: CpuSet | None) -> bool:
    """Whether DIRECTORY would keep what is below it from CPUS."""
    if cpus is None or not tree.has_cpus or tree.clips:
        return False
    has = as_cpus(tree.read(CPUS, directory))
    return has is not None and not cpus <= has


def press(plan: Plan, manager: Manager) -> None:
    """Lowers memory.high of the VM parent, so that its use falls below the fence; `relieve` takes
    it back.

    A row like others: the next run of the hook takes back what a killed one has left.
    """
    from .kernel import lowering

    remembered = manager.records.remembered()
    steps: list[Step] = []
    for tree, path in manager.parent_paths().items():
        limit = manager.fence.memory_limit
        if limit is None or not tree.limits(PRESSURE):
            continue
        if not manager.exists(PRESSURE, path):
            continue
        there = manager.read(PRESSURE, path)
        pressed = lowering.pressure(limit, there)
        remembered.before.setdefault((PRESSURE, path), there)
        steps += manager.write(path, {PRESSURE: pressed}, {PRESSURE: there})
    plan.add(*remembered.save(), *steps)


def relieve(plan: Plan, manager: Manager) -> None:
    """Puts back what `press` has lowered."""
    remembered = manager.records.remembered()
    _drop(plan, manager, remembered, [row for row in remembered.before if row[0] is PRESSURE])
    plan.add_shared(*remembered.save())


def end(plan: Plan, manager: Manager, last: bool) -> None:
    """A VM has gone: where none is left that the host keeps something for, its units get back what
    they had.

    After the LAST one the cgroups made for VMs go, and what others said is put back. A slice's
    limits stay, for the VMs to come: systemd keeps them.
    """
    remembered = manager.records.remembered()
    if remembered.of_vms:
        _end_of_one(plan, manager, remembered)
    kept = of_host(manager, [])
    ended: list[Row] = []
    for row in remembered.before:
        if row[0].of_host:
            goes = row not in kept
        elif row[0].of_vm:
            goes = last
        else:
            goes = last and manager.makes(row[0])
        if goes:
            ended.append(row)
    _drop(plan, manager, remembered, ended)
    if last:
        plan.add_shared(*_unmade(remembered))
    plan.add_shared(*remembered.save())


def _end_of_one(plan: Plan, manager: Manager, remembered: Remembered) -> None:
    """Of the VMs that may have, or may have had, CPUs for themselves alone one has gone: the others
    have those back.
    """
    from . import apart

    others = [row for row in remembered.before if not row[0].of_vm]
    change = apart.Change(manager, remembered, [], everyone=False)
    for row in list(remembered.before):
        if row[0].of_vm and not change.whole and apart.has_gone(manager, row):
            del remembered.before[row]
    if change.whole:
        untouched = [*others, *change.untouched]
        reconcile(plan, manager, remembered, change.table, [], untouched)
        change.finish(plan)


def lift(plan: Plan, manager: Manager, made: list[str]) -> None:
    """All limits go, for good; what was there before is put back. MADE: cgroups that VMs were
    below, whether they had a limit or not.
    """
    remembered = manager.records.remembered()
    rows = list(remembered.before)
    _drop(plan, manager, remembered, rows)
    _vacate(plan, manager, remembered, rows, made)
    remembered.dedicated.clear()
    plan.add_shared(*_unmade(remembered))


def _drop(plan: Plan, manager: Manager, remembered: Remembered, rows: list[Row]) -> None:
    _put_back(plan, manager, remembered, rows)
    for row in rows:
        del remembered.before[row]


def _vacate(
    plan: Plan, manager: Manager, remembered: Remembered, rows: list[Row], made: list[str]
) -> None:
    """What nobody uses of MADE, and of the VM parents that ROWS were of, which are remembered no
    more.
    """
    still = {path for _, path in remembered.before}
    parents = {path for kind, path in rows if not kind.of_host and not kind.of_vm}
    for path in sorted({*parents, *made} - still):
        plan.add_shared(*manager.vacate(path))


def _unmade(remembered: Remembered) -> list[Step]:
    """What is empty of the directories made, those below first."""
    made, remembered.made = remembered.made, []
    return [RemoveEmpty(path) for path in sorted(made, reverse=True)]
