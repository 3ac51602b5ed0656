# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is remembered under /run until the next boot: the compiled configuration, and the cgroups of each VM.

The files are lines of `key value` below a version, written whole and renamed into place. They are not JSON, because
the json module costs the hook more than all of its own work.
"""

from __future__ import annotations

from . import __version__
from .config import PATH, Config, inert, parse, resolve
from .domain import STATUS
from .errors import Error, printable
from .host import NEW, Host, page_size
from .plan import Remove, Replace, Step
from .topology import Topology, read_online

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .config import Changes

DIRECTORY = "/run/libvirt-cgroup-hooks"
SNAPSHOT = f"{DIRECTORY}/config"
VMS = f"{DIRECTORY}/vms"
SHARED = f"{DIRECTORY}/shared"
LIVE = f"{DIRECTORY}/live"
ADMITTED = f"{DIRECTORY}/admitted"
LOCK = f"{DIRECTORY}/lock"
FORMAT = "libvirt-cgroup-hooks 1"
GRACE = 60  # seconds
END = "end\n"  # the last line of the snapshot


class Record:
    """A VM that starts or runs: what is its own and has to go when it stops, and the memory it was admitted with.

    `groups` are cgroup directories, `files` drop-ins of its scope, `slices` systemd slices.
    """

    __slots__ = ("files", "groups", "memory", "name", "slices", "uuid")

    def __init__(self, uuid: str, name: str, memory: int = 0) -> None:
        self.uuid = uuid
        self.name = name
        self.memory = memory  # bytes
        self.groups: list[str] = []
        self.files: list[str] = []
        self.slices: list[str] = []

    def __str__(self) -> str:
        lines = [f"name {self.name}", f"memory {self.memory}"]
        for kind, values in (("group", self.groups), ("file", self.files), ("slice", self.slices)):
            lines += [f"{kind} {value}" for value in values]
        return _lines(lines)

    @classmethod
    def read(cls, host: Host, uuid: str) -> Record | None:
        """None where there is none, or none that is understood."""
        lines = [line.partition(" ") for line in _read(host, f"{VMS}/{uuid}")]
        values = {key: [value for kind, _, value in lines if kind == key] for key, _, _ in lines}
        if "name" not in values:
            return None
        memory = values.get("memory", ["0"])[0]
        record = cls(uuid, values["name"][0], int(memory) if _is_number(memory) else 0)
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

    def forget(self) -> Step:
        return Remove(f"{VMS}/{self.uuid}", str(self))


class Admitted:
    """Bytes of all VMs that have a record, as one number, so that a start costs the same however many VMs run.

    It is kept from when memory_admission first asks for it. It is written just before the record that it changes with,
    and names that record: where a run was killed between the two, what the record says decides. One serves one plan.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._text = host.read_optional(ADMITTED)
        self._total: int | None = None
        self._memory: dict[str, int] = {}  # of the VMs that this plan changes

    @property
    def total(self) -> int:
        if self._total is None:
            self._total = self._read()
        return self._total

    def _read(self) -> int:
        values = dict(line.partition(" ")[::2] for line in _read(self.host, ADMITTED))
        try:
            total, before, after = (int(values[key]) for key in ("total", "before", "after"))
        except (KeyError, ValueError):
            records = [Record.read(self.host, uuid) for uuid in recorded(self.host)]
            return sum(record.memory for record in records if record)
        record = Record.read(self.host, values.get("uuid", ""))
        written = (record.memory if record else 0) == after
        return total if written else total - after + before

    def change(self, uuid: str, before: int, after: int, begin: bool) -> list[Step]:
        """The record of UUID will say AFTER instead of BEFORE bytes. BEGIN: where no total is kept yet, too."""
        before = self._memory.get(uuid, before)
        if before == after if self._text else not begin:
            return []
        self._total = self.total + after - before
        self._memory[uuid] = after
        old, self._text = self._text, _lines([f"total {self.total}", f"uuid {uuid}", f"before {before}", f"after {after}"])
        return [Replace(ADMITTED, self._text, old)]


class Shared:
    """What was done to cgroups that VMs share: the directories made, and of each limit file what it said before.

    Both are put back when the last VM has gone; a limit also when it is no longer configured.
    """

    __slots__ = ("_text", "before", "made")

    def __init__(self, host: Host) -> None:
        self._text = host.read_optional(SHARED)
        lines = _read(host, SHARED)
        self.made = [line[len("made ") :] for line in lines if line.startswith("made ")]
        limits = [line[len("limit ") :].partition(" ") for line in lines if line.startswith("limit ")]
        self.before = {path: value for value, _, path in limits if path}

    def save(self) -> list[Step]:
        """No step where nothing has changed."""
        lines = [f"made {path}" for path in self.made] + [f"limit {value} {path}" for path, value in self.before.items()]
        old, self._text = self._text, _lines(lines) if lines else None
        return _saved(SHARED, _lines(lines), old, bool(lines))


