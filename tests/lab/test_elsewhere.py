"""VMs that run elsewhere than they are to be once they are restarted, and what is left of the
slices that they were in.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.leave import leave

from ..live.harness import STATE, Vm, running_vm, virsh
from ..live.pace import wait_for
from ..live.reserving import MIB, leaving, parent_directory, wait_for_use
from .host import (
    FENCE_CPUS,
    configure,
    directory,
    fenced,
    guest,
    needs_systemd,
    problems,
    run,
    start,
    status,
    virt_cgroup,
)

LENDS = 'host_cpus_for = ["emulator"]'
CONTROL = Path("/run/systemd/system.control")
pytestmark = [
    needs_systemd,
    pytest.mark.releases,
    pytest.mark.usefixtures("nothing_is_kept"),
]


def allowed(vm: Vm) -> set[str]:
    return {thread.cpus_allowed for thread in vm.threads().values()}


def settled() -> bool:
    """Whether none of the ways to apply finds anything to do."""
    said = [virt_cgroup("apply", "-q", which) for which in ("web", "--parent", "--all", "--parent")]
    return said == [""] * 4


def is_active(unit: str) -> bool:
    return run("systemctl", "is-active", unit, check=False).strip() == "active"


def slices_go() -> None:
    wait_for(lambda: not is_active("vms-prod.slice"), "vms-prod.slice to go")
    wait_for(lambda: not is_active("vms.slice"), "vms.slice to go")


def test_one_below_the_parent_of_an_earlier_layout() -> None:
    configure(fenced("/vms/prod/$NAME"))
    vm = start("web")
    configure(fenced("native"))
    virt_cgroup("apply", "--all")
    told = problems()["vm-misplaced"]
    assert "it is in /vms.slice/vms-prod.slice/machine-qemu" in told["message"]
    assert told["message"].endswith("counted apart from that of other VMs until it is restarted")
    assert told["remedy"].endswith("virsh shutdown web; virsh start web")
    assert status()["domains"][0]["reasons"] == ["memory-apart"]
    assert settled()
    for more in (LENDS, ""):
        configure(fenced("native", more=more))
        virt_cgroup("apply", "--all")
        assert allowed(vm) == {FENCE_CPUS}
        run("systemctl", "daemon-reload")
        assert allowed(vm) == {FENCE_CPUS}
        assert settled()
    virsh("destroy", "web")
    virsh("start", "web")
    assert status()["domains"][0]["conforms"]
    virt_cgroup("apply", "--all")
    slices_go()
    assert is_active("machine.slice")
    assert allowed(running_vm("web")) == {FENCE_CPUS}


def test_one_that_gets_a_layout_of_its_own() -> None:
    """It takes effect when the VM starts again."""
    configure(fenced("native", memory=False))
    start("web")
    virt_cgroup("domain", "web", "--set", "layout=/vms/$NAME", "--live", "--config")
    virt_cgroup("apply", "web")
    assert settled()
    virsh("destroy", "web")
    virsh("start", "web")
    assert status()["domains"][0]["cgroup"].startswith("/vms.slice/")
    assert allowed(running_vm("web")) == {FENCE_CPUS}
    assert settled()


def test_nothing_is_left_of_a_layout_and_of_a_change() -> None:
    configure(fenced("/vms/prod/$NAME"))
    guest("web", 64, rounds=False)
    used = wait_for_use(parent_directory(), 64)
    # so little above the use that memory.high goes down first
    virt_cgroup("reserve", "--memory", leaving((used + 16 * MIB) & -4096), "--live")
    assert not list(CONTROL.glob("*/50-MemoryHigh.conf"))
    virsh("destroy", "web")
    wait_for(lambda: not list((STATE / "vms").iterdir()), "its release")
    leave(Host())
    slices_go()
    assert not directory("memory", "/vms.slice").exists()
    assert not list(CONTROL.glob("vms*"))
    failed = run("systemctl", "list-units", "--failed", "--no-legend", "--plain")
    assert "slice" not in failed
