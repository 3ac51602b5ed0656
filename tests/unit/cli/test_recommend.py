"""virt-cgroup recommend on recorded hosts: what it adds up, proposes and prints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from libvirt_cgroup_hooks.cli.recommend import parsing
from libvirt_cgroup_hooks.host import Host

from ..conftest import Command
from ..support.hosts import DATA, Kernel
from ..support.machined import Machined
from ..support.operations import vm
from ..support.recommending import CG, GIB, MIB, counting, work

HOSTS = [("v1", False), ("v1", True), ("v2", False), ("v2", True)]
# by hand: system.slice min(900, 2 * (600 - 250)); user.slice min(120, 2 * (100 - 20)); processes
# 2 * (2300 + 14 - 280 - 10 - 60 - 1900); the kernel 150 + 20 + 8 + 30 - 26 - 5 - 10
COUNTED = {
    "system.slice": 700,
    "kernel, in no cgroup": 167,
    "processes in no cgroup": 128,
    "user.slice": 120,
}


@pytest.fixture
def recommend(command: Command) -> Command:
    """`virt-cgroup --root ROOT recommend ...`"""

    def call(root: object, *arguments: object) -> tuple[int, str, str]:
        return command("--root", root, "recommend", *arguments)

    return call


def report(recommend: Command, host: Host | str) -> dict[str, Any]:
    root = host.root if isinstance(host, Host) else host
    status, out, err = recommend(root, "--json")
    assert (status, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def named(lines: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(line for line in lines if line["name"] == name)


@pytest.mark.parametrize(("version", "machined"), HOSTS)
def test_the_sum(tmp_path: Path, recommend: Command, version: str, machined: bool) -> None:
    found = report(recommend, counting(tmp_path / "host", version, machined))
    assert {line["name"]: line["counted"] / MIB for line in found["memory"]} == COUNTED
    assert list(COUNTED) == [line["name"] for line in found["memory"]]
    system = named(found["memory"], "system.slice")
    assert [system[key] / MIB for key in ("now", "cache", "peak")] == [600, 250, 900]
    names = "current,peak" if version == "v2" else "usage_in_bytes,max_usage_in_bytes"
    assert system["source"] == f"memory.{{{names},stat}}"
    assert found["proposed"]["memory"] == 1280 * MIB  # 1115 MiB in steps of 256


RECORDED = {
    # system.slice has had less than twice 155697152 - 20549632 bytes, init.scope less than twice
    # 2088960 - 73728; (187388 + 464) kB, less 190357504; (46332 + 1880 + 3168 + 20736) kB, less
    # 12017632, 906672, 1936 and 900808
    "debian13": {
        "system.slice": 201977856,
        "kernel, in no cgroup": 60019736,
        "processes in no cgroup": 2 * 2002944,
        "init.scope": 2785280,
    },
    # less than twice 131932160 - 36900864; (176960 + 448) kB, less 25145344 and 153481216;
    # (39040 + 1420 + 3488 + 15300) kB, less 8896512, 12288 and 942080
    "debian11": {
        "system.slice": 172810240,
        "kernel, in no cgroup": 50819072,
        "processes in no cgroup": 2 * 3039232,
    },
}


@pytest.mark.parametrize("name", RECORDED)
def test_the_sum_of_recorded_hosts(recommend: Command, name: str) -> None:
    """With what VMs have and page cache it is all that is not free."""
    root = DATA / "hosts" / name
    found = report(recommend, str(root))
    assert {line["name"]: line["counted"] for line in found["memory"]} == RECORDED[name]
    meminfo = parsing.meminfo((root / "proc/meminfo").read_text())
    used = meminfo["MemTotal"] - meminfo["MemFree"]
    [vms] = root.glob(f"{CG[1:]}/**/machine.slice/memory.[cu]*")
    now = sum(line["now"] for line in found["memory"]) + int(vms.read_text())
    assert used - meminfo["Cached"] - meminfo["Buffers"] < now < used


@pytest.mark.parametrize(("version", "machined"), HOSTS)
def test_cpu_time_since_boot(
    tmp_path: Path, recommend: Command, version: str, machined: bool
) -> None:
    found = report(recommend, counting(tmp_path / "host", version, machined))
    times = {line["name"]: line["since_boot"] for line in found["cpu"]}
    assert times == {"system.slice": 0.1, "user.slice": 0.02, "VMs": 0.5, "whole host": 0.62}
    assert found["seconds"] == 0
    assert {line["now"] for line in found["cpu"]} == {None}
    assert found["proposed"]["cpus"] == "0"


def test_a_kernel_that_tells_no_peak(tmp_path: Path, recommend: Command) -> None:
    host = counting(tmp_path / "host", "v2", True)
    host.remove(f"{CG}/user.slice/memory.peak")
    user = named(report(recommend, host)["memory"], "user.slice")
    assert (user["peak"], user["counted"]) == (None, 160 * MIB)


@pytest.mark.parametrize(
    ("ceiling", "counted", "source"),
    [(2 * GIB, 2 * GIB, "(zfs_arc_max set)"), (0, GIB, "(no zfs_arc_max: up to 2 GiB)")],
)
def test_zfs(tmp_path: Path, recommend: Command, ceiling: int, counted: int, source: str) -> None:
    host = counting(tmp_path / "host", "v2", True)
    stats = f"13 1 0x01 147 39984 1 2\nname type data\nsize 4 {GIB}\nc_max 4 {2 * GIB}"
    host.put("/proc/spl/kstat/zfs/arcstats", stats)
    host.put("/sys/module/zfs/parameters/zfs_arc_max", str(ceiling))
    found = report(recommend, host)
    line = named(found["memory"], "ZFS ARC")
    assert (line["now"], line["counted"]) == (GIB, counted)
    assert source in line["source"]
    assert found["proposed"]["memory"] == -(-(1115 * MIB + counted) // (256 * MIB)) * 256 * MIB
    arc = named(found["rules"], "Proxmox VE, ZFS")
    assert arc["memory"] == 8 * GIB // 10


def test_no_more_than_half_of_the_memory(tmp_path: Path, recommend: Command) -> None:
    host = counting(tmp_path / "host", "v2", True)
    work(host, 2, "/backup.slice", {"now": 6000, "peak": 6000}, 0)
    assert report(recommend, host)["proposed"]["memory"] == 4 * GIB


def test_hugepage_pools_and_a_node_without_cpus(tmp_path: Path, recommend: Command) -> None:
    host = counting(tmp_path / "host", "v2", True)
    host.put("/proc/meminfo", host.get("/proc/meminfo") + f"\nHugetlb: {2 * 1024**2} kB")
    host.put("/sys/devices/system/node/online", "0,2")
    host.put("/sys/devices/system/node/has_memory", "0,2")
    host.put("/sys/devices/system/node/has_cpu", "0")
    host.put("/sys/devices/system/node/node2/cpulist", "")
    host.put("/sys/devices/system/node/node2/meminfo", "Node 2 MemTotal:  1048576 kB")
    found = report(recommend, host)
    assert (found["hugepages"], found["nodes_without_cpus"]) == (2 * GIB, {"2": GIB})
    out = recommend(host.root)[1]
    assert "Hugepage pools are no part of it: 2 GiB." in out
    assert "Neither are 1 GiB of NUMA nodes without CPUs (2)." in out
    assert "3 CPUs and 3.8 GiB for VMs" in out


def test_hugepages_that_a_cgroup_is_charged(tmp_path: Path, recommend: Command) -> None:
    """memory_hugetlb_accounting"""
    host = counting(tmp_path / "host", "v2", True)
    file = f"{CG}/user.slice/memory.stat"
    host.put(file, host.get(file) + f"\nhugetlb {30 * MIB}")
    user = named(report(recommend, host)["memory"], "user.slice")
    assert [user[key] / MIB for key in ("now", "peak", "counted")] == [70, 90, 90]


def test_vms_inside_of_a_host_unit(tmp_path: Path, recommend: Command) -> None:
    """The layout "nested": what VMs have is not the host's."""
    host = counting(tmp_path / "host", "v2", True, 'cgroup_layout = "nested"\n')
    work(host, 2, "/system.slice/system-qemu.slice", {"now": 200, "anon": 180}, 60)
    found = report(recommend, host)
    system = named(found["memory"], "system.slice")
    assert (system["now"] / MIB, system["peak"]) == (400, None)
    assert named(found["memory"], "machine.slice")["now"] == 2000 * MIB  # no VM's, with this layout
    assert named(found["cpu"], "system.slice")["since_boot"] == pytest.approx(0.04)
    assert named(found["cpu"], "VMs")["since_boot"] == pytest.approx(0.06)


