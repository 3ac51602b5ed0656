"""Many VMs that start and stop at once, many that the daemon finds running when it restarts, and a
reservation that is changed while they run.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from libvirt_cgroup_hooks.settings import named
from tests.live.harness import configure, destroy_all_vms, virsh

from .spread import single
from .table import Goal, Row, measured
from .timing import PYTHON, run, say
from .vm import LAYOUTS, WITHOUT
from .vm_host import HOOK, LONG, MOVED, SCRATCH, VmHost, settings, vm_xml

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
# Of a start alone: what hooks wait for one another is no work
ALONE = 5  # VMs that are started and stopped one by one
CHANGES = 3  # of the reservation, there and back
STORM_GOAL = Goal("one at a time", 1.3)


@dataclass(frozen=True)
class Log:
    """What the probes have noted, in nanoseconds."""

    walls: list[float]  # of each run of the hook
    cpus: list[float]
    waits: list[float]  # each time that the lock was taken

    @classmethod
    def read(cls) -> Log:
        runs = [path.read_text().splitlines() for path in LOG.glob("run.*")]
        spans = [[float(one) for one in lines[0].split()] for lines in runs]
        walls = [(end - begin) * 1e9 for begin, end in spans]
        # The line before has the shell's own.
        cpus = [sum(map(_seconds, lines[2].split())) * 1e9 for lines in runs]
        waits = [float(one) for path in LOG.glob("lock.*") for one in path.read_text().split()]
        return cls(walls, cpus, waits)


def _seconds(minutes: str) -> float:
    """Of 0m0.012s."""
    whole, _, rest = minutes.removesuffix("s").partition("m")
    return int(whole) * 60 + float(rest)


@dataclass(frozen=True)
class Wave:
    """Many at once, in one mode."""

    wall: float  # nanoseconds, until the last is there
    cpu: float  # nanoseconds of all that ran on this host
    log: Log


def storm(at_once: int) -> list[Row]:
    """AT_ONCE VMs start and stop together, and four times as many reconnect when the daemon has
    restarted.
    """
    with VmHost() as host:
        _install_timed_hook()
        names = [f"storm{number}" for number in range(4 * at_once)]
        for name in names:
            virsh("define", "/dev/stdin", stdin=vm_xml(name, vcpus=1, iothreads=0))
        rows = _starts_and_stops(host, names[:at_once])
        _set_mode(host, MOVED)
        rows += _changes(names[:1])
        for begin in range(1, len(names), 10):
            _all("start", names[begin : begin + 10])
        rows += _changes(names)
        rows += _reconnects(host, names)
        destroy_all_vms()
    return rows


def _install_timed_hook() -> None:
    entrypoint = HOOK.read_text()
    assert IMPORT in entrypoint, "the entrypoint no longer imports main as this expects"
    timed = SCRATCH / "timed"
    timed.write_text(entrypoint.replace(IMPORT, IMPORT + TIMED_LOCK))
    timed.chmod(0o755)


def _starts_and_stops(host: VmHost, names: list[str]) -> list[Row]:
    waves: dict[tuple[str, str], list[Wave]] = defaultdict(list)
    alone: dict[str, float] = {}
    for mode in [*LAYOUTS, WITHOUT]:
        say(f"{len(names)} starts and stops, {mode}")
        _set_mode(host, mode)
        for verb in ("start", "destroy"):
            waves[verb, mode].append(_wave(verb, names))
        if mode != WITHOUT:
            _one_by_one(names[:ALONE])
            alone[mode] = sum(Log.read().cpus) / len(names[:ALONE])
    rows: list[Row] = []
    for layout in LAYOUTS:
        title = f"{len(names)} %ss, `{layout}`"
        of_starts, of_stops = waves["start", layout], waves["destroy", layout]
        rows += _rows(title % "start", of_starts, waves["start", WITHOUT])
        rows += _rows(title % "stop", of_stops, waves["destroy", WITHOUT])
        used = sum(sum(waves[-1].log.cpus) for waves in (of_starts, of_stops)) / len(names)
        share = {STORM_GOAL.baseline: single(used / alone[layout])}
        each = f"{len(names)} at once, `{layout}`: CPU of the hooks of a VM"
        rows.append(Row(each, "ms", single(used / 1e6), share, STORM_GOAL))
    return rows


def _wave(verb: str, names: list[str]) -> Wave:
    _clear_log()
    begin, used = time.monotonic_ns(), _cpu_used()
    _all(verb, names)
    return Wave(time.monotonic_ns() - begin, _cpu_used() - used, Log.read())


def _one_by_one(names: list[str]) -> None:
    _clear_log()
    for name in names:
        virsh("start", name)
        virsh("destroy", name)


def _changes(names: list[str]) -> list[Row]:
    """`reserve --live` there and back, while NAMES run idle, in the layout that places VMs."""
    say(f"reserve --live, {len(names)} VMs")
    _all("start", [name for name in names if not _runs(name)])
    took = []
    for cpus in ("none", "0-0") * CHANGES:
        change = [PYTHON, "-I", "-m", "libvirt_cgroup_hooks", "reserve", "--live", "--cpus", cpus]
        took.append(run(change).wall)
    each = f"{sum(took) / len(took) / len(names) / 1e6:.1f} ms a VM"
    return [measured(f"`reserve --live`, {len(names)} idle VMs", took, {}, note=each)]


def _runs(name: str) -> bool:
    return virsh("domstate", name).stdout.strip() == "running"


def _reconnects(host: VmHost, names: list[str]) -> list[Row]:
    waves: dict[str, list[Wave]] = defaultdict(list)
    for mode in (MOVED, WITHOUT) * 2:
        say(f"{len(names)} reconnects, {mode}")
        _set_mode(host, mode)
        began, used = time.monotonic_ns(), _cpu_used()
        host.restart()
        waves[mode].append(Wave(time.monotonic_ns() - began, _cpu_used() - used, Log.read()))
    _set_mode(host, MOVED)
    return _rows(f"{len(names)} reconnects, `{MOVED}`", waves[MOVED], waves[WITHOUT])


def _set_mode(host: VmHost, mode: str) -> None:
    """MODE is a layout, or WITHOUT."""
    if mode == WITHOUT:
        configure(LONG + settings(MOVED))
        HOOK.unlink(missing_ok=True)
    else:
        configure(LONG + settings(mode))
        host.install_hook(PROBE)
    host.reload()
    _clear_log()


def _clear_log() -> None:
    shutil.rmtree(LOG, ignore_errors=True)
    LOG.mkdir()


def _all(verb: str, names: Sequence[str]) -> None:
    """`virsh VERB` for all NAMES at once."""
    command = ["virsh", "--quiet", "--connect", "qemu:///system", verb]
    running = [subprocess.Popen([*command, name]) for name in names]
    statuses = [one.wait(900) for one in running]
    assert not any(statuses), f"virsh {verb} failed for some VM"


def _cpu_used() -> float:
    """Nanoseconds of all that runs on this host."""
    v1 = Path("/sys/fs/cgroup/cpuacct/cpuacct.usage")
    if v1.exists():
        return int(v1.read_text())
    lines = dict(line.split() for line in Path("/sys/fs/cgroup/cpu.stat").read_text().splitlines())
    return int(lines["usage_usec"]) * 1000


def _rows(title: str, waves: list[Wave], without: list[Wave]) -> list[Row]:
    """What hooks did is of the last wave."""
    last = waves[-1]
    log = last.log
    walls = [wave.wall for wave in waves]
    baseline = {WITHOUT: [wave.wall for wave in without]}
    used = sum(log.cpus)
    share = {"all CPU used": single(used / last.cpu)}
    timeout = f"`hook_timeout` is {named('hook_timeout').default} s"
    rows = [
        measured(f"{title}: until the last is there", walls, baseline, unit="s"),
        Row(
            f"{title}: CPU of all hooks",
            "s",
            single(used / 1e9),
            share,
            note=f"{len(log.walls)} runs",
        ),
        measured(f"{title}: one hook", log.walls, {}),
        Row(f"{title}: the longest hook", "ms", single(max(log.walls) / 1e6), note=timeout),
    ]
    if log.waits:
        note = f"taken {len(log.waits)} times"
        rows.append(measured(f"{title}: waiting for the lock", log.waits, {}, note=note))
    return rows
