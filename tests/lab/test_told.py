"""What is wrong, or may become so, is told where somebody looks, and stops nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.domainxml import SETTINGS_URI
from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.leave import leave
from libvirt_cgroup_hooks.state import DIRECTORY

from ..live.harness import virsh
from ..live.pace import wait_for
from ..live.reserving import COMMAND, MIB, leaving, nobody_is_killed, reserve
from .drift import FENCE, Shown, findings, not_applied, only_v2
from .host import (
    FENCE_CPUS,
    V2,
    configure,
    directory,
    drop_ins,
    fenced,
    log,
    run,
    start,
    status,
    value,
    virt_cgroup,
)

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("nothing_is_kept")]
DAEMON = ("libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")
BAD = "<settings><vcpu_cpus>0-99</vcpu_cpus></settings>"
PREALLOCATED = "<memoryBacking><allocation mode='immediate'/></memoryBacking>"
CONTROL = Path("/etc/systemd/system.control/machine.slice.d")


# a process that is not the VM


def sleeper(pid: int) -> subprocess.Popen[bytes]:
    """A process of the host's with the id PID."""
    for _ in range(200):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        found = subprocess.Popen(["sleep", "1000"])
        if found.pid == pid:
            return found
        found.kill()
        found.wait()
    raise AssertionError(f"no process has got the id {pid}")


