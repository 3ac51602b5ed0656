# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is remembered under /run until the next boot: what belongs to each VM, and what was done for
all.

The files are lines of `key value` below a version, written whole and renamed into place. They are
not JSON, because the json module costs the hook more than all of its own work.
"""

from __future__ import annotations

from . import kinds
from .cpuset import CpuSet
from .errors import Error, printable
from .host import NEW, Host, page_size
from .steps import Remove, Replace, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .domain import Domain
    from .kinds import Kind, Value
    from .plan import Plan

    Row = tuple[Kind, str]  # a kind of limit, and the path of the cgroup that carries it

STATUS = "/run/libvirt/qemu"  # libvirt's own: the status XML of each running VM
DEFINED = "/etc/libvirt/qemu"  # and the persistent XML of each VM that has one
DIRECTORY = "/run/libvirt-cgroup-hooks"
VMS = f"{DIRECTORY}/vms"
SHARED = f"{DIRECTORY}/shared"
ADMITTED = f"{DIRECTORY}/admitted"
CONFINED = f"{DIRECTORY}/confined"  # its age tells since when the host keeps to its own CPUs
LOCK = f"{DIRECTORY}/lock"
FORMAT = "libvirt-cgroup-hooks 1"
LIMITS_FORMAT = "libvirt-cgroup-hooks 2"  # of SHARED; 1 had files and properties for rows
GRACE = 60  # seconds


class Record:
    """A VM that starts or runs: what is its own and has to go when it stops, the memory it was
    admitted with, and its hugepages.

    `groups` are cgroup directories, `files` drop-ins of its scope, `slices` systemd slices;
    `confines`: it asks that the host keep to its own CPUs; `dedicated`: the CPUs that are its own
    alone.
    """

    __slots__ = (
        "confines",
        "dedicated",
        "files",
        "groups",
        "hugepages",
        "memory",
        "name",
        "slices",
        "uuid",
    )

    def __init__(self, uuid: str, name: str, memory: int = 0, hugepages: int = 0) -> None:
        self.uuid = uuid
        self.name = name
        self.memory = memory  # bytes, and not of hugepages
        self.hugepages = hugepages  # bytes
        self.confines = False
        self.dedicated = CpuSet()
        self.groups: list[str] = []
        self.files: list[str] = []
        self.slices: list[str] = []

    def __str__(self) -> str:
        lines = [f"name {self.name}", f"memory {self.memory}"]
        if self.hugepages:
            lines.append(f"hugepages {self.hugepages}")
        if self.confines:
            lines.append("confines host")
        if self.dedicated:
            lines.append(f"dedicated {self.dedicated}")
        for kind, values in (("group", self.groups), ("file", self.files), ("slice", self.slices)):
            lines += [f"{kind} {value}" for value in values]
        return lines_of(lines)

    @classmethod
    def of(cls, domain: Domain) -> Record:
        """That of DOMAIN as it starts."""
        size = page_size()
        memory, hugepages = domain.host_memory(size), domain.hugepage_memory(size)
        return cls(domain.uuid, domain.name, memory, hugepages)

    @classmethod
    def read(cls, host: Host, uuid: str) -> Record | None:
        """None where there is none, or none that is understood."""
        return cls.parse(uuid, host.read_optional(f"{VMS}/{uuid}"))

    @classmethod
    def parse(cls, uuid: str, text: str | None) -> Record | None:
        """From the TEXT that `str` makes; None for none, or none that is understood."""
        lines = [line.partition(" ") for line in lines_in(text)]
        values = {key: [value for kind, _, value in lines if kind == key] for key, _, _ in lines}
        if "name" not in values:
            return None
        texts = (values.get(key, ["0"])[0] for key in ("memory", "hugepages"))
        record = cls(
            uuid, values["name"][0], *(int(text) if _is_number(text) else 0 for text in texts)
        )
        record.confines = "confines" in values
        record.dedicated = _cpus(values.get("dedicated", [""])[0])
        record.groups = values.get("group", [])
        record.files = values.get("file", [])
        record.slices = values.get("slice", [])
        return record

    @classmethod
    def exists(cls, host: Host, uuid: str) -> bool:
        return host.exists(f"{VMS}/{uuid}")

    def save(self, old: Record | None) -> list[Step]:
        """No step where OLD says the same."""
        text = str(self)
        before = str(old) if old else None
        return [] if text == before else [Replace(f"{VMS}/{self.uuid}", text, before)]


class Admitted:
    """Bytes of all VMs that have a record, as one number, so that a start costs the same however
    many VMs run.

    It is kept while memory_admission asks for it. It is written just before the record
    that it changes with, and names that record: where a run was killed between the two, what the
    record says decides. One serves one plan.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._text = host.read_optional(ADMITTED)
        self._total: int | None = None
        self._memory: dict[str, int] = {}  # of the VMs that this plan changes

    @property
    def is_kept(self) -> bool:
        return bool(self._text)

    @property
    def total(self) -> int:
        if self._total is None:
            self._total = self._read()
        return self._total

    def _read(self) -> int:
        values = dict(line.partition(" ")[::2] for line in lines_in(self._text))
        try:
            total, before, after = (int(values[key]) for key in ("total", "before", "after"))
        except (KeyError, ValueError):
            records = [Record.read(self.host, uuid) for uuid in recorded(self.host)]
            return sum(record.memory for record in records if record)
        record = Record.read(self.host, values.get("uuid", ""))
        written = (record.memory if record else 0) == after
        return total if written else total - after + before

    def change(self, uuid: str, before: int, after: int, begin: bool) -> list[Step]:
        """The record of UUID will say AFTER instead of BEFORE bytes. BEGIN: where no total is kept
        yet, too.
        """
        before = self._memory.get(uuid, before)
        if before == after if self._text else not begin:
            return []
        self._total = self.total + after - before
        self._memory[uuid] = after
        old, self._text = (
            self._text,
            lines_of([f"total {self.total}", f"uuid {uuid}", f"before {before}", f"after {after}"]),
        )
        return [Replace(ADMITTED, self._text, old)]

    def drop(self) -> list[Step]:
        """Nobody asks for it any more."""
        old, self._text = self._text, None
        return [Remove(ADMITTED, old)] if old else []


