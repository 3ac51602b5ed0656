"""The hook against what other projects run to keep CPUs for the host."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .hook import BARE, EMPTY
from .replay import STARTING, Replay, hook, recorded
from .spread import ratio
from .table import Goal, Row, measured
from .timing import BARE_PYTHON, PYTHON, Took, empty_hook, in_turn, run, say
from .vm import LAYOUTS
from .vm_host import MOVED, NAME, SCRATCH, VmHost, install

DISPATCHER = """\
#!/bin/bash
# Does what the dispatcher of PassthroughPOST/VFIO-Tools is documented to do, for comparison; none
# of its code is here: everything executable in hooks/qemu.d/VM/OPERATION/SUB-OPERATION is run with
# the hook's arguments and input.
folder="$(dirname "$0")/dispatched/$1/$2/$3"
[ -d "$folder" ] || exit 0
input=$(cat)
while IFS= read -r -d '' file; do
    printf '%s' "$input" | "$file" "$@" || exit
done < <(find -L "$folder" -maxdepth 1 -type f -executable -print0 | sort -z)
"""
SET_PROPERTY = ("systemctl", "set-property", "--runtime", "--", "machine.slice")
WITH_SYSTEMD = f"""\
#!/bin/sh
exec {" ".join(SET_PROPERTY)} AllowedCPUs={{cpus}} MemoryMax={{memory}}
"""
# What the hook has limited: a peer that set anything else would give it work at each round
LIMITS = [
    Path("/sys/fs/cgroup/machine.slice/memory.max"),
    Path("/sys/fs/cgroup/memory/machine.slice/memory.limit_in_bytes"),
]
JUST_WRITE = """\
#!/bin/sh
for file in /sys/fs/cgroup/cpuset/machine/cpuset.cpus /sys/fs/cgroup/machine/cpuset.cpus; do
    [ ! -e "$file" ] || echo {cpus} >"$file"
done
"""
# A hook as people write it, who want the VM's name and its vCPUs.
IN_PYTHON = f"""\
#!{PYTHON}
import json
import logging
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import libvirt

logging.basicConfig(level=logging.WARNING)
name, operation = sys.argv[1:3]
if operation == "prepare":
    domain = ElementTree.fromstring(sys.stdin.read())
    vcpus = int(domain.findtext("vcpu", "1"))
    logging.info("%s has %s vCPUs: %s", name, vcpus, json.dumps(sys.argv))
    subprocess.run({{command!r}}, shell=True, check=True)
