"""What a VM's start costs as a whole, and many at once."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_host import HOOK, NAME, SCRATCH, VmHost, settings, vm_xml
from bench_run import BARE_PYTHON, run, say
from bench_stats import Spread, interval, quartiles
from bench_table import UNITS, Goal, Row, measured

from libvirt_cgroup_hooks.settings import named
from tests.live.harness import configure, destroy_all_vms, destroy_vm, virsh

LAYOUTS = ("native", "/vms/$DRIVER-$NAME")
WITHOUT = "without the hook"
CALLS = 3  # of the hook while a VM starts: prepare, start, started


def start(rounds: int) -> list[Row]:
    """virsh create with the hook and without it, in turn. libvirtd is told of each change with SIGHUP."""
    rows = []
    with VmHost() as host:
        xml = SCRATCH / "vm.xml"
        xml.write_text(vm_xml(NAME))
        create = ["/usr/bin/virsh", "--quiet", "--connect", "qemu:///system", "create", str(xml)]
        for layout in LAYOUTS:
            say(f"layout {layout}")
            host.start("resident", layout)
            took: dict[str, list[float]] = defaultdict(list)
            for number in range(-1, rounds):
                for hooked in (True, False) if number % 2 else (False, True):
                    _switch(host, hooked)
                    wall = run(create).wall
                    destroy_vm(NAME)
                    if number >= 0:
                        took[layout if hooked else WITHOUT].append(wall)
                if number >= 0:
                    took["bare"].append(CALLS * run(BARE_PYTHON).wall)
            _switch(host, True)
            destroy_vm("resident")
            rows += _start_rows(layout, took)
    return rows


def _switch(host: VmHost, hooked: bool) -> None:
    if HOOK.exists() == hooked:
        return
    if hooked:
        host.install_hook()
    else:
        HOOK.unlink()
    host.reload()


def _start_rows(layout: str, took: dict[str, list[float]]) -> list[Row]:
    base = took[WITHOUT]
    added = [one - other for one, other in zip(took[layout], base)]
    middle = quartiles(added).median
    return [
        measured(f"`{layout}`: {WITHOUT}", base, {}),
        measured(f"`{layout}`: with it", took[layout], {WITHOUT: base}),
        Row(
            f"`{layout}`: added",
            "ms",
            interval([one * UNITS["ms"] for one in added]),
            {WITHOUT: interval([one / other for one, other in zip(added, base)])},
        ),
        measured(f"`{layout}`: of that, {CALLS} bare interpreters", took["bare"], {"added": [middle] * len(added)}),
    ]


# Many at once

LOG = SCRATCH / "storm"  # a file for each run of the hook, and one for each wait
PROBE = f"""\
#!/bin/bash
# Not another interpreter: the clock is a variable, and times is built in.
begin=$EPOCHREALTIME
{SCRATCH}/timed "$@"
status=$?
{{ echo "$begin $EPOCHREALTIME"; times; }} >{LOG}/run.$$
exit $status
"""
IMPORT = "    from libvirt_cgroup_hooks.hook import main\n"
TIMED_LOCK = f"""\
    import time
    from libvirt_cgroup_hooks.host import Lock
    enter, leave = Lock.__enter__, Lock.__exit__
    def timed(self):
        begin = time.monotonic_ns()
        enter(self)
        self.took = time.monotonic_ns() - begin
    def noted(self, *why):
        leave(self, *why)  # nobody waits for the lock while this writes
        with open(f"{LOG}/lock.{{os.getpid()}}", "a") as log:
            print(self.took, file=log)
    Lock.__enter__, Lock.__exit__ = timed, noted
