"""`virt-cgroup reserve` with VMs that run and use what they have: what it changes, what it refuses,
and how long it lasts.
"""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from .dedicating import settings
from .guests import toucher
from .harness import (
    ALL_CPUS,
    CONFIG,
    FENCED,
    HAS_V1,
    LAST_CPU,
    LAYOUT,
    LIVE,
    VM_CPUS,
    Configure,
    Daemon,
    all_cgroups,
    cgroup_directory,
    domain_xml,
    running_vm,
    start_vm,
    virsh,
)
from .marks import ENDURANCE
from .pace import patient, wait_for
from .reserving import (
    COMMAND,
    MIB,
    RESERVE_LAST,
    WITHOUT_LAST,
    allowed,
    assert_conform,
    assert_same,
    busy_time,
    domains,
    everything,
    leaving,
    limit_of,
    nobody_is_killed,
    parent_directory,
    refused,
    reserve,
    start_guest,
    total_memory,
    virt_cgroup,
    wait_for_use,
)

thorough = partial(pytest.param, marks=pytest.mark.thorough)


# growing and shrinking


@pytest.mark.parametrize(
    "layout", ["native", thorough("nested"), "root", thorough("/vms/$DRIVER-$NAME")]
)
def test_cpus_of_busy_vms(configure: Configure, tmp_path: Path, layout: str) -> None:
    configure(f'cgroup_layout = "{layout}"\n')
    busy = start_guest("busy", tmp_path / "busy", toucher(32))
    start_vm("pinned", xml=domain_xml("pinned", vcpus=2, iothreads=1, vcpupin={1: LAST_CPU}))
    with nobody_is_killed(busy):
        for value, cpus in (("0-0", VM_CPUS), ("none", ALL_CPUS)):
            reserve("--cpus", value, "--live")
            assert allowed("busy") == {cpus}
            assert allowed("pinned") == {cpus, LAST_CPU}
            assert_conform("busy", "pinned")
    before = busy_time(busy)
    wait_for(lambda: busy_time(busy) > before, "the VM to go on")


@pytest.mark.parametrize("layout", [thorough("native"), "/vms/$DRIVER-$NAME"])
def test_memory_of_busy_vms(configure: Configure, tmp_path: Path, layout: str) -> None:
    configure(f'cgroup_layout = "{layout}"\nreserved_host_mem = "1 GiB"\n')
    vm = start_guest("web", tmp_path / "web", toucher(64))
    parent = parent_directory()
    used = wait_for_use(parent, 64)
    with nobody_is_killed(vm):
        for limit in (used + 300 * MIB, used + 100 * MIB, total_memory() - 512 * MIB):
            limit -= limit % 4096
            assert (
                reserve("--memory", leaving(limit), "--live")["in_effect"]["memory_limit"] == limit
            )
            assert limit_of(parent) == str(limit)
            assert_conform("web")
        reserve("--memory", "none", "--live")
        assert limit_of(parent) in ("max", str(2**63 - 4096))
        assert_conform("web")


def test_both_at_once_and_the_file(configure: Configure, tmp_path: Path) -> None:
    configure("# mine\n" + LAYOUT)
    vm = start_guest("web", tmp_path / "web", toucher(32))
    with nobody_is_killed(vm):
        found = reserve("--cpus", "0-0", "--memory", "2 GiB", "--live", "--config")
    assert found["configured"] == found["live"] == found["in_effect"]
    assert found["live"]["reserved_cpus"] == "0"
    assert found["live"]["reserved_memory"] == 2 << 30
    text = CONFIG.read_text()
    assert text.startswith("# mine\n" + LAYOUT)
    assert 'reserved_host_cpus = "0-0"\nreserved_host_mem = "2 GiB"\n' in text
    assert not LIVE.exists()  # the file says all of it
    assert_conform("web")
    start_vm("next")
    assert_conform("web", "next")


def test_a_count_is_told(configure: Configure) -> None:
    configure(LAYOUT)
    told = "1 is a count of CPUs; for CPU 1 alone write --cpus 1-1"
    assert told in virt_cgroup("reserve", "--cpus", "1", "--config").stdout
    assert told not in virt_cgroup("reserve", "--cpus", "1-1", "--config").stdout


def test_config_alone_leaves_what_runs(configure: Configure) -> None:
    configure(FENCED)
    start_vm("web")
    before = everything()
    reserve("--cpus", "none", "--config")
    after = everything()
    assert "reserved_host_cpus" not in "".join(
        line for line in after.pop(str(CONFIG)).splitlines() if line[:1] != "#"
    )
    del before[str(CONFIG)]
    assert_same(after, before)
    virt_cgroup("apply", "--all")
    assert allowed("web") == {ALL_CPUS}


# what is refused


