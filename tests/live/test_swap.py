"""The ceiling of swap of all VMs (vm_swap_max), as the kernel has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .guests import toucher
from .harness import Configure, cgroup_directory, virsh
from .reserving import (
    MIB,
    in_use,
    leaving,
    nobody_is_killed,
    parent_directory,
    refused,
    reserve,
    start_guest,
    virt_cgroup,
)

RESERVED = 'reserved_host_mem = "1 GiB"\n'
NO_LIMIT = 1 << 62


def ceiling(directory: Path) -> int | None:
    """Bytes; None is no limit. On v1 beside all the memory that VMs may have."""
    v2 = directory / "memory.swap.max"
    if v2.exists():
        text = v2.read_text().strip()
        return None if text == "max" else int(text)
    memory, both = (
        int((directory / f"memory.{which}limit_in_bytes").read_text()) for which in ("", "memsw.")
    )
    return None if both > NO_LIMIT else both - memory


@pytest.mark.parametrize("layout", ["native", "/vms/$NAME"])
def test_while_a_vm_runs(configure: Configure, tmp_path: Path, layout: str) -> None:
    """Both limits of v1 move, in either direction, while the VM uses what it has."""
    configure(f'{RESERVED}vm_swap_max = 0\ncgroup_layout = "{layout}"\n')
    busy = start_guest("busy", tmp_path / "busy", toucher(64))
    parent = parent_directory()
    with nobody_is_killed(busy):
        assert ceiling(parent) == 0
        used = in_use(parent)
        for swap, limit in ((64, 300), (0, 600), (512, 100), (128, 500), (1, 100), (0, 900)):
            limit = used // MIB * MIB + limit * MIB
            found = reserve("--swap", f"{swap} MiB", "--memory", leaving(limit), "--live")
            assert found["in_effect"]["memory_limit"] == limit
            assert found["in_effect"]["swap"] == ceiling(parent) == swap * MIB
        assert "is in use" in refused("--swap", "0", "--memory", leaving(32 * MIB), "--live")
        reserve("--swap", "none", "--live")
        assert ceiling(parent) is None
        reserve("--swap", "1 GiB", "--config")
        virt_cgroup("apply", "--all")
        assert ceiling(parent) == 1024 * MIB
        assert "VM swap" in virt_cgroup("status").stdout
    virsh("destroy", "busy")
    assert not parent.exists() or ceiling(parent) is None  # libvirt may have made it before


def test_alone_on_v2_only(configure: Configure) -> None:
    configure("vm_swap_max = 0\n")
    told = virt_cgroup("validate", check=False).stdout
    on_v1 = not (cgroup_directory("memory") / "cgroup.controllers").exists()
    assert ("vm_swap_max = 0: this host has the memory controller on cgroup v1" in told) == on_v1
