# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirtd runs, with NAME OPERATION SUB-OPERATION EXTRA and the domain XML on standard input.

libvirtd holds the VM's lock meanwhile and waits for ever. So: a deadline, no call to libvirt, no
child left, and nothing on standard output, which would become the domain XML. Only prepare and
start may refuse a VM; after any other operation a failure would kill a VM that runs, so they exit 0
and tell syslog.
"""

from __future__ import annotations

import gc
import posix
import sys

gc.disable()  # a run ends before anything needs to be collected; looking for it took 4 % of it

from . import idle, operations, snapshot, state
from .config import PATH, Config
from .errors import Error, Refusal, printable
from .host import Host
from .operations import CLEAN_UP, ENFORCE
from .plan import run_settled

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal

    from .domain import Domain
    from .plan import Plan
else:
    # what the signal module is made of, without the enum and collections that it loads
    import _signal as signal

OPERATIONS = ENFORCE + CLEAN_UP
MAY_REFUSE = ("prepare", "start")
SHARE_TO_WORK = 0.75  # of hook_timeout; the rest is for putting back what was there


def main(argv: list[str]) -> int:
    """The exit status. Raises nothing."""
    name, operation = [*argv[1:], "", ""][:2]
    host = Host()
    if operation not in OPERATIONS or posix.geteuid() != 0:  # qemu:///session runs the same file
        return 0
    if not host.exists(PATH) and not host.exists(state.DIRECTORY):
        return 0
    run = _Run(host, name, operation)
    try:
        status = run.guarded()
    except Error as error:  # the deadline came while another failure was being told
        status = run.failed(error)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for warning in run.warnings:
        _log(f"{run}: {warning}")
    return status


class _Run:
    """One call of the hook: its name for messages, the configuration once that is read, and what is
    to be logged.
    """

    def __init__(self, host: Host, name: str, operation: str) -> None:
        self.host = host
        self.name = name
        self.operation = operation
        self.config = Config({})
        self.warnings: list[str] = []
        self.alarms = 0

    def __str__(self) -> str:
        return f"VM {printable(self.name)}, {self.operation}"

    def guarded(self) -> int:
        try:
            self.set_deadline()
            self.enforce()
            return 0
        except Error as error:
            return self.failed(error)
        except Exception as error:
            # a fault of ours: it must not kill a VM, and nobody wants to read a traceback
            return self.failed(
                Error(f"internal error: {type(error).__name__}: {error}", "please report it")
            )

    def enforce(self) -> None:
        host = self.host
        if self.operation in ENFORCE:
            self.config = self.configuration()
        else:
            self.config.hook_timeout = snapshot.timeout(host) or self.config.hook_timeout
        self.set_deadline()
        if idle.never(host, self.config, self.operation):
            return
        from .domainxml import LIMIT, SETTINGS_URI, parse

        xml = _standard_input(LIMIT)
        # the VM has settings of its own
        own = self.operation in ENFORCE and SETTINGS_URI.encode() in xml
        if not own and not operations.concerns(host, self.config, self.operation):
            return
        domain = parse(xml)
        if self.operation in ENFORCE:
            state.prepare_directory(host)
        elif not state.Record.exists(host, domain.uuid):
            return
        elif operations.asks_configuration(host, self.operation, domain):
            self.load_if_right()
        if self.operation == "reconnect" and self.settled(domain):
            return
        counted = self.operation == "prepare" and self.config.memory_admission
        if (
            self.operation == "release"
            or counted
            or self.config.anew
            or not self.work(domain, shared=True)
        ):
            self.work(domain)

    def configuration(self) -> Config:
        """Raises Error for a file with a mistake, for which its own on_error counts."""
        try:
            return snapshot.load(self.host, self.warnings)
        except Error:
            from .configfile import on_error_of

            snapshot.find_others()
            self.config.on_error = on_error_of(self.host.read_optional(PATH) or "")
            raise

    def load_if_right(self) -> None:
        """The configuration, for what is to be done with or without it."""
        try:
            self.config = snapshot.load(self.host, [])
        except Error as error:
            self.warnings.append(str(error))

    def work(self, domain: Domain, shared: bool = False) -> bool:
        """False where SHARED is not enough: hooks of other VMs may be at work then, and what VMs
        share is to be changed.
        """

        def make() -> Plan:
            plan = operations.plan(self.host, self.config, self.operation, domain)
            if shared and plan.exclusive:
                raise _Exclusive
            return plan

        try:
            with self.host.locked(state.LOCK, shared):
                if self.operation in ENFORCE:  # whoever held the lock may have changed it
                    self.config = snapshot.load(self.host, [], save=not shared)
                run_settled(self.host, make, self.warnings)
            return True
        except _Exclusive:
            return False

    def settled(self, domain: Domain) -> bool:
        """Whether a VM that the daemon finds running is as it should be; to see that, nobody has to
        wait for the lock.

        A daemon that restarts runs the hook for all its VMs at once.
        """
        try:
            plan = operations.plan(self.host, self.config, self.operation, domain)
        except Error:  # of something that changes meanwhile, perhaps; with the lock it is told
            return False
        return not plan.steps and not plan.warnings

    def failed(self, error: Error) -> int:
        """What could not be done is tried again at the VM's next operation."""
        status = self.status_of(error)
        if status:
            posix.write(2, printable(f"libvirt-cgroup-hooks: {error}").encode() + b"\n")
        else:
            goes_on = "; it starts as it is (on_error)" if self.operation in MAY_REFUSE else ""
            self.warnings.append(f"{error}{goes_on}")
        self.host.forget(idle.PATH)
        if self.config.anew:
            snapshot.doubt(self.host)
        return status

    def status_of(self, error: Error) -> int:
        refuses = self.config.on_error == "refuse" or isinstance(error, Refusal)
        return int(refuses and self.operation in MAY_REFUSE)

    def set_deadline(self) -> None:
        timeout = self.config.hook_timeout
        signal.signal(signal.SIGALRM, self.alarm)
        signal.setitimer(signal.ITIMER_REAL, timeout * SHARE_TO_WORK, timeout * (1 - SHARE_TO_WORK))

    def alarm(self, *_: object) -> None:
        error = Error(
            f"timed out after {self.config.hook_timeout} seconds (hook_timeout)",
            "find out what keeps the host busy, or raise hook_timeout",
        )
        self.alarms += 1
        if self.alarms == 1:
            raise error
        if self.alarms == 2:  # even undoing took too long
            self.host.end_child()
            self.failed(error)
            _log(f"{self}: {error}")
        posix._exit(self.status_of(error))  # at the third alarm even that took too long


class _Exclusive(Exception):
    """A plan that needs the lock for itself."""


def _standard_input(limit: int) -> bytes:
    """At most a little more than LIMIT bytes: more is refused by the parser."""
    parts: list[bytes] = []
    size = 0
    while size <= limit:
        part = posix.read(0, 1 << 20)
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _log(text: str) -> None:
    import syslog

    syslog.openlog("libvirt-cgroup-hooks", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_WARNING, printable(text))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
