# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which cgroup hierarchies a host has and where the daemon is in them: libvirt's own rules
(src/util/vircgroup*.c).
"""

from __future__ import annotations

from .errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .memory import Reader

# libvirt's controllers, by the kernel's name on each version
V1 = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "net_cls", "perf_event")
V2_NAME = {"blkio": "io"}
# On v2 there is no such controller: cpu.stat always exists, and devices are a BPF program.
ALWAYS_ON_V2 = ("cpuacct", "devices")
OWN = "/proc/self/cgroup"
# Where cgroup2 is mounted here, systemd uses no other hierarchy (cg_unified_cached in its
# src/basic/cgroup-util.c); else it keeps limits on v1 and its units in name=systemd.
SYSTEMD_V2 = "/sys/fs/cgroup"
CHARGES_HUGEPAGES = "memory_hugetlb_accounting"  # mount options
RECURSIVE = "memory_recursiveprot"
SYSTEMD_V1_KEY = "name=systemd"


class Hierarchy:
    """One mounted hierarchy: version 1 or 2, mount point, its controllers, the daemon's placement
    in it, and whether systemd, where it is, keeps limits here.
    """

    __slots__ = ("controllers", "key", "mount", "placement", "systemd", "version")

    def __init__(
        self,
        version: int,
        mount: str,
        key: str,
        controllers: frozenset[str],
        placement: str,
        systemd: bool,
    ) -> None:
        self.version = version
        self.mount = mount
        self.key = key  # how /proc/PID/cgroup names it: "cpu,cpuacct", and "" for v2
        self.controllers = controllers
        self.placement = placement
        self.systemd = systemd

    def directory(self, path: str) -> str:
        """The directory of the cgroup PATH ("/a/b") of this hierarchy."""
        return self.mount + path.rstrip("/")

    def directories(self, path: str) -> list[str]:
        """Those on the way from the mount point down to the cgroup PATH, which is the last."""
        found: list[str] = []
        directory = self.mount
        below = path.strip("/")
        if not below:
            return found
        for component in below.split("/"):
            directory = f"{directory}/{component}"
            found.append(directory)
        return found


class Cgroups:
    """All hierarchies of a host but the named ones (name=systemd), and which one libvirt takes each
    controller from. `systemd_key` is that of the hierarchy which has the cgroups of systemd's
    units. `charges_hugepages`: whether memory limits cover hugepages.
    """

    __slots__ = ("charges_hugepages", "controllers", "hierarchies", "systemd_key", "unified")

    def __init__(
        self,
        v1: list[Hierarchy],
        unified: Hierarchy | None,
        systemd_key: str = "",
        charges_hugepages: bool = False,
    ) -> None:
        self.systemd_key = systemd_key
        self.charges_hugepages = charges_hugepages
        self.hierarchies = [*v1, unified] if unified else v1
        self.unified = unified
        self.controllers: dict[str, Hierarchy] = {}
        for name in V1:
            name_v2 = V2_NAME.get(name, name)
            if unified and name_v2 in unified.controllers:
                self.controllers[name_v2] = unified
            for hierarchy in v1:
                if name in hierarchy.controllers and name_v2 not in self.controllers:
                    self.controllers[name] = hierarchy

    @property
    def v1(self) -> list[Hierarchy]:
        return [hierarchy for hierarchy in self.hierarchies if hierarchy.version == 1]


def detect(read: Reader, daemon: dict[str, str] | None = None) -> Cgroups:
    """DAEMON is where the daemon is, by hierarchy key; without it, where we are, as its child.

    Raises Error where no controller is mounted, as libvirt does.
    """
    mounts = _mounts(read("/proc/mounts") or "")
    paths = placements(read(OWN) or "") if daemon is None else daemon
    v1 = _v1(mounts, paths) if read("/proc/cgroups") is not None else []
    unified = _unified(mounts, paths, read)
    if not v1 and not unified:
        raise Error("no cgroup controllers are mounted", "mount cgroup2 on /sys/fs/cgroup")
    return Cgroups(v1, unified, _systemd_key(mounts), _charges_hugepages(mounts, unified))


def _charges_hugepages(mounts: list[tuple[str, str, list[str]]], unified: Hierarchy | None) -> bool:
    """Linux 6.6 and later, where cgroup2 is mounted so; systemd does from 259 on."""
    return bool(unified) and any(
        kind == "cgroup2" and CHARGES_HUGEPAGES in options for kind, _, options in mounts
    )


def passes_protection_down(read: Reader) -> bool:
    """Whether what is below a cgroup shares its memory.low and memory.min (Linux 5.7)."""
    mounts = _mounts(read("/proc/mounts") or "")
    return any(kind == "cgroup2" and RECURSIVE in options for kind, _, options in mounts)


def systemd_key(read: Reader) -> str:
    """The key of the hierarchy that has the cgroups of systemd's units."""
    return _systemd_key(_mounts(read("/proc/mounts") or ""))


