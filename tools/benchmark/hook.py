"""How long libvirtd waits for the hook, operation by operation."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from libvirt_cgroup_hooks.cgroups import detect
from libvirt_cgroup_hooks.host import Host
from tests.live.harness import destroy_vm

from .replay import OPERATIONS, Replay, hook, recorded, without_python
from .spread import ratio
from .table import Goal, Row, measured
from .timing import BARE_PYTHON, Took, empty_hook, in_turn, run, say
from .vm_host import LAYOUTS, NAME, SCRATCH, STATE, UUID, VmHost, have, install, remove_tree

EMPTY, BARE = "empty sh hook", "bare python3"
CPU = {name: f"{name}, CPU" for name in (EMPTY, BARE)}
NOTHING = Goal(CPU[EMPTY], 2)

Samples = Mapping[str, list[Took]]


def latency(rounds: int) -> list[Row]:
    with VmHost() as host:
        empty = empty_hook(SCRATCH)
        rows = _idle(rounds * 3, empty)
        if not host.systemd:
            rows.append(_kernel_move(rounds))
        host.start("resident", LAYOUTS[0])
        for layout in LAYOUTS:
            say(f"layout {layout}")
            rows += _layout_rows(host, layout, rounds, empty)
    return rows


def _layout_rows(host: VmHost, layout: str, rounds: int, empty: list[str]) -> list[Row]:
    replay = Replay(host, layout)
    notes = {"started": f"a vCPU at depth {replay.depth()}"}
    samples = _samples(replay, rounds, empty)
    idle = {operation: without_python(operation) for operation in OPERATIONS}
    replay.leave()
    destroy_vm(NAME)
    return [
        _row(
            f"`{layout}`: {operation}",
            samples[operation][operation],
            samples[operation],
            NOTHING if idle[operation] else None,
            idle[operation] or notes.get(operation, ""),
        )
        for operation in OPERATIONS
    ]


def _samples(replay: Replay, rounds: int, empty: list[str]) -> dict[str, dict[str, list[Took]]]:
    """Of each operation: itself and both baselines, in turn, after two rounds to warm up."""
    samples: dict[str, dict[str, list[Took]]] = {
        operation: {EMPTY: [], BARE: [], operation: []} for operation in OPERATIONS
    }
    for number in range(-2, rounds):
        for operation in replay.operations():
            commands = {EMPTY: empty, BARE: BARE_PYTHON, operation: hook(operation)}
            names = list(commands)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                took = run(commands[name], recorded(operation))
                if number >= 0:
                    samples[operation][name].append(took)
    return samples


def _row(
    title: str, took: list[Took], baselines: Samples, goal: Goal | None, note: str = ""
) -> Row:
    """The CPU time shows what a busy machine hides: it leaves out waiting for other processes."""
    base = {name: [one.wall for one in baselines[name]] for name in (EMPTY, BARE)}
    row = measured(title, [one.wall for one in took], base, goal, note=note)
    used = [one.cpu for one in took]
    shares = {CPU[name]: ratio(used, [one.cpu for one in baselines[name]]) for name in base}
    return replace(row, ratios={**row.ratios, **shares})


def _idle(rounds: int, empty: list[str]) -> list[Row]:
    """Nothing configured, and operations that the hook has nothing to do with."""
    xml = SCRATCH / "none.xml"
    xml.write_text("<domain/>")
    idle = {"nothing configured: prepare": hook("prepare"), "attach": hook("attach")}
    commands = {EMPTY: empty, BARE: BARE_PYTHON, **idle}
    samples = in_turn({name: partial(run, commands[name], str(xml)) for name in commands}, rounds)
    return [
        _row(name, took, samples, NOTHING if name in idle else None)
        for name, took in samples.items()
    ]


def _kernel_move(rounds: int) -> Row:
    """One write to cgroup.procs after a pause, in which the kernel forgets that it moves any."""
    hierarchy = detect(Host().read_optional).hierarchies[-1]
    home = Path(hierarchy.directory(hierarchy.placement))
    place = Path(hierarchy.directory("/bench-move"))
    place.mkdir()
    took = []
    with subprocess.Popen(["sleep", "1000"]) as child:
        for _ in range(rounds):
            time.sleep(0.2)
            begin = time.monotonic_ns()
            (place / "cgroup.procs").write_text(str(child.pid))
            took.append(float(time.monotonic_ns() - begin))
            (home / "cgroup.procs").write_text(str(child.pid))
        child.kill()
    remove_tree(str(place))
    return measured("the kernel alone: one process moved", took, {})


def hyperfine(rounds: int) -> list[Row]:
    """The same with another stopwatch, one command after the other.

    Each is started by a shell script, which gives it its input: Debian 12's hyperfine cannot.
    """
    if not have("hyperfine"):
        return []
    with VmHost() as host:
        commands = {EMPTY: empty_hook(SCRATCH), BARE: BARE_PYTHON}
        commands["`native`: prepare"] = hook("prepare")
        host.start("resident", "native")
        Replay(host, "native").depth()
        scripts = []
        for number, command in enumerate(commands.values()):
            script = SCRATCH / f"hyperfine{number}"
            install(script, f"#!/bin/sh\nexec {shlex.join(command)} <{recorded('prepare')}\n")
            scripts.append(str(script))
        seconds = _run_hyperfine(scripts, rounds * 3)
    times = {name: [one * 1e9 for one in took] for name, took in zip(commands, seconds)}
    base = {name: _repeated_median(times[name]) for name in (EMPTY, BARE)}
    return [measured(name, times[name], base) for name in commands]


def _run_hyperfine(scripts: list[str], runs: int) -> list[list[float]]:
    """The seconds that each script took."""
    output = SCRATCH / "hyperfine.json"
    options = ["--shell=none", "--warmup=5", f"--runs={runs}", "--style=none"]
    options.append(f"--export-json={output}")
    options.append(f"--prepare=rm -f {STATE}/vms/{UUID}")
    subprocess.run(["hyperfine", *options, *scripts], check=True, stdout=subprocess.DEVNULL)
    return [result["times"] for result in json.loads(output.read_text())["results"]]


def _repeated_median(values: list[float]) -> list[float]:
    return [sorted(values)[len(values) // 2]] * len(values)
