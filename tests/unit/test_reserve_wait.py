"""--wait: memory is reclaimed from VMs that have too much of it, and what kept them from more is
taken back.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import limits, managers, reserve, snapshot, state
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.plan import Plan
from libvirt_cgroup_hooks.reserve import Change

from .support import reserving
from .support.hosts import Kernel, run
from .support.machined import Machined
from .support.operations import CG, MIB, do
from .support.reserving import GIB, KINDS, file, says, states, total, use


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "PAUSE", 0)


@pytest.fixture(params=KINDS)
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Kernel:
    return reserving.running(tmp_path, request.param)


def change(host: Kernel, limit: int) -> Change:
    return Change(
        host, {"reserved_host_mem": f"{(total(host) - limit) // 1024} KiB"}, live=True, config=False
    )


def high(host: Kernel) -> str:
    return says(host, "memory.high") or "max"  # v1 has none


def test_reclaimed(host: Kernel) -> None:
    use(host, 1200 * MIB)
    host.cold, host.at_once = GIB, 50 * MIB
    told: list[tuple[int, int]] = []
    change(host, GIB).run(600, lambda used, limit: told.append((used, limit)))
    assert (says(host, "limit"), high(host)) == (str(GIB), "max")
    assert int(says(host, "used")) <= GIB
    assert {limit for _, limit in told} == {GIB}
    assert sorted(told, reverse=True) == told
    assert len(told) > 1
    assert "igh" not in host.get(state.SHARED)


def test_no_file_of_systemds_is_left_of_it(tmp_path: Path) -> None:
    host = reserving.running(tmp_path, "systemd-v2")
    use(host, 900 * MIB)  # so much that memory.high goes down first
    change(host, GIB).run(600)
    assert host.names("/run/systemd/system.control/vms.slice.d") == [
        "50-AllowedCPUs.conf",
        "50-MemoryMax.conf",
    ]


def test_one_of_the_administrators_stays(tmp_path: Path) -> None:
    host = reserving.running(tmp_path, "systemd-v2")
    assert isinstance(host, Machined)
    host.set_properties("vms.slice", {"MemoryHigh": str(2 * GIB)})
    use(host, 1200 * MIB)
    host.cold = GIB
    change(host, GIB).run(600)
    kept = "/run/systemd/system.control/vms.slice.d/50-MemoryHigh.conf"
    assert f"MemoryHigh={2 * GIB}" in host.get(kept)


def test_what_cannot_be_reclaimed(host: Kernel) -> None:
    use(host, 1200 * MIB)
    before = states(host)
    with pytest.raises(Error) as error:
        change(host, GIB).run(0.01)
    assert str(error.value) == (
        "after 0.01 seconds the VMs still use 1.2 GiB; the new limit is 1 GiB: "
        "vm has 1.2 GiB: "
        "no limit was changed; stop or shrink VMs, or wait longer"
    )
    assert states(host) == before


def test_interrupted(host: Kernel) -> None:
    use(host, 1200 * MIB)
    before = states(host)
    told: list[int] = []

    def interrupt(used: int, _: int) -> None:
        told.append(used)
        if len(told) == 1:  # before anything is pressed
            return
        assert (high(host) == "max") == host.exists(f"{CG}/memory")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change(host, GIB).run(600, interrupt)
    assert states(host) == before


def test_with_room_enough_nothing_is_pressed(host: Kernel) -> None:
    use(host, 100 * MIB)
    change(host, GIB).run(600, lambda *_: pytest.fail("there is nothing to wait for"))
    assert (says(host, "limit"), high(host)) == (str(GIB), "max")
    assert not [line for line in host.written if "igh" in line]


@pytest.mark.parametrize("kind", ["cgroupfs-v2", "systemd-v2"])
@pytest.mark.parametrize("before", ["max", str(2 * GIB)])
def test_killed_in_the_middle(tmp_path: Path, kind: str, before: str) -> None:
    """The next run of the hook puts memory.high back."""
    host = reserving.running(tmp_path, kind)
    host.put(file(host, "memory.high"), before)
    use(host, 1200 * MIB)
    config = snapshot.compiled(
        host, reserving.CONF, {"reserved_host_mem": (str(512 * MIB), str(total(host) - GIB))}, []
    )
    plan = Plan("press")
    limits.press(plan, managers.choose(host, config))
    run(host, plan)
    assert high(host) not in ("max", before)
    do(host, "reconnect", reserving.vm(host))
    assert high(host) == before
    assert "igh" not in host.get(state.SHARED)
