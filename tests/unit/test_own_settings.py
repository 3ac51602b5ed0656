"""A VM with settings of its own, in every manager and on v1 and v2."""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import operations, state
from libvirt_cgroup_hooks.domainxml import SETTINGS_URI
from libvirt_cgroup_hooks.errors import Refusal
from libvirt_cgroup_hooks.reserve import Change

from .support import reserving
from .support.hosts import PID, domain
from .support.operations import CG, do
from .support.reserving import CONF, INNER, KINDS

CPUS = "reserved_host_cpus = '0'\ncgroup_layout = '/vms/$NAME'\n"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def own(**settings: str) -> str:
    """The XML of a VM that has SETTINGS."""
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in settings.items())
    return f"{INNER}<metadata><s:settings xmlns:s='{SETTINGS_URI}'>{inner}</s:settings></metadata>"


@pytest.mark.parametrize("conf", ["", "# prose\n", CPUS])
def test_its_sets_are_inside_the_fence(tmp_path: Path, kind: str, conf: str) -> None:
    host = reserving.made(tmp_path, kind, conf)
    reserving.start(host, own(vcpu_cpus="0-1"), "/vms/$NAME" if conf == CPUS else "native")
    assert reserving.cpus(host, PID + 10) == ("1" if conf == CPUS else "0-1")
    assert reserving.cpus(host, PID + 21) == ("1-3" if conf == CPUS else "0-3")


def test_its_own_parent_is_fenced_too(tmp_path: Path, kind: str) -> None:
    host = reserving.made(tmp_path, kind, CPUS)
    reserving.start(
        host, own(layout="/machine/$NAME" if "cgroupfs" in kind else "native"), "native"
    )
    assert reserving.cpus(host) == "1-3"
    Change(host, {"reserved_host_cpus": "0-1"}, live=True, config=False).run()
    assert reserving.cpus(host) == "2-3"


@pytest.mark.parametrize("bad", [own(vcpu_cpus="0-99"), own(layout="a b"), own(color="red")])
def test_what_is_wrong_with_one_vm_stops_no_change(tmp_path: Path, kind: str, bad: str) -> None:
    """As `virsh metadata --live` can make it of one that runs."""
    host = reserving.running(tmp_path, kind, CPUS)
    status = host.get("/run/libvirt/qemu/vm.xml")
    host.put("/run/libvirt/qemu/vm.xml", status.replace(INNER, bad))
    change = Change(host, {"reserved_host_cpus": "0-1"}, live=True, config=False)
    change.run()
    assert host.get(reserving.file(host, "cpuset.cpus")) == "2-3"
    told = [text for text in change.warnings if text.startswith("VM vm has ")]
    assert "until that is changed, it runs within CPUs 2-3, without its own settings: " in told[0]
    assert "--unset" in told[0]
    assert "--live" in told[0]


@pytest.mark.parametrize("layout", ["/other/$NAME", "/vmsx/$NAME", "native"])
def test_one_outside_the_memory_limit_is_refused(tmp_path: Path, kind: str, layout: str) -> None:
    host = reserving.made(tmp_path, kind, CONF)
    with pytest.raises(Refusal) as error:
        operations.plan(host, host.config(), "prepare", domain(inner=own(layout=layout)))
    assert str(error.value).startswith(
        f'VM vm has layout = "{layout}" in its metadata, but reserved_host_mem only limits VMs '
    )


def test_one_below_the_memory_limit_is_not(tmp_path: Path, kind: str) -> None:
    host = reserving.made(tmp_path, kind, CONF)
    for layout in ("/vms/$UUID", "/vms/prod/$NAME"):
        assert operations.plan(
            host, host.config(), "prepare", domain(inner=own(layout=layout))
        ).steps


def test_the_parent_of_an_earlier_layout_is_opened_when_it_is_empty(
    tmp_path: Path, kind: str
) -> None:
    host = reserving.running(tmp_path, kind, CPUS)
    earlier = reserving.file(host, "cpuset.cpus")
    host.configure(CPUS.replace("/vms/", "/other/"))
    late = domain("late", uuid="1" * 36, id=4)
    do(host, "prepare", late)
    assert host.get(earlier) == "1-3"  # there is a VM in it
    host.end_vm(reserving.vm(host))
    for uuid in state.recorded(host):
        state.forget(host, uuid).run(host)
    do(host, "prepare", late)
    assert host.get(earlier) in ("0-3", "")
    assert not [path for _, path in state.Remembered(host).before if "vms" in path]


def test_the_parents_of_earlier_layouts_stay_fenced(tmp_path: Path, kind: str) -> None:
    host = reserving.running(tmp_path, kind, CPUS)
    host.configure(CPUS.replace("/vms/", "/other/"))
    Change(host, {"reserved_host_cpus": "0-1"}, live=True, config=False).run()
    assert host.get(reserving.file(host, "cpuset.cpus")) == "2-3"
    assert state.Remembered(host).before
    assert [path for path in host.cgroups() if path.startswith(CG)]
