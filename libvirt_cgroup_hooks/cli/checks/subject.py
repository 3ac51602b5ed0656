# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the checks look at, and what they find."""

from __future__ import annotations

from typing import NamedTuple

from ... import installation, managers, snapshot, threads
from ...config import PATH, Config
from ...configfile import inert
from ...errors import Error
from ...host import Host
from ...managers.base import Manager
from .codes import CODES, PASS


class Problem(NamedTuple):
    """`code` is one of CODES, and "" where nothing is wrong."""

    code: str
    message: str
    remedy: str = ""

    @property
    def result(self) -> str:
        return CODES[self.code].result if self.code else PASS


class Subject:
    """A host, with its configuration; `config` is None where that is not understood, and `error`
    says why. PROPOSED is the text of a configuration that is not in place yet, and where it is.
    """

    def __init__(self, host: Host, proposed: tuple[str, str] | None = None) -> None:
        self.host = host
        self.proposed = proposed
        self.daemon = managers.daemon(host)
        self.pid = installation.daemon_pid(host)
        self.warnings: list[str] = []
        self.config: Config | None = None
        self.error: Error | None = None
        try:
            self.config = self._configuration()
        except Error as error:
            self.error = error
        except ValueError as error:
            self.error = Error(
                f"the host's files are not understood: {error}", "look at /proc/meminfo"
            )

    def _configuration(self) -> Config:
        """That in force, but not from the snapshot, which has no warnings."""
        text, path = self.proposed or (self.host.read_optional(PATH) or "", PATH)
        changes = {} if self.proposed else snapshot.Live(self.host).changes
        if inert(text) and not changes:
            return Config({})
        return snapshot.compiled(self.host, text, changes, self.warnings, path)

    def manager(self) -> Manager:
        """A new one, since each serves one plan. Raises Error where nothing can be enforced."""
        return managers.choose(self.host, self.config or Config({}), self.daemon)

    @property
    def has_vms(self) -> bool:
        """Also where one is not understood: it is there."""
        unknown: dict[str, Error] = {}
        return bool(threads.running(self.host, unknown) or unknown)

    @property
    def daemon_name(self) -> str | None:
        """None where none runs: a process id file may have outlived its daemon."""
        return installation.daemon_name(self.host, self.pid) if self.pid else None
