"""VMs migrate between two hosts that run different releases, each with a reservation of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from labhost.image import build, recipe

from .packaged import CONF, FENCED, TREE, XML, Packaged, package, packed

FENCED_THERE = "3-7"
# QEMU 11.1 cannot load the balloon's state of 10.0.
MOVABLE = XML.replace("</domain>", "<devices><memballoon model='none'/></devices></domain>")
PINNED = MOVABLE.replace("</domain>", "<cputune><vcpupin vcpu='0' cpuset='2'/></cputune></domain>")
# A daemon that anybody on the cable may ask.
SET_UP = """\
set -e
echo 'auth_tcp = "none"' >>/etc/libvirt/libvirtd.conf
systemctl stop libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket
systemctl start libvirtd-tcp.socket libvirtd.service
"""


class Hosts(NamedTuple):
    here: Packaged
    there: Packaged
    to_here: str  # what virsh migrate is given
    to_there: str


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    packages = packed({"1": package(TREE, "1")})
    here, there = Packaged(build(recipe("13", ""))), Packaged(build(recipe("newest", "")))
    with here, there:
        for host in (here, there):
            host.push(packages, "/root/packages")
            host.install("1")
            host.check(SET_UP)
        uris = [f"qemu+tcp://{address}/system tcp://{address}" for address in here.join(there)]
        yield Hosts(here, there, *uris)


@pytest.fixture(params=["native", "/vms/$NAME"])
def reserved(request: pytest.FixtureRequest, hosts: Hosts) -> Iterator[Hosts]:
    """Both hosts keep CPUs 0-1, and the other one CPU 2 as well."""
    for host in (hosts.here, hosts.there):
        host.check(f": >{CONF}")
        host.configure(request.param)
    hosts.there.check("virt-cgroup reserve --cpus 0-2 --config")
    yield hosts
    for host in (hosts.here, hosts.there):
        host.run("virsh destroy web")


def nothing_left(host: Packaged) -> bool:
    """No record of a VM, no drop-in of one, and no VM."""
    drop_ins = "find /run/systemd/system -name '*web*'"
    found = f"ls /run/libvirt-cgroup-hooks/vms; {drop_ins}; virsh list --name"
    return host.check(found).split() == []


def test_there_and_back(reserved: Hosts) -> None:
    here, there, to_here, to_there = reserved
    here.start("web", MOVABLE)
    assert not nothing_left(here)
    assert here.cpus("web") == FENCED
    here.check(f"virsh migrate --live web {to_there}")
    assert there.cpus("web") == FENCED_THERE
    assert there.conforming() == {"web"}
    assert nothing_left(here)
    there.check(f"virsh migrate --live web {to_here}")
    assert here.cpus("web") == FENCED
    assert nothing_left(there)


def test_one_that_the_other_host_refuses_runs_on(reserved: Hosts) -> None:
    here, there, _, to_there = reserved
    here.start("web", PINNED)
    before = here.pid("web"), here.place("web")
    refused = here.run(f"virsh migrate --live web {to_there}")
    assert refused.status
    assert "Hook script execution failed" in refused.output
    assert "is pinned to reserved CPUs" in refused.output
    assert here.check("virsh domstate web").strip() == "running"
    assert (here.pid("web"), here.place("web")) == before
    assert nothing_left(there)
