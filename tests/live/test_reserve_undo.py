"""A change of `virt-cgroup reserve` fails at any step, with VMs running: nothing of it stays."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvirt_cgroup_hooks.host import Host

from .guests import toucher
from .harness import (
    ALL_CPUS,
    FENCED,
    HAS_V1,
    LAYOUT,
    Configure,
    cgroup_directory,
    domain_xml,
    start_vm,
)
from .reserving import (
    MIB,
    RESERVE_LAST,
    assert_conform,
    fail_at_each_step,
    fail_at_each_step_between,
    in_use,
    leaving,
    limit_of,
    make_change,
    nobody_is_killed,
    parent_directory,
    start_guest,
    wait_for_use,
)

if TYPE_CHECKING:
    from libvirt_cgroup_hooks.virconf import Value

thorough = partial(pytest.param, marks=pytest.mark.thorough)
CHANGES: dict[str, tuple[dict[str, Value | None], dict[str, Value | None]]] = {
    "fewer CPUs": ({"reserved_host_cpus": None}, {"reserved_host_cpus": "0"}),
    "more CPUs": ({"reserved_host_cpus": "0"}, {"reserved_host_cpus": None}),
    "less memory": ({"reserved_host_mem": "1 GiB"}, {"reserved_host_mem": "small"}),
    "all": (
        {
            "reserved_host_cpus": "0",
            "reserved_host_mem": "1 GiB",
            "vm_swap_max": "1 GiB",
            "vm_cpu_weight": 200,
        },
        {
            "reserved_host_cpus": RESERVE_LAST,
            "reserved_host_mem": "small",
            "vm_swap_max": 0,
            "vm_cpu_weight": 50,
        },
    ),
}


@pytest.mark.parametrize(
    ("change", "half_made", "kind"),
    [
        ("all", False, "error"),
        ("all", True, "ctrl-c"),
        *(
            thorough(change, half_made, kind)
            for change in CHANGES
            for half_made in (False, True)
            for kind in ("error", "ctrl-c")
            if change != "all" or half_made == (kind == "error")
        ),
    ],
)
def test_failure_at_each_step(
    configure: Configure, tmp_path: Path, change: str, half_made: bool, kind: str
) -> None:
    configure(LAYOUT)
    vm = start_guest("busy", tmp_path / "busy", toucher(32))
    start_vm("idle", xml=domain_xml("idle", vcpus=2, iothreads=1, emulatorpin=ALL_CPUS))
    small = leaving(in_use(parent_directory()) + 100 * MIB & -4096)
    first, second = (
        {key: small if one == "small" else one for key, one in part.items()}
        for part in CHANGES[change]
    )
    with nobody_is_killed(vm):
        assert fail_at_each_step_between(first, second, kind, half_made) > 3
    assert_conform("busy", "idle")


@pytest.mark.parametrize(
    ("half_made", "kind"),
    [
        (True, "ctrl-c"),
        thorough(True, "error"),
        thorough(False, "error"),
        thorough(False, "ctrl-c"),
    ],
)
def test_failure_at_each_step_of_a_wait(
    configure: Configure, tmp_path: Path, half_made: bool, kind: str
) -> None:
    configure(FENCED)
    vm = start_guest("busy", tmp_path / "busy", toucher(32))
    parent = parent_directory()
    limit = (wait_for_use(parent, 32) + 40 * MIB) & -4096
    filled = tmp_path / "filled"
    with filled.open("wb") as file:
        file.truncate(64 * MIB)

    def make(host: Host) -> None:
        make_change(host, {"reserved_host_mem": leaving(limit)}, wait=30)

    def again() -> None:
        make_change(Host(), {"reserved_host_mem": "1 GiB"})
        fill(vm.pid, filled)
        assert in_use(parent) > limit

    with nobody_is_killed(vm):
        assert fail_at_each_step(make, kind, half_made, again) > 3
    assert limit_of(parent) == str(limit)
    assert_conform("busy")


def fill(pid: int, file: Path) -> None:
    """Has FILE in the page cache, charged to the memory cgroup of process PID."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    key = "memory" if HAS_V1 else ""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    group = next(path for _, controllers, path in lines if controllers == key)
    procs = cgroup_directory("memory", group) / "cgroup.procs"
    script = f"echo $$ > '{procs}' && exec cat '{file}'"
    subprocess.run(["sh", "-c", script], check=True, stdout=subprocess.DEVNULL)
