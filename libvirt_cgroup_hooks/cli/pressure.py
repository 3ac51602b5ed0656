# SPDX-License-Identifier: LGPL-2.1-or-later
"""PSI: how long tasks have waited for a resource."""

from __future__ import annotations

from ..host import Host

RESOURCES = ("cpu", "io", "memory")


def read(host: Host, pattern: str) -> dict[str, dict[str, float]]:
    """As `waited`, by resource; PATTERN is the path of a file, with {} for the resource.

    Without those that the kernel does not tell: cgroup v2 alone counts them, unless psi=0.
    """
    found = {name: waited(host.read_optional(pattern.format(name)) or "") for name in RESOURCES}
    return {name: seconds for name, seconds in found.items() if seconds}


def waited(text: str) -> dict[str, float]:
    """Seconds in which some task waited ("some") and in which all did ("full"), of a file of PSI
    ("some avg10=0.00 ... total=123").
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        microseconds = line.rpartition("total=")[2]
        if microseconds.isdigit():
            found[line.partition(" ")[0]] = int(microseconds) / 1_000_000
    return found
