"""How the cost grows: with a VM's threads, with the VMs of a host, and with the length of the configuration."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bench_host import HOOK, NAME, SCRATCH, STATE, TREE, UUID, remove_tree, settings, vm_xml
from bench_run import BARE_PYTHON, PYTHON, in_turn, run, say
from bench_table import Goal, Row, measured

from libvirt_cgroup_hooks import managers, operations, snapshot, state
from libvirt_cgroup_hooks.domain import parse
from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.plan import Plan
from libvirt_cgroup_hooks.steps import MakeDirectory, Move, Pin, Write
from tests.live.harness import LAST_CPU, configure

BARE_LOOP = "bare write() loop"
STATUS = Path("/run/libvirt/qemu")
THREADS = (1, 8, 64, 512)
LAYOUT = "/vms/$DRIVER-$NAME"
MANY_THREADS = """\
import sys, threading
threading.stack_size(65536)
print(*[(one := threading.Thread(target=threading.Event().wait, daemon=True), one.start(), one.native_id)[2]
        for _ in range(int(sys.argv[1]))], flush=True)
sys.stdin.read()
"""


def threads(rounds: int) -> list[Row]:
    """Places a process that has the threads of a VM; the hook's interpreter is left out, its reading and planning is in."""
    rows = []
    STATUS.mkdir(parents=True, exist_ok=True)
    SCRATCH.mkdir(exist_ok=True)
    configure(settings(LAYOUT))
    for number in THREADS:
        say(f"{number} threads")
        with subprocess.Popen([PYTHON, "-c", MANY_THREADS, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as vm:
            assert vm.stdout
            tids = list(map(int, vm.stdout.readline().split()))
            placing = _Placing(vm.pid, tids)
            samples = in_turn(
                {BARE_LOOP: placing.bare, "placed": placing.placed}, max(3, rounds if number < 100 else rounds // 3)
            )
            placing.leave()
            vm.kill()
        base = {BARE_LOOP: samples[BARE_LOOP]}
        each = f"{sorted(samples['placed'])[len(samples['placed']) // 2] / 1e6 / number:.2f} ms a thread"
        rows.append(measured(f"{number} threads: {BARE_LOOP}", samples[BARE_LOOP], {}, note=f"{len(placing.steps)} steps"))
        rows.append(measured(f"{number} threads: placed", samples["placed"], base, Goal(BARE_LOOP, 1.2), note=each))
    return rows


class _Placing:
    def __init__(self, pid: int, tids: list[int]) -> None:
        self.pid = pid
        self.host = Host()
        self.xml = vm_xml(NAME, len(tids), 0, LAST_CPU).replace("<domain ", "<domain id='1' ")
        vcpus = "".join(f"<vcpu id='{number}' pid='{tid}'/>" for number, tid in enumerate(tids))
        status = f"<domstatus state='running' pid='{pid}'><vcpus>{vcpus}</vcpus>{self.xml}</domstatus>"
        (STATUS / f"{NAME}.xml").write_text(status)
        state.prepare_directory(self.host)
        self._plan("prepare").run(self.host)
        self.steps = [one for one in self._plan("started").steps if isinstance(one, (MakeDirectory, Move, Pin, Write))]

    def _plan(self, operation: str) -> Plan:
        domain = parse(self.xml.encode())
        return operations.plan(self.host, snapshot.load(self.host, [], save=True), operation, domain)

    def placed(self) -> float:
        self.leave()
        begin = time.monotonic_ns()
        self._plan("started").run(self.host)
        return time.monotonic_ns() - begin

    def bare(self) -> float:
        """The same directories, writes and CPUs, in the same order, with nothing around them."""
        self.leave()
        todo = [_bare(step) for step in self.steps]
        begin = time.monotonic_ns()
        for path, value, cpus in todo:
            if value:
                file = os.open(path, os.O_WRONLY)
                os.write(file, value)
                os.close(file)
            elif cpus:
                os.sched_setaffinity(int(path), cpus)
            else:
                os.mkdir(path)
        return time.monotonic_ns() - begin

    def leave(self) -> None:
        """Back to where this program is, and nothing left of the VM cgroup."""
        made = [one.path for one in self.steps if isinstance(one, MakeDirectory)]
        tops = [path for path in made if not any(path.startswith(f"{other}/") for other in made)]
        for hierarchy in managers.choose(self.host, snapshot.load(self.host, [])).hierarchies:
            for top in [path for path in tops if path.startswith(f"{hierarchy.mount}/")]:
                Path(hierarchy.directory(hierarchy.placement), "cgroup.procs").write_text(str(self.pid))
                remove_tree(top)


def _bare(step: MakeDirectory | Move | Pin | Write) -> tuple[str, bytes, set[int]]:
    """What to write where; for a thread, its CPUs; neither: a directory."""
    if isinstance(step, MakeDirectory):
        return step.path, b"", set()
    if isinstance(step, Pin):
        return str(step.thread), b"", set(step.cpus)
    return (step.file, str(step.number).encode(), set()) if isinstance(step, Move) else (step.path, step.value.encode(), set())


# status

VMS = (1, 10, 100, 1000)
READ_ALL = """\
import os, sys
for top, _, files in os.walk(sys.argv[1]):
    for name in files:
        with open(os.path.join(top, name), "rb", 0) as file:
            file.read()
"""
BARE_READ = "reading the same files"


def status(rounds: int) -> list[Row]:
    """Of recorded hosts with 1 to 1000 VMs of five threads; baseline: one Python program that reads every file there."""
    rows = []
    for number in VMS:
        with tempfile.TemporaryDirectory() as folder:
            _record(Path(folder), number)
            show = [PYTHON, "-I", "-m", "libvirt_cgroup_hooks", "--root", folder, "status", "--json"]
            read = [PYTHON, "-I", "-c", READ_ALL, folder]
            samples = in_turn(
                {BARE_READ: lambda: run(read).wall, "status": lambda: run(show).wall},  # noqa: B023 - called here
                rounds if number < 1000 else max(3, rounds // 3),
            )
        goal = Goal("", 1000) if number == VMS[-1] else None
        rows.append(measured(f"status, {number} VMs", samples["status"], {BARE_READ: samples[BARE_READ]}, goal))
    return rows


def _record(root: Path, number: int) -> None:
    shutil.copytree(TREE / "tests/data/hosts/unified", root, dirs_exist_ok=True)
    qemu, etc = root / "run/libvirt/qemu", root / "etc/libvirt"
    qemu.mkdir(parents=True)
    etc.mkdir(parents=True)
    (etc / "cgroup-hooks.conf").write_text(settings(LAYOUT))
    for vm in range(1, number + 1):
        pid = 100_000 + vm * 10
        xml = vm_xml(f"vm{vm}").replace("<domain ", f"<domain id='{vm}' ")
        vcpus = f"<vcpu id='0' pid='{pid + 1}'/><vcpu id='1' pid='{pid + 2}'/>"
        (qemu / f"vm{vm}.xml").write_text(f"<domstatus state='running' pid='{pid}'><vcpus>{vcpus}</vcpus>{xml}</domstatus>")
        groups = {0: "emulator", 1: "vcpu0", 2: "vcpu1", 3: "iothread1", 4: "emulator"}
        for thread, group in groups.items():
            task = root / f"proc/{pid}/task/{pid + thread}"
            task.mkdir(parents=True)
            (task / "cgroup").write_text(f"0::/vms/qemu-vm{vm}/{group}\n")
            (task / "comm").write_text("IO iothread1\n" if group == "iothread1" else "qemu-system-x86\n")
            (task / "status").write_text("Name:\tqemu-system-x86\n" * 40 + "Cpus_allowed_list:\t1-3\n")


# the configuration


def configuration(rounds: int) -> list[Row]:
    """prepare with a short and a long configuration, read for the first time and afterwards."""
    SCRATCH.mkdir(exist_ok=True)
    xml = SCRATCH / "vm.xml"
    xml.write_text(vm_xml(NAME))
    short = settings(LAYOUT)
    long = "".join(f"# line {number}, which says why the settings are what they are\n" for number in range(490)) + short
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
        f"{long.count(chr(10))} lines, anew": lambda: prepare(long, True),
        "3 lines, afterwards": lambda: prepare(short, False),
        f"{long.count(chr(10))} lines, afterwards": lambda: prepare(long, False),
    }
    samples = in_turn(cases, rounds)
    base = {"bare python3": samples["bare"]}
    return [measured(f"prepare, {name}", samples[name], base) for name in cases if name != "bare"]
