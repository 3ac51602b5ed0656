# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sets of CPU numbers, in the list form that the kernel, libvirt and administrators write."""

from __future__ import annotations

from .errors import Error, printable

TYPE_CHECKING = False  # the typing module costs the hook as much as the interpreter itself
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# The largest NR_CPUS of any kernel architecture is 8192; anything above is a slip that must not
# cost memory.
LIMIT = 8192


class CpuSet:
    """An immutable set of CPU numbers (or NUMA node numbers), kept as a bit mask."""

    __slots__ = ("_mask",)

    def __init__(self, cpus: Iterable[int] = ()) -> None:
        mask = 0
        for cpu in cpus:
            mask |= 1 << cpu
        self._mask = mask

    @classmethod
    def parse(cls, text: str) -> CpuSet:
        """Read "0-3,^1,8": items apply from left to right; blank text is the empty set. Raises
        Error.
        """
        mask = 0
        if not text.strip():
            return cls._of(mask)
        for item in text.split(","):
            item = item.strip()
            bits = _range_mask(item[1:] if item.startswith("^") else item, text)
            mask = mask & ~bits if item.startswith("^") else mask | bits
        return cls._of(mask)

    @classmethod
    def _of(cls, mask: int) -> CpuSet:
        new = cls.__new__(cls)
        new._mask = mask
        return new

    def __str__(self) -> str:
        """The kernel's range form: "0-2,8"; the empty set is ""."""
        parts = []
        cpus = list(self)
        while cpus:
            last = 0
            while last + 1 < len(cpus) and cpus[last + 1] == cpus[last] + 1:
                last += 1
            parts.append(f"{cpus[0]}-{cpus[last]}" if last else str(cpus[0]))
            cpus = cpus[last + 1 :]
        return ",".join(parts)

    def named(self) -> str:
        """Within a sentence: "CPU 8", or "CPUs 8-9"."""
        return f"{'CPU' if len(self) == 1 else 'CPUs'} {self}"

    def __repr__(self) -> str:
        return f"CpuSet({str(self)!r})"

    def __iter__(self) -> Iterator[int]:
        mask, cpu = self._mask, 0
        while mask:
            if mask & 1:
                yield cpu
            mask >>= 1
            cpu += 1

    def __len__(self) -> int:
        return bin(self._mask).count("1")

    def __bool__(self) -> bool:
        return self._mask != 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CpuSet) and self._mask == other._mask

    def __hash__(self) -> int:
        return hash(self._mask)

    def __and__(self, other: CpuSet) -> CpuSet:
        return self._of(self._mask & other._mask)

    def __or__(self, other: CpuSet) -> CpuSet:
        return self._of(self._mask | other._mask)

    def __sub__(self, other: CpuSet) -> CpuSet:
        return self._of(self._mask & ~other._mask)

    def __le__(self, other: CpuSet) -> bool:
        """Subset."""
        return not self._mask & ~other._mask


def _range_mask(item: str, text: str) -> int:
    first, dash, last = item.partition("-")
    low = _number(first, text)
    high = _number(last, text) if dash else low
    if high < low:
        raise Error(
            f'"{printable(text[:80])}" is not a CPU list',
            f"{item} runs backwards; write {high}-{low}",
        )
    return (1 << (high + 1)) - (1 << low)


def _number(digits: str, text: str) -> int:
    digits = digits.strip()
    if not (digits.isascii() and digits.isdigit()):
        raise Error(
            f'"{printable(text[:80])}" is not a CPU list',
            'write numbers and ranges, such as "0-3,8,^2"',
        )
    if len(digits) > 5 or int(digits) >= LIMIT:
        raise Error(
            f'"{printable(text[:80])}" is not a CPU list', f"no kernel has more than {LIMIT} CPUs"
        )
    return int(digits)
