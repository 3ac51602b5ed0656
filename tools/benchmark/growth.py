"""How the cost grows: with a VM's threads, a host's VMs, and the configuration's length."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from libvirt_cgroup_hooks import managers, operations, snapshot, state
from libvirt_cgroup_hooks.domainxml import parse
from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.plan import Plan
from libvirt_cgroup_hooks.steps import MakeDirectory, Move, Pin, Write
from tests.live.harness import LAST_CPU, configure

from .spread import single
from .table import Goal, Row, measured
from .timing import BARE_PYTHON, PYTHON, Samples, in_turn, run, say
from .vm_host import (
    HOOK,
    MOVED,
    NAME,
    SCRATCH,
    STATE,
    TREE,
    UUID,
    remove_tree,
    settings,
    vm_xml,
)

BARE_LOOP = "bare write() loop"
STATUS = Path("/run/libvirt/qemu")
THREADS = (1, 8, 64, 512)
LINEAR = Goal(f"a thread of {THREADS[-2]}", 1.2)
MANY_THREADS = """\
import sys, threading
threading.stack_size(65536)
for _ in range(int(sys.argv[1])):
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    print(thread.native_id, end=" ")
print(flush=True)
sys.stdin.read()
"""


def threads(rounds: int) -> list[Row]:
    """Place a process that has the threads of a VM, without the start of the hook's interpreter."""
    rows = []
    placed: list[float] = []  # nanoseconds for each thread
    STATUS.mkdir(parents=True, exist_ok=True)
    SCRATCH.mkdir(exist_ok=True)
    configure(settings(MOVED))
    for number in THREADS:
        say(f"{number} threads")
        samples, steps = _placed(number, fewer(rounds) if number > 100 else rounds)
        base = {BARE_LOOP: samples[BARE_LOOP]}
        median = sorted(samples["placed"])[len(samples["placed"]) // 2]
        each = f"{median / 1e6 / number:.2f} ms a thread"
        title = f"{number} threads"
        rows.append(measured(f"{title}: {BARE_LOOP}", base[BARE_LOOP], {}, note=f"{steps} steps"))
        row = measured(f"{title}: placed", samples["placed"], base, note=each)
        placed.append(median / number)
        if number == THREADS[-1]:
            share = {LINEAR.baseline: single(placed[-1] / placed[-2])}
            row = replace(row, ratios={**row.ratios, **share}, goal=LINEAR)
        rows.append(row)
    return rows


def fewer(rounds: int) -> int:
    """Of what takes long."""
    return max(3, rounds // 3)


def _placed(number: int, rounds: int) -> tuple[Samples, int]:
    """Samples with a process of NUMBER threads, and how many steps it takes to place it."""
    command = [PYTHON, "-c", MANY_THREADS, str(number)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as vm:
        assert vm.stdout
        placing = _Placing(vm.pid, [int(one) for one in vm.stdout.readline().split()])
        samples = in_turn({BARE_LOOP: placing.bare, "placed": placing.placed}, rounds)
        placing.leave()
        vm.kill()
    return samples, len(placing.steps)


class _Placing:
    def __init__(self, pid: int, tids: list[int]) -> None:
        self.pid = pid
        self.host = Host()
        self.xml = _with_id(vm_xml(NAME, len(tids), 0, LAST_CPU), 1)
        (STATUS / f"{NAME}.xml").write_text(_status(self.xml, pid, tids))
        state.prepare_directory(self.host)
        self._plan("prepare").run(self.host)
        steps = self._plan("started").steps
        self.steps = [one for one in steps if isinstance(one, (MakeDirectory, Move, Pin, Write))]

    def _plan(self, operation: str) -> Plan:
        domain = parse(self.xml.encode())
        return operations.plan(
            self.host, snapshot.load(self.host, [], save=True), operation, domain
        )

    def placed(self) -> float:
        self.leave()
        begin = time.monotonic_ns()
        self._plan("started").run(self.host)
        return time.monotonic_ns() - begin

    def bare(self) -> float:
        """The same directories, writes and CPUs, in the same order, with nothing around them."""
        self.leave()
        bare_steps = [_bare(step) for step in self.steps]
        begin = time.monotonic_ns()
        for step in bare_steps:
            if step.value:
                file = os.open(step.path, os.O_WRONLY)
                os.write(file, step.value)
                os.close(file)
            elif step.cpus:
                os.sched_setaffinity(step.thread, step.cpus)
            else:
                os.mkdir(step.path)
        return time.monotonic_ns() - begin

    def leave(self) -> None:
        """Back to where this program is, and nothing left of the VM cgroup."""
        made = [one.path for one in self.steps if isinstance(one, MakeDirectory)]
        for hierarchy in managers.choose(self.host, snapshot.load(self.host, [])).hierarchies:
            procs = Path(hierarchy.directory(hierarchy.placement), "cgroup.procs")
            for top in _tops(made):
                if top.startswith(f"{hierarchy.mount}/"):
                    procs.write_text(str(self.pid))
                    remove_tree(top)


def _tops(paths: list[str]) -> list[str]:
    """Those that are below none of the others."""
    return [path for path in paths if not any(path.startswith(f"{other}/") for other in paths)]


@dataclass(frozen=True)
class _Bare:
    """A file and what to write to it, a thread and its CPUs, or neither: a directory to make."""

    path: str = ""
    value: bytes = b""
    thread: int = 0
    cpus: frozenset[int] = frozenset()


def _bare(step: MakeDirectory | Move | Pin | Write) -> _Bare:
    if isinstance(step, MakeDirectory):
        return _Bare(step.path)
    if isinstance(step, Pin):
        return _Bare(thread=step.thread, cpus=frozenset(step.cpus))
    if isinstance(step, Move):
        return _Bare(step.file, str(step.number).encode())
    return _Bare(step.path, step.value.encode())


def _with_id(xml: str, number: int) -> str:
    """As libvirt shows it of a running VM."""
    return xml.replace("<domain ", f"<domain id='{number}' ")


def _status(xml: str, pid: int, tids: list[int]) -> str:
    """libvirt's status file of a VM whose vCPUs are these threads."""
    vcpus = "".join(f"<vcpu id='{number}' pid='{tid}'/>" for number, tid in enumerate(tids))
    return f"<domstatus state='running' pid='{pid}'><vcpus>{vcpus}</vcpus>{xml}</domstatus>"


# status

VMS = (1, 10, 100, 1000)
READ_ALL = """\
import os, sys
for top, _, files in os.walk(sys.argv[1]):
    for name in files:
        with open(os.path.join(top, name), "rb", 0) as file:
            file.read()
"""
COMMANDS = ("status", "recommend", "validate")
BARE_READ = "reading the same files"


def status(rounds: int) -> list[Row]:
    """Of recorded hosts with 1 to 1000 VMs; baseline: a Python program that reads every file."""
    rows = []
    for number in VMS:
        with tempfile.TemporaryDirectory() as folder:
            _record(Path(folder), number)
            samples = _status_samples(folder, fewer(rounds) if number == VMS[-1] else rounds)
        goal = Goal("", 1000) if number == VMS[-1] else None
        base = {BARE_READ: samples[BARE_READ]}
        for command in COMMANDS:
            rows.append(measured(f"{command}, {number} VMs", samples[command], base, goal))
    return rows


def _status_samples(root: str, rounds: int) -> Samples:
    virt_cgroup = [PYTHON, "-I", "-m", "libvirt_cgroup_hooks", "--root", root]
    cases = {BARE_READ: partial(_wall, [PYTHON, "-I", "-c", READ_ALL, root])}
    for command in COMMANDS:
        cases[command] = partial(_wall, [*virt_cgroup, command, "--json"])
    return in_turn(cases, rounds)


def _wall(command: list[str]) -> float:
    """validate ends with 1: of what it looks at something is missing in such a host."""
    return run(command, may_fail=True).wall


def _record(root: Path, number: int) -> None:
    shutil.copytree(TREE / "tests/data/hosts/v2", root, dirs_exist_ok=True)
    qemu, etc = root / "run/libvirt/qemu", root / "etc/libvirt"
    qemu.mkdir(parents=True)
    etc.mkdir(parents=True)
    (etc / "cgroup-hooks.conf").write_text(settings(MOVED))
    for vm in range(1, number + 1):
        pid = 100_000 + vm * 10
        xml = _with_id(vm_xml(f"vm{vm}"), vm)
        (qemu / f"vm{vm}.xml").write_text(_status(xml, pid, [pid + 1, pid + 2]))
        groups = {0: "emulator", 1: "vcpu0", 2: "vcpu1", 3: "iothread1", 4: "emulator"}
        for thread, group in groups.items():
            task = root / f"proc/{pid}/task/{pid + thread}"
            task.mkdir(parents=True)
            (task / "cgroup").write_text(f"0::/vms/qemu-vm{vm}/{group}\n")
            (task / "comm").write_text(
                "IO iothread1\n" if group == "iothread1" else "qemu-system-x86\n"
            )
            (task / "status").write_text(
                "Name:\tqemu-system-x86\n" * 40 + "Cpus_allowed_list:\t1-3\n"
            )


# the configuration


def configuration(rounds: int) -> list[Row]:
    """prepare with a short and a long configuration, read for the first time and afterwards."""
    SCRATCH.mkdir(exist_ok=True)
    xml = SCRATCH / "vm.xml"
    xml.write_text(vm_xml(NAME))
    short = settings(MOVED)
    comments = [
        f"# line {number}, which says why the settings are what they are\n" for number in range(490)
    ]
    long = "".join(comments) + short
    long_lines = long.count("\n")
    command = [str(HOOK), NAME, "prepare", "begin", "-"]

    def prepare(text: str, anew: bool) -> float:
        configure(text)
        run(command, str(xml))
        (STATE / "vms" / UUID).unlink()
        if anew:
            (STATE / "config").unlink()
        took = run(command, str(xml)).wall
        (STATE / "vms" / UUID).unlink()
        return took

    cases = {
        "bare": lambda: run(BARE_PYTHON).wall,
        "3 lines, anew": lambda: prepare(short, True),
        f"{long_lines} lines, anew": lambda: prepare(long, True),
        "3 lines, afterwards": lambda: prepare(short, False),
        f"{long_lines} lines, afterwards": lambda: prepare(long, False),
    }
    samples = in_turn(cases, rounds)
    base = {"bare python3": samples["bare"]}
    return [measured(f"prepare, {name}", samples[name], base) for name in cases if name != "bare"]
