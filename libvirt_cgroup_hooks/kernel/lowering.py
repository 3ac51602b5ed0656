# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lowering a memory limit without killing: the limit follows the use, never the other way round.

On cgroup v1 the kernel itself refuses a limit below what it cannot reclaim (EBUSY). On v2 it takes
the limit and then kills, so memory.high goes first: it throttles whoever takes more and kills
nobody. Once the use is below, the limit follows, and memory.high goes back to what it was.
"""

from __future__ import annotations

from ..errors import MIB, Error, printable, size
from ..host import EBUSY, Refused
from ..kinds import MEMORY, PRESSURE
from ..steps import Step, Write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..host import Host
    from ..kinds import Kind, Value
    from .tree import Tree

SHOWN = 3  # cgroups in a message


def pressed(limit: int) -> int:
    """Where memory.high is while LIMIT is being set (bytes).

    Below it by more than what runs takes before it sleeps.
    """
    return (limit - min(32 * MIB, limit // 16)) & ~0xFFFF


def pressure(limit: int, there: Value) -> Value:
    """What memory.high has to be while LIMIT is being set, where it is THERE now (bytes)."""
    wanted = pressed(limit)
    return wanted if PRESSURE.rises(wanted, there) else there


def fits(limit: int, used: int) -> bool:
    """Whether LIMIT can be set over USED bytes, with room for what comes meanwhile."""
    return used <= (limit + pressed(limit)) // 2


def lowers(tree: Tree, directory: str, limit: int) -> bool:
    """Whether LIMIT bytes are less than DIRECTORY may have now."""
    return not MEMORY.rises(tree.read(MEMORY, directory), limit)


def needs_pressure(tree: Tree, directory: str, limit: int) -> bool:
    """Whether what DIRECTORY uses could reach LIMIT bytes while that is being set.

    Raises Error where it is above.
    """
    used = tree.memory_in_use(directory)
    if used > limit:
        raise over_limit(tree.host, f"{directory}/{tree.memory_use}", limit)
    return tree.limits(PRESSURE) and used > limit // 2


def over_limit(host: Host, file: str, limit: int, kind: Kind = MEMORY) -> Error:
    """FILE tells what the cgroup that it is in uses, and there are such files of those below it."""
    directory, _, name = file.rpartition("/")
    uses: list[tuple[int, str]] = []
    for below in host.directories(directory):
        uses.append((int(host.read_optional(f"{directory}/{below}/{name}") or 0), below))
    largest = [f"{size(used)} by {printable(below)}" for used, below in sorted(uses)[::-1] if used]
    told = f" ({', '.join(largest[:SHOWN])})" if largest else ""
    return Error(
        f"cannot limit {printable(directory)} to {size(limit)}{kind.noun or ' of memory'}: "
        f"{size(int(host.read(file)))} is in use{told}",
        "stop some of it or reserve less; a lower limit would kill a process",
    )


class HaveRoom(Step):
    """Ends the plan where DIRECTORY uses too much for LIMIT after all."""

    def __init__(self, directory: str, limit: int) -> None:
        self.directory = directory
        self.limit = limit

    def __str__(self) -> str:
        return f"check that {printable(self.directory)} uses less than {self.limit} bytes"

    def run(self, host: Host) -> None:
        file = f"{self.directory}/memory.current"
        if not fits(self.limit, int(host.read(file))):
            raise over_limit(host, file, self.limit)


class LowerLimit(Write):
    """Lowers a v1 limit of KIND, with a reason where the kernel refuses."""

    def __init__(self, write: Write, kind: Kind) -> None:
        super().__init__(write.path, write.value, write.old)
        self.kind = kind

    def run(self, host: Host) -> None:
        try:
            super().run(host)
        except Refused as error:
            file = self.path.replace("limit_in_bytes", "usage_in_bytes")
            limit = int(self.value)
            if error.errno != EBUSY or int(host.read(file)) <= limit:
                raise
            raise over_limit(host, file, limit, self.kind) from None
