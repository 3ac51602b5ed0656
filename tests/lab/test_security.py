"""The hook below a libvirtd that is confined as the distribution ships it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..live.harness import virsh
from . import apparmor
from .host import UUIDS, configure, fenced, restart_libvirtd, run, start, status


def label(pid: int) -> str:
    return Path(f"/proc/{pid}/attr/current").read_text().strip("\0\n")


def test_apparmor_denies_the_hook_nothing() -> None:
    if not apparmor.is_used():
        pytest.skip("libvirt does not use AppArmor here")
    daemon = int(run("pidof", "libvirtd").split()[0])
    assert label(daemon).endswith("libvirtd (enforce)")
    configure(fenced("/vms/$NAME"))
    vm = start("web", confined=True)
    assert label(vm.pid) == f"libvirt-{UUIDS['web']} (enforce)"
    restart_libvirtd()
    assert status()["domains"][0]["conforms"]
    virsh("destroy", "web")
    assert not apparmor.denials()
