# SPDX-License-Identifier: LGPL-2.1-or-later
"""Steps: each is one line of text, knows its undo before it is made, and does its work through a
Host.
"""

from __future__ import annotations

import time

from .cpuset import CpuSet
from .errors import Error, printable
from .host import ABSENT, EBUSY, ENOTEMPTY, ESRCH, Host, Refused

SYSTEMCTL = "systemctl"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Step:
    """One change to the host, which can be run, and undone after it was."""

    path = ""  # of what it changes, where that is a file or a directory
    writes_cgroup = False
    undone_last = False  # rather than in the reverse order of what was made

    def run(self, host: Host) -> None:
        raise NotImplementedError

    def undo(self) -> Step | None:
        """The step that puts back what was there; None where nothing needs to be."""
        return None


class MakeDirectory(Step):
    """A cgroup, or a directory of drop-ins."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __str__(self) -> str:
        return f"make {printable(self.path)}"

    def run(self, host: Host) -> None:
        host.make_directory(self.path)

    def undo(self) -> Step:
        return RemoveEmpty(self.path)


class RemoveCgroup(Step):
    """Removes the cgroup and those below it. While it still has processes it is tried again, for a
    second.
    """

    TRIES, PAUSE = 50, 0.02

    def __init__(self, path: str) -> None:
        self.path = path

    def __str__(self) -> str:
        return f"remove {printable(self.path)}"

    def run(self, host: Host) -> None:
        for left in reversed(range(self.TRIES)):
            try:
                self._remove(host, self.path)
                break
            except Refused as error:
                if error.errno != EBUSY or not left:
                    raise
            time.sleep(self.PAUSE)

    def _remove(self, host: Host, path: str) -> None:
        for name in host.directories(path):
            self._remove(host, f"{path}/{name}")
        host.remove_directory(path)


class RemoveEmpty(Step):
    """Removes a cgroup that others may be using: it stays where it has processes or cgroups below
    it.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __str__(self) -> str:
        return f"remove {printable(self.path)} if it is empty"

    def run(self, host: Host) -> None:
        try:
            host.remove_directory(self.path)
        except Refused as error:
            if error.errno not in (EBUSY, ENOTEMPTY):
                raise


class Write(Step):
    """OLD is what the file says now; None where the cgroup is new, so that its removal is the undo.

    With MAY_BE_GONE the cgroup is another's, and has no limit to write once it is removed.
    """

    writes_cgroup = True

    def __init__(
        self, path: str, value: str, old: str | None = None, may_be_gone: bool = False
    ) -> None:
        self.path = path
        self.value = value
        self.old = old
        self.may_be_gone = may_be_gone

    def __str__(self) -> str:
        return f'write "{printable(self.value)}" to {printable(self.path)}'

    def run(self, host: Host) -> None:
        try:
            host.write(self.path, self.value)
        except Refused as error:
            if not (self.may_be_gone and error.errno in ABSENT):
                raise

    def undo(self) -> Step | None:
        return (
            None if self.old is None else Write(self.path, self.old, self.value, self.may_be_gone)
        )


class Move(Step):
    """Moves one process, or one thread, by writing its id to FILE. One that has ended needs no
    move.

    UNDO are the moves that put it back: for a process its own first, then those of its threads.
    """

    def __init__(self, kind: str, number: int, file: str, undo: list[Move]) -> None:
        self.kind = kind  # "process" or "thread"
        self.number = number
        self.file = file
        self._undo = undo

    def __str__(self) -> str:
        return f"move {self.kind} {self.number} to {printable(self.file)}"

    def run(self, host: Host) -> None:
        try:
            host.write(self.file, str(self.number))
        except Refused as error:
            if error.errno != ESRCH:
                raise

    def undo(self) -> Step | None:
        return Several(self._undo) if self._undo else None


class Several(Step):
    """Steps, one after the other."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps

    def __str__(self) -> str:
        return ", ".join(map(str, self.steps))

    def run(self, host: Host) -> None:
        for step in self.steps:
            step.run(host)


class Touch(Step):
    """Gives a directory the time of now."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __str__(self) -> str:
        return f"touch {printable(self.path)}"

    def run(self, host: Host) -> None:
        host.touch(self.path, time.time_ns())


