"""As live/test_killed.py, where systemd owns cgroups: the hook is killed at each call, or the
systemctl that it waits for.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ..live.faults import age_records, calls_at, killed
from ..live.harness import STATE, destroy_vm, running_vm, virsh
from ..live.pace import wait_for
from ..live.reserving import everything
from .faults import some_of
from .host import (
    CGROUP,
    SYSTEMD,
    UNITS,
    V2,
    configure,
    drop_ins,
    fenced,
    restart_libvirtd,
    start,
    status,
    virt_cgroup,
    xml,
)

AT_START = () if V2 and SYSTEMD else ("start",)  # else the shell alone runs
OPERATIONS = ("prepare", *AT_START, "started", "release", "reconnect")
MORE = 'vcpu_cpus = "3-5"\nvm_cpu_weight = 50'
if V2:
    MORE += '\nvm_swap_max = "64 MiB"\nprotect_host_mem = "low"\nconfine_host = "running"'
LIMITS = ("memory.low", "memory.min", "cpuset.cpus")
NO_LIMIT = ("", "0", "0-7")
LAYOUTS = ("/vms/$NAME", "/vms/$DRIVER-$UUID")


def life(operation: str) -> None:
    result = virsh("create", "/dev/stdin", stdin=xml("web"), check=False)
    if operation in ("prepare", "start"):
        assert "Killed" in result.stderr, result.stderr
        return
    assert result.returncode == 0, result.stderr
    vm = running_vm("web")
    if operation == "reconnect":
        restart_libvirtd()
    assert vm.alive()
    if operation in ("started", "reconnect"):
        virt_cgroup("apply", "--all")
        found = status()["domains"][0]
        assert found["conforms"], found["problems"]
    destroy_vm("web")


def of_host_units(found: dict[str, str]) -> dict[str, str]:
    """Their limits; all CPUs are none."""
    units = ("system.slice", "user.slice", "init.scope")
    files = [f"{CGROUP}/{unit}/{name}" for unit in units for name in LIMITS]
    return {file: text for file in files if (text := found.get(file, "").strip()) not in NO_LIMIT}


@pytest.mark.thorough
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_on_its_way(
    operation: str, layout: str, record_property: Callable[[str, object], None]
) -> None:
    configure(fenced(layout, more=MORE))
    before = everything()
    calls = calls_at(operation, lambda: start("web"), restart_libvirtd)
    chosen = some_of(calls, f"{operation} {layout}")
    for call, nth in chosen:
        with killed(operation, call, nth):
            life(operation)
        age_records()
        start("db")
        found = status()["domains"][0]
        assert found["conforms"], (call, nth, found["problems"])
        destroy_vm("db")
        wait_for(lambda: not list(UNITS.glob("machine-qemu*")), f"nothing to be left: {call} {nth}")
        assert not drop_ins()
        assert not list((STATE / "vms").iterdir())
        assert not list(STATE.rglob("*.new"))
        assert of_host_units(everything()) == of_host_units(before)
    record_property("faults injected", len(chosen))
