# SPDX-License-Identifier: LGPL-2.1-or-later
"""The threads of a running VM: which group each belongs to and which cgroup it is in."""

from __future__ import annotations

from .cgroups import detect, placements
from .cpuset import CpuSet
from .domainxml import parse
from .errors import Error, printable
from .host import page_size
from .state import STATUS, Record, left_behind, recorded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .domain import Domain
    from .host import Host
    from .kernel.tree import Tree


QEMU = ("qemu-system-", "qemu-kvm", "qemu:")  # comm; the last is libvirt's set_process_name


class Thread:
    """`group` is "emulator", "vcpuN" or "iothreadN"; `cgroups` the path by hierarchy key, as /proc
    tells it.
    """

    __slots__ = ("cgroups", "comm", "group", "tid")

    def __init__(self, tid: int, comm: str, group: str, cgroups: dict[str, str]) -> None:
        self.tid = tid
        self.comm = comm
        self.group = group
        self.cgroups = cgroups

    def moved(self, key: str, path: str) -> Thread:
        """The thread as it is once it is in PATH of the hierarchy KEY."""
        return Thread(self.tid, self.comm, self.group, {**self.cgroups, key: path})


def status(host: Host, name: str) -> Domain | None:
    """The VM as libvirt's status XML tells it, with the ids of its process and vCPU threads; None
    where there is none.

    Raises Error where the file is not understood.
    """
    text = host.read_optional(f"{STATUS}/{name}.xml")
    found = parse(text.encode("utf-8", "surrogateescape")) if text is not None else None
    return found if found and found.pid is not None else None


def running(host: Host, errors: dict[str, Error]) -> list[Domain]:
    """Every VM that has a status XML and its process, by id.

    One whose status XML is not understood is left out, and told in ERRORS by its name.
    """
    found: list[Domain] = []
    for file in host.names(STATUS):
        name = file.removesuffix(".xml")
        if name == file:
            continue
        try:
            domain = status(host, name)
        except Error as error:
            errors[name] = error.of(f"VM {printable(name)}")
            continue
        if domain and has_process(host, domain):
            found.append(domain)
    return sorted(found, key=lambda domain: domain.id or 0)


def has_process(host: Host, domain: Domain) -> bool:
    """Whether the process that the status XML names is QEMU with DOMAIN.

    Where no daemon runs, the file outlives the VM, and the kernel gives the number to others.
    libvirt has QEMU called `-name guest=NAME,...` (qemuBuildNameCommandLine), with commas doubled.
    A process can write over that, and so hide; its cgroup it cannot leave.
    """
    command = host.read_optional(f"/proc/{domain.pid}/cmdline")
    if command is None:  # ended, or in a copy of a host, which has no more of it
        return host.exists(f"/proc/{domain.pid}")
    guest = "guest=" + domain.name.replace(",", ",,") + ","
    arguments = [f"{argument}," for argument in command.split("\0")]
    named = any(one.startswith(guest) and not one.startswith(f"{guest},") for one in arguments)
    return named or _is_in_cgroup(host, domain)


def _is_in_cgroup(host: Host, domain: Domain) -> bool:
    """Whether the process is in a cgroup that has been made for DOMAIN: by libvirt or machined,
    which name it after the VM's id, or by us.
    """
    paths = process_cgroups(host, domain.pid or 0) or {}
    if any(_is_of_id(name, domain.id) for path in paths.values() for name in path.split("/")):
        return True
    record = Record.read(host, domain.uuid)
    if record is None or not record.groups:
        return False
    places = [
        f"{hierarchy.directory(paths[hierarchy.key])}/"
        for hierarchy in detect(host.read_optional).hierarchies
        if hierarchy.key in paths
    ]
    return any(place.startswith(f"{group}/") for place in places for group in record.groups)


def _is_of_id(name: str, number: int | None) -> bool:
    """Whether NAME is that of the scope, or of libvirt's own cgroup, of the VM with the id NUMBER.

    They are made of qemu-ID-NAME, where the VM's name may come to nothing.
    """
    scope, own = rf"machine-qemu\x2d{number}", f"qemu-{number}"
    return name.startswith((rf"{scope}\x2d", f"{scope}.scope", f"{own}-", f"{own}.libvirt-qemu"))


