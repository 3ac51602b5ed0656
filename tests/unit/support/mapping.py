"""Hosts for `virt-cgroup map`, made of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from libvirt_cgroup_hooks.cpuset import CpuSet

from .hosts import DATA, UUID

BUSY = str(DATA / "hosts/busy")  # a host with VMs that run, which is in the README too
# 2 nodes, 64 CPUs, SMT
LARGE = [[f"{cpu},{cpu + 32}" for cpu in range(first, first + 16)] for first in (0, 16)]


class Made:
    """A host made of files below ROOT: NODES are lists of cores, each a CPU list."""

    def __init__(
        self,
        root: Path,
        nodes: Sequence[Sequence[str]],
        offline: str = "",
        isolated: str = "",
        conf: str = "",
    ) -> None:
        self.root = root
        self.vms = 0
        cores = [core for node in nodes for core in node]
        online = CpuSet(cpu for core in cores for cpu in CpuSet.parse(core))
        cpus = "sys/devices/system/cpu"
        self.put(f"{cpus}/online", str(online))
        self.put(f"{cpus}/present", str(online | CpuSet.parse(offline)))
        self.put(f"{cpus}/isolated", isolated)
        for core in cores:
            for cpu in CpuSet.parse(core):
                self.put(f"{cpus}/cpu{cpu}/topology/thread_siblings_list", core)
        self.put("sys/devices/system/node/online", f"0-{len(nodes) - 1}")
        for number, node in enumerate(nodes):
            self.put(
                f"sys/devices/system/node/node{number}/cpulist", str(CpuSet.parse(",".join(node)))
            )
        self.put("proc/meminfo", "MemTotal: 67108864 kB")
        if conf:
            self.put("etc/libvirt/cgroup-hooks.conf", conf)

    def start(self, name: str, groups: Mapping[str, str], inner: str = "") -> None:
        """A VM with a thread in each of GROUPS, which may run on the CPUs that are told."""
        self.vms += 1
        pid = 1000 + 100 * self.vms
        vcpus = ""
        for number, (group, cpus) in enumerate(groups.items()):
            task = f"proc/{pid}/task/{pid + number}"
            self.put(f"{task}/comm", _comm(group))
            self.put(f"{task}/cgroup", f"0::/vms/qemu-{name}/{group}")
            self.put(f"{task}/status", f"Cpus_allowed_list:\t{cpus}")
            if group.startswith("vcpu"):
                vcpus += f"<vcpu id='{group[4:]}' pid='{pid + number}'/>"
        count = sum(group.startswith("vcpu") for group in groups)
        inner = (
            f"<name>{escape(name)}</name><uuid>{UUID[:-2]}{self.vms:02}</uuid>"
            f"<vcpu>{count}</vcpu>{inner}"
        )
        domain = f"<domain type='kvm' id='{self.vms}'>{inner}</domain>"
        status = (
            f"<domstatus state='running' pid='{pid}'>\n<vcpus>{vcpus}</vcpus>\n{domain}\n"
            "</domstatus>"
        )
        self.put(f"run/libvirt/qemu/{name}.xml", status)

    def put(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n", encoding="utf-8")


def _comm(group: str) -> str:
    if group.startswith("vcpu"):
        return f"CPU {group[4:]}/KVM"
    return "qemu-system-x86" if group == "emulator" else f"IO {group}"


def pins(**groups: str) -> str:
    """<cputune> with the pins of GROUPS."""
    found = ""
    for group, cpus in groups.items():
        kind = group.rstrip("0123456789")
        number = "" if kind == "emulator" else f"{kind}='{group[len(kind) :]}' "
        found += f"<{kind}pin {number}cpuset='{cpus}'/>"
    return f"<cputune>{found}</cputune>"
