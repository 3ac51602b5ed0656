"""What hooks/qemu goes by on a recorded host."""

from __future__ import annotations

import os
import time
from typing import TypeVar

from libvirt_cgroup_hooks import idle
from libvirt_cgroup_hooks.config import PATH

from .hosts import Kernel

K = TypeVar("K", bound=Kernel)


def aged(host: K, seconds: float = 60) -> K:
    """The configuration was written so long ago."""
    moment = time.time_ns() - round(seconds * 10**9)
    os.utime(host.root + PATH, ns=(moment, moment))
    return host


def told(host: Kernel) -> list[str] | None:
    """The operations that the shell does not start Python for; None: it goes by nothing."""
    text = host.read_optional(idle.PATH)
    if text is None or host.moment(idle.PATH) != host.moment(PATH):
        return None
    return text.splitlines()[2].split()