def test_pins_outside(configure: Configure) -> None:
    configure(LAYOUT)
    start_vm("a\N{SNOWMAN}", xml=domain_xml("a\N{SNOWMAN}", vcpus=2, vcpupin={1: LAST_CPU}))
    start_vm("b", xml=domain_xml("b", emulatorpin=ALL_CPUS))
    message = refused("--cpus", RESERVE_LAST, "--live")
    assert f"vcpu1 to {LAST_CPU} (reserved: {LAST_CPU})" in message
    assert f"b (emulator to {ALL_CPUS} (reserved: {LAST_CPU}))" in message
    assert "or use --force" in message


def test_pin_made_by_virsh_counts(configure: Configure) -> None:
    configure(LAYOUT)
    start_vm("web")
    virsh("vcpupin", "web", "0", LAST_CPU, "--live")
    assert f"web (vcpu0 to {LAST_CPU}" in refused("--cpus", RESERVE_LAST)


def test_apply_tells_which_pins_it_takes(configure: Configure) -> None:
    configure(LAYOUT)
    vm = start_vm("web", xml=domain_xml("web", vcpupin={0: ALL_CPUS}))
    configure(FENCED)
    told = (
        f"warning: VM web loses CPUs that it is pinned to: vcpu0 to {ALL_CPUS} (reserved: 0); "
        f"pin it within {VM_CPUS} (virsh vcpupin web 0 {VM_CPUS} --live)\n"
    )
    assert virt_cgroup("apply", "--all", "--dry-run").stderr == told
    assert allowed("web") == {ALL_CPUS}
    assert virt_cgroup("apply", "--parent").stderr == told
    assert allowed("web") == {VM_CPUS}
    assert virt_cgroup("apply", "--all").stderr == ""
    virsh("vcpupin", "web", "0", VM_CPUS, "--live")
    assert virt_cgroup("apply", "--all").stderr == ""
    assert vm.alive()


def test_thread_sets_of_a_vm(configure: Configure) -> None:
    configure(LAYOUT)
    start_vm("web", xml=domain_xml("web", vcpus=2, extra=settings(vcpu_cpus=LAST_CPU)))
    message = refused("--cpus", RESERVE_LAST, "--live")
    command = f"virt-cgroup domain web --set vcpu_cpus={WITHOUT_LAST} --live"
    assert f"web (vcpu_cpus to {LAST_CPU} (reserved: {LAST_CPU}))" in message
    assert f"({command})" in message
    done = virt_cgroup("reserve", "--cpus", RESERVE_LAST, "--live", "--force")
    assert (
        f"until that is changed, it runs within CPUs {WITHOUT_LAST}, without its own settings"
        in done.stderr
    )
    assert allowed("web") == {WITHOUT_LAST}
    virt_cgroup(*command.split()[1:])
    assert virt_cgroup("apply", "web").stderr == ""
    assert_conform("web")


def test_memory_in_use(configure: Configure, tmp_path: Path) -> None:
    configure(LAYOUT)
    large = start_guest("large", tmp_path / "large", toucher(96))
    start_guest("small", tmp_path / "small", toucher(16, rounds=False))
    wait_for_use(parent_directory(), 96 + 16)
    with nobody_is_killed(large):
        message = refused("--memory", leaving(64 * MIB), "--live")
    assert "cannot lower the VMs' memory limit to 64 MiB: 1" in message
    assert message.index("large has 1") < message.index("small has ")
    assert "--wait" in message
    # a host with much memory may give both the same score
    assert "large" in json.loads(virt_cgroup("status", "--json").stdout)["parent"]["first_killed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cpus", ALL_CPUS], f"reserving CPUs {ALL_CPUS} leaves none for VMs"),
        (["--cpus", "999"], "999"),
        (["--cpus", "999-999"], "this host has no CPU 999"),
        (["--memory", "9000 GiB"], "leaves no memory for VMs"),
        (["--memory", "100%"], "--memory 100%: "),
        (["--memory", "4"], "--memory 4: an amount of memory needs a unit"),
        (["--memory", "0 MiB"], "--memory 0 MiB: the amount of memory is zero"),
        (["--memory", "a lot"], "--memory a lot: "),
        (["--memory", ""], "--memory"),
        (["--cpus", ""], "--cpus"),
        (["--cpus", "0"], "--cpus 0: the count of CPUs has to be 1 or more"),
        (["--cpus", "x"], "--cpus x: "),
        (["--cpus", "1-0"], "--cpus 1-0: "),
        (
            ["--cpus", "0-0", "--live", "--current"],
            "error: Options --current and --live are mutually exclusive",
        ),
        (
            ["--cpus", "0-0", "--config", "--current"],
            "error: Options --current and --config are mutually exclusive",
        ),
        (
            ["--wait"],
            "error: One of --cpus, --memory, --swap, --confine is required by option --wait",
        ),
        (
            ["--force"],
            "error: One of --cpus, --memory, --swap, --confine is required by option --force",
        ),
        (
            ["--cpus", "0-0", "--config", "--force"],
            "error: Option --live is required by option --force",
        ),
        (
            ["--cpus", "0-0", "--config", "--wait", "3"],
            "error: Option --live is required by option --wait",
        ),
    ],
)
def test_what_cannot_be(configure: Configure, arguments: list[str], message: str) -> None:
    configure(FENCED)
    assert message in refused(*arguments)
    if "--config" not in arguments:
        assert message in refused(
            *arguments, "--config", *(["--live"] if arguments[0] in ("--wait", "--force") else [])
        )


