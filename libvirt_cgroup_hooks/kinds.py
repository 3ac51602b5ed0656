# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kinds of limit that a cgroup can carry: one row for each, which says where it is kept."""

from __future__ import annotations

from .cpuset import CpuSet
from .errors import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional, Union

    Value = Optional[Union[CpuSet, int]]  # CPUs, or bytes; None: no limit

UNLIMITED = 1 << 62  # bytes; a v1 memory limit above this is the kernel's way to say none
NONE = "-"  # no limit, in the state file
WEIGHT, SHARES = 100, 1024  # what a cgroup has of itself, on v2 and on v1
NO_LIMIT = ("", NONE, "-1", "max", "infinity")  # ours, v1's, v2's, systemd's


class Kind:
    """A kind of limit whose values are bytes.

    `v1` and `v2` are its files in a cgroup of that version ("" where there is none), `controller`
    the one that has to be there, `unit_property` what systemd calls it
    (systemd.resource-control(5); "" where it has none). `of_host`: it is kept on the host's own
    units, not on VMs. `of_vm`: on the cgroup of one VM. `noun`: of what the bytes are, for
    people.
    """

    __slots__ = ("controller", "name", "noun", "of_host", "of_vm", "unit_property", "v1", "v2")

    of_cpus = False
    unset = "infinity"  # the unit's property without a limit

    def __init__(
        self,
        name: str,
        controller: str,
        v1: str,
        v2: str,
        unit_property: str,
        of_host: bool = False,
        of_vm: bool = False,
        noun: str = "",
    ) -> None:
        self.name = name
        self.noun = noun
        self.controller = controller
        self.v1 = v1
        self.v2 = v2
        self.unit_property = unit_property
        self.of_host = of_host
        self.of_vm = of_vm

    def parse(self, text: str) -> Value:
        """From text of the kernel, of systemd or of the state file. Raises ValueError, Error."""
        text = text.strip()
        if text in NO_LIMIT or int(text) > UNLIMITED:
            return None
        return int(text)

    def parse_v1(self, text: str) -> Value:
        """As `parse`, of the file of cgroup v1."""
        return self.parse(text)

    def text_v1(self, value: Value) -> str:
        """VALUE as the file of cgroup v1 has it."""
        return "-1" if value is None else str(value)

    def text_v2(self, value: Value) -> str:
        """VALUE as the file of cgroup v2 has it."""
        return "max" if value is None else str(value)

    def amount(self, value: Value) -> str:
        """VALUE for people who are told of what it is."""
        return "no limit" if value is None else size(value)  # type: ignore[arg-type]  # bytes

    def shown(self, value: Value) -> str:
        """VALUE for people."""
        return self.amount(value) + self.noun

    @property
    def key(self) -> str:
        """What people set it by."""
        return self.unit_property or self.v1

    def assigned(self, value: Value) -> str:
        """VALUE for people, as it is set."""
        return f"{self.key}={self.amount(value)}"

    def rises(self, there: Value, wanted: Value) -> bool:
        """Whether a cgroup that has THERE may use more, or the same, when it has WANTED."""
        if wanted is None or there is None:
            return wanted is None
        return there <= wanted  # type: ignore[operator]  # two values of one kind

    def narrower(self, one: Value, other: Value) -> Value:
        """What both allow; for CPUs None if that is none."""
        return one if self.rises(one, other) else other

    @property
    def rank(self) -> int:
        """Its place in the order in which the limits of one cgroup rise."""
        return KINDS.index(self)


class Cpus(Kind):
    """A kind of limit whose values are sets of CPUs."""

    __slots__ = ()

    of_cpus = True

    def parse(self, text: str) -> Value:
        # systemd writes a list with spaces into its own files
        cpus = CpuSet.parse(",".join(text.split())) if text.strip() != NONE else CpuSet()
        return cpus or None

    def amount(self, value: Value) -> str:
        return "no limit" if value is None else str(value)

    def shown(self, value: Value) -> str:
        return self.amount(value) if value is None else f"CPUs {value}"

    def narrower(self, one: Value, other: Value) -> Value:
        both = (as_cpus(one) or CpuSet()) & (as_cpus(other) or CpuSet())
        return both or None


