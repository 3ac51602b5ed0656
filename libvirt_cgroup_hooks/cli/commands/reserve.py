# SPDX-License-Identifier: LGPL-2.1-or-later
"""virt-cgroup reserve: show or change what the host keeps for itself."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from ... import conformance, lending, limits, managers, settings, snapshot, threads
from ...config import PATH, Config
from ...configfile import Invalid, inert
from ...cpuset import CpuSet
from ...errors import Error, printable, size
from ...fence import reserved_memory
from ...host import Host, page_size
from ...managers.base import Manager
from ...memory import told_left_out
from ...plan import Plan
from ...reserve import KEYS, Change, outside
from ...topology import Topology
from ..command import add as add_command
from ..hookfile import is_installed
from ..output import print_json, print_table, print_warnings

if TYPE_CHECKING:
    from ...kernel.tree import InEffect
    from ...virconf import Value

WAIT = 60  # seconds
STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HELP = """\
A bare number of CPUs is a count, which takes whole cores; for CPU 4 alone write 4-4. "auto" is as
in cgroup-hooks.conf, "none" reserves, or limits, nothing. --live and --config can be combined. A
change that fails is undone.

With none of --cpus, --memory, --swap and --confine the reservation is shown: as it is in the file,
as it is required now (the file, with what --live has changed), and as the kernel enforces it."""
REMEDY = {
    "cpus": "use a list such as 0-1, a count, auto or none; for CPU 0 alone write 0-0",
    "memory": "use a size such as '4 GiB', a percentage such as 10%, auto or none",
    "swap": "use a size such as '2 GiB', a percentage such as 25%, 0 or none",
    "confine": "use no, asked, running or always",
}
CONFINE = "when the host keeps to its own CPUs: as confine_host in cgroup-hooks.conf"
NOTHING = {"cpus": "none", "memory": "none", "swap": "none", "confine": "no"}
LIVE = "change the limits now, for running VMs too, until the next boot"
CONFIG = "change the configuration file; running VMs follow when the next VM starts, or after apply"


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "reserve",
        run,
        "show or change what the host keeps for itself",
        "virt-cgroup reserve --cpus 0-1 --memory '4 GiB' --live --config",
    )
    parser.description = f"{parser.description}\n\n{HELP}"
    parser.add_argument("--cpus", metavar="LIST|COUNT|auto|none", help="CPUs that the host keeps")
    parser.add_argument(
        "--memory", metavar="SIZE|PERCENT|auto|none", help="memory that the host keeps"
    )
    parser.add_argument(
        "--swap",
        metavar="SIZE|PERCENT|0|none",
        help="swap that VMs may have together; none: no limit",
    )
    parser.add_argument("--confine", metavar="no|asked|running|always", help=CONFINE)
    parser.add_argument("--live", action="store_true", help=LIVE)
    parser.add_argument("--config", action="store_true", help=CONFIG)
    parser.add_argument("--current", action="store_true", help="same as --live (the default)")
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=seconds,
        nargs="?",
        const=WAIT,
        help=f"first reclaim VM memory, for up to SECONDS (default {WAIT})",
    )
    parser.add_argument(
        "--force", action="store_true", help="also reserve CPUs that running VMs are pinned to"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print each step")


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < 86400:
        raise argparse.ArgumentTypeError(
            f'"{printable(text)}" is not a number of seconds, above 0 and below 86400'
        )
    return number


def run(arguments: argparse.Namespace, host: Host) -> int:
    wanted = {
        KEYS[name]: _value(name, text)
        for name in KEYS
        if (text := getattr(arguments, name)) is not None
    }
    _check(arguments, bool(wanted))
    if not wanted:
        return _show(arguments, host)
    if not host.real:
        raise Error("nothing can be changed with --root", "edit the file in that copy")
    change = Change(
        host, wanted, arguments.live or not arguments.config, arguments.config, arguments.force
    )
    try:
        plan = _made(change, arguments.wait or 0)
    except Invalid as error:
        raise _as_given(arguments, error) from None
    return _tell(arguments, host, change, plan)


def configure(host: Host, wanted: dict[str, Value | None]) -> None:
    """As `virt-cgroup reserve --config`; WANTED as for `Change`. Raises Error."""
    _made(Change(host, wanted, live=False, config=True))


def _made(change: Change, wait: float = 0) -> Plan:
    """Tells its progress and warnings. Raises Error."""
    for number in STOP:
        signal.signal(number, _interrupt)
    progress = _Progress()
    try:
        return change.run(wait, progress)
    finally:
        progress.end()
        print_warnings(change.warnings)


def _as_given(arguments: argparse.Namespace, error: Invalid) -> Error:
    """In terms of the option that the user gave."""
    for name, key in KEYS.items():
        text = getattr(arguments, name)
        if key == error.key and text is not None:
            return Error(f"--{name} {printable(text)}: {error.reason}", error.hint)
    return error


def _interrupt(*_: object) -> None:
    """What was there is put back, and a second Ctrl-C does not end that half-way."""
    for number in STOP:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _check(arguments: argparse.Namespace, changes: bool) -> None:
    """In virsh's words."""
    for other in ("live", "config"):
        if arguments.current and getattr(arguments, other):
            raise Error(f"Options --current and --{other} are mutually exclusive")
    for name in ("wait", "force"):
        if getattr(arguments, name) and not changes:
            needed = ", ".join(f"--{one}" for one in KEYS)
            raise Error(f"One of {needed} is required by option --{name}")
        if getattr(arguments, name) and arguments.config and not arguments.live:
            raise Error(f"Option --live is required by option --{name}")


