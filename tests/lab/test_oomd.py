"""systemd-oomd beside VMs: which cgroups it watches, and whether it can choose a VM."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ..live.guests import disk, toucher
from ..live.harness import LAB_FACTS, QEMU_CONF, Vm, virsh
from ..live.pace import wait_for
from ..live.reserving import wait_for_use
from .host import (
    CGROUP,
    IMAGES,
    configure,
    directory,
    fenced,
    restart_libvirtd,
    run,
    start,
    swap_file,
)

pytestmark = pytest.mark.skipif(
    not shutil.which("oomctl"),
    reason="no systemd-oomd here; run: tools/lab run 13 --variant oomd tests/lab",
)
OOMD_CONF = Path("/run/systemd/oomd.conf.d/50-test.conf")
# That it does at once what it does when nearly all is used
EAGER = (
    "[OOM]\nSwapUsedLimit=10%\nDefaultMemoryPressureLimit=5%\nDefaultMemoryPressureDurationSec=1s\n"
)
SCOPES = Path("/run/systemd/system/machine-.scope.d/50-test.conf")
WATCHES = {
    "swap": ("-.slice", "ManagedOOMSwap"),
    "pressure": ("machine.slice", "ManagedOOMMemoryPressure"),
}
SWAP = 256  # MiB
RELEASE = json.loads(LAB_FACTS.read_text())["release"] if LAB_FACTS.exists() else ""
OMIT = "user.oomd_omit"


@pytest.fixture(params=WATCHES)
def watch(request: pytest.FixtureRequest) -> Iterator[str]:
    """There is swap, and oomd acts at once on what the administrator has it watch."""
    OOMD_CONF.parent.mkdir(parents=True, exist_ok=True)
    OOMD_CONF.write_text(EAGER)
    run("systemctl", "restart", "systemd-oomd")
    unit, key = WATCHES[request.param]
    configure(fenced("native"))
    with swap_file(SWAP):
        run("systemctl", "set-property", "--runtime", "--", unit, f"{key}=kill")
        yield request.param
        (directory("memory", "/machine.slice") / "memory.high").write_text("max")
        run("systemctl", "set-property", "--runtime", "--", unit, f"{key}=auto")
    OOMD_CONF.unlink()
    SCOPES.unlink(missing_ok=True)
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "systemd-oomd")


def all_scopes(*settings: str) -> None:
    """Of VMs that start from now on."""
    SCOPES.parent.mkdir(parents=True, exist_ok=True)
    SCOPES.write_text("\n".join(["[Scope]", *settings, ""]))
    run("systemctl", "daemon-reload")


def guest(name: str, mib: int, rounds: bool) -> Vm:
    vm = start(
        name,
        memory_mib=256,
        machine="pc",
        iothreads=0,
        devices=disk(IMAGES / name, toucher(mib, rounds)),
    )
    wait_for_use(scope(vm), mib)
    return vm


def scope(vm: Vm) -> Path:
    place = Path(f"/proc/{vm.pid}/cgroup").read_text().strip().rpartition(":")[2]
    return directory("memory", place.partition("/libvirt")[0])


def vm_group(vm: Vm) -> Path:
    return scope(vm) / "libvirt"


def path(group: Path) -> str:
    return f"/{group.relative_to(CGROUP)}"


def press(watch: str) -> None:
    """VMs have less memory than they use: what they do not touch is swapped out, and what they do
    comes and goes.
    """
    parent = directory("memory", "/machine.slice")
    if watch == "swap":
        with suppress(BlockingIOError):  # where a VM is killed meanwhile
            (parent / "memory.reclaim").write_text("80M")
    else:
        (parent / "memory.high").write_text("80M")


def said() -> list[str]:
    return run("journalctl", "--no-pager", "-o", "cat", "-u", "systemd-oomd").splitlines()


def monitored() -> dict[str, list[str]]:
    """The cgroups that oomd watches, for swap and for memory pressure."""
    found: dict[str, list[str]] = {}
    for line in run("oomctl").splitlines():
        if line.endswith("Monitored CGroups:"):
            found[line.removesuffix(" Monitored CGroups:")] = paths = []
        elif line.startswith("\tPath: "):
            paths.append(line.removeprefix("\tPath: "))
    return found


def considered(since: int) -> str:
    """What oomd has weighed since line SINCE of its log, once it has twice."""
    begins = "Considered "
    wait_for(
        lambda: sum(line.startswith(begins) for line in said()[since:]) > 1, "oomd to look for more"
    )
    return "\n".join(said()[since:])


def test_what_debian_has_it_watch() -> None:
    """Debian 12: swap, for all cgroups. Debian 13: nothing but sessions of users."""
    configure(fenced("native"))
    with swap_file(SWAP):
        start("web")
        assert monitored() == {"Swap": ["/"] if RELEASE == "12" else [], "Memory Pressure": []}
        virsh("destroy", "web")


def test_a_vm_is_no_candidate(watch: str) -> None:
    """oomd weighs cgroups that have none below them, and libvirt's thread groups have no memory
    controller.
    """
    vms = [guest("web", 96, watch == "pressure"), guest("db", 48, False)]
    since = len(said())
    press(watch)
    text = considered(since)
    assert "qemu" not in text
    assert "Killed" not in text
    assert all(vm.alive() for vm in vms)


@pytest.mark.parametrize("watch", ["swap"], indirect=True)
def test_one_that_is_to_be_killed_as_a_whole(watch: str) -> None:
    """With OOMPolicy=kill, which sets memory.oom.group, the scope is weighed. oomd then fails as a
    read of cgroup.procs of a thread group does: 252 when it has killed QEMU, 257 before that.
    """
    all_scopes("OOMPolicy=kill")
    vm = guest("web", 96, False)
    assert (scope(vm) / "memory.oom.group").read_text().strip() == "1"
    place = path(scope(vm))
    since = len(said())
    press(watch)
    failed = "Failed to kill any cgroups based on swap: Operation not supported"
    wait_for(lambda: failed in said()[since:], "oomd to fail")
    assert f"\tPath: {place}" in said()[since:]
    if RELEASE == "12":
        wait_for(lambda: not vm.alive(), "the VM to end")
    else:
        assert vm.alive()


@pytest.fixture
def no_thread_groups() -> Iterator[None]:
    """As where an administrator has taken cpu and cpuset from libvirt."""
    text = QEMU_CONF.read_text()
    QEMU_CONF.write_text(f'{text}cgroup_controllers = ["memory"]\n')
    restart_libvirtd()
    yield
    virsh("destroy", "web", check=False)
    QEMU_CONF.write_text(text)
    restart_libvirtd()


@pytest.mark.usefixtures("no_thread_groups")
def test_without_thread_groups_it_is_killed(watch: str) -> None:
    vm = guest("web", 96, watch == "pressure")
    group = path(vm_group(vm))
    since = len(said())
    press(watch)
    wait_for(lambda: not vm.alive(), "oomd to kill the VM")
    assert f"Killed {group}" in "\n".join(said()[since:])
    wait_for(lambda: "shut off" in virsh("domstate", "web").stdout, "libvirt to see it")
    assert virsh("domstate", "web", "--reason").stdout.strip() == "shut off (crashed)"


@pytest.mark.usefixtures("no_thread_groups")
@pytest.mark.parametrize("watch", ["swap"], indirect=True)
@pytest.mark.parametrize("on", ["scope", "group"])
def test_omit(watch: str, on: str) -> None:
    """A preference counts on the cgroup that is weighed, which is below the scope that systemd
    marks. And systemd marks it only with the next property that changes a cgroup's file.
    """
    vm = guest("web", 96, False)
    if on == "scope":
        set_property = ("systemctl", "set-property", "--runtime", scope(vm).name)
        run(*set_property, "ManagedOOMPreference=omit")
        assert OMIT not in os.listxattr(scope(vm))
        run(*set_property, "CPUWeight=101")
        assert OMIT in os.listxattr(scope(vm))
    else:
        os.setxattr(vm_group(vm), OMIT, b"1")
    since = len(said())
    press(watch)
    if on == "scope":
        wait_for(lambda: not vm.alive(), "oomd to kill the VM")
    else:
        considered(since)
        assert vm.alive()