class Records:
    """The records of VMs, and the total of their memory, as one plan changes them."""

    def __init__(self, host: Host, keep_total: bool) -> None:
        """KEEP_TOTAL: memory_admission asks for it."""
        self.host = host
        self.keep_total = keep_total
        self.admitted = Admitted(host)
        self._gone: set[str] = set()  # the UUIDs of those that this plan forgets
        self._saved: dict[str, str] = {}  # by UUID, what this plan writes
        self._shared: list[str | None] = []  # the text of SHARED, once it was asked for
        self._dedicated: dict[str, Record] | None = None

    def of(self, domain: Domain) -> tuple[Record, Record | None]:
        """DOMAIN's record, to be changed, and as it is once the steps planned so far are made."""
        text = self._text(domain.uuid)
        new, old = (Record.parse(domain.uuid, text) for _ in range(2))
        return new or Record.of(domain), old

    def save(self, plan: Plan, record: Record, old: Record | None) -> None:
        before = old.memory if old else 0
        plan.add_shared(*self.admitted.change(record.uuid, before, record.memory, self.keep_total))
        plan.add(*record.save(old))
        self._saved[record.uuid] = str(record)
        self._gone.discard(record.uuid)
        self._dedicated = None

    def forget(self, plan: Plan, uuid: str, record: Record | None) -> None:
        """RECORD is that of UUID; None where it is not understood."""
        if record:
            plan.add_shared(*self.admitted.change(uuid, record.memory, 0, begin=False))
        plan.add_shared(forget(self.host, uuid))
        self._gone.add(uuid)
        self._dedicated = None

    def living(self) -> list[str]:
        """The UUIDs of the VMs that run or start, once the steps planned so far are made."""
        found = dict.fromkeys([*recorded(self.host), *self._saved])
        return [uuid for uuid in found if uuid not in self._gone]

    def remembered(self) -> Remembered:
        """What is remembered for all, to be changed; the file is read once for a plan."""
        if not self._shared:
            self._shared.append(self.host.read_optional(SHARED))
        return Remembered(self.host, self._shared)

    def dedicated(self) -> dict[str, Record]:
        """The records of the VMs that have CPUs for themselves alone, by UUID, once the steps
        planned so far are made.

        Where nobody has, this costs nothing: what is remembered for all names those that have.
        """
        if self._dedicated is None:
            self._dedicated = {}
            for uuid in dict.fromkeys([*self.remembered().dedicated, *self._saved]):
                text = None if uuid in self._gone else self._text(uuid)
                record = Record.parse(uuid, text)
                if record and record.dedicated:
                    self._dedicated[uuid] = record
        return self._dedicated

    def confining(self) -> bool:
        """Whether one of them asks that the host keep to its own CPUs."""
        for uuid in self.living():
            record = Record.parse(uuid, self._text(uuid))
            if record and record.confines:
                return True
        return False

    def _text(self, uuid: str) -> str | None:
        """The record of UUID once the steps planned so far are made."""
        saved = self._saved.get(uuid)
        return self.host.read_optional(f"{VMS}/{uuid}") if saved is None else saved


