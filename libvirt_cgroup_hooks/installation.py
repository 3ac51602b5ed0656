# SPDX-License-Identifier: LGPL-2.1-or-later
"""How libvirt was built and where a distribution has put it: asked of the daemon while it runs,
else of its files.
"""

from __future__ import annotations

from .errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .host import Host

DAEMONS = ("virtqemud", "libvirtd")
PID_FILES = (
    "/run/libvirtd.pid",
    "/run/virtqemud.pid",
    "/run/libvirt/libvirtd.pid",
    "/run/libvirt/virtqemud.pid",
)
# systemd's search path, first found first (systemd.unit(5))
UNITS = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
STARTED_BY = ("sockets.target.wants", "multi-user.target.wants")
USUAL = "/etc/libvirt"
SETTINGS = (USUAL, "/var/lib/libvirt", "/usr/local/etc/libvirt")
LIBRARY = "libvirt.so.0"
# LIBVIRT_HOOK_DIR of libvirt's src/util/virhook.c, SYSCONFDIR "/libvirt/hooks", is in the library
HOOKS = b"/libvirt/hooks\0"


# the daemon


def daemon_pid(host: Host) -> str | None:
    """The process id of the daemon that runs the VMs of HOST; None where none runs."""
    for path in PID_FILES:
        pid = (host.read_optional(path) or "").strip()
        if pid.isdigit() and daemon_name(host, pid):
            return pid
    return None


def daemon_name(host: Host, pid: str) -> str | None:
    """Either "libvirtd" or "virtqemud"; None for another process.

    NixOS and Guix run a program behind a wrapper: .libvirtd-wrapped, .virtqemud-real; the kernel
    keeps 15 characters of such a name.
    """
    comm = (host.read_optional(f"/proc/{pid}/comm") or "").strip()
    name = comm.lstrip(".").partition("-")[0]
    return name if name in DAEMONS else None


def service(host: Host) -> tuple[str, str]:
    """The unit in which systemd runs the daemon, and the unit's slice."""
    there = [name for name in DAEMONS if _fragment(host, f"{name}.service") is not None]
    enabled = [name for name in there if _enabled(host, name)]
    unit = f"{[*enabled, *there, 'libvirtd'][0]}.service"
    found = "system.slice"  # where systemd puts a service that names none
    for text in [_fragment(host, unit) or "", *_drop_ins(host, unit)]:
        found = _slice_in(text) or found
    return unit, found


def _fragment(host: Host, unit: str) -> str | None:
    texts = (host.read_optional(f"{directory}/{unit}") for directory in UNITS)
    return next((text for text in texts if text is not None), None)


def _enabled(host: Host, name: str) -> bool:
    wanted = {f"{name}.socket", f"{name}.service"}
    return any(
        wanted.intersection(host.names(f"{directory}/{target}"))
        for directory in UNITS
        for target in STARTED_BY
    )


def _drop_ins(host: Host, unit: str) -> list[str]:
    """By their names; of one name the first in the search path counts."""
    found: dict[str, str] = {}
    for folder in (f"{unit}.d", "service.d"):
        for directory in UNITS:
            for name in host.names(f"{directory}/{folder}"):
                if name.endswith(".conf"):
                    found.setdefault(name, f"{directory}/{folder}/{name}")
    return [host.read_optional(found[name]) or "" for name in sorted(found)]


def _slice_in(text: str) -> str | None:
    """What the last Slice= of the section [Service] says."""
    found, section = None, ""
    for line in map(str.strip, text.split("\n")):
        if line.startswith("["):
            section = line
        key, _, value = line.partition("=")
        if section == "[Service]" and key.rstrip() == "Slice" and value.strip().endswith(".slice"):
            found = value.strip()
    return found


# its files


def hooks(host: Host) -> str:
    """The folder in which libvirt looks for hooks."""
    pid = daemon_pid(host)
    return (pid and _built_in(host, pid)) or f"{_settings(host)}/hooks"


def _settings(host: Host) -> str:
    return next((path for path in SETTINGS if host.exists(f"{path}/qemu.conf")), USUAL)


def _built_in(host: Host, pid: str) -> str | None:
    """What the library that process PID runs was built with; None where that cannot be read."""
    try:
        maps = host.read_optional(f"/proc/{pid}/maps") or ""
    except Error:  # we are not root
        return None
    mapped = [line.split(maxsplit=5)[-1].removesuffix(" (deleted)") for line in maps.splitlines()]
    for path in dict.fromkeys(mapped):
        folder, _, name = path.rpartition("/")
        if name.startswith(LIBRARY):
            # an update may have replaced the file by one of a later version
            return _hooks_in(host, path) or _hooks_in(host, f"{folder}/{LIBRARY}")
    return None


def _hooks_in(host: Host, library: str) -> str | None:
    try:
        data = host.read_bytes(library)
    except OSError:
        return None
    end = data.find(HOOKS)
    folder = data[data.rfind(b"\0", 0, max(end, 0)) + 1 : end + len(HOOKS) - 1]
    return folder.decode("utf-8", "surrogateescape") if folder.startswith(b"/") else None
