"""`virt-cgroup reserve` of memory that VMs use: it is reclaimed while the command waits, and no VM
is ever killed.
"""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest

from .guests import reader, toucher
from .harness import FENCED, Configure, virsh
from .pace import patient, wait_for
from .reserving import (
    MIB,
    assert_conform,
    assert_same,
    busy_time,
    everything,
    in_use,
    interrupted,
    leaving,
    limit_of,
    nobody_is_killed,
    parent_directory,
    refused,
    reserve,
    start_guest,
    virt_cgroup,
    wait_for_use,
)

thorough = partial(pytest.param, marks=pytest.mark.thorough)


# --wait


def test_wait_reclaims_the_page_cache(configure: Configure, tmp_path: Path) -> None:
    """A VM that has read its disk has left the image in the host's page cache, where it counts as
    the VM's memory.
    """
    configure(FENCED)
    vm = start_guest("web", tmp_path / "web", reader(96), 128)
    parent = parent_directory()
    used = wait_for_use(parent, 96)
    limit = (used - 60 * MIB) & -4096
    arguments = ["--memory", leaving(limit), "--live"]
    with nobody_is_killed(vm):
        assert "--wait" in refused(*arguments)
        result = virt_cgroup("reserve", *arguments, "--wait", f"{patient():.0f}")
    assert result.stderr.startswith("reclaiming: ")
    assert " in use, " in result.stderr
    assert limit_of(parent) == str(limit)
    assert in_use(parent) <= limit
    assert high_of(parent) == "max"
    assert_conform("web")


def high_of(directory: Path) -> str:
    file = directory / "memory.high"
    return file.read_text().strip() if file.exists() else "max"


def test_wait_in_vain(configure: Configure, tmp_path: Path) -> None:
    configure(FENCED)
    vm = start_guest("web", tmp_path / "web", toucher(96))
    wait_for_use(parent_directory(), 96)
    with nobody_is_killed(vm):
        message = refused("--memory", leaving(64 * MIB), "--live", "--config", "--wait", "2")
    assert "after 2 seconds the VMs still use 1" in message
    assert "; the new limit is 64 MiB: web has 1" in message
    assert "reclaiming: 1" in message


@pytest.mark.parametrize(
    "number", [signal.SIGINT, thorough(signal.SIGTERM), thorough(signal.SIGHUP)]
)
def test_interrupted_wait(configure: Configure, tmp_path: Path, number: int) -> None:
    configure(FENCED)
    vm = start_guest("web", tmp_path / "web", toucher(96))
    parent = parent_directory()
    wait_for_use(parent, 96)
    before = everything()
    arguments = ["--memory", leaving(64 * MIB), "--live", "--config", "--wait", f"{patient():.0f}"]
    with nobody_is_killed(vm):
        result = interrupted(arguments, number)
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr.endswith("error: interrupted\n")
    assert_same(everything(), before)


# never a kill


@pytest.mark.parametrize("wait", [[], thorough(["--wait", "1"])], ids=["at once", "wait"])
def test_close_to_what_is_used(configure: Configure, tmp_path: Path, wait: list[str]) -> None:
    """Limits just below and above what a VM uses that goes on touching all of it: refused, or made
    and the VM lives.
    """
    configure(FENCED)
    vm = start_guest("web", tmp_path / "web", toucher(64))
    parent = parent_directory()
    used = wait_for_use(parent, 64)
    made = []
    with nobody_is_killed(vm):
        for more in (
            -32 * MIB,
            -1 * MIB,
            -4096,
            0,
            4096,
            64 << 10,
            1 * MIB,
            4 * MIB,
            8 * MIB,
            16 * MIB,
            64 * MIB,
        ):
            limit = (used + more) & -4096
            result = virt_cgroup(
                "reserve", "--memory", leaving(limit), "--live", *wait, check=False
            )
            assert limit_of(parent) == (str(limit) if result.returncode == 0 else limit_of(parent))
            made.append(result.returncode == 0)
            before = busy_time(vm)
            wait_for(lambda before=before: busy_time(vm) > before, "the VM to go on")  # type: ignore[misc]
            virsh("domstats", "web")
            virsh("qemu-monitor-command", "web", "--hmp", "info qtree")
            assert high_of(parent) == "max"
    assert made[0] is False
    assert made[-1] is True
    assert_conform("web")


@pytest.mark.thorough
def test_while_the_vm_grows(configure: Configure, tmp_path: Path) -> None:
    """The use goes up while the limit comes down; what the VM comes to use in all is below the
    limit.
    """
    configure(FENCED)
    start_guest("first", tmp_path / "first", toucher(128, rounds=False))
    parent = parent_directory()
    in_all = wait_for_use(parent, 128)
    virsh("destroy", "first")
    for attempt in range(3):
        vm = start_guest(f"web{attempt}", tmp_path / "web", toucher(128))
        with nobody_is_killed(vm):
            limit = (in_all + 64 * MIB) & -4096
            reserve("--memory", leaving(limit), "--live", "--wait", f"{patient():.0f}")
            wait_for_use(parent, 128)
            assert_conform(vm.name)
        virsh("destroy", vm.name)
        reserve("--memory", "1 GiB", "--live")
