# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the hook is installed for libvirt, and how it is told from other programs' hooks."""

from __future__ import annotations

import shlex

from ..host import Host, Refused

HOOK = "/etc/libvirt/hooks/qemu"
DIRECTORY = "/etc/libvirt/hooks/qemu.d"  # libvirt 6.5 and later runs what is in it after HOOK
HOOK_D = f"{DIRECTORY}/50-cgroup-hooks"  # where another program owns HOOK
HEAD = "#!/bin/sh\n# libvirt-cgroup-hooks: keeps CPUs "
MARKS = (HEAD.partition("\n")[2], "from libvirt_cgroup_hooks.hook import main")
PYTHON = "/usr/bin/python3"  # in the file as it is shipped
TEST = "[ -x "  # begins the line that names it


def ours(text: str) -> bool:
    """Whether a hook with TEXT runs this package."""
    return any(mark in text for mark in MARKS)


def is_installed(host: Host) -> bool:
    """Whether a file that libvirt may run for HOST runs this package."""
    for path in (HOOK, HOOK_D):
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