def test_a_process_that_got_the_id_of_a_vm_that_has_ended_is_left_alone() -> None:
    configure(fenced("/vms/$NAME"))
    web, db = start("web"), start("db")
    run("systemctl", "stop", *DAEMON)
    os.kill(web.pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{web.pid}").exists(), "QEMU to end")
    other = sleeper(web.pid)
    try:
        before = Path(f"/proc/{other.pid}/cgroup").read_text()
        assert [vm["name"] for vm in status()["domains"]] == ["db"]
        virt_cgroup("apply", "--all")
        reserve("--cpus", "0-2", "--live")
        assert Shown().allowed("db") == {"3-7"}
        assert Path(f"/proc/{other.pid}/cgroup").read_text() == before
        assert os.sched_getaffinity(other.pid) == set(range(8))
        assert db.alive()
    finally:
        other.kill()
        other.wait()
        run("systemctl", "start", *DAEMON)
        wait_for(lambda: virsh("list", check=False).returncode == 0, "libvirtd to answer")


@pytest.mark.skipif(not V2, reason="the daemon has a cgroup of its own for each limit on v1")
def test_a_daemon_that_is_away_is_not_taken_for_the_session() -> None:
    """Where VMs are beside the daemon, its unit says where that will be."""
    configure(fenced("nested"))
    start("web")
    before = status()["parent"]["path"]
    run("systemctl", "stop", *DAEMON)
    try:
        shown = status()
        assert shown["parent"]["path"] == before
        assert shown["domains"][0]["conforms"]
        virt_cgroup("apply", "--parent")
        reserve("--cpus", "0-2", "--live")
        assert Shown().allowed("web") == {"3-7"}
        assert os.sched_getaffinity(0) == set(range(8))
    finally:
        run("systemctl", "start", *DAEMON)
        wait_for(lambda: virsh("list", check=False).returncode == 0, "libvirtd to answer")


# one VM's metadata


def test_metadata_that_cannot_be_right_stops_nothing_else() -> None:
    configure(fenced("/vms/$NAME"))
    start("web")
    start("db")
    virsh("metadata", "web", "--live", "--uri", SETTINGS_URI, "--key", "c", "--set", BAD)
    reserve("--cpus", "0-2", "--live")
    assert Shown().allowed("db") == {"3-7"}
    told = not_applied()
    assert 'VM web has vcpu_cpus = "0-99" in its metadata' in told
    assert "--unset vcpu_cpus --live" in told
    virt_cgroup("domain", "web", "--unset", "vcpu_cpus", "--live")
    virt_cgroup("apply", "--all")
    assert all(vm["conforms"] for vm in status()["domains"])


# what systemd will do


@only_v2
def test_a_limit_that_a_reload_will_lift_is_told_at_each_start() -> None:
    """As somebody has set it before there was a hook, to stay."""
    run("systemctl", "set-property", "machine.slice", "AllowedCPUs=0-7", "MemoryMax=infinity")
    try:
        configure(fenced("native"))
        start("web")
        file = CONTROL / "50-AllowedCPUs.conf"
        told = f"{file} sets AllowedCPUs=0-7, which replaces the limit CPUs {FENCE_CPUS} at"
        assert told in log()
        assert findings()[FENCE].startswith(f"FAIL {told}")
        for path in CONTROL.iterdir():  # what is told to be done
            path.unlink()
        run("systemctl", "daemon-reload")
        assert findings() == {}
        assert Shown().allowed("web") == {FENCE_CPUS}
    finally:
        for path in CONTROL.glob("*"):
            path.unlink()
        run("systemctl", "daemon-reload")


@only_v2
def test_what_systemd_no_longer_knows_is_set_again() -> None:
    configure(fenced("native", memory=False))
    start("web")
    run("rm", "-r", "/run/systemd/system.control/machine.slice.d")
    assert "systemd has no record of the limit" in findings()[FENCE]
    start("db")
    run("systemctl", "daemon-reload")
    assert Shown().allowed("web") == Shown().allowed("db") == {FENCE_CPUS}
    assert findings() == {}


# memory


def test_a_start_that_may_kill_another_is_told() -> None:
    configure(fenced("/vms/$NAME").replace("1 GiB", leaving(400 * MIB)))
    with nobody_is_killed(start("web", memory_mib=128, extra=PREALLOCATED)):
        start("db", memory_mib=200)
        assert "VM db may come to use " in log()
        assert "WARN (running VMs may come to use " in run(*COMMAND, "validate", check=False)


def pressure() -> str:
    return value("memory", "/vms.slice", "memory.high", "")


@only_v2
def test_a_killed_reserve_leaves_what_is_shown() -> None:
    configure(fenced("/vms/$NAME"))
    with nobody_is_killed(start("web", memory_mib=256, extra=PREALLOCATED)):
        change = subprocess.Popen(
            [*COMMAND, "reserve", "--live", "--wait", "500", "--memory", leaving(64 * MIB)]
        )
        wait_for(lambda: pressure() != "max", "the pressure to be set")
        change.kill()
        change.wait()
        assert [row["limit"] for row in status()["unwanted"]] == ["MemoryHigh"]
        assert "still has MemoryHigh=" in run(*COMMAND, "validate", check=False)
        virt_cgroup("apply", "--parent")
        assert pressure() == "max"
        assert status()["unwanted"] == []


# a VM that is still there when the hook is not


@pytest.mark.parametrize("layout", ["/vms/$UUID", "/vms/$UUID/$NAME", "uuid"])
@pytest.mark.parametrize("how", ["left", "removed"])
def test_the_slices_of_a_vm_go_with_it(layout: str, how: str) -> None:
    """After `hook remove`, or where /run/libvirt-cgroup-hooks was removed."""
    configure(fenced(layout, memory=layout != "uuid"))
    vm = start("web")
    scope = directory("memory", vm.threads()[vm.pid].group("memory"))
    own = next(
        one for one in (scope, *scope.parents) if "6a0e1f9c" in one.name and one.suffix == ".slice"
    )
    configure("")
    if how == "left":
        leave(Host())
    else:
        shutil.rmtree(DIRECTORY)
    assert own.exists()
    run("systemctl", "daemon-reload")
    virsh("destroy", "web")
    wait_for(lambda: not own.exists(), "the VM's slice to go")
    wait_for(lambda: "6a0e1f9c" not in run("systemctl", "list-units", "*.slice"), "slices to go")
    if drop_ins():  # nobody knows it any more; the next VM that starts takes it away
        configure(fenced("/vms/$NAME"))
        start("db")
        virsh("destroy", "db")
