# SPDX-License-Identifier: LGPL-2.1-or-later
"""The file that libvirtd runs: where it can be, and which file is ours."""

from __future__ import annotations

HOOK = "/etc/libvirt/hooks/qemu"
DIRECTORY = "/etc/libvirt/hooks/qemu.d"  # libvirt 6.5 and later runs what is in it after HOOK
HOOK_D = f"{DIRECTORY}/50-cgroup-hooks"  # where another program owns HOOK
HEAD = "#!/bin/sh\n# libvirt-cgroup-hooks:"


def ours(text: str) -> bool:
    """Whether TEXT is our hook, also one of another release, for another Python, or edited."""
    return text.startswith(HEAD)
