"""Hooks of several VMs work at the same time, except where what VMs share is changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import state
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.managers.units import DROP_INS as UNITS
from libvirt_cgroup_hooks.plan import Plan
from libvirt_cgroup_hooks.steps import MakeDirectory, Systemctl, Write

from .support.hosts import UUID, Kernel, run
from .support.operations import OTHER
from .test_killed import KINDS, NATIVE, Script
from .test_plan import planned

THIRD = "1" * 8 + UUID[8:]


class Watched(Script):
    """Keeps which operations were exclusive, and what the others changed."""

    def __init__(self, host: Kernel, name: str) -> None:
        super().__init__(host, name)
        self.exclusive: set[str] = set()
        self.own: set[str] = set()

    def plan(self, operation: str, vm: Domain) -> Plan:
        made = super().plan(operation, vm)
        if made.exclusive:
            self.exclusive.add(operation)
        else:
            self.own.update(step.path for step in made.steps if step.path)
            called = [step.arguments[0] for step in made.steps if isinstance(step, Systemctl)]
            assert set(called) <= {"show"}
        return made


@pytest.mark.parametrize("kind", KINDS)
def test_vms_meet_only_at_the_first_start_and_at_the_end(tmp_path: Path, kind: str) -> None:
    make, recorded, conf = KINDS[kind]
    own = []
    for name, uuid in (("web", UUID), ("db", OTHER)):
        script = Watched(make(tmp_path / name, recorded, conf + "vcpu_cpus = '1'\n"), name)
        run(script.host, planned(*state.Record(THIRD, "another VM").save(None)))
        assert script.live(uuid)
        last = set() if conf == NATIVE else {"release"}  # without a record nothing ends
        assert script.exclusive - {"prepare", "started"} == last
        assert "prepare" in script.exclusive
        script.exclusive.clear()
        script.own.clear()
        assert script.live(uuid)
        assert script.exclusive == last
        own.append(script.own)
    assert own[0] or conf == NATIVE
    assert own[0] & own[1] <= {UNITS}


def test_the_total_of_memory_is_shared(tmp_path: Path) -> None:
    make, recorded, conf = KINDS["cgroupfs v2"]
    script = Watched(make(tmp_path, recorded, conf + "memory_admission = 1\n"), "web")
    run(script.host, planned(*state.Record(THIRD, "another VM").save(None)))
    assert script.live(UUID)
    script.exclusive.clear()
    assert script.live(UUID)
    assert script.exclusive == {"prepare", "release"}


def test_what_is_below() -> None:
    plan = Plan("started")
    plan.add_below("/a/vm", MakeDirectory("/a/vm"), Write("/a/vm/x", "1"))
    assert not plan.exclusive
    for step in (MakeDirectory("/a"), Write("/a/vm2", "1"), Systemctl(["stop", "a.slice"])):
        plan = Plan("started")
        plan.add_below("/a/vm", MakeDirectory("/a/vm"), step)
        assert plan.exclusive
        assert len(plan.steps) == 2
    plan = Plan("started")
    plan.add_shared()
    assert not plan.exclusive
