# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM's XML, read with expat: nothing is fetched, and nothing in it can grow."""

from __future__ import annotations

import pyexpat

from .cpuset import CpuSet
from .domain import Domain, MemoryDevice
from .errors import Error, printable

# of the element in <metadata> that has the VM's own settings
SETTINGS_URI = "urn:libvirt-cgroup-hooks:domain:1"
# of XML that has none: libvirt gives it one when it is defined
NIL_UUID = "00000000-0000-0000-0000-000000000000"
DEPTH = 256  # libxml2's own limit
PATH_MAX = 512  # characters; no path that is read is as long
HEXADECIMAL = frozenset("0123456789abcdef-")
LIMIT = 4 * 1024**2  # bytes: libvirt's own limit for a string on its protocol
MOST_SETTINGS = 32  # of one VM that are read: there are fewer keys
LONGEST_KEY = 100  # characters; no key of a setting is as long
UNITS = {
    "b": 1,
    "bytes": 1,
    "KB": 10**3,
    "k": 2**10,
    "KiB": 2**10,
    "MB": 10**6,
    "M": 2**20,
    "MiB": 2**20,
}
UNITS.update({"GB": 10**9, "G": 2**30, "GiB": 2**30, "TB": 10**12, "T": 2**40, "TiB": 2**40})
DEFAULT_VRAM = "16384"  # KiB, as libvirt gives most models
TUNING = ("cputune", "memtune", "blkiotune", "numatune")
HOST_PCI = ("hostdev/source/address", "interface/source/address")
PIN = {
    "vcpupin": ("vcpu", "vcpu"),
    "iothreadpin": ("iothread", "iothread"),
    "emulatorpin": ("emulator", ""),
}


def add_setting(settings: dict[str, str], key: str, text: str) -> None:
    """Notes that KEY says TEXT. One that comes twice gets two texts, on two lines: no value of any
    setting has two. What is beyond MOST_SETTINGS is left out: not all can be right then.
    """
    key = key[:LONGEST_KEY]
    if key not in settings:
        if len(settings) < MOST_SETTINGS:
            settings[key] = text.strip()
    elif "\n" not in settings[key]:
        settings[key] = f"{settings[key]}\n{text.strip()}"


def parse(xml: bytes) -> Domain:
    """A `<domain>`, or the `<domstatus>` that libvirt keeps of a running one. Raises Error for
    anything else.
    """
    if len(xml) > LIMIT:
        raise Error(
            f"the domain XML is larger than {LIMIT >> 20} MiB ({len(xml)} bytes)",
            "libvirt itself accepts no more",
        )
    reader = _Reader()
    try:
        reader.parser.Parse(xml, True)
    except (pyexpat.ExpatError, LookupError, ValueError) as error:  # the latter two: of encodings
        raise Error(
            f"the domain XML is not well-formed ({error})", "check it with virt-xml-validate"
        ) from None
    return _checked(reader.domain)