def running(root: Path) -> tuple[Machined, str]:
    """A host with a VM of 128 MiB, and the directory of its scope."""
    host = counting(root, "v2", True)
    assert isinstance(host, Machined)
    host.starts(vm(), "/machine.slice")
    return host, next(f"{CG}{path}" for path in host.scopes.values())


@pytest.mark.parametrize(("held", "overhead"), [(168, 40), (100, None)])
def test_qemu_itself(tmp_path: Path, recommend: Command, held: int, overhead: int | None) -> None:
    host, scope = running(tmp_path / "host")
    work(host, 2, scope[len(CG) :], {"now": held + 50, "cache": 50}, 1)
    found = report(recommend, host)
    assert found["vms"] == [
        {
            "name": "vm",
            "guest": 128 * MIB,
            "cgroup": held * MIB,
            "overhead": overhead and overhead * MIB,
            "rule": 128 * MIB // 500 + (218 + 16) * MIB,
        }
    ]
    assert "machine.slice" not in {line["name"] for line in found["memory"]}
    shown = "40 MiB" if overhead else "-"
    assert f" vm   128 MiB          {held} MiB      {shown} " in recommend(host.root)[1]


def test_vms_that_are_pinned_to_what_is_proposed(tmp_path: Path, recommend: Command) -> None:
    host = counting(tmp_path / "host", "v2", True)
    assert isinstance(host, Machined)
    pin = "<vcpu>1</vcpu><cputune><vcpupin vcpu='0' cpuset='0-1'/></cputune>"
    host.starts(vm("a\u009bb", pin), "/machine.slice", pin)
    assert report(recommend, host)["pinned"] == ["a\u009bb"]
    assert "to be pinned elsewhere first: a\\x9bb.\n" in recommend(host.root)[1]


