# SPDX-License-Identifier: LGPL-2.1-or-later
"""Manual pages, in man(7).

Why not argparse-manpage: version 1.2.2 (Debian 12) gives the page section 1 and no date, fills the
lines of a command's description and usage, so that their tables break, leaves out the examples and
explains --root and --json once per command. Version 4.8 knows sections; the rest is the same. Exit
status, files and "see also" would still be ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from commands import commands, help_of, metavar, options, positionals, takes_value

from libvirt_cgroup_hooks.settings import Setting

NAME = "keep CPUs and memory for the host, and see where its VMs are"
ABOUT = """\
virt-cgroup shows and changes the reservation of a virtualization host, which is the CPUs and the
memory that the host keeps for itself, and shows where the cgroups of its VMs are. It is
configured in cgroup-hooks.conf(5), and a libvirt hook enforces it when VMs start.

The hook limits the VM parent, the one cgroup that holds all VMs: they cannot leave the CPUs that
are left to them. When VMs together reach their memory limit, the kernel reclaims memory from them,
swaps it out if the host has swap, and then kills a VM, not the host's services: the one with the
most memory, which status names. With nothing configured, the hook does nothing.

Other words: a layout says where the cgroup of each VM is. The thread groups of a VM are emulator,
vcpuN and iothreadN, as in libvirt. The manager of cgroups is systemd on hosts with
systemd-machined; elsewhere it is cgroupfs: the hook makes and moves cgroups itself."""
HOW_MUCH = """\
virt-cgroup recommend adds up what the host uses itself while it looks, and proposes what it should
keep. Look on a busy day, for an hour: --seconds 3600.

Memory: what the host's own cgroups had at most, the kernel's own memory, and ZFS's cache, rounded
up; at least 1 GiB. QEMU's own memory is charged to the VMs. Too much is cheap, since what the host
does not use caches its files; too little is not.

CPUs: twice what the host's own work takes, in whole cores, since the threads of a core slow each
other down. CPU 0 is best left to the host. Where the devices of the host are on one NUMA node, keep
CPUs of that node; CPUs that are isolated (isolcpus) are best left to VMs.

"auto" goes by the size of the host alone, and so is wrong where a desktop session or storage
services run beside the VMs. docs/how-much.md in /usr/share/doc/libvirt-cgroup-hooks has two hosts
worked out."""
EVERYWHERE = ("help", "root")  # options that are explained once
STATUS = (
    ("0", "Done."),
    ("1", "It failed, and standard error says why and what to do; or validate found a failure."),
    ("2", "Wrong usage."),
)
FILES = (
    ("/etc/libvirt/cgroup-hooks.conf", "The configuration."),
    ("/etc/libvirt/hooks/qemu", "The hook that libvirtd runs."),
    (
        "/etc/libvirt/hooks/qemu.d/50-cgroup-hooks",
        "The same, where another program owns the former.",
    ),
    ("/usr/share/doc/libvirt-cgroup-hooks", "The README, and pages with more."),
    (
        "/run/libvirt-cgroup-hooks",
        "What is kept until the next boot: which cgroups are ours, and what was there before.",
    ),
)
UNITS = (
    ("libvirt-cgroup-hooks.service", "Sets the limits at boot, before any VM starts."),
    (
        "libvirt-cgroup-hooks-apply.service",
        "While it is active, udev has apply --all run when CPUs or memory of the host have come or "
        "gone, by a reload of this unit.",
    ),
    (
        "libvirt-cgroup-hooks-threads.path",
        "The same when threads or pins of a running VM have changed. Off until it is enabled.",
    ),
    (
        "libvirt-cgroup-hooks-metrics.timer",
        "Writes metrics for Prometheus every 30 seconds into node_exporter's folder, "
        "/var/lib/prometheus/node-exporter, if that is there. Off until it is enabled.",
    ),
)
SETTINGS_ABOUT = """\
One setting per line, key = value, in the syntax of libvirt's qemu.conf; # begins a comment. A
setting that is missing or commented out has its default.

