"""The memory of the host's own units under pressure, with and without protect_host_mem."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..live.harness import virsh
from ..live.pace import wait_for
from ..live.reserving import MIB, in_use
from .host import (
    IMAGES,
    SYSTEMD,
    V2,
    configure,
    directory,
    guest,
    meminfo,
    run,
    start,
    status,
    swap_file,
    virt_cgroup,
)

pytestmark = pytest.mark.skipif(not V2 or not SYSTEMD, reason="cgroup v1 cannot protect memory")
UNITS = ("system.slice", "user.slice", "init.scope")
CACHE = 300 * MIB
SERVICE = "page-cache.service"
VM_MIB = 800
GENERATIONS = Path("/sys/kernel/mm/lru_gen/enabled")
NO_GENERATIONS = "0x0000"


def protected(how: str) -> dict[str, tuple[int, str]]:
    """By unit, what the kernel has in bytes, and systemd's property."""
    return {
        unit: (
            int((directory("memory", unit) / f"memory.{how}").read_text()),
            run("systemctl", "show", f"--property=Memory{how.title()}", unit).strip(),
        )
        for unit in UNITS
    }


def conf(how: str, reserved: str = "1 GiB") -> str:
    return f'reserved_host_mem = "{reserved}"\nprotect_host_mem = "{how}"\n'


@pytest.mark.parametrize("how", ["low", pytest.param("min", marks=pytest.mark.thorough)])
def test_while_vms_run(how: str) -> None:
    before = protected(how)
    configure(conf(how))
    start("web")
    amounts = {"system.slice": 896 * MIB, "user.slice": 64 * MIB, "init.scope": 64 * MIB}
    expected = {unit: (n, f"Memory{how.title()}={n}") for unit, n in amounts.items()}
    assert protected(how) == expected
    run("systemctl", "daemon-reload")
    assert protected(how) == expected
    assert status()["protection"]["memory"] == {f"/{unit}": n for unit, n in amounts.items()}
    told = virt_cgroup("validate")
    assert ("multi-generational LRU" in told) == (how == "low" and generations() != NO_GENERATIONS)
    virsh("destroy", "web")
    assert protected(how) == before


@pytest.mark.thorough
def test_what_was_set_before_comes_back() -> None:
    run("systemctl", "set-property", "system.slice", "MemoryLow=2G")
    run("systemctl", "set-property", "user.slice", "MemoryLow=16M")
    before = protected("low")
    try:
        configure(conf("low"))
        start("web")
        there = {unit: amount for unit, (amount, _) in protected("low").items()}
        assert there == {
            "system.slice": 2048 * MIB,
            "user.slice": 64 * MIB,
            "init.scope": 64 * MIB,
        }
        virsh("destroy", "web")
        assert protected("low") == before
        run("systemctl", "daemon-reload")
        assert protected("low") == before
    finally:
        for unit in ("system.slice", "user.slice"):
            run("systemctl", "set-property", unit, "MemoryLow=0")
            run("systemctl", "revert", unit)


def generations() -> str:
    return GENERATIONS.read_text().strip() if GENERATIONS.exists() else NO_GENERATIONS


@pytest.fixture
def service() -> Iterator[Path]:
    """A service that has read a file, which is in the page cache, charged to it: its cgroup."""
    file = IMAGES / "cached"
    file.write_bytes(b"x" * CACHE)
    run("sync", str(file))
    Path("/proc/sys/vm/drop_caches").write_text("1")
    command = f"cat {file} >/dev/null && exec sleep infinity"
    run("systemd-run", f"--unit={SERVICE}", "--slice=system.slice", "sh", "-c", command)
    try:
        cgroup = directory("memory", f"/system.slice/{SERVICE}")
        wait_for(lambda: cached(cgroup) >= CACHE, "the service to have read its file")
        with swap_file(1024):
            yield cgroup
    finally:
        run("systemctl", "stop", SERVICE)
        file.unlink()


def cached(cgroup: Path) -> int:
    lines = (cgroup / "memory.stat").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("file ")))


@pytest.mark.thorough
@pytest.mark.releases
@pytest.mark.parametrize("how", ["no", "low", "low, without generations", "min"])
def test_page_cache_of_a_service(
    service: Path, how: str, record_property: Callable[[str, object], None]
) -> None:
    """Beside a VM, and what is neither the host's nor a VM's takes more than there is."""
    configure(conf(how[:3].rstrip(",")))
    before = generations()
    if "without" in how and before != NO_GENERATIONS:
        GENERATIONS.write_text("n")
    kept = how == "min" or (how.startswith("low") and generations() == NO_GENERATIONS)
    guest("web", VM_MIB, rounds=False, memory_mib=VM_MIB + 16)
    vms = directory("memory", "/machine.slice")
    wait_for(lambda: uses(vms) > VM_MIB * MIB, "the VM to have touched its memory")
    takes = meminfo("MemAvailable") + 64 * MIB
    filling = f"taken = b'x' * {takes}; import time; time.sleep(3600)"
    run("systemd-run", "--unit=hog", "--slice=batch.slice", "/usr/bin/python3", "-c", filling)
    try:
        hog = directory("memory", "/batch.slice")
        wait_for(lambda: uses(hog) > takes, "the other slice to have all that it takes")
        left = cached(service)
    finally:
        run("systemctl", "stop", "hog")
        if generations() != before:
            GENERATIONS.write_text(before)
    record_property("MiB of 300 that are left", left // MIB)
    assert left > CACHE * 9 // 10 if kept else left < CACHE // 2
    virsh("destroy", "web")


def uses(cgroup: Path) -> int:
    """Bytes of memory and of swap."""
    return in_use(cgroup) + int((cgroup / "memory.swap.current").read_text())
