# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM as its XML says, and what follows from that: pins, memory, thread groups."""

from __future__ import annotations

from .errors import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .cpuset import CpuSet

UUID_LENGTH = 36  # characters; virsh takes each word as long for a UUID, if there is such a VM
NO_RAM = ("nvdimm", "virtio-pmem", "sgx-epc")  # models of memory devices


class MemoryDevice:
    """A <memory> device; sizes in bytes, `page_size` 0 where the XML names none."""

    __slots__ = ("is_ram", "node", "page_size", "size")

    def __init__(self, model: str) -> None:
        self.is_ram = model not in NO_RAM
        self.node = 0
        self.page_size = 0
        self.size = 0


class Domain:
    """Memory in bytes; `vcpus` is what the VM starts with, `max_vcpus` what it may grow to.

    `pid`, `vcpu_threads` (vCPU number to thread id) and `is_starting`, whether libvirt has not yet
    ended the start, are known from its status XML only.
    `settings` is what the VM's own metadata says, as it stands there: `own_settings` checks
    it.
    """

    def __init__(self) -> None:
        self.name = ""
        self.uuid = ""
        self.id: int | None = None
        self.vcpus = 1
        self.max_vcpus = 1
        self.vcpu_cpus: CpuSet | None = None
        self.individual_vcpus: dict[int, bool] = {}
        self.auto_placement = False
        self.vcpupin: dict[int, CpuSet] = {}
        self.iothreadpin: dict[int, CpuSet] = {}
        self.emulatorpin: CpuSet | None = None
        self.iothreads = 0
        self.iothread_ids: list[int] = []
        self.tuned: set[str] = set()
        self.memory = 0
        self.current_memory = 0
        self.hugepages = False
        self.pages: list[tuple[int, CpuSet | None]] = []  # bytes, and guest NUMA nodes if given
        self.memory_devices: list[MemoryDevice] = []
        self.node_memory: dict[int, int] = {}
        self.video_memory = 0
        # addresses on the host of the PCI devices that it uses, as the XML has them
        self.pci_devices: list[dict[str, str]] = []
        self.partition = ""
        self.settings: dict[str, str] = {}
        self.pid: int | None = None
        self.vcpu_threads: dict[int, int] = {}
        self.is_starting = False

    def pins(self) -> dict[str, CpuSet]:
        """Every pin of the XML by thread group; `<vcpu cpuset=>` stands for those that have none
        (as in libvirt).
        """
        pins: dict[str, CpuSet] = {}
        if self.vcpu_cpus is not None:
            groups = ["emulator"] + [f"vcpu{vcpu}" for vcpu in self.online_vcpus()]
            pins = dict.fromkeys(
                groups + [f"iothread{number}" for number in self.iothread_numbers()], self.vcpu_cpus
            )
        if self.emulatorpin is not None:
            pins["emulator"] = self.emulatorpin
        pins.update((f"vcpu{vcpu}", cpus) for vcpu, cpus in self.vcpupin.items())
        pins.update((f"iothread{number}", cpus) for number, cpus in self.iothreadpin.items())
        return pins

    def hugepage_memory(self, page_size: int) -> int:
        """Bytes that come from hugepage pools; PAGE_SIZE is the system's own, in bytes.

        As qemuBuildMemoryBackendProps of libvirt: a page with a nodeset is for these guest nodes,
        one without for all others, and one of the system's own size is no hugepage.
        """
        if not self.hugepages:
            return sum(one.size for one in self.memory_devices if one.page_size > page_size)
        nodes = self.node_memory or {0: self.memory - sum(one.size for one in self.memory_devices)}
        found = sum(size for node, size in nodes.items() if self._is_huge(node, page_size))
        for one in self.memory_devices:
            given = one.page_size > page_size
            if one.is_ram and (given or (not one.page_size and self._is_huge(one.node, page_size))):
                found += one.size
        return found

    def _is_huge(self, node: int, page_size: int) -> bool:
        sizes = [size for size, nodes in self.pages if nodes is not None and node in nodes]
        sizes += [size for size, nodes in self.pages if nodes is None]
        return sizes[0] > page_size if sizes else not self.pages

    def host_memory(self, page_size: int) -> int:
        """Bytes that the VM may take from the host: memory but for hugepages, and QEMU's own."""
        return self.overhead() + self.ordinary_memory(page_size)

    def ordinary_memory(self, page_size: int) -> int:
        """Bytes of the guest's memory that are no hugepages."""
        return max(0, self._guest_memory() - self.hugepage_memory(page_size))

    def _guest_memory(self) -> int:
        """libvirt counts memory devices into <memory>: an NVDIMM or virtio-pmem, which is a file's,
        and SGX memory are no RAM; virtio-mem counts with the size that it may grow to.
        """
        guest = max(self.memory, self.current_memory)
        return guest - sum(one.size for one in self.memory_devices if not one.is_ram)

    def overhead(self) -> int:
        """An estimate of the bytes that QEMU needs for itself.

        It follows KubeVirt's GetMemoryOverhead: page tables, 1/512 of the guest's memory; 8 MiB for
        each vCPU and I/O thread; the video memory; 64 MiB for QEMU itself.
        """
        threads = self.max_vcpus + self.iothreads
        return self._guest_memory() // 512 + threads * 8 * MIB + self.video_memory + 64 * MIB

    @property
    def partition_top(self) -> str:
        """The first component of the partition that libvirt puts the VM into."""
        return self.partition.strip("/").partition("/")[0] or "machine"

    def online_vcpus(self) -> list[int]:
        if self.individual_vcpus:
            return [vcpu for vcpu, enabled in sorted(self.individual_vcpus.items()) if enabled]
        return list(range(self.vcpus))

    def iothread_numbers(self) -> list[int]:
        """The ids of the I/O threads; those that `<iothreadids>` leaves out are numbered from 1 (as
        in libvirt).
        """
        numbers = set(self.iothread_ids)
        free = (
            number
            for number in range(1, self.iothreads + len(numbers) + 1)
            if number not in numbers
        )
        return sorted(
            [*numbers, *(number for number, _ in zip(free, range(self.iothreads - len(numbers))))]
        )

    def group_names(self) -> list[str]:
        """The thread groups that libvirt makes for the VM when it starts."""
        vcpus = [f"vcpu{vcpu}" for vcpu in self.online_vcpus()]
        return ["emulator", *vcpus, *(f"iothread{number}" for number in self.iothread_numbers())]

    def unpinned(self) -> list[str]:
        """The thread groups that have no pin in the XML; those of vCPUs that may be plugged in,
        too.
        """
        if self.vcpu_cpus is not None:
            return []
        vcpus = [f"vcpu{number}" for number in range(self.max_vcpus)]
        groups = ["emulator", *vcpus, *(f"iothread{number}" for number in self.iothread_numbers())]
        pins = self.pins()
        return [group for group in groups if group not in pins]

    @property
    def handle(self) -> str:
        """As `handle`."""
        return handle(self.name, self.uuid)


def handle(name: str, uuid: str) -> str:
    """What a command line calls a VM: its name, or its UUID where a shell or virsh would misread
    the name, perhaps as the UUID of another VM.
    """
    plain = all(
        part.isascii() and part.isalnum()
        for part in name.replace("-", ".").replace("_", ".").split(".")
    )
    return name if plain and name[:1].isalpha() and len(name) != UUID_LENGTH else uuid
