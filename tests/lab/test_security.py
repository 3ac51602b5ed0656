"""The hook below a libvirtd that is confined as the distribution ships it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..live.harness import LAB_FACTS, virsh
from .host import UUIDS, configure, fenced, restart_libvirtd, run, start, status

APPARMOR_DENIAL = 'apparmor="DENIED"'
OURS = ("/etc/libvirt/hooks", "cgroup-hooks", "python", "systemctl", "/sys/fs/cgroup")


def label(pid: int) -> str:
    return Path(f"/proc/{pid}/attr/current").read_text().strip("\0\n")


def denials() -> list[str]:
    """What AppArmor has denied to anybody, of what the hook uses, since the host booted."""
    lines = run("dmesg").splitlines()
    denied = [line for line in lines if APPARMOR_DENIAL in line]
    return [line for line in denied if any(word in line for word in OURS)]


def test_apparmor_denies_the_hook_nothing() -> None:
    if json.loads(LAB_FACTS.read_text())["security"] != "apparmor":
        pytest.skip("libvirt does not use AppArmor here")
    daemon = int(run("pidof", "libvirtd").split()[0])
    assert label(daemon).endswith("libvirtd (enforce)")
    configure(fenced("/vms/$NAME"))
    vm = start("web", confined=True)
    assert label(vm.pid) == f"libvirt-{UUIDS['web']} (enforce)"
    restart_libvirtd()
    assert status()["domains"][0]["conforms"]
    virsh("destroy", "web")
    assert not denials()
