"""The CPU weight of all VMs, by what systemd and the kernel say."""

from __future__ import annotations

import pytest

from ..live.harness import virsh
from .host import configure, needs_systemd, run, start, status, value, virt_cgroup

thorough = (pytest.mark.thorough, pytest.mark.releases)
pytestmark = needs_systemd


def weight(parent: str) -> tuple[str, str]:
    """What the kernel has of the slice, in the numbers of cgroup v2, and systemd's property."""
    there = value("cpu", f"/{parent}", "cpu.weight", "cpu.shares")
    shown = run("systemctl", "show", "--property=CPUWeight", parent).strip()
    return {"512": "50", "204": "20", "1024": "100"}.get(there, there), shown


@pytest.mark.parametrize("layout", ["native", pytest.param("/vms/$NAME", marks=thorough)])
def test_set_changed_and_taken_back(layout: str) -> None:
    parent = "machine.slice" if layout == "native" else "vms.slice"
    configure(f'vm_cpu_weight = 50\ncgroup_layout = "{layout}"\n')
    start("web")
    assert weight(parent) == ("50", "CPUWeight=50")
    run("systemctl", "daemon-reload")
    assert weight(parent) == ("50", "CPUWeight=50")
    assert status()["cpu_weight"] == {"configured": 50, "in_effect": 50}
    configure(f'vm_cpu_weight = 20\ncgroup_layout = "{layout}"\n')
    virt_cgroup("apply", "--all")
    assert weight(parent) == ("20", "CPUWeight=20")
    configure(f'cgroup_layout = "{layout}"\n')
    virt_cgroup("apply", "--parent")
    assert weight(parent) == ("100", "CPUWeight=[not set]")
    virsh("destroy", "web")
