# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the hook is installed for libvirt, and how it is told from other programs' hooks."""

from __future__ import annotations

HOOK = "/etc/libvirt/hooks/qemu"
DIRECTORY = "/etc/libvirt/hooks/qemu.d"  # libvirt 6.5 and later runs what is in it after HOOK
HOOK_D = f"{DIRECTORY}/50-cgroup-hooks"  # where another program owns HOOK
MARKS = ("\n# libvirt-cgroup-hooks: keeps CPUs ", "from libvirt_cgroup_hooks.hook import main")


def ours(text: str) -> bool:
    """Whether a hook with TEXT is this package's."""
    return any(mark in text for mark in MARKS)