An edit takes effect, for running VMs too, when the next VM starts, or at once with virt-cgroup
apply --all. Check it with virt-cgroup validate -q. Invalid settings are rejected; the error names
the file, line and fix. With a mistake in this file no VM starts, unless on_error = "warn" is set;
running VMs are not affected."""

OF_VM_ABOUT = """\
A VM may have settings of its own, in the metadata of its XML, which win over those of this file:
virt-cgroup domain NAME --set KEY=VALUE --config. They are read wherever this file exists. A VM is
not started with settings that cannot be."""
OF_VM = (
    ("emulator_cpus, vcpu_cpus, iothread_cpus", "As above, for this VM."),
    ("layout", "As cgroup_layout above."),
    ("confine_host", 'yes, or no (the default): counts where confine_host is "asked" above.'),
    (
        "dedicated",
        "yes: the CPUs that the VM's vCPUs are pinned to are no other VM's while it runs. All its "
        "vCPUs have to be pinned, and to whole cores; threads allows parts of cores. no is the "
        "default.",
    ),
)


def program(parser: argparse.ArgumentParser, date: str, version: str) -> str:
    page = _Page("VIRT-CGROUP", 8, date, version)
    page.section("Name", f"virt\\-cgroup \\- {_escaped(NAME)}", raw=True)
    page.section(
        "Synopsis",
        r"\fBvirt\-cgroup\fR [\fIOPTION\fR...] \fICOMMAND\fR [\fIARGUMENT\fR...]",
        raw=True,
    )
    page.section("Description", ABOUT)
    page.section("Options")
    page.actions(parser, options(parser))
    page.section("Commands")
    for name, command in commands(parser).items():
        page.command(name, command)
    page.section("How much, and which", HOW_MUCH)
    page.section("Exit status")
    page.items(STATUS)
    page.section("Files")
    page.items(FILES)
    page.section("Units of systemd")
    page.items(UNITS)
    page.section(
        "See also", r"\fBcgroup\-hooks.conf\fR(5), \fBvirsh\fR(1), \fBcgroups\fR(7)", raw=True
    )
    return page.text()


def configuration(table: Iterable[Setting], date: str, version: str) -> str:
    page = _Page("CGROUP-HOOKS.CONF", 5, date, version)
    page.section("Name", r"cgroup\-hooks.conf \- configuration of libvirt\-cgroup\-hooks", raw=True)
    page.section("Synopsis", "/etc/libvirt/cgroup-hooks.conf")
    page.section("Description", SETTINGS_ABOUT)
    page.section("Settings")
    for setting in table:
        page.tagged(rf"\fB{_escaped(setting.key)}\fR = {_escaped(setting.example)}")
        page.prose(setting.prose)
        page.paragraph(f"Default: {setting.default or 'not set'}.")
    page.section("Settings of one VM", OF_VM_ABOUT)
    page.items(OF_VM)
    page.section("See also", r"\fBvirt\-cgroup\fR(8), \fBvirsh\fR(1), \fBcgroups\fR(7)", raw=True)
    return page.text()


class _Page:
    def __init__(self, title: str, section: int, date: str, version: str) -> None:
        head = f'.TH {_escaped(title)} {section} {date} "libvirt\\-cgroup\\-hooks {version}"'
        self.lines = [
            ".\\\" Made from the settings table and the commands' help; see packaging/generate.",
            head,
            ".nh",
        ]

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def section(self, name: str, text: str = "", raw: bool = False) -> None:
        self.lines.append(f".SH {name.upper()}")
        if text:
            self.lines += [text] if raw else _filled(text)

    def command(self, name: str, parser: argparse.ArgumentParser) -> None:
        head = "usage: "
        usage = [line[len(head) :] for line in parser.format_usage().rstrip().splitlines()]
        self.lines += [f".SS {_escaped(name)}", ".nf", *map(_line, usage), ".fi"]
        self.prose(parser.description or "", first=".PP")
        self.actions(
            parser,
            [
                *positionals(parser),
                *(action for action in options(parser) if action.dest not in EVERYWHERE),
            ],
        )
        if parser.epilog:
            self.prose(parser.epilog[0].upper() + parser.epilog[1:], first=".PP")

    def actions(self, parser: argparse.ArgumentParser, actions: Iterable[argparse.Action]) -> None:
        for action in actions:
            value = rf" \fI{_escaped(metavar(action))}\fR" if takes_value(action) else ""
            names = (
                ", ".join(rf"\fB{_escaped(name)}\fR{value}" for name in action.option_strings)
                or value.strip()
            )
            self.tagged(names)
            self.lines += _filled(help_of(action, parser))

    def items(self, items: Iterable[tuple[str, str]]) -> None:
        for tag, text in items:
            self.tagged(rf"\fB{_escaped(tag)}\fR")
            self.lines += _filled(text)

    def tagged(self, tag: str) -> None:
        self.lines += [".TP", tag]

    def paragraph(self, text: str) -> None:
        self.lines += [".IP", *_filled(text)]

    def prose(self, text: str, first: str = "") -> None:
        """Lines that begin with a blank are kept as they are; the others are filled."""
        if first:
            self.lines.append(first)
        kept = False
        for line in text.splitlines():
            wanted = line.startswith(" ")
            if wanted != kept:
                self.lines += [".RS", ".nf"] if wanted else [".fi", ".RE", first or ".IP"]
                kept = wanted
            if line.strip():
                self.lines.append(_line(line.strip() if not wanted else line))
            elif first:
                self.lines.append(first)
        self.lines += [".fi", ".RE"] if kept else []


def _filled(text: str) -> list[str]:
    paragraphs = [[_line(line) for line in part.splitlines()] for part in text.split("\n\n")]
    return [
        line
        for number, part in enumerate(paragraphs)
        for line in ([".PP"] if number else []) + part
    ]


def _line(text: str) -> str:
    escaped = _escaped(text)
    return rf"\&{escaped}" if escaped[:1] in (".", "'") else escaped


def _escaped(text: str) -> str:
    return (
        text.replace("\\", r"\e")
        .replace("-", r"\-")
        .replace("'", r"\(aq")
        .replace("^", r"\(ha")
        .replace("~", r"\(ti")
    )
