"""virt-cgroup metrics on this machine: its figures against the kernel's files."""

from __future__ import annotations

from pathlib import Path

from ..unit.support.exposition import value
from .guests import toucher
from .harness import LAST_CPU, Configure, destroy_vm, start_vm
from .reserving import (
    MIB,
    RESERVE_LAST,
    in_use,
    leaving,
    limit_of,
    parent_directory,
    reserve,
    start_guest,
    virt_cgroup,
    wait_for_use,
)

CONF = f'reserved_host_cpus = "{RESERVE_LAST}"\nreserved_host_mem = "1 GiB"\n'
MOVES = MIB  # what a VM may take between two reads


def metrics() -> str:
    return virt_cgroup("metrics").stdout


def inactive_cache(directory: Path) -> int:
    """Of the cgroup and those below it."""
    lines = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    return int(lines.get("total_inactive_file", lines["inactive_file"]))


def test_figures_are_the_kernels(configure: Configure, tmp_path: Path) -> None:
    configure(CONF)
    start_guest("busy", tmp_path / "busy", toucher(64, rounds=False))
    parent = parent_directory()
    wait_for_use(parent, 64)
    out = metrics()
    limit = int(limit_of(parent))
    assert value(out, "vms_memory_limit_bytes") == value(out, "fence_memory_bytes") == limit
    used = value(out, "vms_memory_used_bytes")
    assert used is not None and abs(used - in_use(parent)) <= MOVES
    headroom = value(out, "vms_memory_headroom_bytes")
    assert headroom is not None
    assert abs(headroom - (limit - used + inactive_cache(parent))) <= MOVES
    assert value(out, "reserved_memory_bytes") == 1024 * MIB
    assert value(out, "reserved_cpus") == 1
    assert value(out, "fence_cpus") == value(out, "vms_cpus") == int(LAST_CPU)
    assert value(out, "running_vms") == value(out, "conforming_vms") == 1
    for kind in ("cpus", "memory"):
        assert value(out, "limit_wanted", kind) == value(out, "limit_in_effect", kind) == 1
    assert value(out, "limit_wanted", "cpu-weight") == 0
    print(out)


def test_a_change_at_run_time_is_told(configure: Configure) -> None:
    configure(CONF)
    start_vm("web")
    parent = parent_directory()
    before = value(metrics(), "configuration_last_change_timestamp_seconds")
    for limit in (700 * MIB, 900 * MIB):
        reserve("--memory", leaving(limit), "--live")
        out = metrics()
        assert value(out, "vms_memory_limit_bytes") == int(limit_of(parent)) == limit
        assert value(out, "fence_memory_bytes") == limit
        changed = value(out, "configuration_last_change_timestamp_seconds")
        assert before is not None and changed is not None and changed > before
        before = changed
    reserve("--cpus", "none", "--live")
    out = metrics()
    assert (value(out, "reserved_cpus"), value(out, "fence_cpus")) == (0, None)
    assert value(out, "vms_cpus") == int(LAST_CPU) + 1
    assert value(out, "limit_wanted", "cpus") == 0


def test_a_limit_that_somebody_lifts(configure: Configure) -> None:
    configure(CONF)
    start_vm("web")
    directory = parent_directory()
    file = next(
        directory / name
        for name in ("memory.max", "memory.limit_in_bytes")
        if (directory / name).exists()
    )
    ours = file.read_text()
    file.write_text("max" if file.name == "memory.max" else "-1")
    out = metrics()
    assert (value(out, "limit_wanted", "memory"), value(out, "limit_in_effect", "memory")) == (1, 0)
    assert value(out, "limit_in_effect", "cpus") == 1
    assert value(out, "vms_memory_limit_bytes") is None
    file.write_text(ours)
    assert value(metrics(), "limit_in_effect", "memory") == 1


def test_a_vm_comes_and_goes_and_the_file_with_it(configure: Configure, tmp_path: Path) -> None:
    """The file is told anew each time; an error leaves it alone."""
    configure(CONF)
    file = tmp_path / "metrics.prom"
    vm = start_vm("web")
    virt_cgroup("metrics", "--output", str(file))
    assert value(file.read_text(), "vm_conforms", "web", vm.uuid) == 1
    destroy_vm("web")
    virt_cgroup("metrics", "--output", str(file))
    text = file.read_text()
    assert value(text, "vm_conforms", "web", vm.uuid) is None
    assert value(text, "running_vms") == 0
    configure("reserved_host_cpus = x\n")
    failed = virt_cgroup("metrics", "--output", str(file), check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert file.read_text() == text
