# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration in force: the file, with what `reserve --live` has changed, compiled for the
hook.

The hook reads the snapshot below /run; the file is parsed where it, a change or the online CPUs
differ.
"""

from __future__ import annotations

import sys

from . import __version__
from .config import PATH, Config
from .errors import Error
from .host import Host, page_size
from .memory import read_online
from .state import DIRECTORY, FORMAT, lines_in, lines_of, prepare_directory, saved

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .configfile import Changes
    from .steps import Step

SNAPSHOT = f"{DIRECTORY}/config"
LIVE = f"{DIRECTORY}/live"
V2 = "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1)"
END = "end\n"  # the last line of the snapshot


class Live:
    """What `virt-cgroup reserve --live` has changed, until the next boot or until the setting is
    edited.
    """

    __slots__ = ("_text", "changes")

    def __init__(self, host: Host) -> None:
        self._text = host.read_optional(LIVE)
        lines = [line.split("\t") for line in lines_in(self._text)]
        self.changes: Changes = {line[0]: (line[1], line[2]) for line in lines if len(line) == 3}

    def save(self) -> list[Step]:
        """No step where nothing has changed."""
        text = lines_of(
            [f"{key}\t{configured}\t{value}" for key, (configured, value) in self.changes.items()]
        )
        return saved(LIVE, text, self._text, bool(self.changes))


def find_others() -> None:
    """Has Python find the packages of others: hooks/qemu starts it without site, which takes a
    sixth of its time.
    """
    if sys.flags.no_site:
        import site

        site.main()


def load(host: Host, warn: list[str], save: bool = False) -> Config:
    """The configuration in force, from the snapshot where that still holds. Raises Error.

    WARN gets the warnings of a file that is read anew. With SAVE the snapshot is written then,
    unless nothing is configured.
    """
    fingerprint, changed = host.fingerprint(PATH), host.fingerprint(LIVE)
    if not fingerprint and not changed:
        return Config({})
    online = str(read_online(host.read_optional))
    stamp = f"{FORMAT}\nfor {__version__} {fingerprint} {changed} {online}\n"
    moment = int(fingerprint.partition(" ")[0]) if fingerprint else None
    kept = from_snapshot(host.read_optional(SNAPSHOT) or "", stamp)
    if kept is not None:
        kept.moment = moment
        return kept
    from .configfile import inert

    text = host.read_optional(PATH) or ""
    changes = Live(host).changes
    if inert(text) and not changes:
        return Config({})
    config = compiled(host, text, changes, warn)
    config.anew, config.moment = True, moment
    if save and config:
        prepare_directory(host)
        host.replace(SNAPSHOT, snapshot(stamp, config))
    return config


def doubt(host: Host) -> None:
    """The configuration is to be read anew once more: what is done only then was not done."""
    text = host.read_optional(SNAPSHOT)
    if text:
        try:
            host.replace(SNAPSHOT, f"\n{text}")  # no stamp begins so
        except Error:  # what has failed before is told
            return


def timeout(host: Host) -> int:
    """The hook_timeout of the snapshot, in seconds, whatever has changed since; 0 without one."""
    for line in (host.read_optional(SNAPSHOT) or "").split("\n"):
        key, _, value = line.partition(" ")
        if key == "hook_timeout" and value.isdigit():
            return int(value)
    return 0


def compiled(host: Host, text: str, changes: Changes, warn: list[str], path: str = PATH) -> Config:
    """TEXT, which is in PATH, as the configuration of HOST, with CHANGES made at run time. Raises
    Error.
    """
    from .cgroups import on_v2
    from .configfile import parse, resolve
    from .topology import Topology

    find_others()
    parsed = parse(text, path, changes)
    warn += parsed.warnings
    try:
        config = resolve(parsed, Topology.read(host.read_optional), page_size())
    except ValueError:
        raise Error(f"cannot read {LIVE}: it is damaged", "remove it") from None
    if config.confine_host != "no" and not on_v2("cpuset", host.read_optional):
        raise parsed.error(
            "confine_host",
            "this host has the cpuset controller on cgroup v1, where systemd cannot limit the "
            "CPUs of units",
            f"{V2}, or remove the line",
        )
    if config.protect_host_mem != "no" and not on_v2("memory", host.read_optional):
        raise parsed.error(
            "protect_host_mem",
            "this host has the memory controller on cgroup v1, which cannot protect memory",
            f"{V2}, or remove the line",
        )
    memory = config.reserved_host_mem
    if config.vm_swap_max and not memory and not on_v2("memory", host.read_optional):
        raise parsed.error(
            "vm_swap_max",
            "this host has the memory controller on cgroup v1, which limits swap only together "
            "with memory",
            "set reserved_host_mem, too",
        )
    return config


def snapshot(stamp: str, config: Config) -> str:
    """CONFIG as text, for the configuration files that have STAMP."""
    return (
        stamp + "".join(f"{key} {value}\n" for key, value in config.values.items() if value) + END
    )


def from_snapshot(text: str, stamp: str) -> Config | None:
    """None where TEXT is not a whole snapshot with this STAMP."""
    if not (text.startswith(stamp) and text.endswith(END)):
        return None
    lines = [line.partition(" ") for line in text[len(stamp) : -len(END)].split("\n")]
    try:
        return Config({key: value for key, _, value in lines})
    except (Error, ValueError):  # not what `snapshot` writes
        return None
