"""How long libvirtd waits for the hook, operation by operation, and for what others run in its place.

What libvirt gives to hooks is recorded while a VM starts, and then replayed on that VM while it runs: before each
operation the VM is put where libvirt has it at that moment. Another VM is there all the time, so the fence is in place.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from bench_host import (
    HOOK,
    LAYOUTS,
    NAME,
    SCRATCH,
    STATE,
    UUID,
    VmHost,
    have,
    install,
    remove_tree,
    settings,
)
from bench_run import BARE_PYTHON, Took, empty_hook, in_turn, run, say
from bench_stats import ratio
from bench_table import Goal, Row, measured

from libvirt_cgroup_hooks.cgroups import detect
from libvirt_cgroup_hooks.host import Host
from tests.live.harness import configure, destroy_vm, running_vm

EMPTY, BARE, CPU = "empty sh hook", "bare python3", "its CPU time"
OPERATIONS = ("prepare", "start", "started", "reconnect", "stopped", "release")
SUB = {"reconnect": "begin", "stopped": "end", "release": "end"}
WITH_GOAL = ("prepare", "start", "started")
WORK = Goal(BARE, 1.7)
NOTHING = Goal(EMPTY, 2)


def hook(operation: str, path: Path = HOOK) -> list[str]:
    return [str(path), NAME, operation, SUB.get(operation, "begin"), "-"]


def recorded(operation: str) -> str:
    """The XML of `started` is what `reconnect`, `stopped` and `release` get too."""
    return str(SCRATCH / f"{NAME}.{operation if operation in WITH_GOAL else 'started'}")


class Replay:
    """The running VM whose operations are replayed, and its way back to where libvirt had put it."""

    def __init__(self, host: VmHost, layout: str) -> None:
        configure(None)
        destroy_vm(NAME)
        host.record()
        host.start(NAME, layout if host.systemd else None)  # where nobody owns cgroups, libvirt's own place comes first
        configure(settings(layout))
        self.systemd = host.systemd
        self.hierarchies = detect(Host().read_optional).hierarchies
        self.pid = running_vm(NAME).pid
        self.home = self._places()

    def _places(self) -> dict[tuple[int, str], str]:
        """The thread file of each thread in each hierarchy that is not libvirt's alone."""
        places = {}
        for tid in sorted(map(int, os.listdir(f"/proc/{self.pid}/task")), key=lambda tid: tid != self.pid):
            for line in Path(f"/proc/{self.pid}/task/{tid}/cgroup").read_text().splitlines():
                _, key, path = line.split(":", 2)
                places[(tid, key)] = path
        return places

    def leave(self, remove: bool = True) -> None:
        """Back to libvirt's cgroups; with REMOVE also nothing is left of the VM cgroup."""
        if self.systemd:
            return
        now, left = self._places(), set()
        for hierarchy in self.hierarchies:
            threads = {tid: path for (tid, key), path in self.home.items() if key == hierarchy.key}
            moved = {tid for tid in threads if now.get((tid, hierarchy.key)) != threads[tid]}
            file = "cgroup.threads" if hierarchy.version == 2 else "tasks"
            if moved:
                left.add(hierarchy.directory(now[(self.pid, hierarchy.key)].removesuffix("/emulator")))
                Path(hierarchy.directory(threads[self.pid]), "cgroup.procs").write_text(str(self.pid))
            for tid in moved - {self.pid}:
                Path(hierarchy.directory(threads[tid]), file).write_text(str(tid))
        for directory in left if remove else ():
            remove_tree(directory)

    def before(self, operation: str) -> None:
        record = STATE / "vms" / UUID
        if operation == "prepare":
            self.leave()
            record.unlink(missing_ok=True)
        elif operation == "stopped":  # the processes have ended
            self.leave(remove=False)
        elif operation == "release":  # libvirt has removed its own; nobody may stop the slice of a VM that goes on
            lines = record.read_text().splitlines(keepends=True)
            kept = [line for line in lines if not line.startswith("slice") and not line.endswith(".libvirt-qemu\n")]
            record.write_text("".join(kept))

    def samples(self, rounds: int, empty: list[str]) -> dict[str, dict[str, list[Took]]]:
        """Of each operation: itself and both baselines, in turn."""
        found: dict[str, dict[str, list[Took]]] = {one: {EMPTY: [], BARE: [], one: []} for one in OPERATIONS}
        for number in range(-2, rounds):
            for operation in OPERATIONS:
                self.before(operation)
                xml = recorded(operation)
                cases = {EMPTY: empty, BARE: BARE_PYTHON, operation: hook(operation)}
                names = list(cases)[number % 3 :] + list(cases)[: number % 3]
                for name in names:
                    took = run(cases[name], xml)
                    if number >= 0:
                        found[operation][name].append(took)
        return found

    def depth(self) -> int:
        """Of a vCPU's cgroup in the hierarchy that schedules, once the VM is placed."""
        for operation in ("prepare", "start", "started"):
            self.before(operation)
            run(hook(operation), recorded(operation))
        thread = running_vm(NAME).vcpus[0]
        lines = [line.split(":", 2) for line in Path(f"/proc/{self.pid}/task/{thread}/cgroup").read_text().splitlines()]
        path = next((path for _, key, path in lines if "cpu" in key.split(",")), lines[-1][2])
        return path.strip("/").count("/") + 1


