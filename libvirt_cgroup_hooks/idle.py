# SPDX-License-Identifier: LGPL-2.1-or-later
"""At which operations nothing is to be done for any VM: what hooks/qemu goes by, so that it need
not start Python to find that out.

Python leaves it in a file that was written at the moment at which the configuration was: the shell
goes by it only while neither is newer than the other, and the package is the one that has left it.
"""

from __future__ import annotations

from . import __version__, managers
from .state import DIRECTORY, Remembered
from .steps import Remove, ReplaceDated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .config import Config
    from .host import Host
    from .managers.base import Manager
    from .plan import Plan

PATH = f"{DIRECTORY}/idle"
# Those that Python need not be started for. prepare and reconnect see to what others have changed.
OPERATIONS = ("start", "started", "stopped", "release")
# The manager that has nothing to do at the operation, whatever a VM has
NEVER = {"start": "cgroupfs", "stopped": "systemd"}
SECOND = 10**9  # nanoseconds
# A shell may compare whole seconds, in which the configuration may be edited once more
SETTLED = 2 * SECOND
YEAR = 365 * 24 * 3600 * SECOND
FOLDER = __file__.rpartition("/")[0].rpartition("/")[0]  # that of the package


def never(host: Host, config: Config, operation: str) -> bool:
    """Whether OPERATION is one at which nothing is ever to be done on this host, while no VM has
    CPUs for itself alone.
    """
    if operation not in NEVER or NEVER[operation] != managers.name(host):
        return False
    return operation != "start" or not (config.host_cpus_for or Remembered(host).dedicated)


def idle(manager: Manager) -> list[str]:
    """The operations at which there is nothing to do for any VM that runs or starts, once the steps
    planned so far are made.

    A VM that has nothing of its own and is not counted has no record.
    """
    found: list[str] = []
    recorded = bool(manager.records.living())
    dedicated = bool(manager.records.dedicated())
    for operation in OPERATIONS:
        places_threads = operation == "started" and manager.config.has_sets
        has_work = recorded or places_threads
        if operation == "start":
            has_work = dedicated or (recorded and manager.awaits_start)
        elif never(manager.host, manager.config, operation):
            has_work = False
        if not has_work:
            found.append(operation)
    return found


def tell(plan: Plan, manager: Manager) -> None:
    """Leaves it for the shell, at the end of PLAN. What is not true any more goes first."""
    withdraw(plan, manager)
    host, operations = manager.host, idle(manager)
    moment, now = manager.config.moment, host.now()
    # images that are built alike give all their files one time, long ago
    if moment is None or not YEAR < moment < now - SETTLED or "\n" in FOLDER:
        return
    text = "\n".join([f'"{__version__}"', FOLDER, " ".join(operations), ""])
    if moment != host.moment(PATH) or text != host.read_optional(PATH):
        plan.add_shared(ReplaceDated(PATH, text, moment))


def withdraw(plan: Plan, manager: Manager) -> None:
    """Takes away, before anything else is done, what says that there is nothing to do where there
    is.
    """
    lines = (manager.host.read_optional(PATH) or "").split("\n")
    if len(lines) > 2 and not set(lines[2].split()) <= set(idle(manager)):
        plan.add_first(Remove(PATH, None))
