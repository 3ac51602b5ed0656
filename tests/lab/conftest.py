from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.leave import leave

from ..live.harness import CONFIG, LAB_FACTS, LIVE, STATE, destroy_all_vms, virsh
from ..live.pace import wait_for
from . import apparmor, selinux
from .host import HOOK, drop_ins, run

SOURCE = Path(__file__).resolve().parents[2] / "hooks/qemu"


@pytest.fixture(scope="session", autouse=True)
def lab_host() -> None:
    if not LAB_FACTS.exists():
        pytest.skip("not on a lab host; run: tools/lab run 13 tests/lab")
    shutil.copy(SOURCE, HOOK)
    HOOK.chmod(0o755)
    run("pkill", "-HUP", "-x", "libvirtd")
    wait_for(lambda: virsh("list", check=False).returncode == 0, "libvirtd to answer")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_denied(lab_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """By SELinux or AppArmor, where the host has one of them, in all that is run here."""
    if selinux.is_used():
        selinux.load_module(tmp_path_factory.mktemp("selinux"))
        before = len(selinux.denials())
        yield
        assert set(selinux.denials()[before:]) == set()
    elif apparmor.is_used():
        yield
        assert apparmor.denials() == []
    else:
        yield


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """No VM and no configuration after each test, and nothing left of the VMs."""
    yield
    LIVE.unlink(missing_ok=True)
    destroy_all_vms()
    CONFIG.unlink(missing_ok=True)
    assert not drop_ins()
    assert not list((STATE / "vms").glob("*"))


@pytest.fixture
def nothing_is_kept(clean: None) -> Iterator[None]:
    """Limits of other slices than the VM parent would be those of later tests, too."""
    yield
    leave(Host())
