"""Where nobody owns cgroups: threads of one VM on the host's CPUs, and another VM in the fence."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .faults import HOOK
from .harness import (
    ALL_CPUS,
    VM_CPUS,
    Daemon,
    Vm,
    all_cgroups,
    cgroup_directory,
    destroy_vm,
    domain_xml,
    running_vm,
    start_vm,
)
from .reserving import virt_cgroup

CONF = """\
reserved_host_cpus = "0"
host_cpus_for = ["emulator", "iothread"]
cgroup_layout = "{}"
"""
PINNED = domain_xml(
    "web", vcpus=2, iothreads=1, vcpupin={0: "1", 1: "1"}, emulatorpin="0", iothreadpin={1: "0"}
)
PLAIN = domain_xml("db", vcpus=2, iothreads=1)
ENDS_AT_STARTED = '\n[ "$2" != started ] || exit 0\n'
every_layout = pytest.mark.parametrize("layout", ["native", "/vms/$NAME", "root"])


@pytest.fixture
def nothing_at_started() -> Iterator[None]:
    text = HOOK.read_text()
    HOOK.write_text(text.replace("\n", ENDS_AT_STARTED, 1))
    yield
    HOOK.write_text(text)


def cpus(vm: Vm) -> dict[str, str]:
    """By the thread's name."""
    return {
        "emulator" if tid == vm.pid else thread.comm: thread.cpus_allowed
        for tid, thread in vm.threads().items()
    }


@every_layout
def test_one_beside_another(daemon: Daemon, configure: Callable[[str], None], layout: str) -> None:
    before = all_cgroups()
    configure(CONF.format(layout))
    db, web = start_vm("db", xml=PLAIN), start_vm("web", xml=PINNED)
    wanted = {"emulator": "0", "CPU 0/TCG": "1", "CPU 1/TCG": "1", "IO iothread1": "0"}
    for _ in range(2):
        found = cpus(web)
        assert {name: found[name] for name in wanted} == wanted
        assert set(cpus(db).values()) == {VM_CPUS}
        daemon.restart()
    assert (running_vm("web"), running_vm("db")) == (web, db)
    destroy_vm("web")
    destroy_vm("db")
    assert {path for path in all_cgroups() - before if path.name != "machine"} == set()


@every_layout
def test_the_fence_is_there_before_qemu(
    configure: Callable[[str], None], nothing_at_started: None, layout: str
) -> None:
    configure(CONF.format(layout))
    db = start_vm("db", xml=PLAIN)
    assert set(cpus(db).values()) == {VM_CPUS}
    group = f"/machine/qemu-{db.id}-db.libvirt-qemu"
    assert cgroup_directory("cpuset", group).joinpath("cpuset.cpus").read_text().strip() == VM_CPUS
    destroy_vm("db")
    assert not cgroup_directory("cpuset", group).exists()


@every_layout
def test_nothing_is_configured_any_more(configure: Callable[[str], None], layout: str) -> None:
    """The VM stays where it is, and has all CPUs."""
    before = all_cgroups()
    configure(CONF.format(layout))
    vm = start_vm("db", xml=PLAIN)
    assert set(cpus(vm).values()) == {VM_CPUS}
    configure("")
    virt_cgroup("apply", "--all")
    assert set(cpus(vm).values()) == {ALL_CPUS}
    destroy_vm("db")
    assert not [group for group in all_cgroups() - before if "db" in group.name]