class Live:
    """What `virt-cgroup reserve --live` has changed, until the next boot or until the setting is edited."""

    __slots__ = ("_text", "changes")

    def __init__(self, host: Host) -> None:
        self._text = host.read_optional(LIVE)
        lines = [line.split("\t") for line in _read(host, LIVE)]
        self.changes: Changes = {line[0]: (line[1], line[2]) for line in lines if len(line) == 3}

    def save(self) -> list[Step]:
        """No step where nothing has changed."""
        text = _lines([f"{key}\t{configured}\t{value}" for key, (configured, value) in self.changes.items()])
        return _saved(LIVE, text, self._text, bool(self.changes))


def _saved(path: str, text: str, old: str | None, wanted: bool) -> list[Step]:
    """PATH has TEXT afterwards, or is gone where that is not WANTED."""
    if wanted:
        return [] if text == old else [Replace(path, text, old)]
    return [] if old is None else [Remove(path, old)]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _lines(lines: list[str]) -> str:
    """Raises Error where one would become two, and so say what nobody meant."""
    for line in lines:
        if "\n" in line:
            raise Error(f'cannot remember "{printable(line)}": it has a newline', "name VMs and partitions without one")
    return "\n".join([FORMAT, *lines]) + "\n"


def _read(host: Host, path: str) -> list[str]:
    head, *lines = (host.read_optional(path) or "").split("\n")
    return [line for line in lines if line] if head == FORMAT else []


def recorded(host: Host) -> list[str]:
    """The UUIDs of the VMs that have a record."""
    return [name for name in host.names(VMS) if not name.endswith(NEW)]


def left_behind(host: Host, running: set[str] | None = None) -> list[str]:
    """The UUIDs of recorded VMs that have ended, and whose `release` never came to its end.

    A daemon that is killed while it stops a VM may leave the status XML, and forget the VM when it starts again: then
    only RUNNING, the names of the VMs that have a process, tells.

    Between `prepare` and the moment libvirt writes its status XML, a VM that starts looks the same: hence GRACE. What is
    lost of one that takes longer is written again at `start` and `started`.
    """
    found = recorded(host)
    if running is None and len(found) <= len([name for name in host.names(STATUS) if name.endswith(".xml")]):
        return []  # the usual case costs the same however many VMs run
    old = [uuid for uuid in found if host.age(f"{VMS}/{uuid}") > GRACE]
    records = [(uuid, Record.read(host, uuid)) for uuid in old]
    return [uuid for uuid, record in records if record is None or not _runs(host, record.name, running)]


def _runs(host: Host, name: str, running: set[str] | None) -> bool:
    return host.exists(f"{STATUS}/{name}.xml") if running is None else name in running


def forget(host: Host, uuid: str) -> Step:
    path = f"{VMS}/{uuid}"
    return Remove(path, host.read_optional(path) or "")


def half_written(host: Host) -> list[Step]:
    """Takes away the files that someone who was killed was writing: who holds the lock writes none just now."""
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


def load(host: Host, warn: list[str], save: bool = False) -> Config:
    """The configuration in force, from the snapshot where that still holds. Raises Error.

    WARN gets the warnings of a file that is read anew. With SAVE the snapshot is written then, unless nothing is
    configured.
    """
    fingerprint, changed = host.fingerprint(PATH), host.fingerprint(LIVE)
    if not fingerprint and not changed:
        return Config({})
    online = str(read_online(host.read_optional))
    stamp = f"{FORMAT}\nfor {__version__} {fingerprint} {changed} {online}\n"
    kept = from_snapshot(host.read_optional(SNAPSHOT) or "", stamp)
    if kept is not None:
        return kept
    text = host.read_optional(PATH) or ""
    changes = Live(host).changes
    if inert(text) and not changes:
        return Config({})
    config = compiled(host, text, changes, warn)
    config.anew = True
    if save and config:
        prepare_directory(host)
        host.replace(SNAPSHOT, snapshot(stamp, config))
    return config


def compiled(host: Host, text: str, changes: Changes, warn: list[str]) -> Config:
    """TEXT as the configuration of HOST, with CHANGES made at run time. Raises Error."""
    parsed = parse(text, PATH, changes)
    warn += parsed.warnings
    try:
        return resolve(parsed, Topology.read(host.read_optional), page_size())
    except ValueError:
        raise Error(f"cannot read {LIVE}: it is damaged", "remove it") from None


def snapshot(stamp: str, config: Config) -> str:
    return stamp + "".join(f"{key} {value}\n" for key, value in config.values.items() if value) + END


def from_snapshot(text: str, stamp: str) -> Config | None:
    """None where TEXT is not a whole snapshot with this STAMP."""
    if not (text.startswith(stamp) and text.endswith(END)):
        return None
    lines = [line.partition(" ") for line in text[len(stamp) : -len(END)].split("\n")]
    try:
        return Config({key: value for key, _, value in lines})
    except (Error, ValueError):  # not what `snapshot` writes
        return None
