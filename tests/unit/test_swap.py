"""The ceiling of swap of all VMs together (vm_swap_max)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers, operations, threads
from libvirt_cgroup_hooks.cli.checks import host as checks
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.cli.commands import status
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.leave import leave
from libvirt_cgroup_hooks.reserve import Change

from .support.hosts import NO_LIMIT, Kernel, domain
from .support.machined import Machined
from .support.operations import CG, MIB, do
from .support.reserving import GIB, INNER, KINDS, made, start

LAYOUTS = ("native", "/vms/$NAME")
LIMIT, MEMSW = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
every_host = pytest.mark.parametrize("kind", KINDS)


def conf(swap: str, reserved: str = "512 MiB", name: str = "native") -> str:
    memory = f"reserved_host_mem = '{reserved}'\n" if reserved else ""
    return f"{memory}vm_swap_max = {swap}\ncgroup_layout = '{name}'\n"


def with_swap(root: Path, kind: str, text: str) -> Kernel:
    """A host that has 4 GiB of swap, and whose kernel counts it by cgroup."""
    host = made(root, kind, text)
    total = f"SwapTotal: {4 * GIB // 1024} kB"
    host.put("/proc/meminfo", host.get("/proc/meminfo").replace("SwapTotal: ", f"{total}\nWas: "))
    if host.exists(f"{CG}/memory"):
        host.put(f"{CG}/memory/{MEMSW}", NO_LIMIT)
    if isinstance(host, Machined):
        host.slice("machine.slice")
        host.slice("vms.slice")
    return host


def directory(host: Kernel, name: str = "native") -> str:
    """Of the VM parent."""
    parent = {"native": "machine", "/vms/$NAME": "vms"}[name]
    parent += ".slice" if isinstance(host, Machined) else ""
    return f"{CG}/memory/{parent}" if host.exists(f"{CG}/memory") else f"{CG}/{parent}"


def ceiling(host: Kernel, name: str = "native") -> int | None:
    """What the kernel lets VMs swap; on v1 beside all the memory that they may have."""
    at = directory(host, name)
    if host.exists(f"{at}/memory.swap.max"):
        text = host.get(f"{at}/memory.swap.max").strip()
        return None if text == "max" else int(text)
    memory, both = (host.get(f"{at}/{file}").strip() for file in (LIMIT, MEMSW))
    return None if both in (NO_LIMIT, "-1") else int(both) - int(memory)


@every_host
@pytest.mark.parametrize("name", LAYOUTS)
def test_it_is_that_of_the_vm_parent(tmp_path: Path, kind: str, name: str) -> None:
    host = with_swap(tmp_path, kind, conf("'1 GiB'", name=name))
    subject = start(host, INNER, name)
    assert ceiling(host, name) == GIB
    assert list(checks.fence_in_effect(Subject(host))) == []
    manager = managers.choose(host, host.config())
    report = status._report(host, manager, threads.running(host, {}))
    assert report["fence"]["swap_limit"] == GIB
    assert (report["parent"]["swap_limit"], report["parent"]["swap_current"]) == (GIB, 0)

    for text, expected in (("'25%'", GIB), ("'50%'", 2 * GIB), ("0", 0), ("'3 GiB'", 3 * GIB)):
        for reserved in ("256 MiB", "512 MiB"):  # on v1 both limits move
            host.configure(conf(text, reserved, name))
            Change(host, {}, live=True, config=False).run()
            assert ceiling(host, name) == expected
    host.configure(f"reserved_host_mem = '512 MiB'\ncgroup_layout = '{name}'\n")
    Change(host, {}, live=True, config=False).run()
    assert ceiling(host, name) is None
    host.configure(conf("0", name=name))
    Change(host, {}, live=True, config=False).run()
    host.end_vm(subject)
    do(host, "stopped", subject)
    do(host, "release", subject)
    leave(host)
    if host.exists(directory(host, name)):
        assert ceiling(host, name) is None


@every_host
@pytest.mark.parametrize("gone", [False, True])
def test_the_next_vm_after_the_last(tmp_path: Path, kind: str, gone: bool) -> None:
    """Also where systemd has stopped the slice in between, and removed its cgroup."""
    host = with_swap(tmp_path, kind, conf("'1 GiB'"))
    slices = isinstance(host, Machined)
    if slices:
        shutil.rmtree(host.root + directory(host))
    do(host, "prepare", domain())
    do(host, "release", domain())
    if gone and host.exists(directory(host)):
        shutil.rmtree(host.root + directory(host))
    do(host, "prepare", domain())
    if host.exists(directory(host)):
        assert ceiling(host) == GIB


@pytest.mark.parametrize("kind", ["systemd-v1", "systemd-v2"])
def test_a_lower_one_of_the_administrators_stays(tmp_path: Path, kind: str) -> None:
    host = with_swap(tmp_path, kind, conf("'1 GiB'"))
    if kind == "systemd-v2":
        host.put(f"{directory(host)}/memory.swap.max", str(256 * MIB))
    else:
        host.put(f"{directory(host)}/{LIMIT}", str(GIB))
        host.put(f"{directory(host)}/{MEMSW}", str(GIB + 256 * MIB))
    start(host, INNER, "native")
    assert ceiling(host) == 256 * MIB
    leave(host)
    assert ceiling(host) == 256 * MIB


@every_host
def test_one_that_somebody_has_changed_is_told_and_set_again(tmp_path: Path, kind: str) -> None:
    host = with_swap(tmp_path, kind, conf("'1 GiB'"))
    start(host, INNER, "native")
    file = MEMSW if kind.endswith("v1") else "memory.swap.max"
    host.put(f"{directory(host)}/{file}", NO_LIMIT if kind.endswith("v1") else "max")
    (problem,) = checks.fence_in_effect(Subject(host))
    assert "has no limit of" in problem.message
    Change(host, {}, live=True, config=False).run()
    assert ceiling(host) == GIB


@pytest.mark.parametrize("kind", ["cgroupfs-v1", "systemd-v1"])
def test_on_v1_what_is_swapped_already_is_not_swapped_in(tmp_path: Path, kind: str) -> None:
    """The kernel refuses the limit, and what was there is there again."""
    host = with_swap(tmp_path, kind, conf("'2 GiB'"))
    start(host, INNER, "native")
    before = host.get(f"{directory(host)}/{MEMSW}")
    used = int(host.get(f"{directory(host)}/{LIMIT}")) + GIB
    host.put(f"{directory(host)}/memory.memsw.usage_in_bytes", str(used))
    host.configure(conf("0"))
    with pytest.raises(Error, match=r"of memory and swap: .* is in use"):
        Change(host, {}, live=True, config=False).run()
    assert host.get(f"{directory(host)}/{MEMSW}") == before


@every_host
def test_swap_alone(tmp_path: Path, kind: str) -> None:
    host = with_swap(tmp_path, kind, conf("'1 GiB'", reserved=""))
    if kind.endswith("v1"):
        with pytest.raises(Error, match="limits swap only together with memory"):
            host.config()
        return
    start(host, INNER, "native")
    assert ceiling(host) == GIB


@every_host
def test_a_kernel_that_does_not_count_swap(tmp_path: Path, kind: str) -> None:
    host = with_swap(tmp_path, kind, conf("0"))
    if kind.endswith("v1"):
        host.remove(f"{CG}/memory/{MEMSW}")
    else:
        host.make_directory(f"{CG}/init.scope")
        host.put(f"{CG}/init.scope/memory.max", "max")
        for path in host.directories(CG):
            if host.exists(f"{CG}/{path}/memory.swap.max"):
                host.remove(f"{CG}/{path}/memory.swap.max")
    with pytest.raises(Error, match="the kernel does not count it") as told:
        operations.check_controllers(managers.choose(host, host.config()))
    assert "swapaccount=1" in told.value.hint


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("vm_swap_max = 5\n", "an amount of memory needs a unit"),
        ("vm_swap_max = '101%'\n", 'there is no "101%" of swap'),
        ("vm_swap_max = 'auto'\n", '"auto" is not an amount of memory'),
        ("vm_swap_max = '1 GiB'\ncgroup_layout = 'root'\n", "no cgroup that holds only VMs"),
    ],
)
def test_what_cannot_be(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(Error, match=told):
        made(tmp_path, "systemd-v2", text).config()
