"""The hook, killed after each step of each operation: what comes next brings the host right, and
nothing is left.

What libvirt does then: a VM whose `prepare` or `start` is killed does not start, and gets
`release`. A VM whose later operations are killed goes on (hooks/qemu ends well whatever becomes of
its Python).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers, state
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.managers.units import DROP_INS as UNITS
from libvirt_cgroup_hooks.managers.units import scope_unit
from libvirt_cgroup_hooks.plan import Plan
from libvirt_cgroup_hooks.steps import RemoveCgroup

from .support.entrypoint import aged, told
from .support.hosts import UUID, Kernel, domain
from .support.machined import Machined
from .support.operations import INNER, OTHER, plan
from .support.operations import NAMED as CONF

OWN_SLICE = CONF.replace("$NAME", "$UUID")
CARRIED = "reserved_host_cpus = '0'\ncgroup_layout = 'root'\n"
NATIVE = "reserved_host_cpus = '0'\nreserved_host_mem = '512 MiB'\n"
OPERATIONS = ("prepare", "start", "started", "stopped", "release")


class Script:
    """A VM's life on one host, with libvirt's part of it."""

    def __init__(self, host: Kernel, name: str = "vm") -> None:
        self.host = host
        self.name = name
        state.prepare_directory(aged(host))

    def plan(self, operation: str, vm: Domain) -> Plan:
        return plan(self.host, operation, vm)

    def hook(self, operation: str, vm: Domain, steps: int | None = None) -> bool:
        """Whether all steps were made; with STEPS, it is killed after so many, and what is being
        written stays half.
        """
        if operation in (told(self.host) or ()):
            return True
        if operation in ("stopped", "release") and not state.Record.exists(self.host, vm.uuid):
            return True
        made = self.plan(operation, vm)
        for step in made.steps[:steps]:
            step.run(self.host)
        if steps is None or steps > len(made.steps):
            return True
        if steps < len(made.steps):
            path = getattr(made.steps[steps], "path", "")
            if type(made.steps[steps]).__name__ == "Replace":
                self.host.put(f"{path}.new", "half")
        return False

    def live(self, uuid: str, kill: str = "", steps: int = 0) -> bool:
        """From prepare to release, with the hook killed after STEPS of KILL; whether there were so
        many.
        """
        vm = domain(self.name, INNER, uuid=uuid, id=3)
        through = True
        for operation in OPERATIONS:
            if operation == "started":
                vm = self.starts(vm)
            elif operation == "stopped":
                self.ends(vm)
            done = self.hook(operation, vm, steps if operation == kill else None)
            through = through and done
            if not done and operation == "started":
                self.mends(vm)
            elif not done and operation in ("prepare", "start"):
                self.hook("release", vm)
                break
        return through

    def mends(self, vm: Domain) -> None:
        """As `virt-cgroup apply`, or the daemon at its restart."""
        self.hook("reconnect", vm)
        assert str(self.plan("reconnect", vm)) == ""

    def starts(self, vm: Domain) -> Domain:
        if isinstance(self.host, Machined):
            file = f"{UNITS}/{scope_unit(vm.name, 3)}.d/50-libvirt-cgroup-hooks.conf"
            self.scopes = managers.choose(self.host, self.host.config()).scope_path(vm)  # type: ignore[attr-defined]
            if not self.host.config().cgroup_layout.native:
                assert "Slice=" in self.host.get(file)
            return self.host.starts(vm, self.scopes.rpartition("/")[0], INNER)
        return self.host.start_vm(vm, INNER)

    def ends(self, vm: Domain) -> None:
        self.host.end_vm(vm)
        if isinstance(self.host, Machined):
            # systemd removes the scope, and an empty slice in time
            for hierarchy in self.host.hierarchies:
                RemoveCgroup(hierarchy.directory(self.scopes)).run(self.host)

    def age(self) -> None:
        """An hour later."""
        for uuid in state.recorded(self.host):
            os.utime(f"{self.host.root}{state.VMS}/{uuid}", (1, 1))


class Confined(Machined):
    """Host units that are kept to the host's CPUs while a VM runs."""

    units = ("system.slice", "user.slice", "init.scope")

    def __init__(self, root: Path, name: str, conf: str | None = None) -> None:
        super().__init__(root, name, conf)
        for unit in self.units:
            self.slice(unit)


KINDS: dict[str, tuple[type[Kernel], str, str]] = {
    "cgroupfs v1": (Kernel, "v1", CONF),
    "cgroupfs v2": (Kernel, "v2", CONF),
    "systemd v1": (Machined, "v1", CONF),
    "systemd v2": (Machined, "v2", CONF),
    "systemd v2, a slice for each VM": (Machined, "v2", OWN_SLICE),
    "systemd v2, nothing to do after prepare": (Machined, "v2", NATIVE),
    "systemd v1, each VM fenced": (Machined, "v1", CARRIED),
    "systemd v2, the host confined": (Confined, "v2", CONF + "confine_host = 'running'\n"),
}
LEFT: dict[type[Kernel], Callable[[Kernel], object]] = {
    Kernel: lambda host: (host.cgroups(), host.names(state.VMS), host.read_optional(state.SHARED)),
    Machined: lambda host: (
        [name for name in host.names(UNITS) if name.endswith(".d")],
        host.names(state.VMS),
        [path for path in host.cgroups() if "scope" in path],
    ),
    Confined: lambda host: (
        host.names(state.VMS),
        [host.get(f"/sys/fs/cgroup/{unit}/cpuset.cpus") for unit in Confined.units],
        host.names("/run/systemd/transient"),
        [name for name in host.names("/run/systemd/system.control") if name[:6] != "vms.sl"],
    ),
}


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.thorough), 7])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("kind", "then"),
    [
        *((kind, "another VM") for kind in KINDS),
        *((kind, "the same VM again") for kind in ("cgroupfs v1", "systemd v2")),
    ],
)
def test_killed_after_each_step(
    tmp_path: Path,
    kind: str,
    operation: str,
    then: str,
    every: int,
    record_property: Callable[[str, object], None],
) -> None:
    make, recorded, conf = KINDS[kind]
    untouched = make(tmp_path / "untouched", recorded, conf)
    assert Script(untouched).live(OTHER)
    clean = LEFT[make](untouched)  # what is there after any VM
    steps = injected = 0
    while True:
        host = make(tmp_path / str(steps), recorded, conf)
        script = Script(host)
        through = script.live(UUID, operation, steps)
        script.age()
        assert script.live(UUID if then == "the same VM again" else OTHER)
        assert LEFT[make](host) == clean, f"killed after {steps} steps"
        shutil.rmtree(host.root)
        injected += not through
        steps += every
        if through:
            break
    assert injected or operation in ("start", "stopped") or conf == NATIVE
    record_property("faults injected", injected)
