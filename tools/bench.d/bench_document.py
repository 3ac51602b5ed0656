"""docs/performance.md: the prose here, the figures from the results that are kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench_table import Table, from_json, markdown

HEAD = """\
# Speed

libvirtd waits for the hook with the VM's lock held, so what the hook costs is what a VM's start, or a restart of the
daemon, takes longer. This file is written by `tools/bench --write`; each section names the command that measures its table
again.

How to read the tables: "n" samples, their median, and as spread the quartiles. "/ X" is the ratio to X, where each sample is
held against the X of the same round, measured just before or after it in random order; the figure is the median of these
ratios, with its 95 % interval (order statistics). A wide interval says that the machine was busy with other things. Where
that is so, trust the ratio of CPU times, which does not count waiting for others. A goal is what was aimed at before
anything was measured, and it is judged by the median.
"""
EMULATED = """
An emulated host is QEMU without the CPU's help (TCG): ten to fifty times slower than the machine below it, and not evenly so,
since code is translated when it first runs. Of its figures only the ratios say something, and those roughly.
"""

SECTIONS = {
    "latency": (
        "The hook, operation by operation",
        """\
What libvirt gave to the hook while a VM started, replayed for that VM with another VM there, so the fence is in place: the
case of every VM but the first. "Empty sh hook" is `#!/bin/sh` and `exit 0`, the least that any hook costs; "bare python3" is
`python3 -I -c pass`, the interpreter's own start. Where nobody owns cgroups `started` moves the VM, and the first move
after a pause waits for the kernel (an RCU grace period, longer where CPUs are busy): it has a row of its own, and is in the
time of every `started` but that of `native`, not in its CPU time. Where systemd does, nothing is moved; `start` waits for
systemd's answer to one call over the bus, and `release` of `uuid` is without stopping the VM's slice.
""",
    ),
    "hyperfine": (
        "The same by hyperfine",
        """\
Another's stop-watch, to check the tool's own: one command after the other, each started by a shell script that opens its
input. The baseline is one median, so the ratios have no rounds.
""",
    ),
    "peers": (
        "What others do in its place",
        """\
For the same job, keeping CPUs for the host: the dispatcher of PassthroughPOST/VFIO-Tools, written anew from what it is
documented to do, with a script for `prepare` in it; vfio-isolate from PyPI, but not on a lab host, which has no network.
Neither places threads, checks pins or memory, or puts anything back. The script is `systemctl set-property` where systemd
owns cgroups; elsewhere it is a bare write, which is less than anyone would run.
""",
    ),
    "start": (
        "A VM's start as a whole",
        """\
`virsh create` of a TCG guest with nothing to boot, two vCPUs and an I/O thread, with the hook and without it in turn; another
VM is running. "Added" is the difference within a round. The interpreter alone is measured in the same round, once, times the
three runs of the hook that a start has.
""",
    ),
    "storm": (
        "Many at once",
        """\
VMs started by as many `virsh start` at once, of which libvirtd takes 20 at a time, and twice as many connected again after a
restart of the daemon. Without the hook there is no fence, and VMs have all CPUs: with two that is twice as many, and counts
for more than what the hooks do, which the row of CPU time shows. Each hook is run by a probe that takes its time, a shell
script, which costs a few milliseconds itself; `hook_timeout` is set so high that it ends none. With more VMs than CPUs, a
hook mostly waits for a CPU. Hooks share the lock, but for the first VMs of a host, which make the fence, and the end of each.
A VM that is where it should be takes no lock when it is connected again.
""",
    ),
    "threads": (
        "Growth: threads",
        """\
A process with that many threads is placed as a VM's would be: reading, planning and writing, without the interpreter's start.
The bare loop makes the same directories and writes the same files with nothing around it.
""",
    ),
    "status": (
        "Growth: VMs",
        """\
`virt-cgroup status --json` of recorded hosts whose VMs have five threads each, against a Python program that reads the same
files and does nothing with them.
""",
    ),
    "configuration": (
        "Growth: the configuration",
        """\
