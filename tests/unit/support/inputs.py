"""Everything that the hook and virt-cgroup read and that others may have written, each as a
function of raw bytes.

Each raises only for a fault of ours: whatever the bytes are, the program understands them or says
in one line why not. Property tests and `tools/fuzz` feed them; what once was a fault is kept in
data/findings, by the function's name.
"""

from __future__ import annotations

import contextlib
import posixpath
import zlib
from collections.abc import Callable, Iterator

from libvirt_cgroup_hooks import (
    cgroups,
    configfile,
    domainxml,
    operations,
    snapshot,
    state,
    threads,
)
from libvirt_cgroup_hooks.admission import Cpus, check_cpus, check_memory
from libvirt_cgroup_hooks.cli.checks.recipes import setting_cpus
from libvirt_cgroup_hooks.config import Config
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.errors import Error, printable
from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.kinds import KINDS
from libvirt_cgroup_hooks.managers import unitfiles
from libvirt_cgroup_hooks.managers.dropins import GOES_WITH_ITS_VM
from libvirt_cgroup_hooks.plan import Plan
from libvirt_cgroup_hooks.steps import Replace

from .hosts import DATA, UUID, topology

ONE_LINE = 64 * 1024  # what an error may be long; libvirt keeps all of it in memory, and shows it
FIRST_TWO = CpuSet([0, 1])
LAYOUTS = (
    "legacy",
    "nested",
    "flat",
    "root",
    "uuid",
    "/vms/prod/$NAME",
    "/vms/$DRIVER-$UUID",
    "/vms/$UUID/$NAME",
)
CGROUP = "/sys/fs/cgroup"
PLACES = (f"{CGROUP}/", "/run/libvirt-cgroup-hooks/", "/run/systemd/system/")
TOPOLOGY = topology("v1")


