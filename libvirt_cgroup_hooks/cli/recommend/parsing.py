# SPDX-License-Identifier: LGPL-2.1-or-later
"""Numbers out of the kernel's texts. What is missing or not understood is left out."""

from __future__ import annotations

# /proc/stat counts in these, whatever the kernel's own tick (USER_HZ of asm-generic/param.h)
TICKS_PER_SECOND = 100
# Columns of the first line of /proc/stat: user, nice, system, irq, softirq. Time that guests had is
# in user and nice already; idle, iowait and steal are nobody's work here.
BUSY = (1, 2, 3, 6, 7)


def meminfo(text: str) -> dict[str, int]:
    """Bytes by name, of /proc/meminfo or of a NUMA node's own meminfo ("Node 0 MemTotal: 4 kB")."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number = value.split()[:1]
        if name and number and number[0].isdigit():
            found[name.split()[-1]] = int(number[0]) * 1024
    return found


def keyed(text: str) -> dict[str, int]:
    """Lines of "name number", as in memory.stat and cpu.stat."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.strip().isdigit():
            found[name] = int(value)
    return found


def arcstats(text: str) -> dict[str, int]:
    """Lines of "name type number", as in the kstats of OpenZFS."""
    rows = [line.split() for line in text.splitlines()]
    return {row[0]: int(row[2]) for row in rows if len(row) == 3 and row[2].isdigit()}


def number(text: str) -> int | None:
    """Of a file with nothing else; None for "max" and the like."""
    return int(text) if text.strip().isdigit() else None


def busy(text: str) -> float:
    """Seconds of CPU time that all CPUs together have worked since boot, of /proc/stat."""
    fields = text.partition("\n")[0].split()
    if fields[:1] != ["cpu"]:
        return 0
    return sum(int(fields[column]) for column in BUSY if column < len(fields)) / TICKS_PER_SECOND


def interrupts(text: str) -> dict[int, int]:
    """Interrupts of devices since boot by CPU, of /proc/interrupts.

    Those have numbers; the lines with names count timers and what CPUs send each other.
    """
    lines = text.splitlines()
    cpus = [int(name[3:]) for name in lines[0].split()] if lines else []
    found = dict.fromkeys(cpus, 0)
    for line in lines[1:]:
        name, _, rest = line.partition(":")
        if name.strip().isdigit():
            for cpu, count in zip(cpus, rest.split()):
                found[cpu] += int(count)
    return found