def on_v2(controller: str, read: Reader) -> bool:
    """Whether CONTROLLER is that of v2."""
    for kind, mount, _ in _mounts(read("/proc/mounts") or ""):
        if kind == "cgroup2" and controller in (read(f"{mount}/cgroup.controllers") or "").split():
            return True
    return False


def placements(text: str) -> dict[str, str]:
    """The lines of /proc/PID/cgroup: path by hierarchy key; the first of a key counts."""
    found: dict[str, str] = {}
    # not splitlines: a VM's name may have what Unicode takes for the end of a line
    for line in text.split("\n"):
        _, colon, rest = line.partition(":")
        key, _, path = rest.partition(":")
        if colon:
            found.setdefault(key, path.removesuffix(" (deleted)"))
    return found


def _mounts(text: str) -> list[tuple[str, str, list[str]]]:
    """(type, mount point, options) of each cgroup mount."""
    mounts = []
    for line in text.split("\n"):
        fields = line.split(" ")
        if len(fields) >= 4 and fields[2] in ("cgroup", "cgroup2"):
            mounts.append((fields[2], _unescaped(fields[1]), fields[3].split(",")))
    return mounts


def _systemd_key(mounts: list[tuple[str, str, list[str]]]) -> str:
    """Others mount name=systemd beside v2, too: containers of old distributions want it."""
    unified = any(kind == "cgroup2" and mount == SYSTEMD_V2 for kind, mount, _ in mounts)
    return "" if unified else SYSTEMD_V1_KEY


def _unescaped(path: str) -> str:
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(escape, character)
    return path


def _v1(mounts: list[tuple[str, str, list[str]]], paths: dict[str, str]) -> list[Hierarchy]:
    """One for each line of /proc/PID/cgroup; bind mounts repeat a hierarchy, and the last mount of
    it counts.
    """
    found = []
    systemd = _systemd_key(mounts) == SYSTEMD_V1_KEY
    for key, path in paths.items():
        names = key.split(",")
        if not key or any(name.startswith("name=") for name in names):
            continue
        for _, mount, options in reversed([m for m in mounts if m[0] == "cgroup"]):
            if set(names) & set(options):
                controllers = frozenset(names)
                found.append(Hierarchy(1, mount, key, controllers, _cut(path), systemd))
                break
    return found


def _unified(
    mounts: list[tuple[str, str, list[str]]], paths: dict[str, str], read: Reader
) -> Hierarchy | None:
    """A cgroup2 mount without controllers, as systemd keeps one beside v1, is none."""
    v2 = [mount for kind, mount, _ in mounts if kind == "cgroup2"]
    if (
        not any((read(f"{mount}/cgroup.controllers") or "").strip() for mount in v2)
        or "" not in paths
    ):
        return None
    head, mark, _ = paths[""].rpartition("/emulator")
    placement = _cut(head if mark else paths[""])
    listed = read(v2[-1] + placement.rstrip("/") + "/cgroup.controllers") or ""
    controllers = frozenset(listed.split()) | frozenset(ALWAYS_ON_V2)
    return Hierarchy(2, v2[-1], "", controllers, placement, _systemd_key(mounts) == "")


def _cut(path: str) -> str:
    """libvirt takes everything from the last "/libvirt" on for its own."""
    head, mark, _ = path.rpartition("/libvirt")
    return head if mark else path