`prepare` with a configuration of 3 lines and of 493, when it has changed ("anew": ConfigObj parses it) and otherwise
("afterwards": a snapshot is read).
""",
    ),
    "nesting": (
        "What nesting costs",
        """\
The 2012 thread on libvir-list gives the speed of deep nesting as the reason for flat layouts. Here the same work runs in
cgroups of depth 0 (the root of the host, or of the private host) to 10, with the controller that could matter at every level,
and without it while all other controllers are there; on cgroup v2 the first level has it in either case, as the root gives it
to all. A lab host has no perf: `perf bench` is missing there. The figure is CPU time, start of the program included. "Each
level" is the slope over all depths, one for each round, and its 95 % interval; where that includes 0, the cost is too small
to see.
""",
    ),
    "layouts": (
        "The same at the layouts' depths",
        """\
The depth is that of a vCPU's cgroup. Layouts of one depth do the same, so how far their rows differ from each other shows what
the noise is.
""",
    ),
}
HOSTS = {"here": "The machine of the run, on a private host"}


def keep(folder: Path, data: Mapping[str, Any]) -> Table:
    folder.mkdir(parents=True, exist_ok=True)
    table = from_json(data)
    (folder / f"{table.host}-{table.name}.json").write_text(json.dumps(data, indent=1) + "\n")
    return table


def kept(folder: Path) -> list[Table]:
    return [from_json(json.loads(path.read_text())) for path in sorted(folder.glob("*-*.json"))]


def write(document: Path, folder: Path) -> None:
    document.parent.mkdir(exist_ok=True)
    document.write_text(text(kept(folder)))


def text(tables: Sequence[Table]) -> str:
    """Sections in order, each with its table of every host, this machine first."""
    hosts = sorted({table.host for table in tables}, key=lambda host: (host != "here", host))
    by = {(table.name, table.host): table for table in tables}
    parts = [HEAD, _machines([[table for table in tables if table.host == host] for host in hosts]), _goals(tables)]
    for name, (title, prose) in SECTIONS.items():
        measured = [by[name, host] for host in hosts if (name, host) in by]
        if measured:
            parts += [f"## {title}\n", prose, *(_one(table) for table in measured)]
    return "\n".join(parts)


def _goals(tables: Sequence[Table]) -> str:
    """A line for each table that misses any."""
    rows = [(row.goal, row) for table in tables for row in table.rows if row.goal]
    met = sum(goal.met(row) for goal, row in rows)
    lines = []
    for table in tables:
        missed = [row.case for row in table.rows if row.goal and not row.goal.met(row)]
        lines += [f"- {table.name}, {_title(table)}: {'; '.join(missed)}\n"] if missed else []
    return f"## The goals\n\n{met} of {len(rows)} are met. Missed:\n\n{''.join(lines) or '- none'}"


def _one(table: Table) -> str:
    host = "" if table.host == "here" else f"--lab {table.host} "
    return f"{_title(table)} (`tools/bench {host}{table.name}`, {table.taken}):\n\n{markdown(table)}"


def _title(table: Table) -> str:
    title = HOSTS.get(table.host, f"Lab host {table.host}")
    return f"{title}, emulated: ratios only" if _emulated(table) else title


def _emulated(table: Table) -> bool:
    return "TCG" in table.machine.get("CPU", "")


def _machines(hosts: Sequence[Sequence[Table]]) -> str:
    rows = [["", *(_title(tables[0]) for tables in hosts)], ["---"] * (len(hosts) + 1)]
    for key in hosts[0][0].machine if hosts else ():
        values = (list(dict.fromkeys(table.machine.get(key, "") for table in tables)) for tables in hosts)
        rows.append([key, *(_range(one) for one in values)])
    emulated = any(_emulated(table) for tables in hosts for table in tables)
    return "## The machines\n\n" + "".join("| " + " | ".join(row) + " |\n" for row in rows) + EMULATED * emulated


def _range(values: Sequence[str]) -> str:
    """Several where a table was measured on another machine, or at another load."""
    ordered = sorted(values, key=lambda value: [int(one) for one in re.findall(r"\d+", value)])
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"
