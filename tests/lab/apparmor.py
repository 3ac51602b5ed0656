"""What AppArmor, which enforces, has denied the hook below libvirtd's profile."""

from __future__ import annotations

import json

from ..live.harness import LAB_FACTS
from .host import run

DENIAL = 'apparmor="DENIED"'
OURS = ("/etc/libvirt/hooks", "cgroup-hooks", "python", "systemctl", "/sys/fs/cgroup")


def is_used() -> bool:
    return bool(json.loads(LAB_FACTS.read_text())["security"] == "apparmor")


def denials() -> list[str]:
    """Anybody's, of what the hook uses, since the host booted."""
    lines = run("journalctl", "--dmesg", "--no-pager", "--output", "cat").splitlines()
    denied = [line for line in lines if DENIAL in line]
    return [line for line in denied if any(word in line for word in OURS)]
