# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Plan is a list of steps that are made in order, or undone.

`virt-cgroup plan` prints the very objects that the hook runs.
"""

from __future__ import annotations

import time

from .errors import Error
from .host import EBUSY, Host, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .steps import Step

TRIES, PAUSE = 20, 0.05  # of a plan that others get in the way of; seconds


class Plan:
    """Steps in order, and warnings for the log. What cleans up is no transaction: it goes as far as
    it can.

    `exclusive`: something is touched that is not one VM's own, so nobody else may be at work
    meanwhile.
    """

    def __init__(self, operation: str, transaction: bool = True) -> None:
        self.operation = operation
        self.transaction = transaction
        self.exclusive = False
        self.steps: list[Step] = []
        self.warnings: list[str] = []

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps))

    def add(self, *steps: Step) -> None:
        """What is one VM's own."""
        self.steps += steps

    def add_shared(self, *steps: Step) -> None:
        """What VMs share."""
        self.exclusive = self.exclusive or bool(steps)
        self.steps += steps

    def add_first(self, step: Step) -> None:
        """What VMs share, and has to be done before all else."""
        self.exclusive = True
        self.steps.insert(0, step)

    def add_below(self, top: str, *steps: Step) -> None:
        """TOP and what is below it is one VM's own; STEPS may reach further up."""
        own = all(f"{step.path}/".startswith(f"{top}/") for step in steps)
        (self.add if own else self.add_shared)(*steps)

    def run(self, host: Host) -> None:
        """All steps, or none: where one fails, those made are undone in reverse and the error goes
        on.
        """
        made: list[Step] = []
        try:
            for step in self.steps:
                made.append(step)  # a step that fails may be half made, so it is undone too
                step.run(host)
        except BaseException:  # Ctrl-C as well
            if self.transaction:
                self._undo(made, host)
            raise

    def _undo(self, made: list[Step], host: Host) -> None:
        made.reverse()
        made.sort(key=lambda step: step.undone_last)
        for step in made:
            undo = step.undo()
            try:
                if undo:
                    undo.run(host)
            except Error as error:
                self.warnings.append(f"could not undo ({step}): {error}")


def run_settled(host: Host, make: Callable[[], Plan], warnings: list[str]) -> Plan:
    """Runs the plan that MAKE makes, and returns it; its warnings go to WARNINGS.

    libvirt may make a cgroup meanwhile in a v1 cpuset that is to lose CPUs, which the kernel then
    refuses (EBUSY): the plan is made anew. Not one that cleans up: what is busy then has processes,
    and others wait for the lock.
    """
    for left in reversed(range(TRIES)):
        plan = make()
        try:
            plan.run(host)
            break
        except Refused as error:
            if error.errno != EBUSY or not left or not plan.transaction:
                raise
        finally:
            warnings += plan.warnings
        time.sleep(PAUSE)
    return plan
