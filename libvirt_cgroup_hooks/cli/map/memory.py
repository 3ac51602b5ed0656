# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bar of memory: what the host keeps, hugepage pools, what VMs may use, what each of them has.

It lies as one sum from left to right, a row for each part, so that parts of any number can be told
apart. NUMA nodes without CPUs are left out, as they are of the limit.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from ... import conformance, managers
from ...config import Config
from ...domain import Domain
from ...errors import Error, size
from ...host import Host, page_size
from ...memory import Memory


class Part(enum.Enum):
    """What a cell of the bar says: its character on the terminal, and the meaning."""

    HOST = "H", "reserved for the host"
    POOL = "P", "hugepage pools"
    LIMIT = "_", "for VMs"
    USED = "=", "in use by the VM"

    def __init__(self, symbol: str, meaning: str) -> None:
        self.symbol = symbol
        self.meaning = meaning


@dataclass(frozen=True)
class Vm:
    """Bytes of a running VM: what its cgroup has without hugepages, and its hugepages."""

    name: str
    used: int
    hugepages: int


@dataclass(frozen=True)
class Bar:
    """Bytes; `limit` is what all VMs together may use besides hugepages, None without a limit."""

    total: int
    pools: int
    limit: int | None
    vms: tuple[Vm, ...]

    @property
    def kept(self) -> int:
        """What the host keeps."""
        return 0 if self.limit is None else self.total - self.pools - self.limit


@dataclass(frozen=True)
class Span:
    """A part of the bar, in bytes from its left end."""

    part: Part
    start: int
    end: int


@dataclass(frozen=True)
class Row:
    """`number` is the VM's, None for what is not a VM."""

    name: str
    amount: str
    spans: tuple[Span, ...]
    number: int | None = None


def read(
    host: Host, config: Config, memory: Memory, limit: int | None, running: Sequence[Domain]
) -> Bar:
    """LIMIT is as for `Bar`. Of the VMs RUNNING, where the kernel counts the memory of cgroups."""
    try:
        manager = managers.choose(host, config, managers.daemon(host))
        used = [conformance.pages_in_use(manager, domain) for domain in running]
    except Error:  # no cgroups, which validate tells
        used = [0] * len(running)
    vms = [
        Vm(domain.name, amount, domain.hugepage_memory(page_size()))
        for domain, amount in zip(running, used)
    ]
    return Bar(memory.total, memory.hugetlb, limit, tuple(vms))


def rows(bar: Bar) -> list[Row]:
    """VMs that have nothing that could be shown are left out."""
    pools = bar.kept + bar.pools
    used = sum(vm.used for vm in bar.vms)
    limit = "no limit" if bar.limit is None else f"limit {size(bar.limit)}"
    found = [
        Row("host", size(bar.kept), (Span(Part.HOST, 0, bar.kept),)),
        Row("pools", size(bar.pools), (Span(Part.POOL, bar.kept, pools),)),
    ]
    found = [row for row in found if row.spans[0].start < row.spans[0].end]
    told = f"{limit}, {size(used)} in use" if used else limit
    found.append(Row("VMs", told, (Span(Part.LIMIT, pools, bar.total),)))
    return found + _vm_rows(bar, pools)


def _vm_rows(bar: Bar, pools: int) -> list[Row]:
    """Each VM after those before it: its hugepages among the pools, the rest behind POOLS."""
    found = []
    huge, plain = bar.kept, pools
    for number, vm in enumerate(bar.vms):
        spans = [
            Span(Part.USED, huge, min(huge + vm.hugepages, pools)),
            Span(Part.USED, plain, min(plain + vm.used, bar.total)),
        ]
        huge += vm.hugepages
        plain += vm.used
        amounts = [size(vm.used)] if vm.used else []
        amounts += [f"{size(vm.hugepages)} of hugepages"] if vm.hugepages else []
        if amounts:
            shown = tuple(span for span in spans if span.start < span.end)
            found.append(Row(vm.name, ", ".join(amounts), shown, number))
    return found


def cells(bar: Bar, span: Span, width: int) -> tuple[int, int]:
    """The cells of SPAN, from the first to before the second, in a bar of WIDTH cells; at least
    one.
    """
    start = min(round(span.start * width / bar.total), width - 1)
    return start, max(start + 1, round(span.end * width / bar.total))


def as_json(bar: Bar) -> dict[str, object]:
    """As `map --json` prints it."""
    return {
        "total": bar.total,
        "hugepage_pools": bar.pools,
        "reserved": bar.kept,
        "limit": bar.limit,
        "domains": [
            {"name": vm.name, "memory": vm.used, "hugepages": vm.hugepages} for vm in bar.vms
        ],
    }