def hugepages(host: Host, all_recorded: bool, every: bool) -> int:
    """Bytes of the hugepages of all VMs that run or start.

    Of those that have a record (ALL_RECORDED: each) the record tells. With EVERY the status XML
    tells of others: they have none, unless they started before there was a hook.
    """
    gone = left_behind(host, all_recorded=all_recorded)
    records = [Record.read(host, uuid) for uuid in recorded(host) if uuid not in gone]
    known = {record.name: record.hugepages for record in records if record}
    if every and any(file.removesuffix(".xml") not in known for file in host.names(STATUS)):
        for domain in running(host, {}):
            known.setdefault(domain.name, domain.hugepage_memory(page_size()))
    return sum(known.values())


def named(found: list[Domain], wanted: str) -> Domain:
    """The one of FOUND with that id, UUID or name, which are tried in this order as in virsh.
    Raises Error.
    """
    for told in (lambda one: str(one.id), lambda one: one.uuid, lambda one: one.name):
        for domain in found:
            if told(domain) == wanted:
                return domain
    raise Error(
        f"no VM '{printable(wanted)}' is running", "give the name, id or UUID that virsh list shows"
    )


def threads(host: Host, running: Domain) -> list[Thread]:
    """Every thread of RUNNING (from `status`), its main thread first. Threads that end meanwhile
    are left out.
    """
    vcpu_of = {tid: f"vcpu{vcpu}" for vcpu, tid in running.vcpu_threads.items()}
    found = []
    tids = [int(name) for name in host.names(f"/proc/{running.pid}/task")]
    for tid in sorted(tids, key=lambda tid: (tid != running.pid, tid)):
        task = f"/proc/{running.pid}/task/{tid}"
        cgroups = host.read_optional(f"{task}/cgroup")
        comm = host.read_optional(f"{task}/comm")
        if cgroups is not None and comm is not None:
            paths = placements(cgroups)
            found.append(Thread(tid, comm.rstrip("\n"), vcpu_of.get(tid) or _group(comm), paths))
    return found


def _group(comm: str) -> str:
    """libvirt calls its I/O threads iothreadN, and has QEMU name the thread after it
    (debug-threads=on).
    """
    number = comm[len("IO iothread") :].strip()
    is_iothread = comm.startswith("IO iothread") and number.isascii() and number.isdigit()
    return f"iothread{number}" if is_iothread else "emulator"


def groups_of(found: list[Thread]) -> list[str]:
    """The thread groups that there are threads for, emulator first."""
    return ["emulator", *sorted({thread.group for thread in found} - {"emulator"})]


def cpus_allowed(host: Host, running: Domain, thread: Thread) -> CpuSet:
    """Where the kernel lets THREAD run: its affinity within its cpuset. Empty if it has ended."""
    return allowed_in(host, f"/proc/{running.pid}/task/{thread.tid}/status")


def allowed_in(host: Host, status: str) -> CpuSet:
    """The CPUs that the file STATUS of a process or thread names; empty where that has ended."""
    for line in (host.read_optional(status) or "").split("\n"):
        if line.startswith("Cpus_allowed_list:"):
            return CpuSet.parse(line.partition(":")[2])
    return CpuSet()


def process_cgroups(host: Host, pid: int) -> dict[str, str] | None:
    """Where the main thread of process PID is; None where it has ended."""
    text = host.read_optional(f"/proc/{pid}/cgroup")
    return None if text is None else placements(text)


def members(host: Host, directory: str) -> list[int]:
    """The processes of the cgroup DIRECTORY itself."""
    text = host.read_optional(f"{directory}/cgroup.procs")
    return [int(line) for line in (text or "").split()]


def home(host: Host, tree: Tree, thread: Thread) -> str:
    """The cgroup of TREE where THREAD belongs.

    A hierarchy that does not clip (v1) moves what is in a cpuset that lost its last CPU to the
    cpuset above.
    """
    place = thread.cgroups.get(tree.hierarchy.key, "")
    own = f"{place}/{thread.group}"
    lost = tree.has_cpus and not tree.clips and not place.endswith(f"/{thread.group}")
    return own if lost and host.exists(tree.hierarchy.directory(own)) else place
