# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who owns cgroups on a host, and so how VMs are fenced and placed there."""

from __future__ import annotations

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

BUS = "/run/dbus/system_bus_socket"
ACTIVATION = "dbus-1/system-services/org.freedesktop.machine1.service"
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


def plan(host: Host, config: Config, operation: str, domain: Domain, pid: str = "self") -> Plan:
    """What the hook does. Raises Error where what is configured cannot be done."""
    return choose(host, config, pid).plan(operation, domain)
