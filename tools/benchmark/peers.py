"""The hook against what other projects run to keep CPUs for the host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from .hook import BARE, EMPTY
from .replay import STARTING, Replay, hook, recorded
from .table import Row, measured
from .timing import BARE_PYTHON, empty_hook, in_turn, run
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
SET_PROPERTY = """\
#!/bin/sh
exec systemctl set-property --runtime -- machine.slice AllowedCPUs={cpus} MemoryMax=2G
"""
JUST_WRITE = """\
#!/bin/sh
for file in /sys/fs/cgroup/cpuset/machine/cpuset.cpus /sys/fs/cgroup/machine/cpuset.cpus; do
    [ ! -e "$file" ] || echo {cpus} >"$file"
done
"""
THREE = "the hook: prepare, start and started"


def peers(rounds: int, vfio_isolate: str) -> list[Row]:
    """With VFIO_ISOLATE "", without that program."""
    if vfio_isolate:
        _mount_cpuset_first()
    with VmHost() as host:
        cpus = f"1-{(os.cpu_count() or 2) - 1}"
        host.start("resident", "native")
        replay = Replay(host, MOVED)
        replay.depth()
        dispatcher = _install_dispatcher(SET_PROPERTY if host.systemd else JUST_WRITE, cpus)
        how = "systemctl set-property" if host.systemd else "a write"
        empty = empty_hook(SCRATCH)
        cases: dict[str, Callable[[], float]] = {
            EMPTY: lambda: run(empty).wall,
            BARE: lambda: run(BARE_PYTHON).wall,
            THREE: lambda: _hook(replay),
            f"dispatcher, {how} at prepare: the same three": lambda: _start(dispatcher),
        }
        if vfio_isolate:
            change = [vfio_isolate, "cpuset-modify", "--cpus", f"C{cpus}", "/machine"]
            cases["vfio-isolate: one change of a cpuset"] = lambda: run(change).wall
        samples = in_turn(cases, rounds)
        replay.leave()
    base = {EMPTY: samples[EMPTY], BARE: samples[BARE], "the hook": samples[THREE]}
    return [
        measured(name, samples[name], {} if name in (EMPTY, BARE) else base) for name in samples
    ]


def _hook(replay: Replay) -> float:
    took = 0
    for operation in STARTING:
        replay.before(operation)
        took += run(hook(operation), recorded(operation)).wall
    return took


def _start(path: Path) -> float:
    return sum(run(hook(operation, path), recorded(operation)).wall for operation in STARTING)


def _install_dispatcher(recipe: str, cpus: str) -> Path:
    path = SCRATCH / "dispatcher"
    install(path, DISPATCHER)
    install(SCRATCH / f"dispatched/{NAME}/prepare/begin/cpus", recipe.format(cpus=cpus))
    return path


def _mount_cpuset_first() -> None:
    """vfio-isolate looks for cpusets in the first cgroup hierarchy that is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options = line.split()[:4]
        if kind == "cgroup" and "cpuset" not in options:
            subprocess.run(["umount", point], check=True)
            mount = ["mount", "-t", "cgroup", "-o", options, "cgroup", point]
            subprocess.run(mount, check=True)