def latency(rounds: int) -> list[Row]:
    rows = []
    with VmHost() as host:
        empty = empty_hook(SCRATCH)
        rows += _idle(rounds * 3, empty)
        rows += [] if host.systemd else [_kernel_move(rounds)]
        host.start("resident", LAYOUTS[0])
        for layout in LAYOUTS:
            say(f"layout {layout}")
            replay = Replay(host, layout)
            depth = replay.depth()
            replay.before("prepare")
            for operation, samples in replay.samples(rounds, empty).items():
                note = f"a vCPU at depth {depth}" if operation == "started" else ""
                rows.append(_row(f"`{layout}`: {operation}", operation, samples, note))
            replay.leave()
            destroy_vm(NAME)
    return rows


def _row(title: str, operation: str, samples: dict[str, list[Took]], note: str) -> Row:
    """The CPU time tells what a busy machine hides: it does not count waiting for others."""
    wall = {name: [one.wall for one in took] for name, took in samples.items()}
    cpu = {name: [one.cpu for one in took] for name, took in samples.items()}
    goal = WORK if operation in WITH_GOAL else None
    row = measured(title, wall[operation], {EMPTY: wall[EMPTY], BARE: wall[BARE]}, goal, note=note)
    return replace(row, ratios={**row.ratios, CPU: ratio(cpu[operation], cpu[BARE])})


def _idle(rounds: int, empty: list[str]) -> list[Row]:
    """Nothing configured, and operations that are not ours."""
    xml = str(SCRATCH / "none.xml")
    Path(xml).write_text("<domain/>")
    commands = {EMPTY: empty, BARE: BARE_PYTHON, "nothing configured: prepare": hook("prepare"), "attach": hook("attach")}
    samples = in_turn({name: lambda command=command: run(command, xml).wall for name, command in commands.items()}, rounds)  # type: ignore[misc]
    base = {EMPTY: samples[EMPTY], BARE: samples[BARE]}
    return [measured(name, samples[name], base, None if name in base else NOTHING) for name in commands]


def _kernel_move(rounds: int) -> Row:
    """One write to cgroup.procs after a pause, in which the kernel forgets that processes are being moved."""
    hierarchy = detect(Host().read_optional).hierarchies[-1]
    place = Path(hierarchy.directory("/bench-move"))
    place.mkdir()
    took = []
    with subprocess.Popen(["sleep", "1000"]) as child:
        for _ in range(rounds):
            time.sleep(0.2)
            begin = time.monotonic_ns()
            (place / "cgroup.procs").write_text(str(child.pid))
            took.append(float(time.monotonic_ns() - begin))
            Path(hierarchy.directory(hierarchy.placement), "cgroup.procs").write_text(str(child.pid))
        child.kill()
    remove_tree(str(place))
    return measured("the kernel alone: one process moved", took, {})