def _value(name: str, text: str) -> Value | None:
    """As the configuration file has it. Raises Error."""
    if text == NOTHING[name]:
        return None
    is_count = name in ("cpus", "swap") and text.isascii() and text.isdigit() and len(text) < 6
    value: Value = int(text) if is_count else text
    try:
        settings.named(KEYS[name]).read(value)
    except Error as error:
        raise Error(f"--{name} {printable(text)}: {error.message}", REMEDY[name]) from None
    return value


class _Progress:
    """On a terminal one line that is rewritten; elsewhere a line every few seconds."""

    EVERY = 5

    def __init__(self) -> None:
        self.told = 0.0
        self.terminal = sys.stderr.isatty()

    def __call__(self, used: int, limit: int) -> None:
        text = f"reclaiming: {size(used)} in use, new limit {size(limit)}"
        if self.terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.told < self.EVERY:
            return
        else:
            print(text, file=sys.stderr)
        self.told = time.monotonic()

    def end(self) -> None:
        if self.terminal and self.told:
            print(file=sys.stderr)


# what was done


def _tell(arguments: argparse.Namespace, host: Host, change: Change, plan: Plan) -> int:
    report = _report(host)
    forced = _ends_up(host) if arguments.force else []
    if arguments.json:
        print_json({**report, "steps": [str(step) for step in plan.steps], "forced": forced})
        return 0
    if arguments.verbose:
        for step in plan.steps:
            print(step)
        writes = sum(step.writes_cgroup for step in plan.steps)
        print(f"{len(plan.steps)} steps, {writes} of them writes to cgroups\n")
    _print(arguments, host, report)
    count = change.wanted.get(KEYS["cpus"])
    if isinstance(count, int):
        print(f"\n{count} is a count of CPUs; for CPU {count} alone write --cpus {count}-{count}")
    if forced:
        print("\nPinned to reserved CPUs:")
        print_table(
            ("VM", "Thread", "Group", "Pinned to", "CPUs"),
            [tuple(map(str, row.values())) for row in forced],
        )
    return 0


def _ends_up(host: Host) -> list[dict[str, object]]:
    """Each thread that is pinned to CPUs of the host, and where it may run now."""
    manager, rows = _live(host), []
    for domain in outside(threads.running(host, {}), manager):
        pins = lending.held_pins(manager.config, manager.fence, domain)
        for thread in threads.threads(host, domain):
            pin = pins.get(thread.group)
            if pin is not None and manager.fence.cpus is not None and not pin <= manager.fence.cpus:
                cpus = str(threads.cpus_allowed(host, domain, thread))
                row = {
                    "domain": domain.name,
                    "tid": thread.tid,
                    "group": thread.group,
                    "pinned": str(pin),
                    "cpus": cpus,
                }
                rows.append(row)
    return rows


# what is reserved


def _show(arguments: argparse.Namespace, host: Host) -> int:
    report = _report(host)
    if arguments.json:
        print_json(report)
    else:
        _print(arguments, host, report)
    return 0


def _live(host: Host) -> Manager:
    return managers.choose(host, snapshot.load(host, []), managers.daemon(host))


def _report(host: Host) -> dict[str, Any]:
    topology = Topology.read(host.read_optional)
    text = host.read_optional(PATH) or ""
    configured = Config({}) if inert(text) else snapshot.compiled(host, text, {}, [])
    manager = _live(host)
    parent = conformance.parent(manager)
    confined = conformance.confined(manager)
    weight = conformance.cpu_weight(manager)
    protected = sum(conformance.protected(manager).values())
    return {
        "configured": _reservation(configured, topology),
        "live": _reservation(manager.config, topology),
        "in_effect": {
            **_in_effect(parent, topology),
            "swap": parent.swap_limit,
            "cpu_weight": None if weight is None else str(weight),
            "protected": protected or None,
            "confine_host": _confined(confined),
        },
        "confine_now": limits.confines(manager, threads.running(host, {})),
        "parent": parent.path,
        "cpus_of_each_vm": manager.carries,
        "memory_current": parent.memory_current,
        "memory_left_out": topology.memory.left_out,
    }


