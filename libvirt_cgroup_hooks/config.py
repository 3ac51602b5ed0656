# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration as values: every setting of cgroup-hooks.conf, checked, or its default."""

from __future__ import annotations

from .cpuset import CpuSet
from .fence import Fence, cpus_left, memory_left, reserved_memory, share
from .kinds import WEIGHT
from .layout import NATIVE, Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .memory import Memory

PATH = "/etc/libvirt/cgroup-hooks.conf"
# By key, the canonical text of each setting that the file does not have; "" means not set. Beside
# the settings themselves, it would have the hook load their prose each time.
DEFAULTS = {
    "reserved_host_cpus": "",
    "reserved_host_mem": "",
    "cgroup_layout": NATIVE,
    "emulator_cpus": "",
    "vcpu_cpus": "",
    "iothread_cpus": "",
    "pin_conflict": "refuse",
    "memory_admission": "0",
    "hook_timeout": "10",
    "on_error": "refuse",
    "confine_host": "no",
    "host_units": "system.slice user.slice init.scope",
    "host_cpus_for": "",
    "vm_swap_max": "",
    "protect_host_mem": "no",
    "vm_cpu_weight": "",
}


class Config:
    """The settings of one host, checked and with "auto" and counts of CPUs resolved."""

    __slots__ = (
        "anew",
        "cgroup_layout",
        "confine_host",
        "dedicated",
        "emulator_cpus",
        "hook_timeout",
        "host_cpus_for",
        "host_units",
        "iothread_cpus",
        "memory_admission",
        "moment",
        "on_error",
        "pin_conflict",
        "protect_host_mem",
        "reserved_host_cpus",
        "reserved_host_mem",
        "values",
        "vcpu_cpus",
        "vm_cpu_weight",
        "vm_swap_max",
    )

    def __init__(self, values: dict[str, str]) -> None:
        """VALUES: canonical text by key, as `settings.TABLE` makes it; what is missing or empty has
        its default.
        """
        self.anew = False  # whether it was parsed, and not read from the snapshot
        self.moment: int | None = None  # when its file was written, in nanoseconds
        self.values = {key: values.get(key) or default for key, default in DEFAULTS.items()}
        # of a VM alone, and never of the host: "yes", "threads", or "no"
        self.dedicated = values.get("dedicated", "no")
        self.reserved_host_cpus = self._cpus("reserved_host_cpus")
        self.reserved_host_mem = self.values["reserved_host_mem"]
        self.cgroup_layout = Layout(self.values["cgroup_layout"])
        self.emulator_cpus = self._cpus("emulator_cpus")
        self.vcpu_cpus = self._cpus("vcpu_cpus")
        self.iothread_cpus = self._cpus("iothread_cpus")
        self.pin_conflict = self.values["pin_conflict"]
        self.memory_admission = self.values["memory_admission"] == "1"
        self.hook_timeout = int(self.values["hook_timeout"])
        self.on_error = self.values["on_error"]
        self.confine_host = self.values["confine_host"]
        self.host_units = self.values["host_units"].split(" ")
        self.host_cpus_for = self.values["host_cpus_for"].split()
        self.vm_swap_max = self.values["vm_swap_max"]
        self.protect_host_mem = self.values["protect_host_mem"]
        self.vm_cpu_weight = int(self.values["vm_cpu_weight"] or WEIGHT)

    def _cpus(self, key: str) -> CpuSet | None:
        return CpuSet.parse(self.values[key]) if self.values[key] else None

    def __bool__(self) -> bool:
        """Whether anything is to be enforced: if not, the hook changes nothing at all."""
        return bool(
            self.reserved_host_cpus
            or self.reserved_host_mem
            or self.vm_swap_max
            or self.vm_cpu_weight != WEIGHT
            or not self.cgroup_layout.native
            or self.has_sets
        )

    @property
    def asks_memory(self) -> bool:
        """Whether a limit follows from the memory that the host has."""
        return bool(self.reserved_host_mem or self.vm_swap_max)

    @property
    def has_sets(self) -> bool:
        return bool(self.emulator_cpus or self.vcpu_cpus or self.iothread_cpus)

    def set_of(self, group: str) -> CpuSet | None:
        """The host-wide set for a thread group: "emulator", "vcpu3", "iothread1"."""
        if group.startswith("vcpu"):
            return self.vcpu_cpus
        return self.iothread_cpus if group.startswith("iothread") else self.emulator_cpus

    def lends_to(self, group: str) -> bool:
        """Whether the host's CPUs are also for a thread group, or for a class of them."""
        return group.rstrip("0123456789") in self.host_cpus_for

    def all_reserved(self, group: str, cpus: CpuSet) -> bool:
        """Whether CPUS leave a thread group, or a class of them, with none at all."""
        reserved = self.reserved_host_cpus
        return bool(reserved and cpus and cpus <= reserved and not self.lends_to(group))

    def fence(self, online: CpuSet, memory: Memory, page_size: int) -> Fence:
        """What the VMs of a host with the CPUs ONLINE and MEMORY may use. Raises Error where that
        is nothing.
        """
        reserved = self.reserved_host_cpus
        fence = Fence(
            cpus_left(reserved, online), memory_left(self.reserved_host_mem, memory, page_size)
        )
        if self.vm_swap_max:
            fence.swap = share(self.vm_swap_max, memory.swap) // page_size * page_size
        if self.protect_host_mem != "no":
            fence.protected = reserved_memory(self.reserved_host_mem, memory)
        if self.vm_cpu_weight != WEIGHT:
            fence.cpu_weight = self.vm_cpu_weight
        if reserved and self.host_cpus_for:
            fence.lent = reserved & online
        return fence
