# SPDX-License-Identifier: LGPL-2.1-or-later
"""What systemd's files say of a unit: what it goes by when it reads them again.

Asked only where a limit is about to change: the hook does without for all VMs but the first.
"""

from __future__ import annotations

from ..errors import Error
from .units import CONTROL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..host import Host
    from ..kinds import Kind, Value

DIRECTORIES = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)


def has_unit(host: Host, unit: str) -> bool:
    """Whether an administrator or a package has the unit file UNIT."""
    return any(host.exists(f"{directory}/{unit}") for directory in DIRECTORIES)


def decided(host: Host, unit: str, kind: Kind, but: str = "") -> tuple[str, Value] | None:
    """The file, but for BUT, that decides the limit of KIND of UNIT, and what it says.

    Drop-ins come after the unit file, in the order of their names, whatever their directory; of
    those with one name the first directory's counts (systemd.unit(5)).
    """
    found: tuple[str, Value] | None = None
    for file in [*_fragment(host, unit), *_drop_ins(host, unit, but)]:
        for line in (host.read_optional(file) or "").splitlines():
            key, _, text = line.partition("=")
            if key == kind.unit_property:
                found = (file, _value(kind, text))
    return found


def _fragment(host: Host, unit: str) -> list[str]:
    files = [f"{directory}/{unit}" for directory in (*CONTROL, *DIRECTORIES)]
    return [file for file in files if host.exists(file)][:1]


def _drop_ins(host: Host, unit: str, but: str) -> list[str]:
    by_name: dict[str, str] = {}
    for directory in reversed((*CONTROL, *DIRECTORIES)):
        for name in host.names(f"{directory}/{unit}.d"):
            file = f"{directory}/{unit}.d/{name}"
            if name.endswith(".conf") and file != but:
                by_name[name] = file
    return [by_name[name] for name in sorted(by_name)]


def _value(kind: Kind, text: str) -> Value:
    """As systemd has it, with suffixes of bytes such as 32G."""
    shift = " KMGT".find(text[-1:]) * 10
    if not kind.of_cpus and shift > 0 and text[:-1].isdigit():
        return int(text[:-1]) << shift
    try:
        return kind.parse(text)
    except (Error, ValueError):  # a share of the host's memory, or what systemd rejects
        return None