class _Reader:
    """Follows the path of open elements and keeps what `_ELEMENTS` and `_TEXTS` name."""

    def __init__(self) -> None:
        self.domain = Domain()
        self.paths: list[str] = [""]  # of the document, and of each open element
        self.text: list[str] = []
        self.attributes: dict[str, str] = {}
        # namespaces by prefix, of <domain>, <metadata> and two levels below
        self.scopes: list[dict[str, str]] = []
        self.parser = pyexpat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self.doctype
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.text.append

    def doctype(self, *_: object) -> None:
        raise Error(
            "the domain XML has a document type declaration",
            "libvirt writes none; entities are not read",
        )

    def start(self, element: str, attributes: dict[str, str]) -> None:
        path = self.path_of(element)
        self.paths.append(path)
        if len(self.paths) > DEPTH + 1:
            raise Error(
                f"the domain XML has elements nested more than {DEPTH} deep",
                "libvirt itself accepts no more",
            )
        self.text.clear()
        self.attributes = attributes
        if path == "domain":
            self.in_domain(attributes)
        elif path == "domstatus":
            self.in_status(attributes)
        elif path == "domstatus/job" and attributes.get("async") == "start":
            self.domain.is_starting = True
        elif path == "domstatus/vcpus/vcpu" and attributes.get("pid"):
            self.domain.vcpu_threads[_integer(attributes.get("id"), "vcpu id")] = _integer(
                attributes["pid"], "vcpu pid"
            )
        elif path.startswith("domain/"):
            self.element(path[len("domain/") :], element, attributes)

    def in_status(self, attributes: dict[str, str]) -> None:
        """A VM that migrates in has another job than one that starts, but the same reason."""
        if attributes.get("pid"):
            self.domain.pid = _integer(attributes["pid"], "domstatus pid")
        self.domain.is_starting = attributes.get("reason") == "starting up"

    def path_of(self, element: str) -> str:
        """The path of ELEMENT, which has begun; below <domstatus> it is that of the plain domain.

        One that is too long for any meaning does not grow: each is kept while its element is open.
        """
        above = self.paths[-1]
        if len(above) > PATH_MAX:
            return above
        if not above or (above == "domstatus" and element == "domain"):
            return element
        return f"{above}/{element}"

    def in_domain(self, attributes: dict[str, str]) -> None:
        self.scopes = [_declared(attributes)]
        if attributes.get("id"):
            self.domain.id = _integer(attributes["id"], "domain id")

    def element(self, path: str, element: str, attributes: dict[str, str]) -> None:
        domain = self.domain
        if path in TUNING:
            domain.tuned.add(path)
        elif path == "vcpus/vcpu":
            domain.individual_vcpus[_integer(attributes.get("id"), "vcpu id")] = (
                attributes.get("enabled") != "no"
            )
        elif path in ("cputune/vcpupin", "cputune/iothreadpin", "cputune/emulatorpin"):
            self.pin(element, attributes)
        elif path == "iothreadids/iothread":
            domain.iothread_ids.append(_integer(attributes.get("id"), "iothread id"))
        elif path == "memoryBacking/hugepages":
            domain.hugepages = True
        elif path == "memoryBacking/hugepages/page":
            nodeset = attributes.get("nodeset")
            nodes = CpuSet.parse(nodeset) if nodeset else None
            domain.pages.append((self.bytes(attributes.get("size")), nodes))
        elif path == "cpu/numa/cell" and attributes.get("memory"):
            node = _integer(attributes.get("id", str(len(domain.node_memory))), "cell id")
            domain.node_memory[node] = self.bytes(attributes["memory"])
        elif path.startswith("devices/"):
            self.in_devices(path[len("devices/") :], attributes)
        elif path.startswith("metadata"):
            self.in_metadata(path.count("/") + 1, attributes)

    def in_devices(self, path: str, attributes: dict[str, str]) -> None:
        if path == "memory":
            self.domain.memory_devices.append(MemoryDevice(attributes.get("model", "")))
        elif path == "video/model":
            vram = attributes.get("vram", DEFAULT_VRAM)
            self.domain.video_memory += (
                _integer(vram, "vram") * 1024 * _integer(attributes.get("heads", "1"), "heads")
            )
        elif path in HOST_PCI and "slot" in attributes:
            self.domain.pci_devices.append(dict(attributes))

    def in_metadata(self, depth: int, attributes: dict[str, str]) -> None:
        """Follows namespaces down to DEPTH 3, where settings are.

        Not by expat, which would refuse others' prefixes that are not declared; libvirt lets them
        pass.
        """
        if depth <= 3:
            del self.scopes[depth:]
            self.scopes.append({**self.scopes[-1], **_declared(attributes)})

    def pin(self, element: str, attributes: dict[str, str]) -> None:
        group, number = PIN[element]
        cpus = CpuSet.parse(attributes.get("cpuset", ""))
        if group == "emulator":
            self.domain.emulatorpin = cpus
        else:
            pins = self.domain.vcpupin if group == "vcpu" else self.domain.iothreadpin
            pins[_integer(attributes.get(number), element)] = cpus

    def end(self, element: str) -> None:
        path = self.paths.pop()
        text = "".join(self.text)
        self.text.clear()
        if path == "domain/name":
            self.domain.name = text
        elif path == "domain/uuid":
            self.domain.uuid = text.strip().lower()
        elif path == "domain/vcpu":
            self.vcpu(text)
        elif path == "domain/iothreads":
            self.domain.iothreads = _integer(text, "iothreads")
        elif path == "domain/memory":
            self.domain.memory = self.bytes(text)
        elif path == "domain/currentMemory":
            self.domain.current_memory = self.bytes(text)
        elif path.startswith("domain/devices/memory/"):
            self.memory_device(path.rpartition("memory/")[2], text)
        elif path == "domain/resource/partition":
            self.domain.partition = text
        elif path.startswith("domain/metadata/") and path.count("/") == 3:
            self.setting(path.split("/")[2], element, text)

    def memory_device(self, path: str, text: str) -> None:
        device = self.domain.memory_devices[-1]
        if path == "target/size":
            device.size = self.bytes(text)
        elif path == "target/node":
            device.node = _integer(text, "node")
        elif path == "source/pagesize":
            device.page_size = self.bytes(text)

    def setting(self, holder: str, element: str, text: str) -> None:
        """An element below HOLDER, a child of <metadata>. Without a namespace it counts as HOLDER's
        (as in libvirt).
        """
        if _namespace(holder, self.scopes[2]) == SETTINGS_URI:
            ours = _namespace(element, self.scopes[3]) in ("", SETTINGS_URI)
            add_setting(self.domain.settings, element.rpartition(":")[2] if ours else element, text)

    def vcpu(self, text: str) -> None:
        domain = self.domain
        domain.max_vcpus = _integer(text, "vcpu")
        domain.vcpus = _integer(self.attributes.get("current", text), "vcpu current")
        domain.auto_placement = self.attributes.get("placement") == "auto"
        if self.attributes.get("cpuset") and not domain.auto_placement:
            domain.vcpu_cpus = CpuSet.parse(self.attributes["cpuset"])

    def bytes(self, text: str | None) -> int:
        unit = self.attributes.get("unit", "KiB")
        if unit not in UNITS:
            raise Error(
                f'the domain XML has an unknown unit of memory "{printable(unit[:20])}"',
                "use KiB, MiB or GiB",
            )
        return _integer(text, "memory") * UNITS[unit]


