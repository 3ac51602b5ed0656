# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who owns cgroups on a host, and so how VMs are fenced and placed there."""

from __future__ import annotations

from ..cgroups import OWN, detect, placements, systemd_key
from ..host import BUS, page_size
from ..memory import Memory, read_online

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..config import Config
    from ..host import Host
    from .base import Manager

# libvirt asks the bus whether it can start machined and knows systemd (virSystemdHasMachined). The
# bus itself goes by these files, and systemd by the directory it makes when it has booted the host.
BOOTED = "/run/systemd/system"
SERVICES = (
    "/usr/local/share",
    "/usr/share",
    "/lib",
    "/etc",
    "/run",
    "/run/current-system/sw/share",  # NixOS
)
ACTIVATION = "dbus-1/system-services/org.freedesktop.machine1.service"


def name(host: Host) -> str:
    """Either "systemd", where libvirt hands VMs to machined, or "cgroupfs"."""
    activatable = any(host.exists(f"{directory}/{ACTIVATION}") for directory in SERVICES)
    return "systemd" if activatable and host.exists(BUS) and host.exists(BOOTED) else "cgroupfs"


def choose(host: Host, config: Config, daemon: dict[str, str] | None = None) -> Manager:
    """The manager of HOST, for a daemon whose cgroup by hierarchy key is DAEMON; without it, for
    the one that we are a child of. Raises Error where nothing can be enforced.
    """
    memory = Memory.read(host.read_optional) if config.asks_memory else Memory(0, 0)
    fence = config.fence(read_online(host.read_optional), memory, page_size())
    every = config.anew or daemon is not None  # the hook goes by the records else
    if daemon is None:
        daemon = placements(host.read_optional(OWN) or "")
    cgroups = detect(host.read_optional, daemon)
    manager: Manager
    if name(host) == "systemd":
        from .systemd import Systemd

        manager = Systemd(host, config, cgroups, fence, daemon)
    else:
        from .cgroupfs import Cgroupfs

        manager = Cgroupfs(host, config, cgroups, fence, daemon)
    if manager.limits_hugepages:
        from ..threads import hugepages

        fence.hugepages = hugepages(host, manager.remembers, every)
        fence.charged = manager.hugepages_in_use()
    return manager


def daemon(host: Host) -> dict[str, str]:
    """Where the daemon that runs the VMs of HOST is, or will be when something wakes it, by
    hierarchy key.
    """
    from .. import installation  # only now: the hook is the daemon's child

    pid = installation.daemon_pid(host)
    text = host.read_optional(f"/proc/{pid}/cgroup") if pid else None
    if text is not None:
        return placements(text)
    keys = placements(host.read_optional(OWN) or "")
    if not host.exists(BOOTED):
        return dict.fromkeys(keys, "/")
    from ..kernel.v1 import SYSTEMD
    from . import units

    unit, slice_name = installation.service(host)
    path = f"{units.slice_path(slice_name).rstrip('/')}/{unit}"
    own = systemd_key(host.read_optional)
    found = dict.fromkeys(keys, "/")
    for key in keys:
        limited = own and not SYSTEMD.isdisjoint(key.split(","))
        if key in (own, "") or limited:
            found[key] = path
    return found