def test_memory_without_a_parent(configure: Configure) -> None:
    configure('cgroup_layout = "root"\n')
    start_vm("web")
    assert "no cgroup that holds only VMs" in refused("--memory", "1 GiB", "--live")


# several at once


def test_two_changes_at_once(configure: Configure) -> None:
    configure(FENCED)
    for name in ("a", "b"):
        start_vm(name, xml=domain_xml(name, vcpus=2))
    changes = [("0-0", 2 << 30), (RESERVE_LAST, 3 << 30)]
    for _ in range(3):
        commands = [
            [
                *COMMAND,
                "reserve",
                "--cpus",
                cpus,
                "--memory",
                f"{memory >> 30} GiB",
                "--live",
                "--config",
            ]
            for cpus, memory in changes
        ]
        processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
        assert [process.wait(patient()) for process in processes] == [0, 0]
        found = reserve()
        assert found["configured"] == found["live"] == found["in_effect"]
        end = (found["live"]["reserved_cpus"], found["live"]["reserved_memory"])
        assert end in [("0", 2 << 30), (LAST_CPU, 3 << 30)]
        assert_conform("a", "b")


def test_while_ten_vms_start(configure: Configure) -> None:
    configure(FENCED)
    names = [f"vm{number}" for number in range(10)]
    with nobody_is_killed(), ThreadPoolExecutor(10) as pool:
        started = [pool.submit(start_vm, name, xml=domain_xml(name, vcpus=2)) for name in names]
        while not all(one.done() for one in started):
            reserve("--cpus", RESERVE_LAST, "--memory", "2 GiB", "--live")
            reserve("--cpus", "0-0", "--memory", "3 GiB", "--live", "--config")
        vms = [one.result() for one in started]
    assert all(vm.alive() for vm in vms)
    assert_conform(*names)
    assert {cpus for name in names for cpus in allowed(name)} == {VM_CPUS}


# --force


def test_force_shows_where_threads_end_up(configure: Configure) -> None:
    configure(LAYOUT)
    vm = start_vm("web", xml=domain_xml("web", vcpus=2, vcpupin={0: "0", 1: LAST_CPU}))
    start_vm("other")
    text = virt_cgroup("reserve", "--cpus", RESERVE_LAST, "--live", "--force").stdout
    rows = text.partition("Pinned to reserved CPUs:")[2].splitlines()[3:]
    assert [row.split() for row in rows] == [
        ["web", str(vm.vcpus[1]), "vcpu1", LAST_CPU, WITHOUT_LAST]
    ]
    assert vm.alive()
    cpus = {row["group"]: row["cpus"] for row in domains()["web"]["threads"]}
    assert (cpus["vcpu0"], cpus["vcpu1"]) == ("0", WITHOUT_LAST)
    assert_conform("web", "other")
    reserve("--cpus", "none", "--live")
    cpus = {row["group"]: row["cpus"] for row in domains()["web"]["threads"]}
    assert (cpus["vcpu0"], cpus["vcpu1"]) == ("0", LAST_CPU)  # the pin holds again
    assert_conform("web", "other")


# how long it lasts


def test_live_stays_until_the_next_boot(daemon: Daemon, configure: Configure) -> None:
    """It is kept in /run: a restart of the daemon does not end it, and VMs that start obey it."""
    configure(FENCED)
    start_vm("web")
    found = reserve("--cpus", "none", "--live")
    assert (found["configured"]["cpus"], found["live"]["cpus"]) == (VM_CPUS, None)
    daemon.restart()
    assert allowed("web") == {ALL_CPUS}
    start_vm("next")
    assert allowed("next") == {ALL_CPUS}
    assert_conform("web", "next")
    LIVE.unlink()  # as a boot does
    virt_cgroup("apply", "--all")
    assert allowed("web") == allowed("next") == {VM_CPUS}
    assert_conform("web", "next")


def test_config_stays(daemon: Daemon, configure: Configure) -> None:
    configure(FENCED)
    start_vm("web")
    reserve("--cpus", RESERVE_LAST, "--config", "--live")
    daemon.restart()
    assert allowed("web") == {WITHOUT_LAST}
    assert_conform("web")
    LIVE.unlink(missing_ok=True)
    assert_conform("web")


