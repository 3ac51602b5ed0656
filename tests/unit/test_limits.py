"""A limit of a cgroup that VMs share is set by limits.py, and by nothing beside it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import changes, leave, limits, managers, state, threads
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.kernel.tree import Tree
from libvirt_cgroup_hooks.kinds import KINDS
from libvirt_cgroup_hooks.managers.base import Manager
from libvirt_cgroup_hooks.plan import Plan
from libvirt_cgroup_hooks.reserve import Change
from libvirt_cgroup_hooks.steps import Step, Systemctl, Write

from .support import operations as hook
from .support.hosts import Kernel, domain, run
from .support.machined import Machined
from .support.reserving import INNER, made
from .support.reserving import KINDS as HOSTS

# by reading

PACKAGE = Path(limits.__file__).parent
SETTERS = {
    Manager: {"put_back", "set", "write"},
    Tree: {"put_back", "regain", "set", "set_bytes", "set_cpus"},
}
STEPS = {"Systemctl", "Write"}
BELOW = ("managers", "kernel", "host", "steps")
# methods of these names of something else: of files and streams, and of an SVG element
OTHERS = {
    ("cli.commands.domain", "write"),
    ("cli.commands.map", "write"),
    ("cli.map.svg", "set"),
    ("hook", "write"),
}


def above() -> Iterator[tuple[str, ast.AST]]:
    """Every node of the modules that are not below limits, with the module's name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module.partition(".")[0] not in BELOW:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                yield module, node


def test_only_limits_calls_what_sets_them() -> None:
    names = {name for methods in SETTERS.values() for name in methods}
    calls = {
        (module, node.func.attr)
        for module, node in above()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    found = {(module, name) for module, name in calls if name in names}
    in_limits = {("limits", name) for name in ("put_back", "regain", "set", "write")}
    assert found == in_limits | OTHERS


def test_what_sets_them_has_these_names() -> None:
    for cls, methods in SETTERS.items():
        assert {name for name in methods if callable(getattr(cls, name))} == methods


def test_no_step_that_writes_a_cgroup_is_made_above() -> None:
    imported = {
        (module, alias.name)
        for module, node in above()
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {(module, name) for module, name in imported if name in STEPS} == set()


# by planning: with limits.py silent, no plan sets a limit of what VMs share

NAME = "guest"
LIMIT_FILES = {file for kind in KINDS for file in (kind.v1, kind.v2) if file}
CONF = 'reserved_host_cpus = "{}"\nreserved_host_mem = "{} MiB"\ncgroup_layout = "{}"\n'
LAYOUTS = {"/vms/$NAME": "/vms.slice", "native": "/machine.slice"}
OPERATIONS = ("prepare", "start", "started", "reconnect", "stopped", "release")


def sets_a_shared_limit(step: Step) -> bool:
    """Whether STEP sets a limit of a cgroup whose path names no VM."""
    if isinstance(step, Write):
        directory, _, file = step.path.rpartition("/")
        return file in LIMIT_FILES and NAME not in directory
    if isinstance(step, Systemctl):
        return "set-property" in step.arguments and NAME not in str(step)
    return False


def shared_limits(plan: Plan) -> list[str]:
    return [str(step) for step in plan.steps if sets_a_shared_limit(step)]


def nothing(*_: object) -> None:
    """In place of a function of limits.py that adds steps."""


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Plan]], list[str]]:
    """The shared limits that a plan sets while limits.py adds no step."""
    makers = ("enforce", "reconcile", "press", "relieve", "end", "lift")

    def limits_without(make: Callable[[], Plan]) -> list[str]:
        with monkeypatch.context() as patch:
            for name in makers:
                patch.setattr(limits, name, nothing)
            return shared_limits(make())

    return limits_without


def life(host: Kernel, layout: str) -> Iterator[tuple[str, Domain]]:
    """Each operation of a VM on HOST, before it is done and while it is next."""
    subject = domain(NAME, INNER, id=3)
    for operation in OPERATIONS:
        yield operation, subject
        hook.do(host, operation, subject)
        if operation == "start" and isinstance(host, Machined):
            subject = host.starts(subject, LAYOUTS[layout], INNER)
        elif operation == "start":
            subject = host.start_vm(subject, INNER)
        elif operation == "reconnect":
            host.end_vm(subject)


def changing(host: Kernel) -> dict[str, Callable[[], Plan]]:
    """What is done beside libvirt's operations while a VM runs."""

    running = threads.running(host, {})

    def parent() -> Plan:
        plan = Plan("apply")
        names = {domain.name for domain in running}
        changes.parent(plan, managers.choose(host, host.config()), names)
        return plan

    def refit() -> Plan:
        plan = Plan("reserve")
        changes.refit(plan, managers.choose(host, host.config()), running)
        return plan

    wanted = {"reserved_host_cpus": "0-2", "reserved_host_mem": "768 MiB"}
    return {
        "parent": parent,
        "refit": refit,
        "reserve": lambda: Change(host, dict(wanted), live=True, config=False).plan(),
        "leave": lambda: leave._plan(host, []),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", HOSTS)
def test_with_limits_silent_no_plan_sets_a_shared_limit(
    tmp_path: Path, kind: str, layout: str, silent: Callable[[Callable[[], Plan]], list[str]]
) -> None:
    """Each plan is made where another reservation is in effect than is configured."""
    before, after = CONF.format("0", 512, layout), CONF.format("0-1", 640, layout)
    host = made(tmp_path, kind, before)
    setting: set[str] = set()
    plans: dict[str, Callable[[], Plan]]
    for operation, subject in life(host, layout):
        plans = {operation: partial(hook.plan, host, operation, subject)}
        host.configure(after)
        if operation == "reconnect":
            plans.update(changing(host))
        for name, make in plans.items():
            assert silent(make) == [], name
            if shared_limits(make()):
                setting.add(name)
        host.configure(before)
    always = {"prepare", "started", "reconnect", "parent", "refit", "reserve", "leave"}
    # where VMs have slices of systemd's, limits stay when the last VM ends
    assert setting - {"release"} == always


# what an earlier version has remembered

OF_VERSION_1 = """\
libvirt-cgroup-hooks 1
made /sys/fs/cgroup/vms
limit 0-1 /sys/fs/cgroup/cpuset/machine/cpuset.cpus
limit max /sys/fs/cgroup/machine/memory.max
limit infinity vms.slice MemoryMax
"""


@pytest.mark.parametrize("kind", HOSTS)
def test_a_file_of_the_former_format_is_nothing_remembered_and_is_told(
    tmp_path: Path, kind: str
) -> None:
    host = made(tmp_path, kind)
    host.put(state.SHARED, OF_VERSION_1)
    assert not state.Remembered(host)
    plan = hook.plan(host, "prepare", domain(NAME, INNER, id=3))
    [warning] = plan.warnings
    assert state.SHARED in warning
    run(host, plan)
    assert host.read(state.SHARED).splitlines()[0] == state.LIMITS_FORMAT
    assert state.Remembered(host).before
    assert hook.plan(host, "prepare", domain(NAME, INNER, id=3)).warnings == []
