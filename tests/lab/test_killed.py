"""As live/test_killed.py, where systemd owns cgroups: the hook is killed at each call, or the
systemctl that it waits for.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from ..live.faults import counted, killed, points
from ..live.harness import LAB_FACTS, STATE, destroy_vm, running_vm, virsh
from ..live.pace import wait_for
from ..live.reserving import everything
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
CHOSEN = 5
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


# A VM takes some seconds on a lab host, so a few calls are drawn, others on each host.
# live/test_killed.py has them all.
@pytest.mark.thorough
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_on_its_way(
    operation: str, layout: str, record_property: Callable[[str, object], None]
) -> None:
    configure(fenced(layout, more=MORE))
    before = everything()
    start("web")
    destroy_vm("web")
    with counted(operation) as calls:
        start("web")
        if operation == "reconnect":
            restart_libvirtd()
        destroy_vm("web")
    drawn = random.Random(f"{LAB_FACTS.read_text()} {operation} {layout}")
    chosen = drawn.sample(points(calls), min(CHOSEN, len(points(calls))))
    assert chosen
    for call, nth in chosen:
        with killed(operation, call, nth):
            life(operation)
        for path in (STATE / "vms").iterdir():
            os.utime(path, (1, 1))  # as if it had begun to start long ago
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
