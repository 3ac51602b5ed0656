"""`virt-cgroup reserve` where cgroups are systemd's: what tests/live shows, by way of slices; and
with swap.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ..live.harness import virsh
from ..live.pace import patient, wait_for
from ..live.reserving import (
    MIB,
    allowed,
    assert_conform,
    assert_same,
    busy_time,
    domains,
    everything,
    fail_at_each_step_between,
    in_use,
    interrupted,
    leaving,
    limit_of,
    nobody_is_killed,
    parent_directory,
    refused,
    reserve,
    virt_cgroup,
    wait_for_use,
)
from .host import (
    COUNTS_SWAP,
    V2,
    configure,
    fenced,
    guest,
    needs_systemd,
    restart_libvirtd,
    run,
    start,
    swap_file,
    value,
    xml,
)
from .host import virt_cgroup as output

pytestmark = needs_systemd
LAYOUT = "/vms/$NAME"
ALL, FENCE = "0-7", "2-7"
OPEN = f'cgroup_layout = "{LAYOUT}"\n'


@pytest.fixture
def swap() -> Iterator[None]:
    with swap_file(256):
        yield


def high() -> str:
    return value("memory", "/vms.slice", "memory.high", "memory.soft_limit_in_bytes")


def test_grow_and_shrink() -> None:
    configure(OPEN)
    vm = guest("web", 48)
    start("db", vcpupin={1: "7"})
    parent = parent_directory()
    used = wait_for_use(parent, 48)
    limit = (used + 100 * MIB) & -4096
    with nobody_is_killed(vm):
        for cpus, memory, wanted in (("0-1", leaving(limit), FENCE), ("none", "none", ALL)):
            found = reserve("--cpus", cpus, "--memory", memory, "--live")
            assert found["in_effect"] == found["live"] or cpus == "none"
            assert allowed("web") == {wanted}
            assert allowed("db") == {wanted, "7"}
            run("systemctl", "daemon-reload")
            assert_conform("web", "db")
            assert (limit_of(parent) == str(limit)) == (cpus != "none")
    before = busy_time(vm)
    wait_for(lambda: busy_time(vm) > before, "the VM to go on")


@pytest.mark.thorough
def test_refused() -> None:
    configure(fenced(LAYOUT))
    vm = guest("web", 64)
    start("db", vcpupin={1: "7"})
    wait_for_use(parent_directory(), 64)
    with nobody_is_killed(vm):
        message = refused("--memory", leaving(48 * MIB), "--cpus", "0-1")
        assert "cannot lower the VMs' memory limit to 48 MiB: " in message
        assert "web has " in message
        assert "db (vcpu1 to 7 (reserved: 7))" in refused("--cpus", "7-7", "--live", "--config")
        assert "leaves none for VMs" in refused("--cpus", "0-7")


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cpus": ({"reserved_host_cpus": "0-1"}, {"reserved_host_cpus": None}),
    "all": (
        {"reserved_host_cpus": "0-1", "reserved_host_mem": "1 GiB"},
        {"reserved_host_cpus": "6-7", "reserved_host_mem": "small", "vm_cpu_weight": 50},
    ),
}
if COUNTS_SWAP:
    CHANGES["all"][0]["vm_swap_max"] = "1 GiB"
    CHANGES["all"][1]["vm_swap_max"] = 0


@pytest.mark.parametrize("kind", ["error", pytest.param("ctrl-c", marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    "half_made", [pytest.param(False, marks=pytest.mark.thorough), True], ids=["before", "after"]
)
@pytest.mark.parametrize("change", [pytest.param("cpus", marks=pytest.mark.thorough), "all"])
def test_failure_at_each_step(change: str, half_made: bool, kind: str) -> None:
    configure(OPEN)
    vm = guest("web", 48)
    used = wait_for_use(parent_directory(), 48)
    small = leaving((used + 50 * MIB) & -4096)  # so near that memory.high has to go first
    first, second = (
        {key: small if one == "small" else one for key, one in part.items()}
        for part in CHANGES[change]
    )
    with nobody_is_killed(vm):
        assert fail_at_each_step_between(first, second, kind, half_made) > 3
    assert_conform("web")


@pytest.mark.usefixtures("swap")
def test_wait_reclaims_to_swap() -> None:
    configure(fenced(LAYOUT))
    vm = guest("web", 96, rounds=False)
    parent = parent_directory()
    used = wait_for_use(parent, 96)
    limit = (used - 60 * MIB) & -4096
    before = high()
    with nobody_is_killed(vm):
        change = ("--memory", leaving(limit), "--live", "--wait", f"{patient():.0f}")
        result = virt_cgroup("reserve", *change)
    assert result.stderr.startswith("reclaiming: ")
    assert limit_of(parent) == str(limit)
    assert in_use(parent) <= limit
    assert high() == before
    assert_conform("web")


def test_wait_in_vain_and_interrupted() -> None:
    configure(fenced(LAYOUT))
    vm = guest("web", 64)
    wait_for_use(parent_directory(), 64)
    before = everything()
    arguments = ["--memory", leaving(48 * MIB), "--live", "--config", "--wait"]
    with nobody_is_killed(vm):
        message = refused(*arguments, "2")
        assert "after 2 seconds the VMs still use " in message
        assert "; the new limit is 48 MiB: web has " in message
        result = interrupted([*arguments, f"{patient():.0f}"], signal.SIGINT)
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr.endswith("error: interrupted\n")
    assert_same(everything(), before)


def test_close_to_what_is_used() -> None:
    configure(fenced(LAYOUT))
    vm = guest("web", 64)
    parent = parent_directory()
    used = wait_for_use(parent, 64)
    made = []
    with nobody_is_killed(vm):
        for more in (-8 * MIB, 1 * MIB, 64 * MIB):
            limit = (used + more) & -4096
            result = virt_cgroup("reserve", "--memory", leaving(limit), "--live", check=False)
            made.append(result.returncode == 0)
            before = busy_time(vm)
            wait_for(lambda before=before: busy_time(vm) > before, "the VM to go on")  # type: ignore[misc]
            virsh("domstats", "web")
    assert (made[0], made[-1]) == (False, True)
    assert_conform("web")


@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.thorough)])
def test_one_write_however_many_vms(count: int) -> None:
    """On v2 systemd is asked once, and nothing is written to VMs."""
    configure(OPEN)
    names = [f"vm{number}" for number in range(count)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: start(name, vcpus=1, current=1, iothreads=0), names))
    text = output("reserve", "--cpus", "0-1", "--memory", "1 GiB", "--live", "-v")
    if V2:
        (line,) = [line for line in text.splitlines() if "set-property" in line]
        assert line.startswith("systemctl set-property --runtime vms.slice MemoryMax=")
        assert line.endswith(" AllowedCPUs=2-7")
        assert ", 1 of them writes to cgroups" in text
    assert_conform(*names)
    assert output("reserve", "--cpus", "0-1", "--live", "-v").startswith(
        "0 steps, 0 of them writes"
    )


@pytest.mark.thorough
def test_while_vms_start() -> None:
    configure(fenced(LAYOUT))
    names = [f"vm{number}" for number in range(4)]
    with nobody_is_killed(), ThreadPoolExecutor(4) as pool:
        started = [pool.submit(start, name, iothreads=0) for name in names]
        while not all(one.done() for one in started):
            reserve("--cpus", "7-7", "--memory", "1200 MiB", "--live")
            reserve("--cpus", "0-1", "--memory", "1100 MiB", "--live", "--config")
        vms = [one.result() for one in started]
    assert all(vm.alive() for vm in vms)
    assert {cpus for name in names for cpus in allowed(name)} == {FENCE}
    assert_conform(*names)


@pytest.mark.thorough
def test_live_change_holds_for_vms_that_start_and_ends_with_an_edit() -> None:
    configure(fenced(LAYOUT))
    start("web")
    reserve("--cpus", "6-7", "--live")
    restart_libvirtd()
    start("db")
    assert allowed("web") == allowed("db") == {"0-5"}
    assert_conform("web", "db")
    configure(fenced(LAYOUT).replace("0-1", "0-2"))
    output("apply", "--all")
    assert allowed("web") == allowed("db") == {"3-7"}
    assert_conform("web", "db")


@pytest.mark.thorough
def test_without_a_parent_each_vm_is_changed() -> None:
    configure('cgroup_layout = "root"\n')
    start("web")
    for value_, cpus in (("0-1", FENCE), ("none", ALL), ("0-3", "4-7")):
        reserve("--cpus", value_, "--live")
        assert allowed("web") == {cpus}
        assert_conform("web")


@pytest.mark.thorough
def test_force_shows_where_threads_end_up() -> None:
    configure(OPEN)
    vm = start("web", vcpupin={0: "0", 1: "7"}, iothreads=0)
    text = output("reserve", "--cpus", "7-7", "--live", "--force")
    rows = text.partition("Pinned to reserved CPUs:")[2].splitlines()[3:]
    assert [row.split() for row in rows] == [["web", str(vm.vcpus[1]), "vcpu1", "7", "0-6"]]
    assert vm.alive()
    assert_conform("web")
    reserve("--cpus", "none", "--live")
    cpus = {row["group"]: row["cpus"] for row in domains()["web"]["threads"]}
    assert (cpus["vcpu0"], cpus["vcpu1"]) == ("0", "7")
    assert_conform("web")


@pytest.mark.thorough
def test_own_layout_and_cpus() -> None:
    configure(fenced(LAYOUT))
    virsh("define", "/dev/stdin", stdin=xml("web"))
    output("domain", "web", "--set", "layout=/vms/prod/$NAME", "--config")
    virsh("start", "web")
    assert domains()["web"]["cgroup"].startswith("/vms.slice/vms-prod.slice/machine-qemu")
    assert (
        value("cpuset", "/vms.slice/vms-prod.slice", "cpuset.cpus.effective", "cpuset.cpus")
        == FENCE
    )
    assert_conform("web")
    output("domain", "web", "--set", "vcpu_cpus=4-5", "--live")
    output("apply", "web")
    cpus = {row["group"]: row["cpus"] for row in domains()["web"]["threads"]}
    assert (cpus["vcpu0"], cpus["vcpu1"], cpus["emulator"]) == ("4-5", "4-5", FENCE)
    assert_conform("web")
    output("domain", "web", "--unset", "vcpu_cpus", "--live")
    output("apply", "web")
    assert allowed("web") == {FENCE}
    assert_conform("web")
