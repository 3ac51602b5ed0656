# SPDX-License-Identifier: LGPL-2.1-or-later
"""What systemd's files say of a unit: what it goes by when it reads them again.

Asked only where a limit is about to change: the hook does without for all VMs but the first.
"""

from __future__ import annotations

from ..cpuset import CpuSet
from ..errors import Error
from ..kinds import as_cpus
from .units import CONTROL, RUNTIME, TRANSIENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..host import Host
    from ..kinds import Kind, Value

# systemd's search path after CONTROL, first found first (systemctl show -p UnitPath)
DIRECTORIES = (
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
)


def own_file(unit: str, kind: Kind) -> str:
    """What set-property --runtime writes."""
    directory = TRANSIENT if unit.endswith(".scope") else RUNTIME
    return f"{directory}/{unit}.d/50-{kind.unit_property}.conf"


def has_unit(host: Host, unit: str) -> bool:
    """Whether an administrator or a package has the unit file UNIT."""
    return any(host.exists(f"{directory}/{unit}") for directory in DIRECTORIES)


def hosts_own(host: Host, unit: str) -> list[str]:
    """What of the host's own work will be in the slice UNIT by its name.

    systemd puts a user's sessions into user-UID.slice, and the instances of a template such as
    getty@.service into system-getty.slice, where the template does not say otherwise.
    """
    first, _, name = unit.removesuffix(".slice").partition("-")
    if first == "user" and name.partition("-")[0].isdigit():
        return [f"the sessions of user {name.partition('-')[0]}"]
    template = name.replace("\\x2d", "-") + "@.service"
    if first == "system" and has_unit(host, template):
        return [template]
    return []


def decided(host: Host, unit: str, kind: Kind, but: str = "") -> tuple[str, Value] | None:
    """The file, but for BUT, that decides the limit of KIND of UNIT, and what it says.

    Drop-ins come after the unit file, in the order of their names, whatever their directory; of
    those with one name the first found counts (systemd.unit(5)). CPUs of several add up, until an
    empty list.
    """
    found: tuple[str, Value] | None = None
    for file in [*_fragment(host, unit), *_drop_ins(host, unit, but)]:
        for text in _assigned(host.read_optional(file) or "", unit, kind.unit_property):
            value = _value(kind, text)
            if kind.of_cpus and text and found:
                value = (as_cpus(found[1]) or CpuSet()) | (as_cpus(value) or CpuSet()) or None
            found = (file, value)
    return found


def _assigned(text: str, unit: str, key: str) -> Iterator[str]:
    """Each value that the TEXT of a file of UNIT gives to KEY, in the section of the unit's type.
    A backslash at the end of a line joins it with the next (systemd.syntax(7)).
    """
    section, wanted, begun = "", f"[{unit.rpartition('.')[2].capitalize()}]", ""
    for line in map(str.strip, text.split("\n")):
        if line.startswith(("#", ";")):
            continue
        begun += line
        if begun.endswith("\\"):
            begun = begun[:-1] + " "
            continue
        name, _, value = begun.partition("=")
        if begun.startswith("["):
            section = begun
        elif section == wanted and key and name.rstrip() == key:
            yield value.strip()
        begun = ""


def _fragment(host: Host, unit: str) -> list[str]:
    files = [f"{directory}/{unit}" for directory in (*CONTROL, *DIRECTORIES)]
    return [file for file in files if host.exists(file)][:1]


def _drop_ins(host: Host, unit: str, but: str) -> list[str]:
    by_name: dict[str, str] = {}
    for folder in _folders(unit):
        for name in host.names(folder):
            if name.endswith(".conf") and f"{folder}/{name}" != but:
                by_name.setdefault(name, f"{folder}/{name}")
    return [by_name[name] for name in sorted(by_name)]


def _folders(unit: str) -> list[str]:
    """Those of drop-ins for UNIT, first found first: in each directory its own, and those of its
    prefixes (a-b-.slice.d, a-.slice.d); after them all those of its type (slice.d).
    """
    name, _, of_type = unit.rpartition(".")
    parts = name.split("-")
    prefixes = ["-".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]
    own = [unit, *(f"{prefix}-.{of_type}" for prefix in prefixes if prefix)]
    directories = (*CONTROL, *DIRECTORIES)
    folders = [f"{directory}/{one}.d" for directory in directories for one in own]
    return [*folders, *(f"{directory}/{of_type}.d" for directory in directories)]


def _value(kind: Kind, text: str) -> Value:
    """As systemd has it, with suffixes of bytes such as 32G."""
    shift = " KMGT".find(text[-1:]) * 10
    if not kind.of_cpus and shift > 0 and text[:-1].isdigit():
        return int(text[:-1]) << shift
    try:
        return kind.parse(text)
    except (Error, ValueError):  # a share of the host's memory, or what systemd rejects
        return None