class Remembered:
    """What was done to cgroups that VMs share, until the last VM has gone or it is no longer
    wanted.

    `made`: the directories made. `before`: by kind and cgroup, the limit that was there before
    ours. `dedicated`: the CPUs that VMs have for themselves alone, by UUID, and `shared_out` those
    of which the other VMs had what is left, when their cgroups were limited to that.
    """

    __slots__ = ("_marked", "_text", "before", "dedicated", "made", "shared_out")

    def __init__(self, host: Host, known: list[str | None] | None = None) -> None:
        """KNOWN: the text of SHARED, where it was read before."""
        self.made: list[str] = []
        self.before: dict[Row, Value] = {}
        self.dedicated: dict[str, CpuSet] = {}
        self.shared_out = ""
        self._text = known[0] if known else host.read_optional(SHARED)
        for line in lines_in(self._text, LIMITS_FORMAT):
            word, _, rest = line.partition(" ")
            if word == "made":
                self.made.append(rest)
            elif word == "limit":
                self._add(*rest.split(" ", 2))
            elif word == "dedicated":
                uuid, _, cpus = rest.partition(" ")
                self.dedicated[uuid] = _cpus(cpus)
            elif word == "shared-out":
                self.shared_out = rest
        self._marked = self._mark()

    def _mark(self) -> str | None:
        """What CONFINED says; None where it is not there."""
        return "" if self.confined else None

    def _add(self, name: str = "", value: str = "", path: str = "") -> None:
        kind = kinds.named(name)
        try:
            if kind and path:
                self.before[kind, path] = kind.parse(value)
        except (Error, ValueError):  # not what `save` writes
            return

    @property
    def is_foreign(self) -> bool:
        """Whether the file is there and is no file of this version."""
        return bool(self._text) and not (self._text or "").startswith(f"{LIMITS_FORMAT}\n")

    def __bool__(self) -> bool:
        return bool(self.made or self.before or self.dedicated)

    @property
    def of_host(self) -> bool:
        """Whether the host's own units have limits of ours."""
        return any(kind.of_host for kind, _ in self.before)

    @property
    def of_vms(self) -> bool:
        """Whether VMs have CPUs for themselves alone, or had, and cgroups of others a limit."""
        return bool(self.dedicated) or any(kind.of_vm for kind, _ in self.before)

    @property
    def confined(self) -> bool:
        """Whether the host keeps to its own CPUs."""
        return any(kind is kinds.HOST_CPUS for kind, _ in self.before)

    def save(self) -> list[Step]:
        """No step where nothing has changed."""
        lines = [f"made {path}" for path in self.made]
        for (kind, path), value in self.before.items():
            lines.append(f"limit {kind.name} {kinds.text(value)} {path}")
        lines += [f"dedicated {uuid} {cpus}" for uuid, cpus in self.dedicated.items()]
        if self.dedicated:
            lines.append(f"shared-out {self.shared_out}")
        old, new = self._text, lines_of(lines, LIMITS_FORMAT)
        self._text = new if lines else None
        mark = saved(CONFINED, "", self._marked, self.confined)
        self._marked = self._mark()
        return [*saved(SHARED, new, old, bool(lines)), *mark]