"""
ISOLATE = "import sys; sys.path.insert(0, {!r}); from vfio_isolate import run_cli; run_cli()"
DISPATCHED = "the dispatcher"
CPU = f"{DISPATCHED}, CPU"
# A hook that has Python decide, against one that has systemctl set the same limit once more
GOALS = {"native": Goal(CPU, 0.6), MOVED: Goal(CPU, 1)}
# systemd and the bus, which work for whoever calls them, and for a moment after they have answered
CALLED = [
    Path("/sys/fs/cgroup", name, "cpu.stat") for name in ("init.scope", "system.slice/dbus.service")
]
SETTLED = 0.1  # seconds


def peers(rounds: int, vfio_isolate: str) -> list[Row]:
    """VFIO_ISOLATE is the folder that program is in; "": without it."""
    if vfio_isolate:
        _mount_cpuset_first()
    with VmHost() as host:
        host.start("resident", "native")
        cases = _others(host, vfio_isolate)
        rows: list[Row] = []
        for layout in LAYOUTS:
            say(f"layout {layout}")
            replay = Replay(host, layout)
            replay.depth()
            title = f"the hook, `{layout}`: prepare, start and started"
            ours: dict[str, Callable[[], Took]] = {title: lambda replay=replay: _hook(replay)}  # type: ignore[misc]
            whole = {name: _with_systemd(case) for name, case in {**cases, **ours}.items()}
            samples = in_turn(whole, rounds)
            replay.leave()
            goal = GOALS[layout] if host.systemd else None
            rows += _rows(samples, [title] if rows else list(samples), title, goal)
    return rows


def _others(host: VmHost, vfio_isolate: str) -> dict[str, Callable[[], Took]]:
    cpus = f"1-{(os.cpu_count() or 2) - 1}"
    memory = next((path.read_text().strip() for path in LIMITS if path.exists()), "2G")
    recipe = (WITH_SYSTEMD if host.systemd else JUST_WRITE).format(cpus=cpus, memory=memory)
    how = "systemctl set-property" if host.systemd else "a write"
    dispatcher, empty = _install_dispatcher(recipe), empty_hook(SCRATCH)
    in_python = SCRATCH / "in-python"
    install(in_python, IN_PYTHON.format(command=str(SCRATCH / "recipe")))
    install(SCRATCH / "recipe", recipe)
    cases: dict[str, Callable[[], Took]] = {
        EMPTY: lambda: run(empty),
        BARE: lambda: run(BARE_PYTHON),
        f"dispatcher, {how} at prepare: the same three": lambda: _start(dispatcher),
        f"in Python as people write it, {how} at prepare: the same three": lambda: _start(
            in_python
        ),
    }
    if vfio_isolate:
        group = "/machine.slice" if host.systemd else "/machine"
        change = [PYTHON, "-c", ISOLATE.format(vfio_isolate), "cpuset-modify", "--cpus", f"C{cpus}"]
        tried = subprocess.run([*change, group], capture_output=True, text=True, check=False)
        if tried.returncode:
            say(f"vfio-isolate does not work here: {tried.stderr.strip()}")
        else:
            cases["vfio-isolate: one change of a cpuset"] = lambda: run([*change, group])
    return cases


def _rows(
    samples: dict[str, list[Took]], shown: list[str], title: str, goal: Goal | None
) -> list[Row]:
    """Those that are SHOWN; the GOAL is that of TITLE."""
    dispatched = next(took for name, took in samples.items() if name.startswith("dispatcher"))
    base = {BARE: samples[BARE], DISPATCHED: dispatched}
    rows: list[Row] = []
    for name in shown:
        took = samples[name]
        walls = {key: [one.wall for one in samples_of] for key, samples_of in base.items()}
        row = measured(name, [one.wall for one in took], walls, goal if name == title else None)
        share = ratio([one.cpu for one in took], [one.cpu for one in dispatched])
        rows.append(replace(row, ratios={**row.ratios, CPU: share}))
    return rows


def _with_systemd(case: Callable[[], Took]) -> Callable[[], Took]:
    """CASE, whose CPU time is that of systemd and of the bus, too."""

    def whole() -> Took:
        before = _used_by_systemd()
        took = case()
        time.sleep(SETTLED)
        return replace(took, cpu=took.cpu + _used_by_systemd() - before)

    return whole if all(file.exists() for file in CALLED) else case


def _used_by_systemd() -> int:
    """Nanoseconds."""
    return sum(int(file.read_text().split()[1]) * 1000 for file in CALLED)


def _hook(replay: Replay) -> Took:
    took = Took(0, 0)
    for operation in STARTING:
        replay.before(operation)
        took += run(hook(operation), recorded(operation))
    return took


def _start(path: Path) -> Took:
    took = Took(0, 0)
    for operation in STARTING:
        took += run(hook(operation, path), recorded(operation))
    return took


def _install_dispatcher(recipe: str) -> Path:
    path = SCRATCH / "dispatcher"
    install(path, DISPATCHER)
    install(SCRATCH / f"dispatched/{NAME}/prepare/begin/cpus", recipe)
    return path


def _mount_cpuset_first() -> None:
    """vfio-isolate looks for cpusets in the first cgroup hierarchy that is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options = line.split()[:4]
        if kind == "cgroup" and "cpuset" not in options:
            subprocess.run(["umount", point], check=True)
            mount = ["mount", "-t", "cgroup", "-o", options, "cgroup", point]
            subprocess.run(mount, check=True)
