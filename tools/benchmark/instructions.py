"""Instructions that the hook takes, operation by operation.

They hardly depend on how busy the machine is, as times do.
"""

from __future__ import annotations

from tests.live.harness import configure, destroy_vm

from .counting import count, counter
from .hook import BARE, EMPTY
from .replay import OPERATIONS, Replay, hook, recorded, without_python
from .table import Goal, Row, measured
from .timing import BARE_PYTHON, empty_hook, run, say
from .vm import LAYOUTS
from .vm_host import LONG, NAME, SCRATCH, VmHost, settings

# what the hook adds to the interpreter; placing sets up a cgroup and moves five threads
GOALS = {"prepare": Goal(BARE, 1.35), "started": Goal(BARE, 1.7)}


def instructions(rounds: int) -> list[Row]:
    """A fifth of the rounds is enough: what differs is Python's hash seed, which -I leaves random.

    That is about one instruction in 500.
    """
    if not counter():
        say("neither perf nor valgrind counts instructions here")
        return []
    with VmHost() as host:
        rounds = max(3, rounds // 5)
        empty = empty_hook(SCRATCH)
        base = {
            EMPTY: [count(empty) for _ in range(rounds)],
            BARE: [count(BARE_PYTHON) for _ in range(rounds)],
        }
        note = f"counted by {counter()}"
        rows = [measured(name, base[name], {}, unit="M", note=note) for name in base]
        host.start("resident", LAYOUTS[0])
        for layout in LAYOUTS:
            say(f"layout {layout}")
            rows += _layout_rows(host, layout, base)
    return rows


def _layout_rows(host: VmHost, layout: str, base: dict[str, list[int]]) -> list[Row]:
    replay = Replay(host, layout)
    configure(LONG + settings(layout))
    notes = {"started": f"a vCPU at depth {replay.depth()}"}
    for operation in replay.operations():  # once, so that the modules are compiled
        run(hook(operation), recorded(operation))
    samples: dict[str, list[int]] = {operation: [] for operation in OPERATIONS}
    for _ in base[BARE]:
        for operation in replay.operations():
            samples[operation].append(count(hook(operation), recorded(operation)))
    rows: list[Row] = []
    for operation in OPERATIONS:
        note = without_python(operation) or notes.get(operation, "")
        goal = None if without_python(operation) else GOALS.get(operation)
        title = f"`{layout}`: {operation}"
        rows.append(measured(title, samples[operation], base, goal, unit="M", note=note))
    replay.leave()
    destroy_vm(NAME)
    return rows