def loaded(name: str) -> dict[str, bytes]:
    root = DATA / "hosts" / name
    return {
        f"/{path.relative_to(root)}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


class Texts(Host):
    """A host with these files, and those of a recorded one; all in memory, and nothing can be
    written.
    """

    def __init__(self, files: dict[str, bytes], base: dict[str, bytes]) -> None:
        super().__init__("/nonexistent")
        self.files = {**base, **files}

    def read_bytes(self, path: str) -> bytes:
        if "\0" in path:
            raise ValueError("embedded null byte")
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory")
        return self.files[path]

    def exists(self, path: str) -> bool:
        return path in self.files or bool(self.names(path))

    def names(self, path: str) -> list[str]:
        return sorted(
            {
                file[len(path) + 1 :].split("/")[0]
                for file in self.files
                if file.startswith(f"{path}/")
            }
        )

    def directories(self, path: str) -> list[str]:
        return [name for name in self.names(path) if f"{path}/{name}" not in self.files]

    def fingerprint(self, path: str) -> str:
        return "1" if path in self.files else ""


HYBRID, UNIFIED = loaded("v1"), loaded("v2")


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What is not understood is told in one line of a length that a log takes."""
    try:
        yield
    except Error as error:
        text = str(error)
    else:
        return
    assert printable(text).isprintable()
    assert len(text) < ONE_LINE, f"an error of {len(text)} characters"


def configuration(data: bytes) -> None:
    with told():
        parsed = configfile.parse(data.decode("utf-8", "surrogateescape"))
        for warning in parsed.warnings:
            assert "\n" not in warning
        made = configfile.resolve(parsed, TOPOLOGY, 4096)
        text = snapshot.snapshot("for a test\n", made)
        again = snapshot.from_snapshot(text, "for a test\n")
        assert again is not None and again.values == made.values


def cpu_list(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    with told():
        cpus = CpuSet.parse(text)
        assert CpuSet.parse(str(cpus)) == cpus == CpuSet(cpus)
        assert len(cpus) == len(list(cpus))


def domain_xml(data: bytes) -> None:
    with told():
        found = domainxml.parse(data)
        asked_of(found)
        # one for each input: many inputs see them all
        layout = LAYOUTS[zlib.crc32(data) % len(LAYOUTS)]
        for host in (
            Texts({}, HYBRID),
            Texts({}, UNIFIED),
            Texts(SYSTEMD, HYBRID),
            Texts(SYSTEMD, UNIFIED),
        ):
            planned(host, layout, found)


def asked_of(found: Domain) -> None:
    with told():
        check_cpus(found, Cpus(FIRST_TWO, FIRST_TWO, CpuSet(), {}, False, []), "refuse")
    with told():
        check_memory(found, found.host_memory(4096), 0, 1 << 30)
    assert len(found.group_names()) <= 3 * 65536 + 1


# What makes a host of the recorded one where systemd owns cgroups
SYSTEMD = {
    "/run/systemd/system/.keep": b"",
    "/run/dbus/system_bus_socket": b"",
    "/usr/share/dbus-1/system-services/org.freedesktop.machine1.service": b"",
}


def planned(host: Host, layout: str, found: Domain) -> None:
    """Whatever the VM's XML says, what the hook would do for it stays where it belongs."""
    if len(found.group_names()) > 64:  # nothing new, and slow
        return
    for operation in ("prepare", "start", "started"):
        with told():
            settings = Config({"cgroup_layout": layout, "reserved_host_cpus": "0"})
            found.id = 7 if found.id is None and operation != "prepare" else found.id
            contained(operations.plan(host, settings, operation, found, imagine=True))


def contained(plan: Plan) -> None:
    for step in plan.steps:
        assert "\n" not in str(step)
        path = getattr(step, "path", getattr(step, "file", ""))
        if path:
            assert f"{path}/".startswith(PLACES), path
            assert posixpath.normpath(path) == path, path
            assert not set(path) & set("\n\0"), path
            assert all(
                len(name.encode("utf-8", "surrogateescape")) <= 255 for name in path.split("/")
            ), path
        if isinstance(step, Replace) and path.endswith(".conf") and step.text != GOES_WITH_ITS_VM:
            head, *lines = step.text.split("\n")
            assert head == "[Scope]" and lines.pop() == ""
            assert [line.partition("=")[0] for line in lines] in (
                ["Slice"],
                ["Slice", "AllowedCPUs"],
            ), lines
            assert all(
                character.isprintable() and character not in " %"
                for line in lines
                for character in line
            ), lines


def status_xml(data: bytes) -> None:
    host = Texts({"/run/libvirt/qemu/vm.xml": data}, UNIFIED)
    with told():
        for found in threads.running(host, {}):
            threads.threads(host, found)
    with told():
        threads.status(host, "vm")


def mounts(data: bytes) -> None:
    """/proc/mounts and, after a NUL, /proc/self/cgroup."""
    table, _, placed = data.partition(b"\0")
    files = {
        "/proc/mounts": table,
        "/proc/self/cgroup": placed or b"4:cpuset:/a\n0::/b\n",
        "/proc/cgroups": b"",
    }
    host = Texts({**files, f"{CGROUP}/cgroup.controllers": b"cpu cpuset memory\n"}, UNIFIED)
    with told():
        found = cgroups.detect(host.read_optional)
        for hierarchy in found.hierarchies:
            assert hierarchy.directory("/vm") in hierarchy.directories("/vm")
        settings = Config({"cgroup_layout": "nested", "reserved_host_cpus": "0"})
        operations.plan(host, settings, "prepare", domainxml.parse(SMALLEST))


RESERVED = Config(
    {
        "reserved_host_cpus": "0",
        "reserved_host_mem": "1%",
        "memory_admission": "1",
        "cgroup_layout": "/vms/$NAME",
    }
)
SMALLEST = f"<domain type='qemu' id='3'><name>vm</name><uuid>{UUID}</uuid></domain>".encode()


def state_file(data: bytes) -> None:
    """As each of the files that are kept under /run; one that is damaged is as good as none."""
    record, shared = f"{state.VMS}/{UUID}", state.SHARED
    several = {record: data, shared: data, state.ADMITTED: data, snapshot.LIVE: data}
    files = ({record: data}, {shared: data}, several)[zlib.crc32(data) % 3]
    for host in (
        Texts(files, HYBRID),
        Texts({**SYSTEMD, **files}, HYBRID),
        Texts({**SYSTEMD, **files}, UNIFIED),
    ):
        for operation in ("prepare", "start", "stopped", "release"):
            with told():
                operations.plan(host, RESERVED, operation, domainxml.parse(SMALLEST))
    found = state.Record.read(Texts({record: data}, {}), UUID)
    if found:
        again = state.Record.read(
            Texts({record: str(found).encode("utf-8", "surrogateescape")}, {}), UUID
        )
        assert again is not None and str(again) == str(found)
    with told():
        snapshot.load(Texts({snapshot.LIVE: data}, UNIFIED), [])
    with told():
        snapshot.from_snapshot(data.decode("utf-8", "surrogateescape"), state.FORMAT + "\n")


def hook_script(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for number, what in setting_cpus(text, ["/user.slice", "/vms.slice/vms-prod.slice"]):
        assert 1 <= number <= text.count("\n") + 1
        assert what.isprintable()
        assert len(what) < 100


def unit_file(data: bytes) -> None:
    """As a drop-in of a slice."""
    host = Texts({"/etc/systemd/system/vms.slice.d/60-x.conf": data}, {})
    for kind in KINDS:
        with told():
            unitfiles.decided(host, "vms.slice", kind)


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (
        configuration,
        cpu_list,
        domain_xml,
        status_xml,
        mounts,
        state_file,
        hook_script,
        unit_file,
    )
}
