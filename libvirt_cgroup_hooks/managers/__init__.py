# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who owns cgroups on a host, and so how VMs are fenced and placed there."""

from __future__ import annotations

from .. import state
from ..cgroups import detect
from ..errors import Error
from ..fence import fence
from ..host import page_size
from ..topology import Memory, read_online

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..config import Config
    from ..domain import Domain
    from ..host import Host
    from ..plan import Plan
    from .cgroupfs import Cgroupfs

ENFORCE = ("prepare", "start", "started", "reconnect")
CLEAN_UP = ("stopped", "release")

BUS = "/run/dbus/system_bus_socket"
ACTIVATION = "dbus-1/system-services/org.freedesktop.machine1.service"
PID_FILES = ("/run/libvirtd.pid", "/run/virtqemud.pid", "/run/libvirt/libvirtd.pid", "/run/libvirt/virtqemud.pid")
DATA = ("/usr/share", "/usr/local/share", "/run", "/etc")


def name(host: Host) -> str:
    """libvirt hands VMs to machined where the bus can start it (virSystemdHasMachined): "systemd", else "cgroupfs"."""
    if host.exists(BUS) and any(host.exists(f"{directory}/{ACTIVATION}") for directory in DATA):
        return "systemd"
    return "cgroupfs"


def choose(host: Host, config: Config, pid: str = "self") -> Cgroupfs:
    """The manager of HOST, for a daemon whose process (or child) is PID. Raises Error where nothing can be enforced."""
    if name(host) == "systemd":
        raise Error("systemd-machined owns the cgroups of the VMs on this host", "only hosts without it are supported yet")
    from .cgroupfs import Cgroupfs

    limits = fence(config, read_online(host.read_optional), Memory.parse(host.read("/proc/meminfo")), page_size())
    return Cgroupfs(host, config, detect(host.read_optional, pid), limits)


def concerns(host: Host, config: Config, operation: str) -> bool:
    """Whether there can be anything to do at OPERATION."""
    if operation in CLEAN_UP:
        return host.exists(state.DIRECTORY)
    return operation in ENFORCE and (bool(config) or host.exists(state.SHARED))


def plan(host: Host, config: Config, operation: str, domain: Domain, pid: str = "self", imagine: bool = False) -> Plan:
    """What the hook does; with IMAGINE also for a VM that is not running. Raises Error where that cannot be done."""
    return choose(host, config, pid).plan(operation, domain, imagine)


def daemon(host: Host) -> str:
    """The process id of the daemon that runs the VMs of HOST; "self" where none is found."""
    for path in PID_FILES:
        pid = (host.read_optional(path) or "").strip()
        if pid.isdigit() and host.exists(f"/proc/{pid}/cgroup"):
            return pid
    return "self"
