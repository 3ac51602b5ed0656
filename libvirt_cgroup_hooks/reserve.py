# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changing the reservation at run time: what is configured, what is in force until the next boot,
and the VMs that run.
"""

from __future__ import annotations

import time

from . import changes, conformance, limits, managers, settings, snapshot, state, threads, virconf
from .admission import may_exceed, pins_outside
from .claims import Loss, losses
from .config import PATH, Config
from .configfile import parse
from .errors import Error, printable, size
from .host import page_size
from .kernel.lowering import lowers
from .layout import apart
from .lending import held_pins
from .plan import Plan, run_settled
from .steps import Replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .configfile import Changes
    from .cpuset import CpuSet
    from .domain import Domain
    from .host import Host
    from .managers.base import Manager
    from .virconf import Value

KEYS = {
    "cpus": "reserved_host_cpus",
    "memory": "reserved_host_mem",
    "swap": "vm_swap_max",
    "confine": "confine_host",
}
LOCK = f"{state.DIRECTORY}/reserve.lock"  # one change at a time, while VMs may start
PAUSE = 0.2  # seconds between two attempts to reclaim
LARGEST = 5  # VMs that a refusal names


class Change:
    """WANTED: by key, the value as the configuration file would have it; None to reserve nothing.

    LIVE: for the VMs that run, until the next boot. CONFIG: in the file. FORCE: also where VMs are
    pinned outside.
    """

    def __init__(
        self,
        host: Host,
        wanted: dict[str, Value | None],
        live: bool,
        config: bool,
        force: bool = False,
    ) -> None:
        self.host = host
        self.wanted = wanted
        self.live = live
        self.config = config
        self.force = force
        self.warnings: list[str] = []
        self._pressed = False

    def run(self, wait: float = 0, progress: Callable[[int, int], None] | None = None) -> Plan:
        """Makes the change, or none of it. Returns the plan that was run. Raises Error.

        WAIT: for how many seconds memory may be reclaimed from VMs that have more than they are to
        have; PROGRESS is called with the bytes in use and those allowed.
        """
        host = self.host
        state.prepare_directory(host)
        with host.locked(LOCK):
            if self.live and wait:
                try:
                    with host.locked(state.LOCK):
                        manager = self._manager()
                        self._press(manager, progress)
                    self._reclaim(manager, wait, progress)
                    return self._run()
                finally:
                    if self._pressed:
                        self._relieve()
            return self._run()

    def _run(self) -> Plan:
        with self.host.locked(state.LOCK):
            return run_settled(self.host, self.plan, self.warnings)

    # the plan

    def plan(self) -> Plan:
        """Raises Error for what cannot be right, on this host and with the VMs that run."""
        self.warnings.clear()  # of an earlier attempt
        plan = Plan("reserve")
        old, new = self._text()
        if self.config:
            # what does not hold is not written
            configured = self._compiled(old, new)
            if not self.live and not self.force:
                self._warn_of_pins(configured)
        if self.live:
            live = snapshot.Live(self.host)
            live.changes = self._changes(new, live.changes)
            manager = self._choose(snapshot.compiled(self.host, new, live.changes, []))
            unknown: dict[str, Error] = {}
            running = threads.running(self.host, unknown)
            self.warnings += map(str, unknown.values())
            self._check(manager, running)
            plan.add(*live.save())
            changes.refit(plan, manager, running, self.force, whole=not unknown)
        if self.config and new != old:
            path = self.host.resolved(PATH)
            plan.add(Replace(path, new, old, self.host.mode(path) or 0o644))
        return plan

    def _compiled(self, old: str | None, new: str) -> Config:
        """Raises Error; where the file was wrong before, with the line that it has in OLD."""
        try:
            return snapshot.compiled(self.host, new, {}, self.warnings)
        except Error:
            if old is not None:
                snapshot.compiled(self.host, old, {}, [])
            raise

    def _warn_of_pins(self, configured: Config) -> None:
        """Where no VM runs, nothing is asked of the host: it may be an image that is being made."""
        running = threads.running(self.host, {})
        if not running:
            return
        manager = self._choose(configured)
        pinned = newly_pinned(manager, running)
        if pinned:
            self.warnings.append(
                f"running VMs are pinned to CPUs that this takes: {told(pinned)}; they cannot "
                f"start again until you {repin(manager, pinned)}"
            )

    def _text(self) -> tuple[str | None, str]:
        """The configuration file as it is, and as it will be."""
        old = self.host.read_optional(PATH)
        if not self.config:
            return old, old or ""
        new = settings.sample() if old is None else old
        for key, value in self.wanted.items():
            new = virconf.edited(new, PATH, key, None if value is None else literal(value))
        return old, new

    def _changes(self, text: str, before: Changes) -> Changes:
        """What differs from the configuration TEXT until the next boot; what that has overtaken is
        left out.
        """
        configured = parse(text, PATH).values
        wanted = {
            key: "" if value is None else canonical(key, value)
            for key, value in self.wanted.items()
        }
        kept = {
            key: value for key, (was, value) in before.items() if configured.get(key, "") == was
        }
        changes = {
            key: (configured.get(key, ""), value) for key, value in {**kept, **wanted}.items()
        }
        return {key: change for key, change in changes.items() if change[0] != change[1]}

    def _choose(self, config: Config) -> Manager:
        return managers.choose(self.host, config, managers.daemon(self.host))

    def _manager(self) -> Manager:
        """That of the changed configuration."""
        new = self._text()[1]
        return self._choose(
            snapshot.compiled(
                self.host, new, self._changes(new, snapshot.Live(self.host).changes), []
            )
        )

    # what a running VM has against it

    def _check(self, manager: Manager, running: list[Domain]) -> None:
        fence = manager.fence
        pinned = [] if self.force else newly_pinned(manager, running)
        if pinned:
            raise Error(
                f"cannot take CPUs from VMs that are pinned to them: {told(pinned)}",
                f"{repin(manager, pinned)}, stop them, or use --force",
            )
        limit = fence.memory_limit
        if limit is not None and fence.memory is not None:
            for directory, tree in conformance.memory_parents(manager).items():
                used = tree.memory_in_use(directory)
                if lowers(tree, directory, limit) and used > limit:
                    raise Error(
                        f"cannot lower the VMs' memory limit to {size(limit)}: "
                        f"{size(used)} is in use{_largest(manager, running)}",
                        f"{_remedy(manager, running)}, reserve less, or use --wait to reclaim "
                        "memory first",
                    )
            may_take = sum(domain.host_memory(page_size()) for domain in running)
            exceeded = may_exceed(may_take, fence.memory)
            if exceeded:
                self.warnings.append(exceeded)

    # --wait

    def _press(self, manager: Manager, progress: Callable[[int, int], None] | None) -> None:
        """Where there is something to reclaim, what runs is kept from taking more."""
        limit = manager.fence.memory_limit
        if limit is None or all(self._settled(manager)):
            return
        if progress:  # pressure alone may reclaim all, and take its time
            progress(self._used(manager), limit)
        plan = Plan("press")
        limits.press(plan, manager)
        self._pressed = True  # before it is: Ctrl-C may come in between
        plan.run(self.host)

    def _settled(self, manager: Manager) -> list[bool]:
        limit = manager.fence.memory_limit or 0
        return [
            not lowers(tree, directory, limit) or tree.has_room(directory, limit)
            for directory, tree in conformance.memory_parents(manager).items()
        ]

    def _reclaim(
        self, manager: Manager, wait: float, progress: Callable[[int, int], None] | None
    ) -> None:
        limit = manager.fence.memory_limit or 0
        deadline = time.monotonic() + wait
        while not all(self._settled(manager)):
            used = self._used(manager)
            if time.monotonic() > deadline:
                running = threads.running(self.host, {})
                raise Error(
                    f"after {wait:g} seconds the VMs still use {size(used)}; "
                    f"the new limit is {size(limit)}"
                    f"{_largest(manager, running)}",
                    f"no limit was changed; {_remedy(manager, running)}, or wait longer",
                )
            if progress:
                progress(used, limit)
            for directory, tree in conformance.memory_parents(manager).items():
                tree.reclaim(directory, limit)
            time.sleep(PAUSE)

    @staticmethod
    def _used(manager: Manager) -> int:
        return max(
            tree.memory_in_use(directory)
            for directory, tree in conformance.memory_parents(manager).items()
        )

    def _relieve(self) -> None:
        with self.host.locked(state.LOCK):
            plan = Plan("relieve")
            limits.relieve(plan, self._manager())
            plan.run(self.host)


def literal(value: Value) -> str:
    """VALUE as the configuration file has it."""
    return f'"{value}"' if isinstance(value, str) else str(value)


def canonical(key: str, value: Value) -> str:
    """As `settings.TABLE` makes it of VALUE. Raises Error."""
    return settings.named(key).read(value)


def newly_pinned(manager: Manager, running: list[Domain]) -> list[Loss]:
    """Which of RUNNING are pinned, and how, to CPUs that MANAGER's configuration takes from VMs.

    What was taken before, by force perhaps, is not asked for again.
    """
    cpus = manager.fence.cpus
    if cpus is None:
        return []
    return losses(manager, running, _before(manager.host) - manager.pinnable(cpus))


def _before(host: Host) -> CpuSet:
    """The CPUs that VMs have before a change, offline ones included."""
    daemon = managers.daemon(host)
    try:
        manager = managers.choose(host, snapshot.load(host, []), daemon)
    except Error:  # of what the change may be about to fix
        manager = managers.choose(host, Config({}), daemon)
    return manager.present() - manager.kept


def told(pinned: list[Loss]) -> str:
    """PINNED for people: "web (vcpu0 to 0-1 (reserved: 0)); db (emulator to 0 (reserved: 0))"."""
    return "; ".join(map(str, pinned))


def repin(manager: Manager, pinned: list[Loss]) -> str:
    """The remedy for `newly_pinned`, with a command for the first of PINNED."""
    return pinned[0].remedy(manager, "them")


def _remedy(manager: Manager, running: list[Domain]) -> str:
    if running:
        return "stop or shrink VMs"
    return apart(next(iter(manager.parent_paths().values())))


def _largest(manager: Manager, running: list[Domain]) -> str:
    """What the largest VMs have, and what else is in the VM parent, for the end of a sentence."""
    uses = [(conformance.memory_in_use(manager, domain), domain.name) for domain in running]
    for tree, path in manager.parent_paths().items():
        if not tree.has_memory:
            continue
        for other in conformance.beside_vms(manager, tree, path):
            uses.append((tree.memory_in_use(tree.hierarchy.directory(other)), other))
    largest = sorted(uses, reverse=True)[:LARGEST]
    if not largest:
        return ""
    return ": " + ", ".join(f"{printable(name)} has {size(used)}" for used, name in largest)


def outside(running: list[Domain], manager: Manager) -> list[Domain]:
    """The VMs of RUNNING that are pinned to CPUs that the host keeps, and does not lend."""
    if manager.fence.cpus is None:
        return []
    config, fence = manager.config, manager.fence
    cpus = manager.pinnable(manager.fence.cpus)
    return [one for one in running if pins_outside(held_pins(config, fence, one), cpus)]
