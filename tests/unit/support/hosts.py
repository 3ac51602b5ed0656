"""Recorded hosts, and a stand-in for the kernel's cgroup file systems on a copy of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

from libvirt_cgroup_hooks import configfile, snapshot, state
from libvirt_cgroup_hooks.cgroups import Hierarchy, detect
from libvirt_cgroup_hooks.config import Config
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.domainxml import parse
from libvirt_cgroup_hooks.host import Host, Refused
from libvirt_cgroup_hooks.managers.units import machine_name
from libvirt_cgroup_hooks.plan import Plan
from libvirt_cgroup_hooks.steps import RemoveCgroup
from libvirt_cgroup_hooks.topology import Topology

DATA = Path(__file__).parents[2] / "data"
PAGE = 4096
CONF = "/etc/libvirt/cgroup-hooks.conf"
PID = 4200100


def recorded(name: str) -> Host:
    """To read only: proc and sys of the host NAME."""
    return Host(str(DATA / "hosts" / name))


def topology(name: str) -> Topology:
    return Topology.read(recorded(name).read_optional)


def domain_xml(name: str) -> bytes:
    return (DATA / "domains" / f"{name}.xml").read_bytes()


def domain(name: str = "vm", inner: str = "", **attributes: object) -> Domain:
    """A small VM, with INNER as further XML and ATTRIBUTES of Domain set."""
    text = f"<domain type='qemu'><uuid>{UUID}</uuid><name>vm</name>{inner}</domain>"
    made = parse(text.encode())
    made.name = name
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


UUID = "4f1e2d3c-5b6a-4798-8a9b-0c1d2e3f4a5b"


def configured(text: str, host: str) -> Config:
    return configfile.resolve(configfile.parse(text), topology(host), PAGE)


class Kernel(Host):
    """A copy of a recorded host whose cgroup directories keep the kernel's rules. `written` tells
    what was done.

    Where each thread is is known from /proc/PID/task/TID/cgroup alone.
    """

    def __init__(self, root: Path, name: str, conf: str | None = None) -> None:
        shutil.copytree(
            DATA / "hosts" / name, root, copy_function=shutil.copyfile, dirs_exist_ok=True
        )
        for directory in ("etc/libvirt", "run/libvirt/qemu"):
            (root / directory).mkdir(parents=True)
        super().__init__(str(root))
        self.written: list[str] = []
        self.cold = 0  # bytes of the VMs' memory that can be reclaimed
        self.at_once = 2**60  # bytes that one attempt reclaims
        self.hierarchies = detect(Host(self.root).read_optional).hierarchies
        if conf is not None:
            self.configure(conf)

    def configure(self, text: str) -> None:
        (Path(self.root) / CONF[1:]).write_text(text, encoding="utf-8")

    def config(self) -> Config:
        return snapshot.load(self, [])

    # directories

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        new = not self.exists(path)
        super().make_directory(path, mode)
        hierarchy = self.hierarchy(path)
        if hierarchy and new:
            self.written.append(f"mkdir {path}")
            for name, value in self.files(hierarchy, path).items():
                self.put(f"{path}/{name}", value)

    def remove_directory(self, path: str) -> None:
        hierarchy = self.hierarchy(path)
        if hierarchy and self.exists(path):
            if self.tasks(hierarchy, path) or self.directories(path):
                raise self.refused(path, 16)  # EBUSY
            self.written.append(f"rmdir {path}")
            for name in self.names(path):
                os.unlink(f"{self.root}{path}/{name}")
        super().remove_directory(path)

    def files(self, hierarchy: Hierarchy, path: str) -> dict[str, str]:
        """The files of a new cgroup and what they say."""
        if hierarchy.version == 2:
            enabled = self.get(f"{path.rpartition('/')[0]}/cgroup.subtree_control")
            named = {
                "cgroup.type": "domain",
                "cgroup.controllers": enabled,
                "cgroup.subtree_control": "",
                **PROCS,
            }
            return {
                **named,
                **{
                    key: text
                    for name in enabled.split()
                    for key, text in FILES_V2.get(name, {}).items()
                },
            }
        found = dict(PROCS_V1)
        for controller in hierarchy.controllers:
            found.update(FILES_V1.get(controller, {}))
        if "memory" in hierarchy.controllers:
            found["memory.use_hierarchy"] = self.get(
                f"{path.rpartition('/')[0]}/memory.use_hierarchy"
            )
        return found

    # files

    def read_bytes(self, path: str) -> bytes:
        hierarchy = self.hierarchy(path)
        directory, _, name = path.rpartition("/")
        if (
            hierarchy
            and name in ("cgroup.procs", "tasks", "cgroup.threads")
            and self.exists(directory)
        ):
            found = self.tasks(hierarchy, directory)
            numbers = (
                {pid for pid, _ in found} if name == "cgroup.procs" else {tid for _, tid in found}
            )
            return "".join(f"{number}\n" for number in sorted(numbers)).encode()
        if hierarchy and hierarchy.version == 2 and name == "cgroup.events":
            top = directory[len(hierarchy.mount) :]
            places = [self.where(*one).get("", "") for one in self.all_tasks()]
            populated = any(f"{place}/".startswith(f"{top}/") for place in places)
            return f"populated {int(populated)}\nfrozen 0\n".encode()
        return super().read_bytes(path)

    def write(self, path: str, value: str) -> None:
        hierarchy = self.hierarchy(path)
        if not hierarchy:
            super().write(path, value)
            return
        directory, _, name = path.rpartition("/")
        if not self.exists(path):
            raise self.refused(path, 2)  # ENOENT
        if name in ("cgroup.procs", "tasks", "cgroup.threads"):
            self.move(hierarchy, directory, int(value), whole=name == "cgroup.procs")
        elif name == "cgroup.subtree_control":
            self.enable(directory, value)
        elif name == "memory.reclaim":
            if self.reclaim(directory, "memory.current", int(value)) < int(value):
                raise self.refused(directory, 11)  # EAGAIN
        else:
            self.check(hierarchy, directory, name, value)
            self.put(path, value.strip())
        self.written.append(f"{path} {value.strip()}")

    def check(self, hierarchy: Hierarchy, directory: str, name: str, value: str) -> None:
        if hierarchy.version == 1 and name == "cpuset.cpus":
            new = CpuSet.parse(value)
            if not new <= CpuSet.parse(self.get(f"{directory.rpartition('/')[0]}/cpuset.cpus")):
                raise self.refused(directory, 13)  # EACCES: not within the parent
            below = [
                CpuSet.parse(self.get(f"{directory}/{child}/cpuset.cpus"))
                for child in self.directories(directory)
            ]
            if not all(cpus <= new for cpus in below):
                raise self.refused(directory, 16)  # EBUSY: a child has more
        if name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
            one, both = (
                value if file == name else self.get(f"{directory}/{file}")
                for file in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
            )
            if both not in ("", "-1", NO_LIMIT) and int(one) not in range(int(both) + 1):
                raise self.refused(directory, 22)  # EINVAL
            if self.excess(directory, name.replace("limit", "usage"), value):
                raise self.refused(directory, 16)  # EBUSY: more cannot be reclaimed
        if name in ("memory.high", "memory.max") and self.excess(
            directory, "memory.current", value
        ):
            assert name == "memory.high", f"the kernel would kill a VM in {directory}"
        if (
            name == "cgroup.type"
            and value == "threaded"
            and self.get(f"{directory}/cgroup.type") == "domain"
        ):
            parent = directory.rpartition("/")[0]
            self.put(f"{parent}/cgroup.type", "domain threaded")

    def excess(self, directory: str, usage: str, limit: str) -> int:
        """Bytes that DIRECTORY still uses above LIMIT once the kernel has reclaimed for that."""
        excess = int(self.get(f"{directory}/{usage}")) - int(limit) if limit.isdigit() else 0
        return excess - self.reclaim(directory, usage, excess) if excess > 0 else 0

    def reclaim(self, directory: str, usage: str, amount: int) -> int:
        """Bytes of AMOUNT that were reclaimed."""
        if usage.startswith("memory.memsw"):
            return 0  # what is swapped out counts as before
        found = min(amount, self.cold, self.at_once)
        self.cold -= found
        self.put(f"{directory}/{usage}", str(int(self.get(f"{directory}/{usage}")) - found))
        return found

    def enable(self, directory: str, value: str) -> None:
        enabled = self.get(f"{directory}/cgroup.subtree_control").split()
        hierarchy = self.hierarchy(directory)
        assert hierarchy
        if self.exists(f"{directory}/cgroup.type") and self.tasks(hierarchy, directory):
            raise self.refused(directory, 16)  # no inner processes
        for word in value.split():
            sign, name = word[0], word[1:]
            if name not in self.get(f"{directory}/cgroup.controllers").split():
                raise self.refused(directory, 2)
            if sign == "+" and name not in enabled:
                enabled.append(name)
            elif sign == "-" and name in enabled:
                enabled.remove(name)
        self.put(f"{directory}/cgroup.subtree_control", " ".join(enabled))
        for child in self.directories(directory):
            self.put(f"{directory}/{child}/cgroup.controllers", " ".join(enabled))
            for name in enabled:
                for file, text in FILES_V2.get(name, {}).items():
                    if not self.exists(f"{directory}/{child}/{file}"):
                        self.put(f"{directory}/{child}/{file}", text)

    # tasks

    def move(self, hierarchy: Hierarchy, directory: str, number: int, whole: bool) -> None:
        """NUMBER may be of any thread; WHOLE takes its process along."""
        found = [(pid, tid) for pid, tid in self.all_tasks() if tid == number]
        if not found:
            raise self.refused(directory, 3)  # ESRCH
        pid = found[0][0]
        if hierarchy.version == 2:
            if (
                self.get(f"{directory}/cgroup.subtree_control")
                and self.get(f"{directory}/cgroup.type") == "domain"
            ):
                raise self.refused(directory, 16)  # no inner processes
        elif "cpuset" in hierarchy.controllers and not all(
            self.get(f"{directory}/cpuset.{what}") for what in ("cpus", "mems")
        ):
            raise self.refused(directory, 28)  # ENOSPC: a cpuset with nothing takes no task
        for owner, tid in self.all_tasks():
            if tid == number or (whole and owner == pid):
                self.place(pid, tid, {hierarchy.key: directory[len(hierarchy.mount) :] or "/"})

    def place(self, pid: int, tid: int, paths: dict[str, str]) -> None:
        for file in (
            f"/proc/{pid}/task/{tid}/cgroup",
            *([f"/proc/{pid}/cgroup"] if pid == tid else []),
        ):
            old = dict(line.split(":", 2)[1:] for line in self.get(file).splitlines())
            lines = [
                f"{number}:{key}:{path}"
                for number, (key, path) in enumerate({**old, **paths}.items())
            ]
            self.put(file, "\n".join(lines))

    def all_tasks(self) -> list[tuple[int, int]]:
        pids = [int(name) for name in self.directories("/proc") if name.isdigit()]
        return [(pid, int(tid)) for pid in pids for tid in self.directories(f"/proc/{pid}/task")]

    def tasks(self, hierarchy: Hierarchy, directory: str) -> list[tuple[int, int]]:
        path = directory[len(hierarchy.mount) :] or "/"
        return [
            (pid, tid)
            for pid, tid in self.all_tasks()
            if self.where(pid, tid).get(hierarchy.key) == path
        ]

    def where(self, pid: int, tid: int) -> dict[str, str]:
        """The thread's cgroup by hierarchy key."""
        text = self.get(f"/proc/{pid}/task/{tid}/cgroup")
        return {key: path for _, key, path in (line.split(":", 2) for line in text.splitlines())}

    def affinity(self, thread: int) -> CpuSet | None:
        found = [pid for pid, tid in self.all_tasks() if tid == thread]
        return CpuSet.parse(self.get(f"/proc/{found[0]}/task/{thread}/allowed")) if found else None

    def set_affinity(self, thread: int, cpus: Iterable[int]) -> None:
        for pid in [pid for pid, tid in self.all_tasks() if tid == thread]:
            self.put(f"/proc/{pid}/task/{thread}/allowed", str(CpuSet(cpus)))
            self.written.append(f"affinity {thread} {CpuSet(cpus)}")

    # libvirt

    def start_vm(self, vm: Domain, inner: str = "", pid: int = PID, helpers: int = 0) -> Domain:
        """What libvirt has done when `started` comes: its cgroups, the threads of QEMU in them, and
        the status XML.

        Returns VM with an id, as the hook is given it.
        """
        machine, number = "/machine", vm.id or 3
        base = f"{machine}/{machine_name(vm.name, number)}.libvirt-qemu"
        threads = {pid: ("qemu-system-x86", "emulator"), pid + 1: ("worker", "emulator")}
        threads.update((pid + 10 + n, (f"CPU {n}/KVM", f"vcpu{n}")) for n in vm.online_vcpus())
        threads.update(
            (pid + 20 + n, (f"IO iothread{n}", f"iothread{n}")) for n in vm.iothread_numbers()
        )
        groups = list(dict.fromkeys(group for _, group in threads.values()))
        for hierarchy in self.hierarchies:
            self.libvirt_cgroups(
                hierarchy, [machine, base, *(f"{base}/{group}" for group in groups)]
            )
            self.pin(hierarchy, base, vm)
        for tid, (comm, group) in threads.items():
            self.start_thread(
                pid,
                tid,
                comm,
                {h.key: f"{base}/{group}" if splits(h) else base for h in self.hierarchies},
            )
        for helper in range(pid + 50, pid + 50 + helpers):
            self.start_thread(
                helper,
                helper,
                "swtpm",
                {h.key: f"{base}/emulator" for h in self.hierarchies if splits(h)},
            )
            self.place(helper, helper, {h.key: base for h in self.hierarchies if not splits(h)})
        name = escape(vm.name)
        text = (
            f"<domain type='qemu' id='{number}'><name>{name}</name>"
            f"<uuid>{vm.uuid}</uuid>{inner}</domain>"
        )
        vcpus = "".join(f"<vcpu id='{n}' pid='{pid + 10 + n}'/>" for n in vm.online_vcpus())
        status = f"<domstatus state='running' pid='{pid}'><vcpus>{vcpus}</vcpus>{text}</domstatus>"
        self.put(f"/run/libvirt/qemu/{vm.name}.xml", status)
        return parse(text.encode())

    def pin(self, hierarchy: Hierarchy, base: str, vm: Domain) -> None:
        """libvirt writes the pins of VM to its thread groups below BASE."""
        for group, cpus in vm.pins().items():
            file = f"{hierarchy.directory(base)}/{group}/cpuset.cpus"
            if self.exists(file):
                self.put(file, str(cpus))

    def libvirt_cgroups(self, hierarchy: Hierarchy, paths: list[str]) -> None:
        made = paths if splits(hierarchy) else paths[:2]
        for path in made:
            directory = hierarchy.directory(path)
            parent = directory.rpartition("/")[0]
            if hierarchy.version == 2:
                self.enable(parent, "+cpu +cpuset" if path in paths[2:] else "+cpu +cpuset +memory")
            if self.exists(directory):
                continue
            self.make_directory(directory)
            if hierarchy.version == 2 and path in paths[2:]:
                self.write(f"{directory}/cgroup.type", "threaded")
            if hierarchy.version == 1 and "cpuset" in hierarchy.controllers:
                for name in ("cpuset.mems", "cpuset.cpus"):
                    self.write(f"{directory}/{name}", self.get(f"{parent}/{name}"))

    def start_thread(self, pid: int, tid: int, comm: str, paths: dict[str, str]) -> None:
        self.place(pid, tid, paths)
        self.put(f"/proc/{pid}/task/{tid}/comm", comm)
        if tid == pid:
            self.put(f"/proc/{pid}/comm", comm)
        self.set_affinity(tid, CpuSet.parse(self.get("/sys/devices/system/cpu/online")))

    def end_vm(self, vm: Domain, libvirt: bool = True, pid: int = 0) -> None:
        """QEMU has ended, the one process of VM if PID is given. LIBVIRT: and libvirt removes the
        cgroups that it made, as it does before `release`.
        """
        for one in [name for name in self.directories("/proc") if name.isdigit()]:
            if pid in (0, int(one)):
                shutil.rmtree(f"{self.root}/proc/{one}")
        self.remove(f"/run/libvirt/qemu/{vm.name}.xml")
        if libvirt:
            for hierarchy in self.hierarchies:
                name = machine_name(vm.name, vm.id or 3)
                RemoveCgroup(hierarchy.directory(f"/machine/{name}.libvirt-qemu")).run(self)

    # the plain files below the root

    def get(self, path: str) -> str:
        file = Path(self.root + path)
        return file.read_text(encoding="utf-8").strip() if file.exists() else ""

    def put(self, path: str, text: str) -> None:
        file = Path(self.root + path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")

    def hierarchy(self, path: str) -> Hierarchy | None:
        found = [h for h in self.hierarchies if f"{path}/".startswith(f"{h.mount}/")]
        return found[0] if found else None

    @staticmethod
    def refused(path: str, number: int) -> Refused:
        return Refused(f"do that to {path}", OSError(number, os.strerror(number)))

    def cgroups(self) -> list[str]:
        """Every cgroup directory but the mount points."""
        top = Path(self.root, "sys/fs/cgroup")
        mounts = {h.mount for h in self.hierarchies}
        found = sorted(
            "/" + str(path.relative_to(self.root)) for path in top.rglob("*") if path.is_dir()
        )
        return [path for path in found if path not in mounts]

    def snapshot(self, *without: str) -> dict[str, str]:
        """Every file but those whose paths begin WITHOUT, and what it says."""
        files = {
            str(path.relative_to(self.root)): path
            for path in sorted(Path(self.root).rglob("*"))
            if path.is_file()
        }
        return {
            name: path.read_text(encoding="utf-8")
            for name, path in files.items()
            if not name.startswith(without)
        }


def cpus(host: Kernel, directory: str) -> str:
    return host.get(f"/sys/fs/cgroup/{directory}/cpuset.cpus")


def splits(hierarchy: Hierarchy) -> bool:
    """Whether libvirt makes thread groups there."""
    return hierarchy.version == 2 or bool(hierarchy.controllers & {"cpu", "cpuset", "cpuacct"})


PROCS = {"cgroup.procs": "", "cgroup.threads": ""}
PROCS_V1 = {"cgroup.procs": "", "tasks": ""}
NO_LIMIT = "9223372036854771712"
FILES_V1 = {
    "cpuset": {"cpuset.cpus": "", "cpuset.mems": ""},
    "cpu": {"cpu.shares": "1024", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1"},
    "memory": {
        "memory.limit_in_bytes": NO_LIMIT,
        "memory.soft_limit_in_bytes": NO_LIMIT,
        "memory.usage_in_bytes": "0",
        "memory.memsw.limit_in_bytes": NO_LIMIT,
        "memory.memsw.usage_in_bytes": "0",
    },
}
FILES_V2 = {
    "cpuset": {"cpuset.cpus": "", "cpuset.mems": "", "cpuset.cpus.effective": "0-3"},
    "cpu": {"cpu.weight": "100", "cpu.max": "max 100000"},
    "memory": {
        "memory.max": "max",
        "memory.high": "max",
        "memory.low": "0",
        "memory.min": "0",
        "memory.current": "0",
        "memory.swap.max": "max",
        "memory.swap.current": "0",
        "memory.reclaim": "",
    },
}


def run(host: Kernel, plan: Plan) -> list[str]:
    """What running PLAN did, in order."""
    state.prepare_directory(host)
    host.written.clear()
    plan.run(host)
    return list(host.written)
