"""A change of the reservation is made whole or not at all: whatever fails, and whenever somebody
interrupts it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import reserve, state
from libvirt_cgroup_hooks.config import PATH
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.reserve import Change

from .support import reserving
from .support.hosts import PID, Kernel
from .support.machined import Machined
from .support.operations import MIB
from .support.reserving import CONF, GIB, INNER, KINDS, file, says, states, use


class Frail(Kernel):
    """Fails once: at the call after COUNTDOWN others that change something, before it is done or
    after.
    """

    countdown = -1
    after = False
    failure: BaseException = Error("the test wants it")

    def strike(self, after: bool) -> None:
        if after != self.after or self.countdown < 0:
            return
        self.countdown -= 1
        if self.countdown < 0:
            raise self.failure

    def write(self, path: str, value: str) -> None:
        self.strike(False)
        super().write(path, value)
        self.strike(True)

    def replace(self, path: str, text: str, mode: int = 0o600) -> None:
        self.strike(False)
        super().replace(path, text, mode)
        self.strike(True)

    def remove(self, path: str) -> None:
        self.strike(False)
        super().remove(path)
        self.strike(True)

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        self.strike(False)
        super().make_directory(path, mode)
        self.strike(True)

    def set_affinity(self, thread: int, cpus: Iterable[int]) -> None:
        self.strike(False)
        super().set_affinity(thread, cpus)
        self.strike(True)


class FrailMachined(Frail, Machined):
    """systemctl may do what it is asked for and fail all the same."""

    def run(self, command: list[str]) -> str:
        self.strike(False)
        said = super().run(command)
        self.strike(True)
        return said


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def frail(
    root: Path, kind: str, conf: str = CONF, inner: str = INNER, layout: str = "/vms/$NAME"
) -> Frail:
    parent, name = KINDS[kind]
    host: Frail = (FrailMachined if parent is Machined else Frail)(root, name, conf)
    reserving.prepared(host)
    reserving.start(host, inner, layout)
    return host


def every(host: Frail, change: Change, wait: float = 0) -> int:
    """How many calls were made to fail, one at a time; all files are as before after each. CHANGE
    succeeds in the end.
    """
    before, calls = states(host), 0
    while True:
        host.countdown = calls
        cold = host.cold
        try:
            change.run(wait)
        except type(host.failure) as error:
            if error is not host.failure:
                raise
        if host.countdown >= 0:
            host.countdown = -1
            return calls
        assert (states(host), change.warnings) == (before, [])
        host.cold = cold
        calls += 1


FAILURES = [Error("the test wants it"), KeyboardInterrupt()]


@pytest.mark.parametrize("failure", FAILURES, ids=["error", "interrupt"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("cpus", ["0-1", "3", "0,2-3"])
def test_every_step(
    tmp_path: Path, kind: str, failure: BaseException, after: bool, cpus: str
) -> None:
    host = frail(tmp_path, kind)
    small = kind.endswith("v1")
    use(host, 800 * MIB if small else 5 * GIB)  # so much that the limit takes some care
    host.failure, host.after = failure, after
    wanted = {"reserved_host_cpus": cpus, "reserved_host_mem": "1 GiB" if small else "2 GiB"}
    calls = every(host, Change(host, dict(wanted), live=True, config=True))
    assert calls >= 5
    assert reserving.cpus(host) == {"0-1": "2-3", "3": "0-2", "0,2-3": "1"}[cpus]
    assert f'"{cpus}"' in host.read(PATH)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("layout", ["native", "root"])
def test_every_step_in_other_layouts(tmp_path: Path, kind: str, after: bool, layout: str) -> None:
    host = frail(
        tmp_path,
        kind,
        f"reserved_host_cpus = '0'\ncgroup_layout = '{layout}'\nvcpu_cpus = '0-2'\n",
        layout=layout,
    )
    host.after = after
    assert every(host, Change(host, {"reserved_host_cpus": "0,3"}, live=True, config=True)) >= 3
    assert every(host, Change(host, {"reserved_host_cpus": None}, live=True, config=False)) >= 2
    assert reserving.cpus(host) == "0-3"
    assert reserving.cpus(host, PID + 10) == "0-2"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_every_step_of_force(tmp_path: Path, kind: str, after: bool) -> None:
    host = frail(tmp_path, kind, inner=f"{INNER}<cputune><vcpupin vcpu='1' cpuset='1'/></cputune>")
    host.after = after
    assert (
        every(host, Change(host, {"reserved_host_cpus": "0-1"}, live=True, config=True, force=True))
        >= 3
    )


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_every_step_where_there_was_nothing(tmp_path: Path, kind: str, after: bool) -> None:
    """The VM parent and the file are made, and gone again."""
    host = frail(tmp_path, kind, "", layout="native")
    host.remove(PATH)
    host.after = after
    before = host.cgroups()
    assert every(host, Change(host, {"reserved_host_cpus": "0"}, live=True, config=True)) >= 2
    assert host.cgroups() == before
    assert reserving.cpus(host) == "1-3"


# while memory is reclaimed


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "PAUSE", 0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("failure", FAILURES, ids=["error", "interrupt"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_every_step_of_a_change_that_waits(
    tmp_path: Path, kind: str, failure: BaseException, after: bool
) -> None:
    host = frail(tmp_path, kind)
    small = kind.endswith("v1")
    host.failure, host.after = failure, after
    used = (1100 if small else 6000) * MIB
    change = Change(
        host, {"reserved_host_mem": "1 GiB" if small else "2 GiB"}, live=True, config=True
    )
    before, calls = None, 0
    while host.countdown < 0:
        host.countdown, host.cold, host.at_once = -1, 512 * MIB, 150 * MIB
        use(host, used)
        before = before or unused(host)
        host.countdown = calls
        try:
            change.run(wait=600)
        except type(host.failure) as error:
            if error is not host.failure:
                raise
        if host.countdown < 0:
            assert (unused(host), change.warnings) == (before, [])
        calls += 1
    assert calls >= 8
    host.countdown = -1
    assert says(host, "limit") == str(reserving.total(host) - (1 if small else 2) * GIB)
    if not small:
        assert says(host, "memory.high") == "max"
    assert "memory.high" not in host.get(state.SHARED)
    assert "MemoryHigh" not in host.get(state.SHARED)


def unused(host: Kernel) -> dict[str, str]:
    """All but what VMs use: that is not put back."""
    name = file(host, "used").rpartition("/")[2]
    return {path: text for path, text in states(host).items() if not path.endswith(f"/{name}")}
