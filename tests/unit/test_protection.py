"""The memory of the host's own units, kept from reclaim while VMs run (protect_host_mem)."""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers, threads
from libvirt_cgroup_hooks.cli.checks import host as checks
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.cli.commands import status
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.fence import shared_out
from libvirt_cgroup_hooks.kinds import LOW, UNLIMITED
from libvirt_cgroup_hooks.leave import leave

from .support.hosts import Kernel, domain
from .support.machined import Machined
from .support.operations import CG, MIB, OTHER, do, lines

UNITS = ("system.slice", "user.slice", "init.scope")
SHARES = [str(448 * MIB), str(32 * MIB), str(32 * MIB)]  # of 512 MiB
NONE = ["0", "0", "0"]
CONTROL = "/run/systemd/system.control"


def conf(how: str, more: str = "") -> str:
    return (
        f"reserved_host_mem = '512 MiB'\ncgroup_layout = '/vms/$NAME'\nprotect_host_mem = '{how}'\n"
        + more
    )


@pytest.fixture
def host(tmp_path: Path) -> Machined:
    made = Machined(tmp_path, "v2", conf("low"))
    for unit in UNITS:
        made.slice(unit)
    return made


def protected(host: Kernel, how: str = "low") -> list[str]:
    return [host.get(f"{CG}/{unit}/memory.{how}").strip() for unit in UNITS]


@pytest.mark.parametrize("how", ["low", "min"])
def test_from_the_first_vm_to_the_last(host: Machined, how: str) -> None:
    host.configure(conf(how))
    do(host, "prepare", domain())
    assert protected(host, how) == SHARES
    assert "memory" not in " ".join(lines(host, "prepare", domain("other", uuid=OTHER)))
    do(host, "prepare", domain("other", uuid=OTHER))
    do(host, "release", domain())
    assert protected(host, how) == SHARES
    do(host, "release", domain("other", uuid=OTHER))
    assert protected(host, how) == NONE
    assert [host.names(f"{CONTROL}/{unit}.d") for unit in UNITS] == [[], [], []]


def test_from_one_to_the_other(host: Machined) -> None:
    do(host, "prepare", domain())
    host.configure(conf("min"))
    do(host, "prepare", domain("other", uuid=OTHER))
    assert (protected(host), protected(host, "min")) == (NONE, SHARES)
    host.configure(conf("no"))
    do(host, "prepare", domain())
    assert (protected(host), protected(host, "min")) == (NONE, NONE)


def test_what_the_administrator_protects_stays(host: Machined) -> None:
    host.set_properties("system.slice", {"MemoryLow": str(600 * MIB)})
    host.set_properties("user.slice", {"MemoryLow": str(16 * MIB)})
    do(host, "prepare", domain())
    assert protected(host) == [str(600 * MIB), *SHARES[1:]]
    do(host, "release", domain())
    assert protected(host) == [str(600 * MIB), str(16 * MIB), "0"]


def test_leave_takes_it_back(host: Machined) -> None:
    do(host, "prepare", domain())
    leave(host)
    assert protected(host) == NONE


def test_without_systemd_where_units_are_named(tmp_path: Path) -> None:
    host = Kernel(tmp_path, "v2", conf("low", "host_units = ['openrc.sshd', 'user']\n"))
    host.write(f"{CG}/cgroup.subtree_control", "+memory")
    for name in ("openrc.sshd", "user"):
        host.make_directory(f"{CG}/{name}")
    do(host, "prepare", domain())
    found = [host.get(f"{CG}/{name}/memory.low") for name in ("openrc.sshd", "user")]
    assert found == [str(480 * MIB), str(32 * MIB)]
    do(host, "release", domain())
    found = [host.get(f"{CG}/{name}/memory.low") for name in ("openrc.sshd", "user")]
    assert found == ["0", "0"]


def test_validate_and_status(host: Machined) -> None:
    mounts = host.get("/proc/mounts")
    host.put("/proc/mounts", mounts.replace("nsdelegate", "nsdelegate,memory_recursiveprot"))
    assert "memory_recursiveprot" in host.get("/proc/mounts")
    do(host, "prepare", domain())
    assert list(checks.protected(Subject(host))) == []
    host.put(f"{CG}/system.slice/memory.low", "0")
    (problem,) = checks.protected(Subject(host))
    assert problem.message == "/system.slice has nothing protected; it should be 448 MiB protected"
    manager = managers.choose(host, host.config())
    report = status._report(host, manager, threads.running(host, {}))
    assert report["protection"]["memory"]["/user.slice"] == 32 * MIB
    host.put("/proc/mounts", mounts.replace(",memory_recursiveprot", ""))
    *_, problem = checks.protected(Subject(host))
    assert "mounted without memory_recursiveprot" in problem.message


@pytest.mark.parametrize(
    ("how", "enabled", "told"),
    [("low", "0x0007\n", True), ("low", "0x0000\n", False), ("min", "0x0007\n", False)],
)
def test_low_beside_the_multi_generational_lru(
    host: Machined, how: str, enabled: str, told: bool
) -> None:
    host.configure(conf(how))
    host.put("/sys/kernel/mm/lru_gen/enabled", enabled)
    found = [problem.message for problem in checks.protected(Subject(host))]
    assert any("multi-generational LRU" in text for text in found) == told


def test_vms_below_a_protected_unit_are_refused(host: Machined) -> None:
    host.configure(conf("low").replace("/vms", "/system/guests"))
    with pytest.raises(Error, match=r"cannot protect the memory of /system.slice \(host_units\)"):
        lines(host, "prepare", domain())


@pytest.mark.parametrize(
    ("version", "text", "told"),
    [
        ("v1", conf("low"), "cgroup v1, which cannot protect memory"),
        ("v2", "protect_host_mem = 'low'\n", "it needs reserved_host_mem"),
        ("v2", conf("high"), 'the value has to be "no" or "low" or "min"'),
    ],
)
def test_what_cannot_be(tmp_path: Path, version: str, text: str, told: str) -> None:
    with pytest.raises(Error, match=told):
        Machined(tmp_path, version, text).config()


@pytest.mark.parametrize("units", [[], ["a"], ["a", "b"], ["a", "b", "c", "d"]])
def test_no_more_is_shared_out_than_there_is(units: list[str]) -> None:
    found = shared_out(100 * MIB + 1, units, 4096)
    assert list(found) == units
    assert sum(found.values()) == (100 * MIB if units else 0)
    assert not any(amount % 4096 for amount in found.values())


def test_all_memory_is_a_protection_too() -> None:
    assert LOW.parse("max") == LOW.parse("infinity") == UNLIMITED
    assert (LOW.text_v2(UNLIMITED), LOW.text_v2(None), LOW.shown(UNLIMITED)) == (
        "max",
        "0",
        "all memory protected",
    )
