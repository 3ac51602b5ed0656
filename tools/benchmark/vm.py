"""What a VM's start costs as a whole."""

from __future__ import annotations

from collections import defaultdict

from tests.live.harness import destroy_vm

from .replay import STARTING, without_python
from .spread import interval, quartiles
from .table import UNITS, Row, measured
from .timing import BARE_PYTHON, run, say
from .vm_host import HOOK, MOVED, NAME, SCRATCH, VmHost, vm_xml

LAYOUTS = ("native", MOVED)
WITHOUT = "without the hook"


def start(rounds: int) -> list[Row]:
    """virsh create with the hook and without it, in turn. SIGHUP tells libvirtd of each change."""
    rows = []
    with VmHost() as host:
        xml = SCRATCH / "vm.xml"
        xml.write_text(vm_xml(NAME))
        virsh = ["/usr/bin/virsh", "--quiet", "--connect", "qemu:///system"]
        create = [*virsh, "create", str(xml)]
        for layout in LAYOUTS:
            say(f"layout {layout}")
            host.start("resident", layout)
            _start_once(host, create, True)  # warms the caches
            _start_once(host, create, False)
            told = [one for one in STARTING if not without_python(one)]
            calls = len(told)
            took: dict[str, list[float]] = defaultdict(list)
            for number in range(rounds):
                for hooked in _order(number):
                    wall = _start_once(host, create, hooked)
                    took[layout if hooked else WITHOUT].append(wall)
                took["bare"].append(calls * run(BARE_PYTHON).wall)
            _switch(host, True)
            destroy_vm("resident")
            rows += _start_rows(layout, took, calls)
    return rows


def _order(number: int) -> tuple[bool, bool]:
    """With the hook and without it, the other way round in every other round."""
    with_it_first = number % 2 == 1
    return with_it_first, not with_it_first


def _start_once(host: VmHost, create: list[str], hooked: bool) -> float:
    _switch(host, hooked)
    wall = run(create).wall
    destroy_vm(NAME)
    return wall


def _switch(host: VmHost, hooked: bool) -> None:
    if HOOK.exists() == hooked:
        return
    if hooked:
        host.install_hook()
    else:
        HOOK.unlink()
    host.reload()


def _start_rows(layout: str, took: dict[str, list[float]], calls: int) -> list[Row]:
    base = took[WITHOUT]
    added = [one - other for one, other in zip(took[layout], base)]
    spread = interval([one * UNITS["ms"] for one in added])
    share = interval([one / other for one, other in zip(added, base)])
    bare = f"`{layout}`: of that, bare interpreters ({calls})"
    median = [quartiles(added).median] * len(added)
    return [
        measured(f"`{layout}`: {WITHOUT}", base, {}),
        measured(f"`{layout}`: with it", took[layout], {WITHOUT: base}),
        Row(f"`{layout}`: added", "ms", spread, {WITHOUT: share}),
        measured(bare, took["bare"], {"added": median}),
    ]
