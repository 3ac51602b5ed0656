"""virt-cgroup recommend: its figures against the kernel's, and its proposal in use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..live.harness import CONFIG, virsh
from ..live.pace import in_time, wait_for
from .host import SYSTEMD, V2, meminfo, run, value, virt_cgroup, xml

MIB = 1024**2
KNOWN = 200 * MIB  # what the service holds
PYTHON = 16 * MIB  # with what the interpreter itself needs, and the kernel for it
MOVES = 24 * MIB  # what the kernel's own figures may move between two reads
GUEST = 128 * MIB
UNIT = "known.service"
PROGRAM = f"held = b'x' * {KNOWN}\nprint('ready', flush=True)\nwhile True: pass\n"
PREALLOCATED = "<memoryBacking><allocation mode='immediate'/></memoryBacking>"

pytestmark = [
    pytest.mark.releases,
    pytest.mark.skipif(not SYSTEMD, reason="the service is systemd's"),
]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[None]:
    """In a slice of its own: it holds KNOWN bytes and works all the time."""
    ready = tmp_path / "ready"
    program = PROGRAM.replace("print('ready', flush=True)", f"open({str(ready)!r}, 'w')")
    run(
        "systemd-run",
        f"--unit={UNIT}",
        "--slice=known.slice",
        "--property=CPUAccounting=yes",
        "--property=MemoryAccounting=yes",
        "/usr/bin/python3",
        "-c",
        program,
    )
    wait_for(ready.exists, "the service to hold its memory")
    yield
    run("systemctl", "stop", UNIT)


def recommended(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(virt_cgroup("recommend", "--json", *arguments))
    return found


def named(lines: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(line for line in lines if line["name"] == name)


def used(path: str) -> int:
    return int(value("memory", path, "memory.current", "memory.usage_in_bytes"))


def cpu_seconds(path: str) -> float:
    if not V2:
        return int(value("cpuacct", path, "", "cpuacct.usage")) / 1e9
    lines = value("cpu", path, "cpu.stat", "").splitlines()
    return int(lines[0].split()[1]) / 1e6


def uptime() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])


def start_with_memory(name: str) -> None:
    """The guest has touched all its memory."""
    made = xml(name, memory_mib=GUEST // MIB, extra=PREALLOCATED)
    virsh("define", "/dev/stdin", stdin=made)
    virsh("start", name)


def test_a_service_is_in_the_sum(service: None) -> None:
    began, had = uptime(), cpu_seconds("/known.slice")
    report = recommended("--seconds", "3")
    share = (cpu_seconds("/known.slice") - had) / (uptime() - began)
    line = named(report["memory"], "known.slice")
    assert KNOWN <= line["now"] <= KNOWN + PYTHON
    assert abs(line["now"] - used("/known.slice")) <= MOVES
    assert line["counted"] >= line["now"] - line["cache"]
    if line["peak"] is not None:
        peak = int(value("memory", "/known.slice", "memory.peak", "memory.max_usage_in_bytes"))
        assert line["now"] <= line["peak"] <= peak
        assert line["counted"] <= line["peak"]
    time = named(report["cpu"], "known.slice")["now"]
    print(f"{line['now'] / MIB:.1f} MiB, {time:.2f} CPUs; by cpu.stat {share:.2f}")
    assert share / 2 <= time <= min(1.1, share * 2)
    assert report["proposed"]["memory"] >= sum(one["counted"] for one in report["memory"])


def test_the_sum_is_what_is_used(service: None) -> None:
    """With what the VMs have and page cache that is nobody's it is all that is not free."""
    start_with_memory("web")
    report = recommended("--seconds", "1")
    now = sum(line["now"] for line in report["memory"])
    vms = used("/machine.slice")
    used_memory = meminfo("MemTotal") - meminfo("MemFree")
    cache = meminfo("Buffers") + meminfo("Cached")
    print(
        f"{now / MIB:.0f} + VMs {vms / MIB:.0f} of {used_memory / MIB:.0f} MiB used, "
        f"{cache / MIB:.0f} of it page cache"
    )
    assert now + vms <= used_memory + MOVES
    assert now + vms >= used_memory - cache - MOVES


def test_what_qemu_needs_itself() -> None:
    start_with_memory("web")
    [vm] = recommended("--seconds", "1")["vms"]
    print(f"cgroup {vm['cgroup'] / MIB:.1f} MiB, QEMU's own {vm['overhead'] / MIB:.1f} MiB")
    assert vm["guest"] == GUEST
    assert vm["overhead"] == vm["cgroup"] - GUEST
    assert 4 * MIB <= vm["overhead"] <= vm["rule"]
    assert "web" not in {line["name"] for line in recommended("--seconds", "1")["memory"]}


def test_the_proposal_is_written_and_holds() -> None:
    CONFIG.write_text(in_time("# mine\n"))
    before = CONFIG.read_text()
    shown = recommended("--seconds", "1")
    assert CONFIG.read_text() == before
    assert shown["written"] is False
    report = recommended("--seconds", "1", "--write")
    proposed = report["proposed"]
    text = CONFIG.read_text()
    assert text.startswith(before)
    assert f'reserved_host_cpus = "{proposed["cpus"]}"\n' in text
    memory = proposed["memory"]
    assert f'"{memory // MIB} MiB"\n' in text or f'"{memory // (1024 * MIB)} GiB"\n' in text
    run("systemctl", "reload", "libvirtd")
    found = json.loads(virt_cgroup("validate", "--json"))
    assert [row for row in found if row["result"] == "FAIL"] == []
    start_with_memory("web")
    limit = int(value("memory", "/machine.slice", "memory.max", "memory.limit_in_bytes"))
    left = meminfo("MemTotal") - meminfo("Hugetlb") - proposed["memory"]
    assert left - 4096 < limit <= left
    assert recommended("--seconds", "1")["configured"] == {
        "cpus": proposed["cpus"],
        "memory": proposed["memory"],
    }
    print(virt_cgroup("recommend", "--seconds", "3"))