def _reservation(config: Config, topology: Topology) -> dict[str, Any]:
    """CPUs as text, memory in bytes; None where nothing is reserved."""
    fence = config.fence(topology.online, topology.memory, page_size())
    memory = (
        reserved_memory(config.reserved_host_mem, topology.memory)
        if config.reserved_host_mem
        else None
    )
    return {
        "reserved_cpus": str(config.reserved_host_cpus) if config.reserved_host_cpus else None,
        "reserved_memory": memory,
        "cpus": str(fence.cpus) if fence.cpus is not None else None,
        "memory_limit": fence.memory_limit,
        "swap": fence.swap,
        "cpu_weight": None if fence.cpu_weight is None else str(fence.cpu_weight),
        "protected": fence.protected or None,
        "confine_host": config.confine_host if config.confine_host != "no" else None,
    }


def _confined(cpus: CpuSet | None) -> str | None:
    return None if cpus is None else f"CPUs {cpus}"


def _in_effect(parent: InEffect, topology: Topology) -> dict[str, Any]:
    """What the kernel enforces on the VM parent; all None where there is no such cgroup."""
    cpus, limit = parent.cpus, parent.memory_limit
    kept = topology.online - cpus if cpus else CpuSet()
    memory = topology.memory
    return {
        "reserved_cpus": str(kept) or None,
        "reserved_memory": memory.total - memory.hugetlb - limit if limit else None,
        "cpus": str(cpus) if cpus else None,
        "memory_limit": limit,
    }


FILE, REQUIRED, KERNEL = "In the file", "Required now", "In the kernel"
LATER = "In effect when the next VM starts, or now with: virt-cgroup apply --all"
NOT_YET = "Not in effect yet. To apply it to running VMs now: virt-cgroup apply --all"
UNTIL = "What --live has changed lasts until the next boot, or until the setting is edited."
NO_HOOK = (
    "the hook is not installed, so VMs are neither checked nor placed when they start: "
    "run virt-cgroup hook install"
)
EACH_VM = "in each VM"
ROWS = {
    "Reserved CPUs": "reserved_cpus",
    "Reserved memory": "reserved_memory",
    "CPUs for VMs": "cpus",
    "Memory for VMs": "memory_limit",
}
# These are left out where nothing says so
MORE_ROWS = {
    "Swap for VMs": "swap",
    "CPU weight of VMs": "cpu_weight",
    "Protected memory": "protected",
    "Host confined": "confine_host",
}


def _print(arguments: argparse.Namespace, host: Host, report: dict[str, Any]) -> None:
    columns = {FILE: "configured", REQUIRED: "live", KERNEL: "in_effect"}
    if arguments.config and not arguments.live:
        del columns[REQUIRED], columns[KERNEL]
    elif (arguments.live or arguments.current) and not arguments.config:
        del columns[FILE]
    rows = [
        (title, *(_shown(report[column][key]) for column in columns.values()))
        for title, key in {**ROWS, **MORE_ROWS}.items()
    ]
    rows = [row for row in rows if row[0] in ROWS or set(row[1:]) != {"-"}]
    if report["cpus_of_each_vm"] and KERNEL in columns:
        rows = [(*row[:-1], EACH_VM) if "CPUs" in row[0] else row for row in rows]
    print_table(("", *columns), rows)
    if KERNEL in columns:
        used = report["memory_current"]
        print(
            f"\nVM parent: {printable(report['parent'] or 'none: each VM has the CPU limit')}",
            end="",
        )
        print("" if used is None else f", {size(used)} of memory in use")
    if report["memory_left_out"]:
        print(f"\nNot counted: {told_left_out(report['memory_left_out'])}")
    if FILE in columns and KERNEL in columns and report["configured"] != report["live"]:
        print(f"\n{UNTIL}")
    if _is_pending(report, KERNEL in columns):
        print(f"\n{later(host)}")
    if any(report["live"].values()) and not is_installed(host):
        print(f"warning: {NO_HOOK}", file=sys.stderr)


def later(host: Host) -> str:
    """When what is only in the file takes effect."""
    return LATER if is_installed(host) else NOT_YET


def _is_pending(report: dict[str, Any], kernel_is_shown: bool) -> bool:
    """Whether the kernel does not enforce yet what is required."""
    required, kernel = report["live"], report["in_effect"]
    if report["confine_now"] and kernel["confine_host"] is None:
        return True
    if report["parent"] is None:  # the limits are on each VM, which is not looked at here
        return not kernel_is_shown
    if any(required[key] != kernel[key] for key in ("memory_limit", "swap", "cpu_weight")):
        return True
    if report["cpus_of_each_vm"]:
        return False
    # without a reservation the kernel may have no list, or all CPUs
    key = "cpus" if required["cpus"] else "reserved_cpus"
    return bool(required[key] != kernel[key])


def _shown(value: str | int | None) -> str:
    if value is None:
        return "-"
    return size(value) if isinstance(value, int) else value
