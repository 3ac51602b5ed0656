"""Hosts with a VM that runs, of every kind of manager and cgroups, for tests of changes at run
time.
"""

from __future__ import annotations

from pathlib import Path

from libvirt_cgroup_hooks import state, threads
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.domain import Domain

from .hosts import PID, Kernel, domain
from .machined import Machined
from .operations import CG, do, started

GIB = 2**30
INNER = "<vcpu>2</vcpu><iothreads>1</iothreads><memory unit='MiB'>256</memory>"
CONF = """\
# what the host keeps
reserved_host_cpus = "0" # one
reserved_host_mem = "512 MiB"
cgroup_layout = "/vms/$NAME"
"""
KINDS = {
    "cgroupfs-v1": (Kernel, "v1"),
    "cgroupfs-v2": (Kernel, "v2"),
    "systemd-v1": (Machined, "v1"),
    "systemd-v2": (Machined, "v2"),
}
SLICES = {"native": "/machine.slice", "root": "", "/vms/$NAME": "/vms.slice"}


def prepared(host: Kernel) -> Kernel:
    """HOST with four CPUs, and what any change makes first."""
    for path in (
        "/sys/devices/system/cpu/online",
        "/sys/devices/system/cpu/present",
        f"{CG}/cpuset/cpuset.cpus",
    ):
        if host.exists(path):
            host.put(path, "0-3")
    state.prepare_directory(host)
    return host


def made(root: Path, kind: str, conf: str | None = CONF) -> Kernel:
    host, name = KINDS[kind]
    return prepared(host(root, name, conf))


def start(host: Kernel, inner: str = INNER, layout: str = "/vms/$NAME") -> Domain:
    """A VM that runs where LAYOUT says, and that the hook has seen starting."""
    subject = domain(inner=inner, id=3)
    started(host, subject)
    subject = (
        host.starts(subject, SLICES[layout], inner)
        if isinstance(host, Machined)
        else host.start_vm(subject, inner)
    )
    do(host, "started", subject)
    return subject


def running(root: Path, kind: str, conf: str = CONF, inner: str = INNER) -> Kernel:
    host = made(root, kind, conf)
    start(host, inner)
    return host


def file(host: Kernel, name: str, below: str = "") -> str:
    """The file NAME of the VM parent, or of what is BELOW it; "limit" and "used" are those of its
    memory.
    """
    v1 = host.exists(f"{CG}/memory")
    files = {"limit": "memory.limit_in_bytes", "used": "memory.usage_in_bytes"}
    name = (files if v1 else {"limit": "memory.max", "used": "memory.current"}).get(name, name)
    parent = "vms.slice" if isinstance(host, Machined) else "vms"
    return f"{CG}/{name.partition('.')[0] + '/' if v1 else ''}{parent}{below}/{name}"


def says(host: Kernel, name: str) -> str:
    return host.get(file(host, name))


def use(host: Kernel, used: int) -> None:
    """The VM has USED bytes, and so has the VM parent."""
    tree = next(
        hierarchy
        for hierarchy in host.hierarchies
        if not hierarchy.controllers or "memory" in hierarchy.controllers
    )
    path = host.where(PID, PID)[tree.key].removesuffix("/emulator").removesuffix("/libvirt")
    for directory in (tree.directory(path), tree.directory(path.rpartition("/")[0])):
        host.put(f"{directory}/{file(host, 'used').rpartition('/')[2]}", str(used))


def cpus(host: Kernel, tid: int = PID, pid: int = PID) -> str:
    """Where the VM's thread may run: within its cpuset and those above it."""
    key = "cpuset" if host.exists(f"{CG}/cpuset") else ""
    tree = next(hierarchy for hierarchy in host.hierarchies if hierarchy.key == key)
    found = CpuSet.parse(host.get("/sys/devices/system/cpu/online"))
    for directory in tree.directories(host.where(pid, tid)[key]):
        text = host.get(f"{directory}/cpuset.cpus")
        found &= CpuSet.parse(text) if text else found
    return str(found)


def states(host: Kernel) -> dict[str, str]:
    """All files; but for locks, and for what systemd remembers it was told, which is never
    forgotten.

    No limit of CPUs and all CPUs are the same: on v2 the kernel takes no empty list while there are
    processes.
    """
    locks = (state.LOCK[1:], f"{state.DIRECTORY[1:]}/reserve.lock")
    without = (*locks, "run/systemd/system.control", "run/systemd/transient")
    return {
        path: "0-3" if path.endswith("/cpuset.cpus") and not text.strip() else text.strip()
        for path, text in host.snapshot(*without).items()
    }


def vm(host: Kernel) -> Domain:
    """The VM that runs, as the hook is given it."""
    return threads.running(host, {})[0]


def total(host: Kernel) -> int:
    """Bytes of memory that HOST has."""
    return int(host.get("/proc/meminfo").split()[1]) * 1024
