"""VMs whose emulator and I/O threads run on the host's CPUs, and what holds the others."""

from __future__ import annotations

import pytest

from ..live.harness import Vm, running_vm, virsh
from .drift import not_started
from .host import (
    FENCE_CPUS,
    SYSTEMD,
    UNITS,
    V2,
    configure,
    fenced,
    restart_libvirtd,
    run,
    start,
    status,
    virt_cgroup,
    xml,
)

LENDS = 'host_cpus_for = ["emulator", "iothread"]'
HOST_CPUS = "0-1"
PINS = {"vcpupin": {0: "2", 1: "3", 2: "4"}, "emulatorpin": "0-1", "iothreadpin": {1: "1"}}
thorough = (pytest.mark.thorough, pytest.mark.releases)
OTHERS = [pytest.param(layout, marks=thorough) for layout in ("/vms/$NAME", "root")]


def lending(layout: str) -> str:
    return fenced(layout, memory=layout != "root", more=LENDS)


def groups(vm: Vm) -> dict[str, str]:
    """The CPUs of each thread group."""
    vcpus = {tid: f"vcpu{number}" for number, tid in vm.vcpus.items()}
    found = {}
    for tid, thread in vm.threads().items():
        group = "iothread1" if thread.comm == "IO iothread1" else "emulator"
        found[vcpus.get(tid, group)] = thread.cpus_allowed
    return found


def conforms() -> bool:
    return all(vm["conforms"] for vm in status()["domains"])


@pytest.mark.parametrize("layout", ["native", *OTHERS])
def test_a_desktop_beside_another_vm(layout: str) -> None:
    configure(fenced(layout, memory=layout != "root"))
    told = not_started("web", **PINS)
    assert 'or allow it with host_cpus_for = ["emulator", "iothread"]' in told
    virsh("define", "/dev/stdin", stdin=xml("web", **PINS))

    configure(lending(layout))
    db = start("db")
    assert set(groups(db).values()) == {FENCE_CPUS}
    if (
        V2
    ):  # since QEMU's first moment, by the scope's drop-in, and not because anybody set it later
        assert not list(UNITS.with_name("transient").glob("machine-qemu*.scope.d/*AllowedCPUs*"))
    virsh("start", "--paused", "web")  # no vCPU has run yet
    wanted = {"emulator": HOST_CPUS, "vcpu0": "2", "vcpu1": "3", "iothread1": "1"}
    assert groups(running_vm("web")) == wanted
    virsh("resume", "web")
    virsh("setvcpus", "web", "3", "--live")
    wanted["vcpu2"] = "4"
    assert groups(running_vm("web")) == wanted
    restart_libvirtd()
    assert groups(running_vm("web")) == wanted
    assert set(groups(running_vm("db")).values()) == {FENCE_CPUS}
    assert conforms()
    if SYSTEMD:
        run("systemctl", "daemon-reload")
        assert groups(running_vm("web")) == wanted
        assert set(groups(running_vm("db")).values()) == {FENCE_CPUS}

    virt_cgroup("reserve", "--cpus", "0-1,7")
    assert groups(running_vm("web")) == wanted
    assert set(groups(running_vm("db")).values()) == {"2-6"}
    assert conforms()


@pytest.mark.parametrize("layout", [pytest.param("native", marks=thorough), *OTHERS])
def test_configured_and_taken_back_while_vms_run(layout: str) -> None:
    configure(fenced(layout, memory=layout != "root"))
    start("db")
    configure(lending(layout))
    if layout != "root":  # where each VM has a limit of its own in any case
        assert "run virt-cgroup apply --all" in not_started("web", **PINS)
        virt_cgroup("apply", "--all")
    assert set(groups(running_vm("db")).values()) == {FENCE_CPUS}
    assert groups(start("web", **PINS))["emulator"] == HOST_CPUS
    assert set(groups(running_vm("db")).values()) == {FENCE_CPUS}

    configure(fenced(layout, memory=layout != "root"))
    virsh("destroy", "web")
    virt_cgroup("apply", "--all")
    assert set(groups(running_vm("db")).values()) == {FENCE_CPUS}
    configure("")
    virt_cgroup("apply", "--all")
    assert set(groups(running_vm("db")).values()) == {"0-7"}


@pytest.mark.thorough
@pytest.mark.releases
def test_vcpus_that_are_not_pinned() -> None:
    configure(lending("native") + 'emulator_cpus = "0-1"\n')
    told = not_started("web", **{**PINS, "vcpupin": {0: "2", 1: "3"}})
    assert (
        "vcpu2 is not pinned: pin it within 2-7 (virsh vcpupin web 2 2-7 --config, or in its XML)"
        in told
    )
    db = start("db")
    assert set(groups(db).values()) == {FENCE_CPUS}
