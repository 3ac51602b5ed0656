# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the hook is installed for libvirt, and how it is told from other programs' hooks."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from .. import installation
from ..host import Host, Refused


class Places(NamedTuple):
    """Where libvirt takes hooks for QEMU from."""

    hook: str
    directory: str  # libvirt 6.5 and later runs what is in it after `hook`
    hook_d: str  # where another program owns `hook`


def at(folder: str) -> Places:
    """The places in the FOLDER for hooks."""
    directory = f"{folder}/qemu.d"
    return Places(f"{folder}/qemu", directory, f"{directory}/50-cgroup-hooks")


def places(host: Host) -> Places:
    """Where the daemon of HOST looks."""
    return at(installation.hooks(host))


def elsewhere(host: Host) -> list[str]:
    """Where the daemon of HOST does not look, and another build of libvirt would."""
    read = host.resolved(installation.hooks(host))
    found: list[str] = []
    for settings in installation.SETTINGS:
        folder = f"{settings}/hooks"
        if host.resolved(folder) != read:  # one may be a link to the other
            found += [at(folder).hook, at(folder).hook_d]
    return found


HOOK, DIRECTORY, HOOK_D = at(f"{installation.USUAL}/hooks")
HEAD = "#!/bin/sh\n# libvirt-cgroup-hooks: keeps CPUs "
MARKS = (HEAD.partition("\n")[2], "from libvirt_cgroup_hooks.hook import main")
PYTHON = "/usr/bin/python3"  # in the file as it is shipped
TEST = "[ -x "  # begins the line that names it
# The process ids of the daemons that virt-cgroup sent SIGHUP when it was written, one a line. It is
# not in /run/libvirt-cgroup-hooks: where that is, the hook has work to do.
RELOADED = "/run/libvirt-cgroup-hooks-reloaded"


def ours(text: str) -> bool:
    """Whether a hook with TEXT runs this package."""
    return any(mark in text for mark in MARKS)


def is_installed(host: Host) -> bool:
    """Whether a file that libvirt may run for HOST runs this package."""
    hook, _, hook_d = places(host)
    for path in (hook, hook_d):
        try:
            if ours(host.read_optional(path) or ""):
                return True
        except Refused:  # a directory, or not ours to read
            continue
    return False


def shipped_file(text: str) -> bool:
    """Whether TEXT is our file, maybe for another Python or edited, and not a hook of somebody's
    that runs ours too.
    """
    return text.startswith(HEAD)


def python_of(text: str) -> str:
    """The Python that our hook with TEXT runs; PYTHON where somebody has edited that line."""
    for line in text.splitlines():
        if line.startswith(TEST):
            try:
                return shlex.split(line)[2]
            except (ValueError, IndexError):
                break
    return PYTHON
