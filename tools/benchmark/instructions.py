"""Instructions that the hook takes, operation by operation.

They hardly depend on how busy the machine is, as times do.
"""

from __future__ import annotations

from tests.live.harness import configure, destroy_vm

from .hook import BARE
from .replay import OPERATIONS, Replay, hook, recorded
from .table import Row, measured
from .timing import BARE_PYTHON, run, say
from .valgrind import count
from .vm import LAYOUTS
from .vm_host import LONG, NAME, VmHost, have, settings


def instructions(rounds: int) -> list[Row]:
    """A fifth of the rounds is enough: what differs is Python's hash seed, which -I leaves random.

    That is about one instruction in 500.
    """
    if not have("valgrind"):
        say("valgrind is not installed, so instructions are not counted")
        return []
    with VmHost() as host:
        bare = [count(BARE_PYTHON) for _ in range(max(3, rounds // 5))]
        rows = [measured(BARE, bare, {}, unit="M")]
        host.start("resident", LAYOUTS[0])
        for layout in LAYOUTS:
            say(f"layout {layout}")
            rows += _layout_rows(host, layout, bare)
    return rows


def _layout_rows(host: VmHost, layout: str, bare: list[int]) -> list[Row]:
    replay = Replay(host, layout)
    configure(LONG + settings(layout))
    notes = {"started": f"a vCPU at depth {replay.depth()}"}
    for operation in replay.operations():  # once, so that the modules are compiled
        run(hook(operation), recorded(operation))
    samples: dict[str, list[int]] = {operation: [] for operation in OPERATIONS}
    for _ in bare:
        for operation in replay.operations():
            samples[operation].append(count(hook(operation), recorded(operation)))
    replay.leave()
    destroy_vm(NAME)
    return [
        measured(
            f"`{layout}`: {operation}",
            samples[operation],
            {BARE: bare},
            unit="M",
            note=notes.get(operation, ""),
        )
        for operation in OPERATIONS
    ]
