# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report for people: what is used, what others would keep, and the proposal last."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping

from ...cpuset import CpuSet
from ...errors import printable, size
from ...memory import told_left_out
from ..output import count, print_table
from ..pressure import RESOURCES
from . import rules
from .report import Report, Reserved, Vm

COUNTED = """\
Counted: the peak, but at most twice what is there now without page cache that can be dropped.
In no cgroup: AnonPages and Shmem; Slab, PageTables, Percpu and VmallocUsed; less the cgroups'."""
TIME = """\
CPUs: seconds of CPU time in a second, from cpu.stat or cpuacct.usage of the cgroups and /proc/stat;
those since boot count once the host has been up for an hour.
Waited: the share of the time in which a task had to wait (PSI)."""
OVERHEAD = """\
QEMU's own: what the VM's cgroup has now without page cache that can be dropped, less the guest's
memory; "-" while the guest has not touched all of that. It is charged to the VMs, not to the host.
KubeVirt's rule: 0.2 % of the guest's memory, 218 MiB, 8 MiB for a vCPU, 16 MiB for graphics"""
AUTO = ("one core in 32, at least one", "5 % of memory, 1 to 8 GiB, at most half")
MEMORY = "the sum of what is counted, in steps of 256 MiB, at least 1 GiB, at most half of all."
WIDTH, INDENT = 100, 11
BUSIEST = 4  # CPUs with device interrupts that are named
NAMED_VMS = 10  # and lines of VMs


def show(report: Report) -> None:
    """Prints it."""
    _memory(report)
    print()
    _cpu(report)
    if report.vms:
        print()
        _vms(report)
    print()
    _rules(report)
    print()
    _proposal(report)


def _memory(report: Report) -> None:
    if not report.memory:
        print("The kernel counts no memory of cgroups here.")
        return
    rows = [
        (
            line.name,
            size(line.now),
            "-" if line.cache is None else size(line.cache),
            "-" if line.peak is None else size(line.peak),
            size(line.counted),
            line.source,
        )
        for line in report.memory
    ]
    rows.append(
        (
            "sum",
            size(sum(line.now for line in report.memory)),
            size(sum(line.cache or 0 for line in report.memory)),
            "",
            size(sum(line.counted for line in report.memory)),
            "",
        )
    )
    print_table(("Memory of the host", "Now", "Page cache", "Peak", "Counted", "Source"), rows)
    print(COUNTED)
    if report.hugepages:
        print(f"Hugepage pools are no part of it: {size(report.hugepages)}.")
    if report.nodes:
        print(f"Neither are {told_left_out(report.nodes)}.")


def _cpu(report: Report) -> None:
    waited = any(line.waited for line in report.cpu)
    head = ["CPU time", f"In {report.seconds:g} s" if report.seconds else "Now", "Since boot"]
    head += [f"Waited: {name}" for name in RESOURCES] if waited else []
    rows = []
    for line in report.cpu:
        row = [line.name, _cpus(line.now), _cpus(line.since_boot)]
        row += [_share(line.waited, name) for name in RESOURCES] if waited else []
        rows.append(row)
    print_table(head, rows)
    print(TIME)
    total = sum(report.interrupts.values())
    if total >= 1:
        busiest = sorted(report.interrupts.items(), key=lambda item: -item[1])[:BUSIEST]
        told = ", ".join(f"{number} ({rate / total:.0%})" for number, rate in busiest)
        print(f"Device interrupts: {total:.0f} a second, on CPU {told} (/proc/interrupts).")


def _vms(report: Report) -> None:
    """Those with most of their own, where there are many."""
    named, others = report.vms, []
    if len(named) > NAMED_VMS:
        by_own = sorted(named, key=lambda vm: -(vm.overhead or 0))
        named, others = by_own[: NAMED_VMS - 1], by_own[NAMED_VMS - 1 :]
    rows = [_vm(vm) for vm in named]
    if others:
        rows.append(_vm(_sum_of(others)))
    print_table(("VM", "Guest's memory", "Its cgroup", "QEMU's own", "KubeVirt's rule"), rows)
    print(f"{OVERHEAD} [{_number(report, rules.OPENSHIFT)}].")