"""
LONG = 120  # seconds: a hook's time is measured, not ended
LOCK_GOAL = Goal("", 5)


def storm(at_once: int) -> list[Row]:
    """AT_ONCE VMs are started together, and twice as many are connected again when the daemon has restarted."""
    rows = []
    with VmHost() as host:
        entrypoint = HOOK.read_text()
        assert IMPORT in entrypoint, "the entrypoint no longer imports main as this expects"
        timed = SCRATCH / "timed"
        timed.write_text(entrypoint.replace(IMPORT, IMPORT + TIMED_LOCK))
        timed.chmod(0o755)
        names = [f"storm{number}" for number in range(2 * at_once)]
        for name in names:
            virsh("define", "/dev/stdin", stdin=vm_xml(name, vcpus=1, iothreads=0))
        walls: dict[str, list[float]] = defaultdict(list)
        logs: dict[str, _Log] = {}
        cpu: dict[str, float] = {}
        for mode in [*LAYOUTS, WITHOUT] * 2:
            say(f"{at_once} starts, {mode}")
            _mode(host, mode)
            begin, used = time.monotonic_ns(), _cpu_used()
            _all_at_once(names[:at_once])
            walls[mode].append(time.monotonic_ns() - begin)
            cpu[mode], logs[mode] = _cpu_used() - used, _Log.read()
            for name in names[:at_once]:
                virsh("destroy", name)
        for mode in LAYOUTS:
            rows += _storm_rows(f"{at_once} starts, `{mode}`", logs[mode], cpu[mode], walls[mode], walls[WITHOUT])
        rows += _reconnects(host, names)
        destroy_all_vms()
    return rows


def _reconnects(host: VmHost, names: list[str]) -> list[Row]:
    walls: dict[str, list[float]] = defaultdict(list)
    log, cpu = _Log([], [], []), 0.0
    layout = LAYOUTS[-1]
    _mode(host, layout)
    for begin in range(0, len(names), 10):
        _all_at_once(names[begin : begin + 10])
    for mode in (layout, WITHOUT) * 2:
        say(f"{len(names)} reconnects, {mode}")
        _mode(host, mode)
        begin, used = time.monotonic_ns(), _cpu_used()
        host.restart()
        walls[mode].append(time.monotonic_ns() - begin)
        if mode == layout:
            log, cpu = _Log.read(), _cpu_used() - used
    _mode(host, layout)
    return _storm_rows(f"{len(names)} reconnects, `{layout}`", log, cpu, walls[layout], walls[WITHOUT])


def _mode(host: VmHost, mode: str) -> None:
    configure(f"hook_timeout = {LONG}\n" + settings(LAYOUTS[-1] if mode == WITHOUT else mode))
    if mode == WITHOUT:
        HOOK.unlink(missing_ok=True)
    else:
        host.install_hook(PROBE)
    host.reload()
    shutil.rmtree(LOG, ignore_errors=True)
    LOG.mkdir()


def _all_at_once(names: Sequence[str]) -> None:
    commands = [["virsh", "--quiet", "--connect", "qemu:///system", "start", name] for name in names]
    running = [subprocess.Popen(command) for command in commands]
    assert [one.wait(900) for one in running] == [0] * len(running), "not every VM has started"


def _cpu_used() -> float:
    """Nanoseconds of all that runs on this host."""
    v1 = Path("/sys/fs/cgroup/cpuacct/cpuacct.usage")
    if v1.exists():
        return int(v1.read_text())
    lines = dict(line.split() for line in Path("/sys/fs/cgroup/cpu.stat").read_text().splitlines())
    return int(lines["usage_usec"]) * 1000


@dataclass(frozen=True)
class _Log:
    """What the probes have noted, in nanoseconds."""

    walls: list[float]  # of each run of the hook
    cpus: list[float]
    waits: list[float]  # each time that the lock was taken

    @classmethod
    def read(cls) -> _Log:
        runs = [path.read_text().splitlines() for path in LOG.glob("run.*")]
        spans = [[float(one) for one in lines[0].split()] for lines in runs]
        waits = [float(one) for path in LOG.glob("lock.*") for one in path.read_text().split()]
        cpus = [sum(map(_seconds, lines[2].split())) * 1e9 for lines in runs]  # the shell's own are in the line before
        return cls([(end - begin) * 1e9 for begin, end in spans], cpus, waits)


def _seconds(minutes: str) -> float:
    """Of 0m0.012s."""
    whole, _, rest = minutes.removesuffix("s").partition("m")
    return int(whole) * 60 + float(rest)


def _storm_rows(title: str, log: _Log, cpu: float, walls: list[float], without: list[float]) -> list[Row]:
    total, longest, timeout = sum(log.cpus), max(log.walls), named("hook_timeout").default
    count = f"{len(log.walls)} runs"
    rows = [
        measured(f"{title}: until the last is there", walls, {WITHOUT: without}, unit="s"),
        Row(f"{title}: CPU of all hooks", "s", _single(total / 1e9), {"all CPU used": _single(total / cpu)}, None, count),
        measured(f"{title}: one hook", log.walls, {}),
        Row(f"{title}: the longest hook", "ms", _single(longest / 1e6), note=f"`hook_timeout` is {timeout} s"),
    ]
    if log.waits:
        note = f"taken {len(log.waits)} times"
        rows.append(measured(f"{title}: waiting for the lock", log.waits, {}, note=note))
    return [*rows, Row(f"{title}: the longest wait", "ms", _single(max(log.waits, default=0) / 1e6), goal=LOCK_GOAL)]


def _single(value: float) -> Spread:
    return Spread(value, value, value, 1)