def saved(path: str, text: str, old: str | None, wanted: bool) -> list[Step]:
    """PATH has TEXT afterwards, or is gone where that is not WANTED."""
    if wanted:
        return [] if text == old else [Replace(path, text, old)]
    return [] if old is None else [Remove(path, old)]


def _cpus(text: str) -> CpuSet:
    """None at all where TEXT is no list of CPUs."""
    try:
        return CpuSet.parse(text)
    except Error:
        return CpuSet()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def lines_of(lines: list[str], version: str = FORMAT) -> str:
    """Raises Error where one would become two, and so say what nobody meant."""
    for line in lines:
        if "\n" in line:
            raise Error(
                f'cannot remember "{printable(line)}": it has a newline',
                "name VMs and partitions without one",
            )
    return "\n".join([version, *lines]) + "\n"


def lines_in(text: str | None, version: str = FORMAT) -> list[str]:
    """The lines of a file's TEXT; none where the file is missing or of another version."""
    head, *lines = (text or "").split("\n")
    return [line for line in lines if line] if head == version else []


def recorded(host: Host) -> list[str]:
    """The UUIDs of the VMs that have a record."""
    return [name for name in host.names(VMS) if not name.endswith(NEW)]


def left_behind(
    host: Host, running: set[str] | None = None, all_recorded: bool = False
) -> list[str]:
    """The UUIDs of recorded VMs that have ended, and whose `release` never came to its end.

    A daemon that is killed while it stops a VM may leave the status XML, and forget the VM when it
    starts again: then only RUNNING, the names of the VMs that have a process, tells.

    Between `prepare` and the moment libvirt writes its status XML, a VM that starts looks the same:
    hence GRACE. What is lost of one that takes longer is written again at `start` and `started`.

    ALL_RECORDED: each VM has a record. Then the usual case costs the same however many run.
    """
    found = recorded(host)
    if running is None and all_recorded and len(found) <= _statuses(host):
        return []
    old = [uuid for uuid in found if host.age(f"{VMS}/{uuid}") > GRACE]
    records = [(uuid, Record.read(host, uuid)) for uuid in old]
    return [
        uuid for uuid, record in records if record is None or not _runs(host, record.name, running)
    ]


def may_be_starting(host: Host) -> bool:
    """Whether there is a VM that has a record, and that libvirt has no status XML of yet."""
    records = (Record.read(host, uuid) for uuid in recorded(host))
    return any(record and not _runs(host, record.name, None) for record in records)


def lacks_records(host: Host) -> bool:
    """Whether there is a VM that runs and has no record."""
    return len(recorded(host)) < _statuses(host)


def _statuses(host: Host) -> int:
    return sum(name.endswith(".xml") for name in host.names(STATUS))


def _runs(host: Host, name: str, running: set[str] | None) -> bool:
    return host.exists(f"{STATUS}/{name}.xml") if running is None else name in running


def forget(host: Host, uuid: str) -> Step:
    """Removes the record of the VM with UUID."""
    path = f"{VMS}/{uuid}"
    return Remove(path, host.read_optional(path) or "")


def half_written(host: Host) -> list[Step]:
    """Takes away the files that someone who was killed was writing: who holds the lock writes none
    just now.
    """
    return [
        Remove(f"{directory}/{name}", "")
        for directory in (DIRECTORY, VMS)
        for name in host.names(directory)
        if name.endswith(NEW)
    ]


def prepare_directory(host: Host) -> None:
    """/run is root's, and so is what we make in it."""
    host.make_directory(DIRECTORY, 0o755)
    host.make_directory(VMS, 0o700)
