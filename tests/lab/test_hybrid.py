"""Hosts on cgroup v2 with a controller that is on v1: libvirt chooses for each of them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.leave import leave

from ..live.harness import STATE, Vm, running_vm, virsh
from ..live.pace import wait_for
from .drift import Shown, findings
from .host import CGROUP, FENCE_CPUS, V2, configure, fenced, needs_systemd, run, start, virt_cgroup

FEWER = "3-7"
pytestmark = [
    needs_systemd,
    pytest.mark.thorough,
    pytest.mark.releases,
    pytest.mark.usefixtures("nothing_is_kept"),
    pytest.mark.skipif(not V2, reason="all controllers are on v1 here"),
]


@contextmanager
def taken_from_v2(controller: str) -> Iterator[None]:
    """As the kernel wants it before CONTROLLER can be on v1."""
    leave(Host())
    files = sorted(CGROUP.rglob("cgroup.subtree_control"), key=lambda file: len(file.parts))
    enabled = [file for file in files if controller in file.read_text().split()]
    for file in reversed(enabled):
        file.write_text(f"-{controller}")
    try:
        yield
    finally:
        for file in enabled:
            if file.exists():
                file.write_text(f"+{controller}")


@contextmanager
def on_v1(controller: str) -> Iterator[Path]:
    """Where CONTROLLER is, then."""
    mount = Path("/run") / controller
    mount.mkdir(exist_ok=True)
    command = ("mount", "-t", "cgroup", "-o", controller, controller, str(mount))
    with taken_from_v2(controller):

        def is_mounted() -> bool:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode and "busy" not in done.stderr:
                pytest.skip(f"this kernel has no {controller} on v1")
            return not done.returncode

        def is_given_back() -> bool:
            """The kernel keeps what is unmounted a moment after its last cgroup was removed, until
            it is unmounted once more (cgroup_kill_sb).
            """
            run("umount", str(mount))
            if f"{controller}\t0\t" in Path("/proc/cgroups").read_text():
                return True
            wait_for(is_mounted, f"{controller} to be mounted again")
            return False

        wait_for(is_mounted, f"{controller} to be given back by v2")
        try:
            yield mount
        finally:
            virsh("destroy", "web", check=False)
            # libvirt leaves slices, and v2 gets no controller back that a cgroup still has
            run("find", str(mount), "-mindepth", "1", "-depth", "-type", "d", "-delete")
            wait_for(is_given_back, f"{controller} to be given back by v1")


def allowed(vm: Vm) -> set[str]:
    return {thread.cpus_allowed for thread in vm.threads().values()}


def is_fenced(cpus: str) -> bool:
    return allowed(running_vm("web")) == {cpus} and Shown().parent["cpus"] == cpus


@pytest.mark.parametrize("layout", ["native", "/vms/$NAME", "/vms/$NAME/$UUID"])
@pytest.mark.parametrize("controller", ["net_cls", "freezer", "devices", "cpuset"])
def test_a_vm_is_fenced(controller: str, layout: str) -> None:
    """VPN daemons mount net_cls; the others are what a host has that was told so at boot."""
    with on_v1(controller) as mount:
        configure(fenced(layout))
        start("web")
        assert is_fenced(FENCE_CPUS)
        assert findings() == {}
        virsh("setvcpus", "web", "3", "--live")
        assert is_fenced(FENCE_CPUS)
        virt_cgroup("reserve", "--cpus", "0-2", "--live")
        assert is_fenced(FEWER)
        virsh("destroy", "web")
        wait_for(lambda: not list((STATE / "vms").glob("*")), "its release")
        assert list(mount.rglob("*.scope")) == []
