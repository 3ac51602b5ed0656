"""A real libvirtd with real QEMU on a private host (tools/private-host), and what the kernel says
about its VMs.
"""

from __future__ import annotations

import os
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from xml.sax.saxutils import escape

from .guests import firmware
from .pace import EVENT, in_time, patient
from .pace import wait_for as wait_for  # tools/bench takes it from here

PRIVATE_HOST = "CGROUP_HOOKS_PRIVATE_HOST"
CONFIG = Path("/etc/libvirt/cgroup-hooks.conf")
QEMU_CONF = Path("/etc/libvirt/qemu.conf")
LAB_FACTS = Path("/etc/libvirt-cgroup-hooks-lab.json")  # what a lab host is
SOCKET = Path("/run/libvirt/libvirt-sock")
PID_FILE = Path("/run/libvirtd.pid")
ALL_CPUS = Path("/sys/devices/system/cpu/online").read_text().strip()
LAST_CPU = ALL_CPUS.rpartition("-")[2]
VM_CPUS = "1" if LAST_CPU == "1" else f"1-{LAST_CPU}"  # with CPU 0 reserved for the host
STATE = Path("/run/libvirt-cgroup-hooks")
LIVE = STATE / "live"
STATUS_DIRECTORY = Path("/run/libvirt/qemu")
LAYOUT = 'cgroup_layout = "/vms/$DRIVER-$NAME"\n'
FENCED = LAYOUT + 'reserved_host_cpus = "0"\nreserved_host_mem = "1 GiB"\n'
LIMITED = FENCED + 'vm_swap_max = "64 MiB"\nvm_cpu_weight = 50\n'
AGES = count()
Configure = Callable[[str], None]