def _vm(vm: Vm) -> tuple[str, ...]:
    own = "-" if vm.overhead is None else size(vm.overhead)
    return vm.name, size(vm.guest), size(vm.cgroup), own, size(vm.rule)


def _sum_of(vms: list[Vm]) -> Vm:
    return Vm(
        f"{len(vms)} others, in all",
        sum(vm.guest for vm in vms),
        sum(vm.cgroup for vm in vms),
        sum(vm.overhead or 0 for vm in vms),
        sum(vm.rule for vm in vms),
    )


def _rules(report: Report) -> None:
    rows = [
        ("configured now", *_reserved(report.configured), ""),
        ('"auto"', *_reserved(report.auto), AUTO[0]),
        ("", "", "", AUTO[1]),
    ]
    for rule in report.rules:
        cpus = "-" if rule.cpus is None else f"{rule.cpus:.2f}".rstrip("0").rstrip(".")
        memory = "-" if rule.memory is None else size(rule.memory)
        name = f"{rule.name} [{_number(report, rule.source)}]"
        rows.append((name, cpus, memory, rule.formula[0]))
        rows += [("", "", "", line) for line in rule.formula[1:]]
    print_table(("Others keep", "CPUs", "Memory", "Formula"), rows)
    for source in _sources(report):
        print(f"[{_number(report, source)}] {source}")


def _sources(report: Report) -> list[str]:
    return list(dict.fromkeys(rule.source for rule in report.rules))


def _number(report: Report, source: str) -> int:
    return _sources(report).index(source) + 1


def _proposal(report: Report) -> None:
    chosen = report.proposal
    left = len(report.online) - len(chosen.cpus)
    used = f", {size(report.vms_memory)} used now" if report.vms_memory else ""
    reasons = "; ".join((*chosen.reasons, f"the host's own work takes {chosen.used:.2f} CPUs"))
    _paragraph("Proposed:", f"reserved_host_cpus = {_quoted(report.proposed.cpus)}")
    _paragraph("", f"reserved_host_mem = {_quoted(report.memory_setting)}")
    _paragraph("CPUs:", f"{reasons}.")
    if report.pinned:
        names = ", ".join(printable(name) for name in report.pinned)
        _paragraph("", f"Pinned to them in their XML, so to be pinned elsewhere first: {names}.")
    _paragraph("Memory:", MEMORY)
    _paragraph("Left:", f"{count(left, 'CPU')} and {size(report.left)} for VMs{used}.")


def command(report: Report) -> str:
    """What reserves as proposed, at once and for good."""
    words = ["virt-cgroup", "reserve"]
    if report.proposed.cpus:
        words += ["--cpus", _as_list(CpuSet.parse(report.proposed.cpus))]
    words += ["--memory", report.memory_setting, "--live", "--config"]
    return shlex.join(words)


def _as_list(cpus: CpuSet) -> str:
    """A number alone would be a count."""
    return f"{cpus}-{cpus}" if len(cpus) == 1 else str(cpus)


def _paragraph(title: str, text: str) -> None:
    lines = textwrap.wrap(text, WIDTH - INDENT)
    for number, line in enumerate(lines):
        print(f"{'' if number else title:<{INDENT}}{line}")


def _reserved(reserved: Reserved) -> tuple[str, str]:
    cpus = f"{len(CpuSet.parse(reserved.cpus))} ({reserved.cpus})" if reserved.cpus else "-"
    return cpus, "-" if reserved.memory is None else size(reserved.memory)


def _quoted(text: str) -> str:
    return f'"{text}"' if text else "none"


def _cpus(amount: float | None) -> str:
    return "-" if amount is None else f"{amount:.2f}"


def _share(waited: Mapping[str, float], resource: str) -> str:
    return f"{waited[resource]:.1%}" if resource in waited else "-"
