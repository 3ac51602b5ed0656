"""A whole host of the lab, seen from inside: its libvirtd is a service, and VMs are machined's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..live.guests import disk, toucher
from ..live.harness import CONFIG, Daemon, Vm, age, destroy_all_vms, domain_xml, running_vm, virsh
from ..live.pace import in_time, patient, wait_for

HOOK = Path("/etc/libvirt/hooks/qemu")
IMAGES = Path("/var/lib/libvirt/images")
UNITS = Path("/run/systemd/system")
CGROUP = Path("/sys/fs/cgroup")
SYSTEMD = UNITS.exists()
V2 = (CGROUP / "cgroup.controllers").exists()
needs_systemd = pytest.mark.skipif(not SYSTEMD, reason="test_openrc.py has it without systemd")
FENCE_CPUS = "2-7"
UUIDS = {
    "web": "6a0e1f9c-7c5b-4d0a-9f7e-0123456789ab",
    "db": "0d5fbb05-3a7e-4b4c-8f4d-ba9876543210",
}
USB = "<controller type='usb' model='nec-xhci'/>"


def directory(controller: str, path: str) -> Path:
    return (CGROUP if V2 else CGROUP / controller) / path.lstrip("/")


# Debian 11 does not, unless it is booted with swapaccount=1
COUNTS_SWAP = V2 or (directory("memory", "/") / "memory.memsw.limit_in_bytes").exists()


def run(*command: str, check: bool = True, stdin: str = "") -> str:
    result = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(),
    )
    assert not check or result.returncode == 0, (
        f"{' '.join(command)}: {result.stdout}{result.stderr}"
    )
    return result.stdout


def virt_cgroup(*arguments: str, stdin: str = "") -> str:
    return run("/usr/bin/python3", "-I", "-m", "libvirt_cgroup_hooks", *arguments, stdin=stdin)


def status() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(virt_cgroup("status", "--json"))
    return found


def problems() -> dict[str, dict[str, str]]:
    """What `validate` tells, by code; of several with one code the last."""
    command = ["/usr/bin/python3", "-I", "-m", "libvirt_cgroup_hooks", "validate", "--json", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patient())
    assert done.stderr == ""
    return {row["code"]: row for row in json.loads(done.stdout)}


def reload_libvirtd() -> None:
    run("systemctl", "reload", "libvirtd")
    wait_for(lambda: "hook-not-seen" not in problems(), "libvirtd to be reloaded")


def log() -> str:
    """What the hook has told syslog since the host booted."""
    return run("journalctl", "--no-pager", "-o", "cat", "-t", "libvirt-cgroup-hooks", check=False)


def configure(text: str) -> None:
    CONFIG.write_text(in_time(text))
    age(CONFIG)


def fenced(layout: str, memory: bool = True, more: str = "") -> str:
    lines = ['reserved_host_cpus = "0-1"', f'cgroup_layout = "{layout}"', more]
    return "\n".join([*lines, 'reserved_host_mem = "1 GiB"' if memory else "", ""])


def xml(name: str, **options: Any) -> str:
    """Two of three vCPUs, an I/O thread, and USB, from which a guest without an operating system
    lets go of a disk.
    """
    options = {
        "vcpus": 3,
        "current": 2,
        "iothreads": 1,
        "machine": "q35",
        "uuid": UUIDS.get(name),
        **options,
    }
    return domain_xml(name, **options).replace("<controller type='usb' model='none'/>", USB)


def start(name: str, **options: Any) -> Vm:
    virsh("define", "/dev/stdin", stdin=xml(name, **options))
    virsh("start", name)
    return running_vm(name)


def guest(name: str, mib: int, rounds: bool = True, memory_mib: int = 128) -> Vm:
    """A VM that touches MIB MiB; its memory is charged to the slice from the first page."""
    return start(
        name,
        memory_mib=memory_mib,
        machine="pc",
        iothreads=0,
        devices=disk(IMAGES / name, toucher(mib, rounds)),
    )


@contextmanager
def swap_file(mib: int) -> Iterator[None]:
    """MIB MiB of swap, which VMs' memory can be reclaimed to. All VMs end before it does: what is
    in it may not fit under their limit.
    """
    file = IMAGES / "swap"
    run("fallocate", "-l", f"{mib}M", str(file))
    file.chmod(0o600)
    run("mkswap", str(file))
    run("swapon", str(file))
    try:
        yield
    finally:
        destroy_all_vms()
        run("swapoff", str(file))
        file.unlink()


def meminfo(key: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def value(controller: str, path: str, v2: str, v1: str) -> str:
    return (directory(controller, path) / (v2 if V2 else v1)).read_text().strip()


def drop_ins() -> list[Path]:
    return list(UNITS.glob("*.scope.d/50-libvirt-cgroup-hooks.conf"))


def restart_libvirtd() -> None:
    if SYSTEMD:
        run("systemctl", "restart", "libvirtd")
    else:
        # its script's restart waits one second for the old daemon, and then starts no new one
        run("rc-service", "libvirtd", "stop")
        wait_for(lambda: not run("pidof", "libvirtd", check=False), "libvirtd to end")
        run("rc-service", "libvirtd", "start")
    wait_for(lambda: virsh("list", check=False).returncode == 0, "libvirtd to answer")
    wait_for(Daemon.reconnected, "libvirtd to reconnect to its VMs")