class LoadUnit(Step):
    """Has systemd load a unit, and look for its files where they may have changed."""

    def __init__(self, unit: str) -> None:
        self.unit = unit

    def __str__(self) -> str:
        return f"have systemd load {printable(self.unit)}"

    def run(self, host: Host) -> None:
        host.load_unit(self.unit)


class Systemctl(Step):
    """systemctl VERB ARGUMENTS, waiting for its job; UNDO are the arguments that put back what was
    there, if any.

    OF_CGROUP is the directory of the one unit's cgroup where that may be gone meanwhile: then there
    is nothing to do. FILES are those that it makes, and that are not to stay once it is undone.
    """

    writes_cgroup = True

    def __init__(
        self,
        arguments: list[str],
        undo: list[str] | None = None,
        of_cgroup: str = "",
        files: Sequence[str] = (),
    ) -> None:
        self.arguments = arguments
        self.of_cgroup = of_cgroup
        self.files = files
        self._undo = undo

    def __str__(self) -> str:
        return printable("systemctl " + " ".join(self.arguments))

    def run(self, host: Host) -> None:
        try:
            host.run([SYSTEMCTL, *self.arguments])
        except Error:
            if not self.of_cgroup or host.exists(self.of_cgroup):
                raise

    def undo(self) -> Step | None:
        if not self._undo:
            return None
        undo = Systemctl(self._undo, self.arguments, self.of_cgroup)
        if not self.files:
            return undo
        return Several([undo, *remove_made(self.files)])


class Pin(Step):
    """sched_setaffinity of one thread."""

    undone_last = True  # the thread's cpuset has to have the CPUs first (EINVAL)

    def __init__(self, thread: int, cpus: CpuSet, old: CpuSet) -> None:
        self.thread = thread
        self.cpus = cpus
        self.old = old

    def __str__(self) -> str:
        return f"set the CPUs of thread {self.thread} to {self.cpus}"

    def run(self, host: Host) -> None:
        host.set_affinity(self.thread, self.cpus)

    def undo(self) -> Step:
        return Pin(self.thread, self.old, self.cpus)


class Replace(Step):
    """Writes a file of ours whole; OLD None: there was none."""

    def __init__(self, path: str, text: str, old: str | None, mode: int = 0o600) -> None:
        self.path = path
        self.text = text
        self.old = old
        self.mode = mode

    def __str__(self) -> str:
        return f"save {printable(self.path)}"

    def run(self, host: Host) -> None:
        host.replace(self.path, self.text, self.mode)

    def undo(self) -> Step:
        if self.old is None:
            return Remove(self.path, self.text, self.mode)
        return Replace(self.path, self.old, self.text, self.mode)


class ReplaceDated(Replace):
    """Writes a file of ours that says something of another file, for as long as both were written
    at the same MOMENT (in nanoseconds). It is undone by saying nothing.
    """

    def __init__(self, path: str, text: str, moment: int) -> None:
        super().__init__(path, text, None, 0o644)
        self.moment = moment

    def run(self, host: Host) -> None:
        super().run(host)
        host.touch(self.path, self.moment)


class Remove(Step):
    """Removes a file, and is undone by writing its OLD text with its MODE; not where that is None:
    what made it makes it again.
    """

    def __init__(self, path: str, old: str | None, mode: int = 0o600) -> None:
        self.path = path
        self.old = old
        self.mode = mode

    def __str__(self) -> str:
        return f"remove {printable(self.path)}"

    def run(self, host: Host) -> None:
        host.remove(self.path)

    def undo(self) -> Step | None:
        return None if self.old is None else Replace(self.path, self.old, None, self.mode)


def remove_made(files: Sequence[str]) -> list[Step]:
    """Removes FILES, made by a program, and their directories, where those are empty then."""
    steps: list[Step] = []
    for file in files:
        steps += [Remove(file, None), RemoveEmpty(file.rpartition("/")[0])]
    return steps
