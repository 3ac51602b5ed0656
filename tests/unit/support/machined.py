"""A host where systemd owns cgroups.

`Machined` does what systemctl is asked for, by systemd's rules: a property goes to the kernel's
file if the slice has a cgroup, and is remembered for when it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from libvirt_cgroup_hooks import managers
from libvirt_cgroup_hooks.cgroups import Hierarchy
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.domainxml import parse
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.managers.systemd import Systemd
from libvirt_cgroup_hooks.managers.units import scope_unit

from .hosts import NO_LIMIT, PID, UUID, Kernel, splits
from .operations import INNER

SERVICE = "/system.slice/libvirtd.service"
BUS, ACTIVATION = (
    "/run/dbus/system_bus_socket",
    "/usr/share/dbus-1/system-services/org.freedesktop.machine1.service",
)
UNITS = "/run/systemd/system"
DROP_IN = "50-libvirt-cgroup-hooks.conf"
U = UUID.replace("-", r"\x2d")  # in the names of units
SCOPE = r"machine-qemu\x2d3\x2dvm.scope"
FILES = {
    2: {
        "AllowedCPUs": "cpuset.cpus",
        "MemoryMax": "memory.max",
        "MemoryHigh": "memory.high",
        "MemorySwapMax": "memory.swap.max",
        "MemoryLow": "memory.low",
        "MemoryMin": "memory.min",
        "CPUWeight": "cpu.weight",
    },
    1: {"MemoryMax": "memory.limit_in_bytes", "CPUWeight": "cpu.shares"},
}


class Machined(Kernel):
    """A recorded host, with systemd, machined, and the daemon in a service."""

    def __init__(self, root: Path, name: str, conf: str | None = None) -> None:
        super().__init__(root, name, conf)
        self.scopes: dict[str, str] = {}  # their cgroups, by unit
        for path in (BUS, ACTIVATION, f"{UNITS}/.keep", "/run/systemd/system.control/.keep"):
            self.put(path, "")
        self.daemon(SERVICE)

    @property
    def version(self) -> int:
        return max(hierarchy.version for hierarchy in self.hierarchies)

    def daemon(self, path: str) -> None:
        keys = [hierarchy.key for hierarchy in self.hierarchies] + (
            ["name=systemd"] if self.version == 1 else []
        )
        # systemd has no v1 cpuset
        lines = [f"{n}:{key}:{'/' if key == 'cpuset' else path}" for n, key in enumerate(keys)]
        self.put("/proc/self/cgroup", "\n".join(lines))

    # systemd

    def run(self, command: list[str]) -> str:
        program, verb, *arguments = command
        assert program == "systemctl"
        self.written.append(" ".join(command[1:]))
        if verb == "set-property":
            assert arguments[0] == "--runtime"
            self.set_properties(arguments[1], dict(item.split("=", 1) for item in arguments[2:]))
        return ""

    def load_unit(self, unit: str) -> None:
        self.written.append(f"load {unit}")

    def touch(self, path: str, time: int) -> None:
        super().touch(path, time)
        self.written.append(f"touch {path}")

    def set_properties(self, unit: str, properties: dict[str, str]) -> None:
        for name, value in properties.items():
            if name in ("MemoryMax", "MemoryHigh") and not (value == "infinity" or value.isdigit()):
                raise Error(f"Failed to parse {name}= value '{value}'")
        self.promise(unit, **properties)
        for name, value in properties.items():
            for hierarchy in self.hierarchies:
                directory = hierarchy.directory(self.scopes.get(unit, f"/{unit}"))
                file = f"{directory}/{FILES[hierarchy.version].get(name, '-')}"
                if not self.exists(file):
                    continue
                no_limit = "max" if hierarchy.version == 2 else NO_LIMIT
                if name == "CPUWeight":
                    value = value or "100"
                    if hierarchy.version == 1:
                        value = str(int(value) * 1024 // 100)
                self.write(file, no_limit if value == "infinity" else value)

    def promise(self, unit: str, **properties: str) -> None:
        """What UNIT's PROPERTIES were set to at run time, as systemd keeps it."""
        for name, value in properties.items():
            text = f"[Slice]\n{name}={value.replace(',', ' ')}"
            kept = "transient" if unit.endswith(".scope") else "system.control"
            self.put(f"/run/systemd/{kept}/{unit}.d/50-{name}.conf", text)

    def slice(self, unit: str, cpus: str = "", memory: str = "", used: str = "0") -> None:
        """A slice below the root has its cgroup, with these limits."""
        for hierarchy in self.hierarchies:
            if hierarchy.version == 2:
                self.enable(hierarchy.mount, "+cpu +cpuset +memory +io +pids")
            elif "cpuset" in hierarchy.controllers:
                continue
            directory = hierarchy.directory(f"/{unit}")
            self.make_directory(directory)
            has_memory = hierarchy.version == 2 or "memory" in hierarchy.controllers
            values = {
                FILES[hierarchy.version]["MemoryMax"]: memory,
                "memory.current": used,
                "memory.usage_in_bytes": used,
            }
            for name, value in {**(values if has_memory else {}), "cpuset.cpus": cpus}.items():
                if value and self.exists(f"{directory}/{name}"):
                    self.put(f"{directory}/{name}", value)

    # libvirt

    def starts(
        self,
        vm: Domain,
        parent: str,
        inner: str = INNER,
        groups: bool = True,
        helpers: int = 0,
        pid: int = PID,
    ) -> Domain:
        """QEMU runs in the scope that systemd has made in the slice at PARENT; GROUPS: and libvirt
        has made its own.
        """
        number = vm.id or 3
        unit = scope_unit(vm.name, number)
        base = self.scopes[unit] = f"{parent}/{unit}"
        numbers = {pid: ("qemu-system-x86", "emulator"), pid + 1: ("worker", "emulator")}
        numbers.update((pid + 10 + n, (f"CPU {n}/KVM", f"vcpu{n}")) for n in vm.online_vcpus())
        numbers.update(
            (pid + 20 + n, (f"IO iothread{n}", f"iothread{n}")) for n in vm.iothread_numbers()
        )
        names = dict.fromkeys(group for _, group in numbers.values()) if groups else ()
        for hierarchy in self.hierarchies:
            self.scope(hierarchy, base, list(names))
            if hierarchy.version == 2:  # systemd keeps no v1 cpusets
                self.limit(hierarchy.directory(base), f"{UNITS}/{unit}.d/{DROP_IN}")
            self.pin(hierarchy, f"{base}/libvirt", vm)
        for tid, (comm, group) in numbers.items():
            at = f"{base}/libvirt/{group}" if groups else base
            places = {h.key: at if splits(h) else base for h in self.hierarchies}
            self.start_thread(
                pid, tid, comm, {**places, **({"name=systemd": base} if self.version == 1 else {})}
            )
        for helper in range(pid + 50, pid + 50 + helpers):
            self.start_thread(helper, helper, "swtpm", {h.key: base for h in self.hierarchies})
        text = (
            f"<domain type='qemu' id='{number}'><name>{escape(vm.name)}</name>"
            f"<uuid>{vm.uuid}</uuid>{inner}</domain>"
        )
        vcpus = "".join(f"<vcpu id='{n}' pid='{pid + 10 + n}'/>" for n in vm.online_vcpus())
        self.put(
            f"/run/libvirt/qemu/{vm.name}.xml",
            f"<domstatus pid='{pid}'><vcpus>{vcpus}</vcpus>{text}</domstatus>",
        )
        return parse(text.encode())

    def limit(self, directory: str, drop_in: str) -> None:
        for line in (self.read_optional(drop_in) or "").splitlines():
            key, _, value = line.partition("=")
            if key == "AllowedCPUs":
                self.put(f"{directory}/cpuset.cpus", value)

    def scope(self, hierarchy: Hierarchy, base: str, groups: Sequence[str]) -> None:
        inner = (
            [f"{base}/libvirt", *(f"{base}/libvirt/{group}" for group in groups)] if groups else []
        )
        directories = hierarchy.directories(base)
        for directory in [
            *directories,
            *map(hierarchy.directory, inner if splits(hierarchy) else []),
        ]:
            parent = directory.rpartition("/")[0]
            if hierarchy.version == 2:
                self.enable(
                    parent, "+cpu +cpuset +memory" if directory in directories else "+cpu +cpuset"
                )
            self.make_directory(directory)
            if "cpuset" in hierarchy.controllers and hierarchy.version == 1:
                for name in ("cpuset.mems", "cpuset.cpus"):
                    if not self.get(f"{directory}/{name}"):
                        self.write(f"{directory}/{name}", self.get(f"{parent}/{name}"))

    # the kernel

    def enable(self, directory: str, value: str) -> None:
        """Threaded controllers may be enabled beside processes where no cgroup below has any."""
        hierarchy = self.hierarchy(directory)
        assert hierarchy
        threaded = all(word[1:] in ("cpu", "cpuset") for word in value.split())
        below = [f"{directory}/{name}" for name in self.directories(directory)]
        if (
            threaded
            and self.exists(f"{directory}/cgroup.type")
            and not any(self.tasks(hierarchy, path) for path in below)
        ):
            kind = self.get(f"{directory}/cgroup.type")
            (Path(self.root) / f"{directory}/cgroup.type"[1:]).unlink()
            super().enable(directory, value)
            self.put(f"{directory}/cgroup.type", kind)
            if self.tasks(hierarchy, directory):
                self.put(f"{directory}/cgroup.type", "domain threaded")
        else:
            super().enable(directory, value)


def systemd(host: Machined) -> Systemd:
    chosen = managers.choose(host, host.config())
    assert isinstance(chosen, Systemd)
    return chosen


def layout(host: Machined, text: str, more: str = "") -> None:
    host.configure(f"{more}cgroup_layout = '{text}'\n")