# What others run

DISPATCHER = """\
#!/bin/bash
# Does what the dispatcher of PassthroughPOST/VFIO-Tools is documented to do, for comparison; none of its code is here:
# everything executable in hooks/qemu.d/VM/OPERATION/SUB-OPERATION is run with the hook's arguments and input.
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


def peers(rounds: int, vfio_isolate: str = "") -> list[Row]:
    """The hook with the layout that moves VMs, or steers them, against others' way to keep CPUs for the host."""
    if vfio_isolate:
        _cpuset_first()
    with VmHost() as host:
        empty = empty_hook(SCRATCH)
        cpus = f"1-{(os.cpu_count() or 2) - 1}"
        host.start("resident", "native")
        replay = Replay(host, "/vms/$DRIVER-$NAME")
        replay.depth()
        dispatcher = SCRATCH / "dispatcher"
        install(dispatcher, DISPATCHER)
        recipe = SET_PROPERTY if host.systemd else JUST_WRITE
        install(SCRATCH / f"dispatched/{NAME}/prepare/begin/cpus", recipe.format(cpus=cpus))
        how = "systemctl set-property" if host.systemd else "a write"

        def three(path: Path) -> float:
            took = 0
            for operation in WITH_GOAL:
                if path == HOOK:
                    replay.before(operation)
                took += run(hook(operation, path), recorded(operation)).wall
            return took

        cases = {
            EMPTY: lambda: run(empty).wall,
            BARE: lambda: run(BARE_PYTHON).wall,
            THREE: lambda: three(HOOK),
            f"dispatcher, {how} at prepare: the same three": lambda: three(dispatcher),
        }
        if vfio_isolate:
            change = [vfio_isolate, "cpuset-modify", "--cpus", f"C{cpus}", "/machine"]
            cases["vfio-isolate: one change of a cpuset"] = lambda: run(change).wall
        samples = in_turn(cases, rounds)
        replay.leave()
        base = {EMPTY: samples[EMPTY], BARE: samples[BARE], "the hook": samples[THREE]}
        return [measured(name, samples[name], base if name not in (EMPTY, BARE) else {}) for name in cases]


def _cpuset_first() -> None:
    """vfio-isolate looks for cpusets in the first cgroup hierarchy that is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options = line.split()[:4]
        if kind == "cgroup" and "cpuset" not in options:
            subprocess.run(["umount", point], check=True)
            subprocess.run(["mount", "-t", "cgroup", "-o", options, "cgroup", point], check=True)


def hyperfine(rounds: int) -> list[Row]:
    """The same with another's stop-watch, one command after the other.

    Each is started by a shell script, which gives it its input: Debian 12's hyperfine cannot.
    """
    if not have("hyperfine"):
        return []
    with VmHost() as host:
        empty = empty_hook(SCRATCH)
        host.start("resident", "native")
        replay = Replay(host, "native")
        replay.depth()
        output = SCRATCH / "hyperfine.json"
        commands = {EMPTY: empty, BARE: BARE_PYTHON, "`native`: prepare": hook("prepare")}
        options = ["--shell=none", "--warmup=5", f"--runs={rounds * 3}", f"--export-json={output}", "--style=none"]
        options.append(f"--prepare=rm -f {STATE}/vms/{UUID}")
        scripts = [SCRATCH / f"hyperfine{number}" for number in range(len(commands))]
        for script, command in zip(scripts, commands.values()):
            install(script, f"#!/bin/sh\nexec {shlex.join(command)} <{recorded('prepare')}\n")
        subprocess.run(["hyperfine", *options, *map(str, scripts)], check=True, stdout=subprocess.DEVNULL)
        results = json.loads(output.read_text())["results"]
    times = {name: [one * 1e9 for one in result["times"]] for name, result in zip(commands, results)}
    base = {name: [sorted(times[name])[len(times[name]) // 2]] * len(times[name]) for name in (EMPTY, BARE)}
    return [measured(name, times[name], base) for name in commands]
