"""Each step: its line of text, what it does below a root, and what takes it back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Union

import pytest

from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.host import Host, Refused
from libvirt_cgroup_hooks.plan import Plan, run_settled
from libvirt_cgroup_hooks.steps import (
    MakeDirectory,
    Move,
    Pin,
    Remove,
    RemoveCgroup,
    RemoveEmpty,
    Replace,
    Several,
    Step,
    Write,
)

from .support.hosts import Kernel


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "g").mkdir()
    (tmp_path / "g/file").write_text("1")
    return Host(str(tmp_path))


def tree(host: Host) -> dict[str, str | None]:
    """Each path below the root: a file's text, None for a directory."""
    root = Path(host.root)
    return {
        str(p.relative_to(root)): p.read_text() if p.is_file() else None
        for p in sorted(root.rglob("*"))
    }


BACK = [Move("process", 7, "/g/old", []), Move("thread", 8, "/g/old/t", [])]


@pytest.mark.parametrize(
    ("step", "text", "undo"),
    [
        (MakeDirectory("/g/a b"), "make /g/a b", "remove /g/a b if it is empty"),
        (MakeDirectory("/g/\n\x1b"), r"make /g/\n\x1b", r"remove /g/\n\x1b if it is empty"),
        (RemoveCgroup("/g/a"), "remove /g/a", None),
        (RemoveEmpty("/g/a"), "remove /g/a if it is empty", None),
        (Write("/g/cpus", "0-3", "0-7"), 'write "0-3" to /g/cpus', 'write "0-7" to /g/cpus'),
        (Write("/g/cpus", "0-3"), 'write "0-3" to /g/cpus', None),
        (Write("/g/cpus", "\n", "0"), r'write "\n" to /g/cpus', 'write "0" to /g/cpus'),
        (Move("process", 7, "/g/procs", []), "move process 7 to /g/procs", None),
        (
            Move("process", 7, "/g/procs", BACK),
            "move process 7 to /g/procs",
            "move process 7 to /g/old, move thread 8 to /g/old/t",
        ),
        (
            Pin(8, CpuSet([1, 2]), CpuSet([0])),
            "set the CPUs of thread 8 to 1-2",
            "set the CPUs of thread 8 to 0",
        ),
        (Replace("/run/x", "new", None), "save /run/x", "remove /run/x"),
        (Replace("/run/x", "new", "old"), "save /run/x", "save /run/x"),
        (Remove("/run/x", "old"), "remove /run/x", "save /run/x"),
        (Several(BACK), "move process 7 to /g/old, move thread 8 to /g/old/t", None),
    ],
)
def test_text_and_undo(step: Step, text: str, undo: str | None) -> None:
    back = step.undo()
    assert (str(step), back and str(back)) == (text, undo)


@pytest.mark.parametrize(
    "step",
    [
        MakeDirectory("/g/new"),
        Write("/g/file", "2", "1"),
        Move("process", 2, "/g/file", [Move("process", 1, "/g/file", [])]),
        Replace("/g/new", "text\n", None),
        Replace("/g/file", "longer text\n", "1"),
        Remove("/g/file", "1"),
    ],
)
def test_undo_puts_back_what_was_there(host: Host, step: Step) -> None:
    before = tree(host)
    step.run(host)
    assert tree(host) != before
    back = step.undo()
    assert back
    back.run(host)
    assert tree(host) == before


def test_a_cgroup_goes_with_those_below_it(host: Host) -> None:
    for path in ("/g/vm", "/g/vm/a", "/g/vm/a/b", "/g/vm/c"):
        MakeDirectory(path).run(host)
    RemoveCgroup("/g/vm").run(host)
    RemoveCgroup("/g/vm").run(host)
    assert host.directories("/g") == []


def test_a_cgroup_in_use_stays_where_others_may_use_it(host: Host) -> None:
    RemoveEmpty("/g").run(host)
    assert host.exists("/g/file")
    with pytest.raises(Refused, match="cannot remove /g: Directory not empty"):
        RemoveCgroup("/g").run(host)


def test_a_cgroup_with_processes_is_tried_again_and_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemoveCgroup, "PAUSE", 0)
    host = Kernel(tmp_path, "v2")
    host.make_directory("/sys/fs/cgroup/vm")
    host.place(4200100, 4200100, {"": "/vm"})
    with pytest.raises(Refused, match=r"/sys/fs/cgroup/vm: Device or resource busy"):
        RemoveCgroup("/sys/fs/cgroup/vm").run(host)
    RemoveEmpty("/sys/fs/cgroup/vm").run(host)
    assert host.exists("/sys/fs/cgroup/vm")
    host.place(4200100, 4200100, {"": "/"})
    RemoveCgroup("/sys/fs/cgroup/vm").run(host)
    assert not host.exists("/sys/fs/cgroup/vm")


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_thread_that_has_ended_is_no_failure(tmp_path: Path, kind: str) -> None:
    host = Kernel(tmp_path, "v1")
    host.make_directory("/sys/fs/cgroup/cpu/vm")
    file = "/sys/fs/cgroup/cpu/vm/" + ("cgroup.procs" if kind == "process" else "tasks")
    with pytest.raises(Refused, match="No such process"):
        host.write(file, "4200100")
    Move(kind, 4200100, file, []).run(host)
    Pin(4200100, CpuSet([0]), CpuSet([1])).run(host)


