"""virt-cgroup hook with a real libvirtd: it is found at once, and leaving leaves nothing but the
VMs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import (
    ALL_CPUS,
    FENCED,
    STATE,
    VM_CPUS,
    Configure,
    Daemon,
    Vm,
    all_cgroups,
    cgroup_directory,
    destroy_all_vms,
    destroy_vm,
    qemu_processes,
    start_vm,
    threads,
)
from .pace import patient, wait_for

HOOK = Path("/etc/libvirt/hooks/qemu")
HOOK_D = Path("/etc/libvirt/hooks/qemu.d/50-cgroup-hooks")


@pytest.fixture(autouse=True)
def installed(daemon: Daemon) -> Iterator[None]:
    """What is there before a test is there after it: maybe a link into the source tree."""
    link = HOOK.readlink() if HOOK.is_symlink() else None
    text, mode = HOOK.read_text(), HOOK.stat().st_mode
    yield
    for path in (HOOK, HOOK_D):
        path.unlink(missing_ok=True)
    if link:
        HOOK.symlink_to(link)
    else:
        HOOK.write_text(text)
        HOOK.chmod(mode)
    daemon.restart()
    destroy_all_vms()
    wait_for(lambda: not qemu_processes(), "the VMs to end")
    # of VMs that were moved, which nobody knows of any more
    for directory in sorted(all_cgroups(), reverse=True):
        if "vms" in directory.parts:
            directory.rmdir()


def virt_cgroup(*arguments: str) -> str:
    command = ["/usr/bin/python3", "-I", "-m", "libvirt_cgroup_hooks", *arguments]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=patient(),
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def places(vm: Vm) -> dict[int, dict[str, str]]:
    return {tid: thread.groups for tid, thread in threads(vm.pid).items()}


def limit(group: str) -> str:
    v2 = cgroup_directory("memory", group) / "memory.max"
    return (
        (v2 if v2.exists() else cgroup_directory("memory", group) / "memory.limit_in_bytes")
        .read_text()
        .strip()
    )


@pytest.mark.parametrize("layout", ["/vms/$DRIVER-$NAME", "native"])
def test_leaving_opens_the_fence_and_leaves_vms_alone(configure: Configure, layout: str) -> None:
    parent = "/machine" if layout == "native" else "/vms"
    configure(FENCED.replace("/vms/$DRIVER-$NAME", layout))
    vm = start_vm("stays")
    before, fenced = places(vm), limit(parent)
    assert threads(vm.pid)[vm.pid].cpus_allowed == VM_CPUS
    said = virt_cgroup("hook", "remove")
    assert "removed /etc/libvirt/hooks/qemu\n" in said
    assert "lifted the limits of the VM parent\n" in said
    assert (HOOK.exists(), HOOK_D.exists(), STATE.exists()) == (False, False, False)
    assert places(vm) == before
    assert limit(parent) != fenced
    assert limit(parent) in ("max", "9223372036854771712")
    assert (cgroup_directory("cpuset", parent) / "cpuset.cpus").read_text().strip() == ALL_CPUS
    later = start_vm("later")
    assert threads(later.pid)[later.pid].cpus_allowed == ALL_CPUS
    destroy_vm("stays")
    destroy_vm("later")


def test_the_daemon_is_told(daemon: Daemon, configure: Configure) -> None:
    virt_cgroup("hook", "remove")
    daemon.restart()
    pid = daemon.pid
    configure(FENCED)
    assert threads((vm := start_vm("before")).pid)[vm.pid].cpus_allowed == ALL_CPUS
    assert "reloaded libvirtd" in virt_cgroup("hook", "install")
    assert HOOK.exists()
    assert threads((vm := start_vm("after")).pid)[vm.pid].cpus_allowed == VM_CPUS
    assert daemon.pid == pid


def test_beside_a_hook_that_does_nothing(daemon: Daemon, configure: Configure) -> None:
    virt_cgroup("hook", "remove")
    HOOK.write_text("#!/bin/sh\n")
    HOOK.chmod(0o755)
    assert f"installed {HOOK_D}\n" in virt_cgroup("hook", "install")
    configure(FENCED)
    assert threads((vm := start_vm("vm")).pid)[vm.pid].cpus_allowed == VM_CPUS
    virt_cgroup("hook", "remove")
    assert HOOK.read_text() == "#!/bin/sh\n"
