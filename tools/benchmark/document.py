"""docs/performance.md: the prose here, the figures from the results that are kept."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .table import Table, line, markdown, shown

HEAD = """\
# Speed

libvirtd waits for the hook while it holds the VM's lock, so the hook's run time adds to the time
that a VM takes to start, and to a restart of the daemon.
"""
HOW = """\
`tools/bench --write` writes this file; each section names the command that measures its table
again.

"n" is the number of samples; then come their median and, as the spread, the quartiles. "/ X" is the
ratio to X: each sample is divided by the X of its own round, which was measured just before or
after it in random order. The figure is the median of these ratios, with its 95 % interval (order
statistics). "/ X, CPU" is the same of CPU time, which leaves out waiting for other processes. Goals
were set before anything was measured. They are judged by the median of CPU times or instructions,
which repeat on a busy machine; by the clock only where waiting is the point.

Goals that are gone: that `start` takes at most 1.7 times a bare interpreter (none is started any
more where nothing is to be done, and elsewhere instructions are judged); that placing threads takes
at most 1.2 times a bare loop of the same writes (the loop plans nothing; that it grows no faster
than the threads is what matters); that no hook waits longer than 5 ms for the lock in a storm
(with fifty times as many VMs as CPUs, that is the time of the scheduler).
"""
EMULATED = """
An emulated host is QEMU without the CPU's help (TCG): ten to fifty times slower than the machine
below it, and not evenly so, since code is translated when it first runs. Only the ratios of its
figures mean something, and those roughly.
"""


@dataclass(frozen=True)
class Section:
    title: str
    prose: str


SECTIONS = {
    "latency": Section(
        "The hook, operation by operation",
        """\
libvirt's input to the hook is recorded while a VM starts, and replayed for that VM. Another VM is
running, so the VMs' limits are already in place, as for every VM but the first. "Empty sh hook" is
`#!/bin/sh` and `exit 0`, the least that any hook costs; "bare python3" is `python3 -I -c pass`, the
interpreter's own start. Where a note says "nothing to do", the hook ends in its shell.

Where nobody owns cgroups, `started` moves the VM, and the first move after a pause waits for the
kernel (an RCU grace period, longer when CPUs are busy). That wait has a row of its own. It is part
of the time of every `started` but that of `native`, and not of its CPU time. Where systemd owns
cgroups, nothing is moved: `prepare` waits for systemd's answer to one call over the bus, and
`release` of `uuid` leaves out stopping the VM's slice.
""",
    ),
    "instructions": Section(
        "The same in instructions",
        """\