class Protection(Kind):
    """Bytes that are not reclaimed while others have some; None is none, and UNLIMITED is all."""

    __slots__ = ()

    unset = "0"

    def parse(self, text: str) -> Value:
        text = text.strip()
        if text in ("", NONE, "0"):
            return None
        return UNLIMITED if text in NO_LIMIT else int(text)

    def text_v2(self, value: Value) -> str:
        return "max" if value == UNLIMITED else str(value or 0)

    def amount(self, value: Value) -> str:
        if value is None:
            return "nothing"
        return "all memory" if value == UNLIMITED else size(in_bytes(value) or 0)

    def shown(self, value: Value) -> str:
        return f"{self.amount(value)} protected"

    def rises(self, there: Value, wanted: Value) -> bool:
        return (in_bytes(there) or 0) <= (in_bytes(wanted) or 0)

    def narrower(self, one: Value, other: Value) -> Value:
        """What both ask for."""
        return other if self.rises(one, other) else one


class Weight(Kind):
    """A share of CPU time beside other cgroups, from 1 to 10000; None is the default of 100.

    cgroup v1 has shares of 1024 (systemd's cgroup_cpu_weight_to_shares).
    """

    __slots__ = ()

    unset = ""

    def parse(self, text: str) -> Value:
        number = text.strip()
        if not number.isdigit() or int(number) == WEIGHT:  # "idle" is none of ours
            return None
        return int(number)

    def parse_v1(self, text: str) -> Value:
        shares = text.strip()
        return self.parse(str(round(int(shares) * WEIGHT / SHARES))) if shares else None

    def text_v1(self, value: Value) -> str:
        return str(max(2, (in_bytes(value) or WEIGHT) * SHARES // WEIGHT))

    def text_v2(self, value: Value) -> str:
        return str(WEIGHT if value is None else value)

    def amount(self, value: Value) -> str:
        return str(WEIGHT if value is None else value)

    def shown(self, value: Value) -> str:
        return f"CPU weight {self.amount(value)}"

    def rises(self, there: Value, wanted: Value) -> bool:
        return (in_bytes(there) or WEIGHT) <= (in_bytes(wanted) or WEIGHT)


CPUS = Cpus("cpus", "cpuset", "cpuset.cpus", "cpuset.cpus", "AllowedCPUs")
# What a VM has of the CPUs, where others have some for themselves alone.
VM_CPUS = Cpus("vm-cpus", "cpuset", "cpuset.cpus", "cpuset.cpus", "AllowedCPUs", of_vm=True)
# Nothing says so on v1, where systemd keeps no cpusets, and each process may leave one.
HOST_CPUS = Cpus("host-cpus", "cpuset", "", "cpuset.cpus", "AllowedCPUs", of_host=True)
MEMORY = Kind("memory", "memory", "memory.limit_in_bytes", "memory.max", "MemoryMax")
# Set for the time that MEMORY is lowered: it throttles and reclaims, and kills nobody.
PRESSURE = Kind("pressure", "memory", "", "memory.high", "MemoryHigh")
SWAP = Kind("swap", "memory", "", "memory.swap.max", "MemorySwapMax", noun=" of swap")
# cgroup v1 has no limit of swap alone
MEMSW = Kind("memsw", "memory", "memory.memsw.limit_in_bytes", "", "", noun=" of memory and swap")
LOW = Protection("low", "memory", "", "memory.low", "MemoryLow", of_host=True)
MIN = Protection("min", "memory", "", "memory.min", "MemoryMin", of_host=True)
CPU_WEIGHT = Weight("cpu-weight", "cpu", "cpu.shares", "cpu.weight", "CPUWeight")
# In the order in which limits rise; they fall the other way round. The kernel keeps MEMORY within
# MEMSW.
KINDS = (CPUS, VM_CPUS, MEMSW, MEMORY, PRESSURE, HOST_CPUS, SWAP, LOW, MIN, CPU_WEIGHT)


def named(name: str) -> Kind | None:
    """The kind that the state file calls NAME."""
    return next((kind for kind in KINDS if kind.name == name), None)


def text(value: Value) -> str:
    """VALUE as the state file has it."""
    return NONE if value is None else str(value)


def in_bytes(value: Value) -> int | None:
    """A VALUE of a kind whose values are numbers, for what takes no other."""
    return None if isinstance(value, CpuSet) else value


def as_cpus(value: Value) -> CpuSet | None:
    """A VALUE of CPUS, for what takes no other."""
    return value if isinstance(value, CpuSet) else None