def virsh(
    *args: str,
    check: bool = True,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Give XML as `stdin` with /dev/stdin among the arguments.

    A command that hangs raises TimeoutExpired.
    """
    result = subprocess.run(
        ["virsh", "--quiet", "--connect", "qemu:///system", *args],
        check=False,
        capture_output=True,
        text=True,
        timeout=patient(),
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        input=stdin or "",
    )
    assert not check or result.returncode == 0, f"virsh {' '.join(args)}: {result.stderr.strip()}"
    return result


class Daemon:
    """libvirtd as a child of the tests: no service manager, no VM of its own accord, errors in
    `log`.
    """

    def __init__(self, log: Path = Path("/var/log/libvirt/libvirtd.log")) -> None:
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._mark = 0

    @property
    def pid(self) -> int:
        assert self.running and self._process, f"libvirtd is not running:\n{self.messages()}"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        assert not self.running, "libvirtd is already running"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["libvirtd", "--pid-file", str(PID_FILE)],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for(self._answers, "libvirtd to answer")
        wait_for(self.reconnected, "libvirtd to reconnect to its VMs", 2 * EVENT)

    def stop(self) -> None:
        """Ends the daemon the way that a service manager does; VMs go on. libvirtd gives itself 30
        seconds for it.
        """
        if self._process:
            self._process.terminate()
            self._process.wait(patient())

    def kill(self) -> None:
        """SIGKILL: no chance to save anything; VMs go on."""
        if self._process:
            self._process.kill()
            self._process.wait(patient())

    def restart(self) -> None:
        self.stop()
        self.start()

    def mark(self) -> None:
        """`messages` begins here from now on."""
        self._mark = self.log.stat().st_size if self.log.exists() else 0

    def messages(self) -> str:
        """What the daemon has logged since the mark, warnings and errors."""
        if not self.log.exists():
            return ""
        with self.log.open(errors="replace") as log:
            log.seek(self._mark)
            # /sys still shows the host's network cards, which are not in this network: that is
            # noise.
            return "".join(line for line in log if "ethtool ioctl error" not in line)

    def _answers(self) -> bool:
        return self.pid > 0 and SOCKET.exists() and virsh("list", check=False).returncode == 0

    @staticmethod
    def reconnected() -> bool:
        # A daemon that answers has a thread for each VM, which holds the VM in a job until its hook
        # has returned. One virsh asks for all of them: one each would keep a busy machine from what
        # it waits for.
        ids = virsh("list", "--id").stdout.split()
        asked = virsh("; ".join(f"domcontrol {one}" for one in ids), check=False) if ids else None
        return asked is None or asked.stdout.split() == ["ok"] * len(ids)


def domain_xml(
    name: str,
    *,
    vcpus: int = 1,
    current: int | None = None,
    iothreads: int = 0,
    memory_mib: int = 32,
    vcpupin: Mapping[int, str] | None = None,
    emulatorpin: str | None = None,
    iothreadpin: Mapping[int, str] | None = None,
    uuid: str | None = None,
    machine: str = "pc",
    confined: bool = False,
    extra: str = "",
    devices: str = "",
) -> str:
    """A VM with nothing to boot, which costs next to no CPU time. `extra` goes below <domain>,
    `devices` below <devices>. With a disk it has a BIOS, which boots from it. AppArmor confines
    it if it is to be `confined`.
    """
    pins = [f"<vcpupin vcpu='{vcpu}' cpuset='{cpus}'/>" for vcpu, cpus in (vcpupin or {}).items()]
    pins += [f"<emulatorpin cpuset='{emulatorpin}'/>"] if emulatorpin else []
    pins += [
        f"<iothreadpin iothread='{one}' cpuset='{cpus}'/>"
        for one, cpus in (iothreadpin or {}).items()
    ]
    lines = [
        "<domain type='qemu'>",
        f"<name>{escape(name)}</name>",
        f"<uuid>{uuid}</uuid>" if uuid else "",
        f"<memory unit='MiB'>{memory_mib}</memory>",
        f"<vcpu current='{vcpus if current is None else current}'>{vcpus}</vcpu>",
        f"<iothreads>{iothreads}</iothreads>" if iothreads else "",
        f"<cputune>{''.join(pins)}</cputune>" if pins else "",
        "<os>",
        f"<type arch='x86_64' machine='{machine}'>hvm</type>",
        firmware() if "<disk" not in devices else "",
        "</os>",
        "" if confined else without_profile(),
        extra,
        "<devices>",
        "<emulator>/usr/bin/qemu-system-x86_64</emulator>",
        "<controller type='usb' model='none'/>",
        "<memballoon model='none'/>",
        devices,
        "</devices>",
        "</domain>",
    ]
    return "\n".join(filter(None, lines))


@cache
def without_profile() -> str:
    """The XML of a VM that AppArmor does not confine: libvirt has a profile compiled five times in
    each start, which is most of what it takes an emulated host.
    """
    used = 'security_driver = "apparmor"' in QEMU_CONF.read_text()
    return "<seclabel type='none' model='apparmor'/>" if used else ""


@dataclass(frozen=True)
class Thread:
    comm: str
    # hierarchy, as "cpuset" or "cpu,cpuacct" or "name=systemd"; cgroup2 is "unified"
    groups: dict[str, str]
    cpus_allowed: str

    def group(self, controller: str) -> str:
        """The group that governs this controller, whatever hierarchy carries it."""
        return next(
            (group for name, group in self.groups.items() if controller in name.split(",")),
            self.unified,
        )

    @property
    def unified(self) -> str:
        return self.groups["unified"]


@dataclass(frozen=True)
class Vm:
    """A running VM as libvirt's status file has it."""

    name: str
    uuid: str
    id: int
    pid: int
    vcpus: dict[int, int]  # vCPU to thread; those that are not plugged in have none

    def threads(self) -> dict[int, Thread]:
        return threads(self.pid)

    def alive(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_bytes() != b""
        except (FileNotFoundError, ProcessLookupError):
            return False


def running_vm(name: str) -> Vm:
    status = ElementTree.parse(STATUS_DIRECTORY / f"{name}.xml").getroot()
    domain = status.find("domain")
    assert domain is not None, f"{name}.xml has no <domain>"
    return Vm(
        name=domain.findtext("name", ""),
        uuid=domain.findtext("uuid", ""),
        id=int(domain.get("id", "-1")),
        pid=int(status.get("pid", "-1")),
        vcpus={
            int(one.get("id", "-1")): int(one.get("pid", "-1"))
            for one in status.iterfind("vcpus/vcpu")
        },
    )


def start_vm(name: str, *, paused: bool = False, xml: str | None = None) -> Vm:
    """Starts a transient VM; the test's end destroys it. `xml` of the same name, by default the
    smallest one.
    """
    virsh("create", "/dev/stdin", *(["--paused"] if paused else []), stdin=xml or domain_xml(name))
    return running_vm(name)


def destroy_vm(name: str) -> None:
    """Ends the VM, whatever state it is in, and forgets it; `name` may be its UUID."""
    virsh("destroy", "--domain", name, check=False)
    virsh(
        "undefine",
        "--domain",
        name,
        "--nvram",
        "--managed-save",
        "--snapshots-metadata",
        check=False,
    )


def end_all_vms(daemon: Daemon) -> None:
    """As `destroy_all_vms`, by a new daemon where this one cannot.

    A libvirtd (9.0) that finds a VM ending, after its predecessor was killed, may keep a job of
    that VM for good: "cannot acquire state change lock".
    """
    try:
        destroy_all_vms()
    except AssertionError:
        daemon.kill()
        daemon.start()
        destroy_all_vms()


def destroy_all_vms() -> None:
    for uuid in filter(None, virsh("list", "--all", "--uuid").stdout.splitlines()):
        destroy_vm(uuid)
    assert not (left := virsh("list", "--all", "--name").stdout.strip()), (
        f"VMs that cannot be destroyed: {left}"
    )


def configure(text: str | None) -> None:
    """Writes the hook's configuration, with the time that the hook needs here; None removes it."""
    if text is None:
        CONFIG.unlink(missing_ok=True)
    else:
        CONFIG.write_text(in_time(text))
        age(CONFIG)


def age(path: Path) -> None:
    """As if it had been written half a minute ago, and each time at another moment: Python leaves
    nothing for hooks/qemu to go by while the configuration was changed just now.
    """
    moment = time.time() - 30 - 2 * next(AGES)
    os.utime(path, (moment, moment))


def threads(pid: int) -> dict[int, Thread]:
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[int(task.name)] = Thread(
                comm=(task / "comm").read_text().rstrip("\n"),
                groups=groups_in((task / "cgroup").read_text()),
                cpus_allowed=status_value((task / "status").read_text(), "Cpus_allowed_list"),
            )
        except (FileNotFoundError, ProcessLookupError):  # QEMU's worker threads come and go
            continue
    return found


def groups_in(proc_cgroup: str) -> dict[str, str]:
    lines = [line.split(":", 2) for line in proc_cgroup.splitlines()]
    return {controllers or "unified": path for _, controllers, path in lines}


def status_value(proc_status: str, key: str) -> str:
    return next(
        line.split(":", 1)[1].strip()
        for line in proc_status.splitlines()
        if line.startswith(f"{key}:")
    )


def cgroup_mounts() -> dict[str, Path]:
    """Mount point of each hierarchy, named as in `Thread.groups`."""
    controllers = groups_in(Path("/proc/self/cgroup").read_text())
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        fstype, _, options = fields[fields.index("-") + 1 :]
        for name in controllers:
            v2 = name == "unified"
            if fstype == ("cgroup2" if v2 else "cgroup") and (
                v2 or set(name.split(",")) <= set(options.split(","))
            ):
                found[name] = Path(fields[4])
    return found


def cgroup_directory(controller: str, group: str = "/") -> Path:
    """Where the files of a group are: of the hierarchy that carries the controller, else of
    cgroup2.
    """
    mounts = cgroup_mounts()
    root = next(
        (point for name, point in mounts.items() if controller in name.split(",")),
        mounts.get("unified"),
    )
    assert root is not None, f"no hierarchy carries {controller}"
    return root / group.lstrip("/")


HAS_V1 = not cgroup_directory("cpu").joinpath("cgroup.controllers").exists()


def all_cgroups() -> set[Path]:
    """Every group of every hierarchy, the roots included."""
    return {Path(top) for point in cgroup_mounts().values() for top, _, _ in os.walk(point)}


def qemu_processes() -> set[int]:
    """Those of this private host: other hosts' processes are in /proc too, but share no mount
    namespace with us.
    """
    ours = os.readlink("/proc/self/ns/mnt")
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                os.readlink(process / "ns/mnt") == ours
                and b"qemu-system" in (process / "cmdline").read_bytes()
            ):
                found.add(int(process.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found