Instructions that the hook takes in user space, its shell and interpreter with it, in millions, as
the CPU counts them (perf) or, where the machine does not let it, valgrind. They do not depend on
what else the machine does, and repeat to about one in 500 (the seed of Python's hashes is random).
Compare them on one machine only: the C library has code of its own for each kind of CPU.
`tools/bench instructions --against DIR` compares with the hook of another source tree, and judges
whether an operation takes at most 3 % more.
""",
    ),
    "hyperfine": Section(
        "The same by hyperfine",
        """\
A second stopwatch, to check this tool's own: one command after the other, each started by a shell
script that opens its input. The baseline is one median, so the ratios have no rounds.
""",
    ),
    "peers": Section(
        "What other projects run instead",
        """\
All keep CPUs for the host: the dispatcher of PassthroughPOST/VFIO-Tools, rewritten from its
documentation, with a script for `prepare` in it; the same script run by a hook in Python as people
write it, with subprocess, ElementTree, logging and libvirt imported; and vfio-isolate from PyPI.
None places threads, checks pins or memory, or puts anything back. The script runs
`systemctl set-property` where systemd owns cgroups; elsewhere it is a bare write, which is less
than anyone would run. Where systemd owns cgroups, CPU time is that of systemd and of the bus, too:
they work for whoever calls them.
""",
    ),
    "start": Section(
        "A VM's start as a whole",
        """\
`virsh create` of a TCG guest with nothing to boot, two vCPUs and an I/O thread, in turn with the
hook and without it, while another VM is running. "Added" is the difference within a round. The
interpreter alone is measured once in the same round and counted as often as a start runs Python.
""",
    ),
    "storm": Section(
        "Many at once",
        """\
VMs started and stopped by as many `virsh` at once, of which libvirtd takes 20 at a time; then four
times as many that reconnect after a restart of the daemon, and whose reservation `virt-cgroup
reserve --live` changes. Without the hook nothing limits the VMs, so they have all CPUs: with two
CPUs that is twice as many, and matters more than what the hooks do, which the row of CPU time
shows. A probe takes the time of each hook. It is a shell script, which costs a few milliseconds
itself. `hook_timeout` is set so high that no hook reaches it. "One at a time" is the CPU time of
the hooks of a VM that starts and stops while no other does.

With more VMs than CPUs, a hook mostly waits for a CPU. Hooks share the lock, except that of a
host's first VMs, which set the limits, and that of each VM's end. A VM that is where it should be
takes no lock when it reconnects.
""",
    ),
    "threads": Section(
        "Growth: threads",
        """\
A process with that many threads is placed as a VM's would be: reading, planning and writing,
without the interpreter's start. The bare loop makes the same directories and writes the same files
with nothing around it. "A thread of 64" is what each thread of 64 takes.
""",
    ),
    "status": Section(
        "Growth: VMs",
        """\
`virt-cgroup status --json`, `recommend` and `validate` of recorded hosts whose VMs have five
threads each, against a Python program that reads all their files and does nothing with them.
""",
    ),
    "configuration": Section(
        "Growth: the configuration",
        """\
`prepare` with a configuration of 3 lines and of 493, after it has changed ("anew": ConfigObj parses
it) and otherwise ("afterwards": a snapshot is read).
""",
    ),
    "nesting": Section(
        "What nesting costs",
        """\
A thread of 2012 on libvir-list gives the speed of deep nesting as the reason for flat layouts. Here
the same work runs in cgroups of depth 0 (the root of the host, or of the private host) to 10, once
with the controller that could matter at every level, and once without it but with all others. On
cgroup v2 the first level has it in either case, since the root gives it to all. `perf bench` is
missing on a lab host, which has no perf. The figure is CPU time, with the start of the program.
"Each level" is the slope over all depths, one for each round, with its 95 % interval; where that
includes 0, the cost is too small to see.
""",
    ),
    "layouts": Section(
        "The same at the layouts' depths",
        """\
The depth is that of a vCPU's cgroup. Layouts of one depth do the same work, so the difference
between their rows is noise.
""",
    ),
    "wakeups": Section(
        "What confine_host is for",
        """\
By how much a thread is late that wakes up each millisecond on a CPU of its own, as a pinned vCPU
does, while two processes for each CPU are busy on the host: with all CPUs ("a busy host"), or kept
to the first one, as `confine_host` keeps them ("confined"). The cpusets are those that the fence
and `confine_host` make, written directly, so that it can be measured on cgroup v1 as well. 2000
wake-ups are one sample. In the rows "busy VMs and host" as many processes of other VMs are busy:
on that CPU, too ("pins only"), or on all others (`dedicated`).
""",
    ),
}
WITHOUT = "without the hook"  # as `vm` calls it
PEER, DISPATCHED = "the dispatcher, CPU", "dispatcher,"  # as `peers` does
HERE = "here"  # how results name this machine's private host
HOSTS = {HERE: "The machine of the run, on a private host"}


def keep(folder: Path, table: Table) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(table.json(), indent=1)
    (folder / f"{table.host}-{table.name}.json").write_text(f"{text}\n")


def kept(folder: Path) -> list[Table]:
    paths = sorted(folder.glob("*-*.json"))
    return [Table.from_json(json.loads(path.read_text())) for path in paths]


def write(document: Path, folder: Path) -> None:
    document.parent.mkdir(exist_ok=True)
    document.write_text(text(kept(folder)))


def text(tables: Sequence[Table]) -> str:
    """Sections in order, each with its table of every host, this machine first."""
    hosts = sorted({table.host for table in tables}, key=lambda host: (host != HERE, host))
    by_host = [[table for table in tables if table.host == host] for host in hosts]
    parts = [HEAD, *_short(by_host), HOW, _machines(by_host), _goals(tables)]
    for name, section in SECTIONS.items():
        measured = [table for of_host in by_host for table in of_host if table.name == name]
        if measured:
            parts += [f"## {section.title}\n", section.prose, *map(_one, measured)]
    return "\n".join(parts)


def _short(by_host: Sequence[Sequence[Table]]) -> list[str]:
    """What most readers want to know; none where it was not measured."""
    lines: dict[str, list[str]] = {}
    for number, tables in enumerate(by_host):
        for title, cell in _of_host(tables):
            lines.setdefault(title, [""] * len(by_host))[number] = cell
    if not lines:
        return []
    head = [["", *(_title(tables[0]) for tables in by_host)], ["---"] * (len(by_host) + 1)]
    rows = [[title, *cells] for title, cells in lines.items()]
    return ["".join(map(line, [*head, *rows]))]


def _of_host(tables: Sequence[Table]) -> Iterator[tuple[str, str]]:
    """Rows of the first table, as title and cell."""
    rows = {table.name: {row.case: row for row in table.rows} for table in tables}
    times = not any(map(_emulated, tables))  # else only ratios mean something
    for case, row in rows.get("start", {}).items():
        layout, _, what = case.partition(": ")
        if what == "added":
            share = f"{100 * row.ratios[WITHOUT].median:.1f} %"
            cell = f"{shown(row.value.median)} ms, {share}" if times else share
            yield f"A VM's start takes longer, {layout}", cell
    for case, row in rows.get("peers", {}).items():
        used = row.ratios.get(PEER)
        if used and DISPATCHED not in case:
            cell = f"{shown(used.median)} of the dispatcher's CPU time"
            yield case, f"{shown(row.value.median)} ms, {cell}" if times else cell
    for case, row in rows.get("nesting", {}).items():
        what, _, level = case.strip("*").rpartition(": ")
        if level == "each level":
            share = f"{100 * row.ratios['depth 0'].median:.1f} %"
            yield f"Each level of cgroups, {what}", row.note or share


def _goals(tables: Sequence[Table]) -> str:
    """A line for each table that misses any."""
    total, met = 0, 0
    lines = []
    for table in tables:
        judged = [(row.case, row.goal.met(row)) for row in table.rows if row.goal]
        missed = [case for case, is_met in judged if not is_met]
        total += len(judged)
        met += len(judged) - len(missed)
        if missed:
            lines.append(_filled(f"- {table.name}, {_title(table)}: {'; '.join(missed)}"))
    listed = "".join(lines) or "- none"
    return f"## The goals\n\n{met} of {total} are met. Missed:\n\n{listed}"


def _filled(item: str) -> str:
    """An item of a list in lines of at most 100 columns."""
    lines = textwrap.wrap(item, 100, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def _one(table: Table) -> str:
    option = "" if table.host == HERE else f"--lab {table.host} "
    command = f"tools/bench {option}{table.name}"
    return f"{_title(table)} (`{command}`, {table.taken}):\n\n{markdown(table)}"


def _title(table: Table) -> str:
    title = HOSTS.get(table.host, f"Lab host {table.host}")
    return f"{title}, emulated: ratios only" if _emulated(table) else title


def _emulated(table: Table) -> bool:
    return "TCG" in table.machine.get("CPU", "")


def _machines(by_host: Sequence[Sequence[Table]]) -> str:
    lines = [["", *(_title(tables[0]) for tables in by_host)], ["---"] * (len(by_host) + 1)]
    keys = by_host[0][0].machine if by_host else ()
    for key in keys:
        lines.append([key, *(_range(key, tables) for tables in by_host)])
    result = "## The machines\n\n" + "".join(map(line, lines))
    if any(_emulated(table) for tables in by_host for table in tables):
        result += EMULATED
    return result


def _range(key: str, tables: Sequence[Table]) -> str:
    """Several values where a table was measured on another machine, or at another load."""
    values = sorted({table.machine.get(key, "") for table in tables}, key=_numbers)
    if len(values) == 1:
        return values[0]
    return f"{values[0]} to {values[-1]}"


def _numbers(value: str) -> list[int]:
    return [int(one) for one in re.findall(r"\d+", value)]