def _declared(attributes: dict[str, str]) -> dict[str, str]:
    """Namespaces by prefix; the default one has the prefix ""."""
    return {
        name[6:]: uri
        for name, uri in attributes.items()
        if name == "xmlns" or name.startswith("xmlns:")
    }


def _namespace(element: str, scope: dict[str, str]) -> str | None:
    """None where its prefix is not declared."""
    prefix, colon, _ = element.partition(":")
    return scope.get(prefix) if colon else scope.get("", "")


def _integer(text: str | None, what: str) -> int:
    digits = (text or "").strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise Error(
            f'the domain XML has "{printable(digits[:20])}" as {what}', "it has to be a number"
        )
    return int(digits)


def _checked(domain: Domain) -> Domain:
    if not domain.name:
        raise Error("the domain XML has no name", "give the XML that `virsh dumpxml` prints")
    if any(character in domain.name for character in "/\n\0"):
        raise Error(
            f'the domain XML has "{printable(domain.name)}" as name',
            "libvirt allows no / and no newline in it",
        )
    domain.uuid = domain.uuid or NIL_UUID
    lengths = [len(part) for part in domain.uuid.split("-")]
    if lengths != [8, 4, 4, 4, 12] or not set(domain.uuid) <= HEXADECIMAL:
        raise Error(
            f'the domain XML has "{printable(domain.uuid[:40])}" as uuid',
            "it has to be 8-4-4-4-12 hexadecimal digits",
        )
    if any(character in domain.partition for character in "\n\0"):
        raise Error(
            f'the domain XML has "{printable(domain.partition[:200])}" as partition',
            "the kernel allows no newline in it",
        )
    if max(domain.max_vcpus, domain.vcpus, domain.iothreads, *domain.iothread_ids, 0) > 65536:
        raise Error(
            "the domain XML asks for more than 65536 vCPUs or I/O threads",
            "libvirt itself accepts no more",
        )
    return domain
