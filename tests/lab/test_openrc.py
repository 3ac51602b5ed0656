"""Without systemd, the host's own services keep to its CPUs: cgroups that OpenRC has made."""

from __future__ import annotations

import json

import pytest

from ..live.harness import running_vm, virsh
from .host import CGROUP, FENCE_CPUS, SYSTEMD, configure, fenced, restart_libvirtd, start

pytestmark = pytest.mark.skipif(SYSTEMD, reason="services are systemd's here")
OWN, ALL = "0-1", "0-7"


def services() -> dict[str, str]:
    """What each of them may use, by the name of its cgroup."""
    files = CGROUP.glob("openrc.*/cpuset.cpus.effective")
    return {file.parent.name: file.read_text().strip() for file in files}


def test_services_while_vms_run() -> None:
    names = sorted(path.name for path in CGROUP.glob("openrc.*"))
    assert names
    more = f'confine_host = "running"\nhost_units = {json.dumps(names)}'
    configure(fenced("native", more=more))
    start("web")
    assert services() == dict.fromkeys(names, OWN)
    restart_libvirtd()
    vm = start("db")
    assert {thread.cpus_allowed for thread in vm.threads().values()} == {FENCE_CPUS}
    virsh("destroy", "web")
    assert set(services().values()) == {OWN}
    assert running_vm("db").alive()
    virsh("destroy", "db")
    assert set(services().values()) == {ALL}
