"""The CPU weight of all VMs beside the host (vm_cpu_weight)."""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers, threads
from libvirt_cgroup_hooks.cli.checks import host as checks
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.cli.commands import status
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.kinds import CPU_WEIGHT
from libvirt_cgroup_hooks.leave import leave
from libvirt_cgroup_hooks.reserve import Change

from .support.hosts import Kernel
from .support.machined import Machined
from .support.operations import CG, do
from .support.reserving import INNER, KINDS, made, start

LAYOUTS = ("native", "/vms/$NAME")
every_host = pytest.mark.parametrize("kind", KINDS)
every_layout = pytest.mark.parametrize("name", LAYOUTS)


def conf(weight: str, name: str = "native") -> str:
    return f"vm_cpu_weight = {weight}\ncgroup_layout = '{name}'\n"


def weight(host: Kernel, name: str) -> str:
    """Of the VM parent, as cgroup v2 has it."""
    parent = {"native": "machine", "/vms/$NAME": "vms"}[name]
    parent += ".slice" if isinstance(host, Machined) else ""
    if host.exists(f"{CG}/cpuset"):
        directory = next(h for h in host.hierarchies if "cpu" in h.controllers).directory("/")
        shares = host.get(f"{directory.rstrip('/')}/{parent}/cpu.shares")
        return str(round(int(shares) / 10.24))
    return host.get(f"{CG}/{parent}/cpu.weight").strip()


@every_host
@every_layout
def test_it_is_that_of_the_vm_parent(tmp_path: Path, kind: str, name: str) -> None:
    host = made(tmp_path, kind, conf("50", name))
    if isinstance(host, Machined):
        host.slice("machine.slice")
        host.slice("vms.slice")
    subject = start(host, INNER, name)
    assert weight(host, name) == "50"
    manager = managers.choose(host, host.config())
    assert list(checks.fence_in_effect(Subject(host))) == []
    report = status._report(host, manager, threads.running(host, {}))
    assert report["cpu_weight"] == {"configured": 50, "in_effect": 50}

    host.configure(conf("200", name))
    Change(host, {}, live=True, config=False).run()
    assert weight(host, name) == "200"
    host.configure(conf("100", name))
    Change(host, {}, live=True, config=False).run()
    assert weight(host, name) == "100"
    host.configure(conf("50", name))
    Change(host, {}, live=True, config=False).run()
    host.end_vm(subject)
    do(host, "stopped", subject)
    do(host, "release", subject)
    leave(host)
    if isinstance(host, Machined):
        assert weight(host, name) == "100"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_lower_one_of_the_administrators_stays(tmp_path: Path, version: str) -> None:
    host = Machined(tmp_path, version, conf("50"))
    host.slice("machine.slice")
    host.set_properties("machine.slice", {"CPUWeight": "20"})
    start(host, INNER, "native")
    assert weight(host, "native") == "20"
    (problem,) = checks.fence_in_effect(Subject(host))
    assert problem.message == (
        "/machine.slice was limited to CPU weight 20 before, and the narrower limit stays"
    )
    leave(host)
    assert weight(host, "native") == "20"


@every_host
def test_one_that_somebody_has_changed_is_told_and_set_again(tmp_path: Path, kind: str) -> None:
    host = made(tmp_path, kind, conf("50"))
    if isinstance(host, Machined):
        host.slice("machine.slice")
    start(host, INNER, "native")
    manager = managers.choose(host, host.config())
    tree = manager.tree_of(CPU_WEIGHT)
    assert tree
    (path,) = manager.parents(CPU_WEIGHT, [])
    file = tree.file(CPU_WEIGHT, tree.hierarchy.directory(path))
    host.put(file, "100" if file.endswith("weight") else "1024")
    (problem,) = checks.fence_in_effect(Subject(host))
    assert problem.message == f"{path} has CPU weight 100; it should be CPU weight 50"
    Change(host, {}, live=True, config=False).run()
    assert weight(host, "native") == "50"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("vm_cpu_weight = 0\n", "the value has to be a number from 1 to 10000"),
        ("vm_cpu_weight = 10001\n", "the value has to be a number from 1 to 10000"),
        ("vm_cpu_weight = '50'\n", "the value has to be a number from 1 to 10000"),
        (conf("50", "root"), 'cgroup_layout = "root" has no cgroup that holds only VMs'),
    ],
)
def test_what_cannot_be(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(Error, match=told):
        made(tmp_path, "systemd-v2", text).config()


@pytest.mark.parametrize("number", [1, 2, 50, 99, 101, 500, 9999, 10000])
def test_shares_of_cgroup_v1_are_read_as_they_are_written(number: int) -> None:
    assert CPU_WEIGHT.parse_v1(CPU_WEIGHT.text_v1(number)) == number
    assert CPU_WEIGHT.parse(CPU_WEIGHT.text_v2(number)) == number


def test_the_default_is_none() -> None:
    assert CPU_WEIGHT.parse_v1("1024\n") is None
    assert (CPU_WEIGHT.parse("100"), CPU_WEIGHT.parse("idle")) == (None, None)
    assert (CPU_WEIGHT.text_v1(None), CPU_WEIGHT.text_v2(None)) == ("1024", "100")