def test_vm_that_starts_obeys_a_live_change(configure: Configure) -> None:
    configure(LAYOUT)
    reserve("--cpus", "0-0", "--memory", "2 GiB", "--live")
    start_vm("web", xml=domain_xml("web", vcpus=2))
    assert allowed("web") == {VM_CPUS}
    assert limit_of(parent_directory()) == str((total_memory() - (2 << 30)) // 4096 * 4096)
    pinned = virsh(
        "create", "/dev/stdin", stdin=domain_xml("greedy", vcpupin={0: "0"}), check=False
    )
    assert "reserved CPUs: vcpu0 to 0" in pinned.stderr
    assert_conform("web")


def test_an_edit_ends_the_live_change(configure: Configure) -> None:
    configure(FENCED)
    start_vm("web")
    reserve("--cpus", "none", "--memory", "2 GiB", "--live")
    configure(FENCED.replace('cpus = "0"', f'cpus = "{LAST_CPU}"'))
    found = reserve()
    assert found["live"]["reserved_cpus"] == LAST_CPU
    assert found["live"]["reserved_memory"] == 2 << 30  # that line was not edited
    start_vm("next")
    assert allowed("web") == allowed("next") == {WITHOUT_LAST}
    assert_conform("web", "next")


# how much is written


@pytest.mark.parametrize("count", [5, pytest.param(100, marks=ENDURANCE)])
def test_many_idle_vms(configure: Configure, count: int) -> None:
    """On v2 one write to the VM parent and one to /machine, however many VMs; v1 wants each thread
    group written.
    """
    configure(LAYOUT)
    names = [f"vm{number}" for number in range(count)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start_vm, names))
    text = virt_cgroup("reserve", "--cpus", "0-0", "--live", "-v").stdout
    lines = text.partition(" steps, ")[0].splitlines()[:-1]
    writes = [line for line in lines if line.startswith("write ")]
    assert f"{len(writes)} of them writes to cgroups" in text
    if HAS_V1:
        groups = [
            group
            for group in all_cgroups()
            if group.is_relative_to(cgroup_directory("cpuset", "/vms"))
        ]
        assert len([line for line in writes if "/vms" in line]) == len(groups) == 1 + count * 3
    else:
        assert len(writes) <= 2
    assert_conform(*names)
    text = virt_cgroup("reserve", "--cpus", "0-0", "--live", "-v").stdout
    assert text.startswith("0 steps, 0 of them writes to cgroups\n")


# a VM's own settings


def define(name: str, *settings: str) -> None:
    virsh("define", "/dev/stdin", stdin=domain_xml(name, vcpus=2))
    virt_cgroup("domain", name, *(word for one in settings for word in ("--set", one)), "--config")


def test_own_layout(configure: Configure) -> None:
    configure(FENCED)
    define("web", "layout=/vms/prod/$NAME")
    virsh("start", "web")
    start_vm("other")
    assert running_vm("web").alive()
    assert domains()["web"]["cgroup"] == "/vms/prod/web"
    assert (cgroup_directory("cpuset", "/vms/prod") / "cpuset.cpus").read_text().strip() == VM_CPUS
    assert allowed("web") == {VM_CPUS}
    assert_conform("web", "other")
    reserve("--cpus", RESERVE_LAST, "--live")
    assert (
        cgroup_directory("cpuset", "/vms/prod") / "cpuset.cpus"
    ).read_text().strip() == WITHOUT_LAST
    assert allowed("web") == {WITHOUT_LAST}
    assert_conform("web", "other")


@pytest.mark.parametrize("layout", ["native", "/vms/$DRIVER-$NAME"])
def test_own_cpus_are_applied_live(configure: Configure, layout: str) -> None:
    configure(f'cgroup_layout = "{layout}"\n')
    start_vm("web", xml=domain_xml("web", vcpus=2))
    start_vm("other", xml=domain_xml("other", vcpus=2))
    virt_cgroup("domain", "web", "--set", f"vcpu_cpus={LAST_CPU}", "--live")
    assert json.loads(virt_cgroup("apply", "web", "--json").stdout)["web"]
    cpus = {row["group"]: row["cpus"] for row in domains()["web"]["threads"]}
    assert cpus == {"emulator": ALL_CPUS, "vcpu0": LAST_CPU, "vcpu1": LAST_CPU}
    assert allowed("other") == {ALL_CPUS}
    assert_conform("web", "other")
    virt_cgroup("domain", "web", "--unset", "vcpu_cpus", "--live")
    virt_cgroup("apply", "web")
    assert allowed("web") == {ALL_CPUS}
    assert_conform("web", "other")
