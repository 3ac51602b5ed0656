# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who owns cgroups on a host, and so how VMs are fenced and placed there."""

from __future__ import annotations

from ..cgroups import detect, placements
from ..host import BUS, page_size
from ..topology import Memory, read_online

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..config import Config
    from ..host import Host
    from .base import Manager

PID_FILES = (
    "/run/libvirtd.pid",
    "/run/virtqemud.pid",
    "/run/libvirt/libvirtd.pid",
    "/run/libvirt/virtqemud.pid",
)
# libvirt asks the bus whether it can start machined and knows systemd (virSystemdHasMachined). The
# bus itself goes by these files, and systemd by the directory it makes when it has booted the host.
BOOTED = "/run/systemd/system"
SERVICES = ("/usr/local/share", "/usr/share", "/lib", "/etc", "/run")
ACTIVATION = "dbus-1/system-services/org.freedesktop.machine1.service"


def name(host: Host) -> str:
    """ "systemd" where libvirt hands VMs to machined, else "cgroupfs"."""
    activatable = any(host.exists(f"{directory}/{ACTIVATION}") for directory in SERVICES)
    return "systemd" if activatable and host.exists(BUS) and host.exists(BOOTED) else "cgroupfs"


def choose(host: Host, config: Config, pid: str = "self") -> Manager:
    """The manager of HOST, for a daemon whose process (or child) is PID. Raises Error where nothing
    can be enforced.
    """
    memory = Memory.parse(host.read("/proc/meminfo"))
    fence = config.fence(read_online(host.read_optional), memory, page_size())
    daemon_at = placements(host.read_optional(f"/proc/{pid}/cgroup") or "")
    cgroups = detect(host.read_optional, pid)
    if name(host) == "systemd":
        from .systemd import Systemd

        return Systemd(host, config, cgroups, fence, daemon_at)
    from .cgroupfs import Cgroupfs

    return Cgroupfs(host, config, cgroups, fence, daemon_at)


def daemon(host: Host) -> str:
    """The process id of the daemon that runs the VMs of HOST; "self" where none is found."""
    for path in PID_FILES:
        pid = (host.read_optional(path) or "").strip()
        if pid.isdigit() and host.exists(f"/proc/{pid}/cgroup"):
            return pid
    return "self"