def test_what_is_configured(tmp_path: Path, recommend: Command) -> None:
    conf = "reserved_host_cpus = 2\nreserved_host_mem = '10%'\n"
    found = report(recommend, counting(tmp_path / "host", "v2", True, conf))
    assert found["configured"] == {"cpus": "0-1", "memory": 8 * GIB // 10}
    assert found["auto"] == {"cpus": "0", "memory": GIB}


@pytest.mark.parametrize("name", ["busy", "numa", "smt", "v1", "v2"])
def test_hosts_where_files_are_missing(command: Command, recommend: Command, name: str) -> None:
    root = DATA / "hosts" / name
    found = report(recommend, str(root))
    assert found["memory"] in ([], named_kernel(found))
    status, out, err = recommend(root)
    assert (status, err) == (0, "")
    assert "Proposed:" in out
    assert found["proposed"]["memory"] == (768 * MIB if name == "v1" else GIB)
    # the same functions make both
    assert found["proposed"]["cpus"] == found["auto"]["cpus"]


def named_kernel(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [line for line in found["memory"] if line["name"] == "kernel, in no cgroup"]


def test_isolated_cpus_are_not_proposed(recommend: Command) -> None:
    found = report(recommend, str(DATA / "hosts/busy"))
    assert found["proposed"]["cpus"] == "0,8"
    assert "none of the isolated CPUs 7,15" in found["proposed"]["reasons"]


def test_a_host_with_one_core(tmp_path: Path, recommend: Command) -> None:
    host = Kernel(tmp_path / "host", "smt")
    for file in ("online", "present"):
        host.put(f"/sys/devices/system/cpu/{file}", "0,4")
    found = report(recommend, host)
    assert found["proposed"]["cpus"] == ""
    assert "reserved_host_cpus = none" in recommend(host.root)[1]


def test_a_copy_cannot_be_changed(recommend: Command) -> None:
    status, out, err = recommend(DATA / "hosts/v2", "--write")
    assert (status, out) == (1, "")
    assert err == "error: nothing can be changed with --root: edit the file in that copy\n"


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "86400"])
def test_seconds_that_cannot_be(command: Command, seconds: str) -> None:
    with pytest.raises(SystemExit):
        command("recommend", "--seconds", seconds)


def test_every_rule_has_a_formula_and_a_source(tmp_path: Path, recommend: Command) -> None:
    host = counting(tmp_path / "host", "v2", True)
    found, out = report(recommend, host), recommend(host.root)[1]
    assert len(found["rules"]) == 5
    for rule in found["rules"]:
        assert rule["formula"][0] in out
        [number] = re.findall(rf"^\[(\d)\] {re.escape(rule['source'])}$", out, re.MULTILINE)
        assert f" {rule['name']} [{number}] " in out


def test_the_whole_output(tmp_path: Path, recommend: Command) -> None:
    out = recommend(counting(tmp_path / "host", "v2", True).root)[1]
    head, _, rest = out.partition("\n\n")
    assert head.splitlines()[2:7] == [
        " system.slice             600 MiB   250 MiB      900 MiB   700 MiB   "
        "memory.{current,peak,stat}",
        " kernel, in no cgroup     167 MiB   -            -         167 MiB   "
        "/proc/meminfo less cgroups",
        " processes in no cgroup   64 MiB    -            -         128 MiB   "
        "/proc/meminfo less cgroups",
        " user.slice               100 MiB   20 MiB       120 MiB   120 MiB   "
        "memory.{current,peak,stat}",
        " sum                      931 MiB   270 MiB                1.1 GiB",
    ]
    assert "Device interrupts: 30 a second, on CPU 2 (97%), 0 (3%) (/proc/interrupts)." in rest
    assert 'Proposed:  reserved_host_cpus = "0"\n' in rest
    assert '           reserved_host_mem = "1280 MiB"\n' in rest
    assert "Left:      3 CPUs and 6.8 GiB for VMs, 2.0 GiB used now.\n" in rest
    table = [line for line in out.splitlines() if not line.startswith("[")]
    assert [line for line in table if len(line) > 104] == []
