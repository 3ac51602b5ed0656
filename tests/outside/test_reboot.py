"""A lab host seen from outside, which can be rebooted: run by `tools/check --lab`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from labhost.host import LabHost
from labhost.image import build, recipe
from labhost.tree import SOURCE, install_tree

TREE = Path(__file__).resolve().parents[2]


SETTINGS = 'reserved_host_cpus = "0-1"\nreserved_host_mem = "1 GiB"\ncgroup_layout = "/vms/$NAME"\n'


@pytest.fixture(params=["13", "12"])
def host(request: pytest.FixtureRequest) -> Iterator[LabHost]:
    with LabHost(build(recipe(request.param, ""))) as found:
        install_tree(found, TREE)
        yield found


def test_the_fence_is_back_before_any_vm_starts(host: LabHost) -> None:
    host.check(f"cp {SOURCE}/packaging/libvirt-cgroup-hooks.service /etc/systemd/system/")
    host.check(f"printf '%s' '{SETTINGS}' > /etc/libvirt/cgroup-hooks.conf")
    host.check("systemctl daemon-reload && systemctl enable libvirt-cgroup-hooks")
    host.reboot()
    assert host.check("systemctl is-active libvirt-cgroup-hooks libvirtd").split() == [
        "active",
        "active",
    ]
    assert host.check("virsh list --name").strip() == ""
    assert host.check("systemctl show -P AllowedCPUs vms.slice").strip() == "2-7"
    assert int(host.check("systemctl show -P MemoryMax vms.slice")) < 3 << 30
    began = "systemctl show -P ExecMainStartTimestampMonotonic"
    assert int(host.check(f"{began} libvirt-cgroup-hooks")) < int(host.check(f"{began} libvirtd"))