def test_a_move_that_the_kernel_refuses_is_a_failure(tmp_path: Path) -> None:
    host = Kernel(tmp_path, "v1")
    host.make_directory("/sys/fs/cgroup/cpuset/vm")
    host.place(4200100, 4200100, {"cpuset": "/"})
    with pytest.raises(Refused, match="No space left on device"):
        Move("process", 4200100, "/sys/fs/cgroup/cpuset/vm/cgroup.procs", []).run(host)


Undo = Callable[[], Union[Step, None]]


class Noted(Step):
    """Notes what is done with it."""

    def __init__(
        self,
        name: str,
        notes: list[str],
        fails: bool = False,
        undo: Callable[[], Step | None] | None = None,
    ) -> None:
        self.name, self.notes, self.fails, self._undo = name, notes, fails, undo

    def __str__(self) -> str:
        return self.name

    def run(self, host: Host) -> None:
        self.notes.append(self.name)
        if self.fails:
            raise Error(f"{self.name} failed")

    def undo(self) -> Step | None:
        return self._undo() if self._undo else Noted(f"undo {self.name}", self.notes)


def planned(*steps: Step) -> Plan:
    plan = Plan("started")
    plan.add(*steps)
    return plan


def test_a_plan_is_the_text_of_its_steps(host: Host) -> None:
    notes: list[str] = []
    plan = planned(Noted("a", notes), Noted("b", notes))
    assert str(plan) == "a\nb"
    plan.run(host)
    assert (notes, plan.warnings) == (["a", "b"], [])


def test_a_failure_half_way_is_undone_in_reverse(host: Host) -> None:
    notes: list[str] = []
    plan = planned(
        Noted("a", notes), Noted("b", notes), Noted("c", notes, fails=True), Noted("d", notes)
    )
    with pytest.raises(Error, match=r"^c failed$"):
        plan.run(host)
    assert notes == ["a", "b", "c", "undo c", "undo b", "undo a"]
    assert plan.warnings == []


def test_an_undo_that_fails_is_told_and_the_others_go_on(host: Host) -> None:
    notes: list[str] = []
    plan = planned(
        Noted("a", notes),
        Noted("b", notes, undo=lambda: Noted("undo b", notes, fails=True)),
        Noted("c", notes, undo=lambda: None),
        Noted("d", notes, fails=True),
    )
    with pytest.raises(Error, match=r"^d failed$"):
        plan.run(host)
    assert notes == ["a", "b", "c", "d", "undo d", "undo b", "undo a"]
    assert plan.warnings == ["could not undo (b): undo b failed"]


def test_cleaning_up_goes_as_far_as_it_can(host: Host) -> None:
    notes: list[str] = []
    plan = Plan("release", transaction=False)
    plan.add(Noted("a", notes), Noted("b", notes, fails=True), Noted("c", notes))
    with pytest.raises(Error, match=r"^b failed$"):
        plan.run(host)
    assert not [note for note in notes if note.startswith("undo")]


def test_files_are_as_before_when_a_plan_fails(host: Host) -> None:
    before = tree(host)
    plan = planned(
        Replace("/g/record", "text", None),
        MakeDirectory("/g/a"),
        MakeDirectory("/g/a/b"),
        Write("/g/file", "2", "1"),
        Remove("/g/file", "2"),
        Write("/g/none", "x"),
    )
    with pytest.raises(Refused, match='cannot write "x" to /g/none: No such file'):
        plan.run(host)
    assert tree(host) == before


# what others get in the way of


class Busy(Step):
    """Refused as busy the first TIMES."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __str__(self) -> str:
        return "busy"

    def run(self, host: Host) -> None:
        self.left -= 1
        if self.left >= 0:
            raise Refused("write", OSError(16, "Device or resource busy"))


@pytest.mark.parametrize(
    ("transaction", "times", "made"),
    [
        (True, 0, 1),
        (True, 1, 2),
        (True, 2, 3),
        (False, 0, 1),
        (False, 1, None),  # cleaning up: others wait for the lock
    ],
)
def test_what_is_busy_is_planned_anew(
    host: Host, transaction: bool, times: int, made: int | None
) -> None:
    step, plans = Busy(times), []

    def make() -> Plan:
        plan = Plan("started", transaction)
        plan.add(step)
        plans.append(plan)
        return plan

    if made is None:
        with pytest.raises(Refused):
            run_settled(host, make, [])
    else:
        run_settled(host, make, [])
    assert len(plans) == (made or 1)
