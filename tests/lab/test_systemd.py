"""What is particular to hosts whose cgroups are systemd's."""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks.host import Host, Refused

from ..live.harness import STATE, all_cgroups, running_vm, virsh
from ..live.pace import hook_timeout, wait_for
from .faults import call_hook, stopped_bus, systemctl_that
from .host import (
    UNITS,
    UUIDS,
    V2,
    configure,
    directory,
    drop_ins,
    fenced,
    log,
    meminfo,
    needs_systemd,
    restart_libvirtd,
    run,
    start,
    status,
    value,
    virt_cgroup,
    xml,
)

pytestmark = needs_systemd
LAYOUT = "/vms/$NAME"
HANGING = 2  # seconds of hook_timeout where something hangs


def refused(name: str, **options: object) -> str:
    result = virsh("create", "/dev/stdin", stdin=xml(name, **options), check=False)
    assert result.returncode
    return result.stderr


def usage() -> int:
    return int(value("memory", "/vms.slice", "memory.current", "memory.usage_in_bytes"))


def test_memory_is_charged_from_the_first_page() -> None:
    configure(fenced(LAYOUT))
    start("db")
    before = usage()
    start(
        "web", memory_mib=256, extra="<memoryBacking><allocation mode='immediate'/></memoryBacking>"
    )
    assert usage() - before > 250 << 20


def test_libvirt_slices_are_refused() -> None:
    configure(fenced("/libvirt-vms/$NAME"))
    assert "libvirt loses VMs in a cgroup whose name begins with libvirt" in refused("web")


def test_pin_outside_the_fence() -> None:
    configure(fenced(LAYOUT))
    assert "reserved CPUs: vcpu0 to 0-3 (reserved: 0-1)" in refused("web", vcpupin={0: "0-3"})


def test_host_wide_thread_sets() -> None:
    configure(fenced(LAYOUT, more='emulator_cpus = "0-2"\nvcpu_cpus = "3-5"\niothread_cpus = "6"'))
    start("web", vcpupin={1: "7"})
    expected = {"emulator": "2", "vcpu0": "3-5", "vcpu1": "7", "iothread1": "6"}

    def allowed() -> dict[str, str]:
        return {row["group"]: row["cpus"] for row in status()["domains"][0]["threads"]}

    assert allowed() == expected
    restart_libvirtd()
    assert allowed() == expected


def test_without_libvirts_own_groups() -> None:
    """cgroup_controllers = []: QEMU is in the scope itself; thread groups are ours to make."""
    file = Path("/etc/libvirt/qemu.conf")
    text = file.read_text()
    try:
        file.write_text(text + "\ncgroup_controllers = []\n")
        restart_libvirtd()
        configure(fenced(LAYOUT, more='emulator_cpus = "2"\nvcpu_cpus = "3-5"'))
        start("web")
        found = status()["domains"][0]
        assert found["conforms"], found["problems"]
        assert {row["group"]: row["cpus"] for row in found["threads"]} == {
            "emulator": "2",
            "vcpu0": "3-5",
            "vcpu1": "3-5",
            "iothread1": "2-7",
        }
        restart_libvirtd()
        assert running_vm("web").alive()
        assert "web" in run("machinectl", "list")
        virsh("destroy", "web")
    finally:
        file.write_text(text)
        restart_libvirtd()


def test_fence_costs_no_bus_call_when_it_is_there() -> None:
    configure(fenced(LAYOUT))
    start("web")
    assert "systemctl" not in virt_cgroup("plan", "prepare", "-", stdin=xml("db"))
    assert virt_cgroup("apply", "--parent") == "VM parent: nothing to do\n"


def test_reservation_taken_back() -> None:
    configure(fenced(LAYOUT))
    start("web")
    configure("# nothing\n")
    start("db")
    assert {row["cpus"] for vm in status()["domains"] for row in vm["threads"]} == {"0-7"}
    if V2:
        assert value("memory", "/vms.slice", "memory.max", "") == "max"


def test_strays_are_swept() -> None:
    configure(fenced(LAYOUT))
    stray = UNITS / r"machine-qemu\x2d99\x2dghost.scope.d"
    stray.mkdir()
    (stray / "50-libvirt-cgroup-hooks.conf").write_text("[Scope]\nSlice=vms.slice\n")
    start("web")
    assert not stray.exists()
    assert len(drop_ins()) == 1


def test_limit_below_what_is_used_is_refused() -> None:
    configure(fenced(LAYOUT))
    start(
        "web", memory_mib=256, extra="<memoryBacking><allocation mode='immediate'/></memoryBacking>"
    )
    left = (meminfo("MemTotal") >> 20) - 100
    configure(fenced(LAYOUT).replace("1 GiB", f"{left} MiB"))
    message = refused("db")
    assert "cannot limit /sys/fs/cgroup" in message
    assert "of memory: " in message
    assert running_vm("web").alive()


@pytest.mark.parametrize(("operation", "status_wanted"), [("prepare", 1), ("reconnect", 0)])
def test_systemd_that_does_not_answer(tmp_path: Path, operation: str, status_wanted: int) -> None:
    """The hook asks systemd through systemctl.

    One that never returns stands for a systemd that never answers.
    """
    configure(fenced(LAYOUT))
    start("web")
    seconds = hook_timeout(HANGING)
    changed = fenced(LAYOUT).replace("0-1", "0-2").replace("1 GiB", "1200 MiB")
    configure(f"hook_timeout = {seconds}\n{changed}")
    given = virsh("dumpxml", "web").stdout
    with systemctl_that(tmp_path, "exec sleep 10000"):
        result = call_hook("web", operation, given)
        assert result.returncode == status_wanted
        assert (timed_out(seconds) in result.stderr) == bool(status_wanted)
        assert not run("pgrep", "-f", "^sleep 10000", check=False)
    assert running_vm("web").alive()


def timed_out(seconds: int) -> str:
    return f"timed out after {seconds} seconds"


def test_prepare_needs_no_bus() -> None:
    """systemctl has a way of its own to systemd."""
    configure(fenced(LAYOUT))
    with stopped_bus():
        assert call_hook("web", "prepare", xml("web")).returncode == 0
    if V2:  # the slice has no cgroup before it has a VM
        assert run("systemctl", "show", "-P", "AllowedCPUs", "vms.slice").strip() == "2-7"
    else:
        assert value("cpuset", "/vms.slice", "", "cpuset.cpus") == "2-7"
    assert call_hook("web", "release", xml("web")).returncode == 0


def test_a_bus_that_does_not_answer() -> None:
    """At start we refuse the VM in time: libvirt would wait for machined on the same bus."""
    seconds = hook_timeout(HANGING)
    configure(f"hook_timeout = {seconds}\n{fenced(LAYOUT)}")
    with stopped_bus():
        given = xml("web").replace("<domain ", "<domain id='77' ")
        result = call_hook("web", "start", given)
    assert result.returncode == 1
    assert timed_out(seconds) in result.stderr
    assert not drop_ins()


@pytest.mark.parametrize("layout", ["/vms/$UUID/$NAME", "/vms/$DRIVER-$UUID"])
def test_nothing_is_left_of_a_vms_own_slices(layout: str) -> None:
    """On cgroup v1 libvirt makes them in hierarchies that systemd leaves alone, too, and removes
    its scope only.
    """
    configure(fenced(layout))
    start("web")
    own = UUIDS["web"].replace("-", r"\x2d")
    list_slices = ("systemctl", "list-units", "--all", "--plain", "--no-legend", "*.slice")

    def groups() -> list[Path]:
        return [path for path in all_cgroups() if own in path.name]

    assert groups()
    virsh("destroy", "web")
    wait_for(lambda: not groups(), "the VM's slices to go")
    wait_for(lambda: own not in run(*list_slices), "systemd to forget the VM's slices")


def test_what_systemd_refuses() -> None:
    with pytest.raises(
        Refused, match=r"cannot have systemd load nonsense through .*: .*nonsense is not valid"
    ):
        Host().load_unit("nonsense")


def test_crash_leaves_nothing() -> None:
    configure(fenced("/vms/$DRIVER-$UUID"))
    vm = start("web")
    run("kill", "-KILL", str(vm.pid))
    wait_for(lambda: not drop_ins() and not list((STATE / "vms").iterdir()), "the hook to clean up")
    wait_for(
        lambda: not list(directory("memory", "/vms.slice").glob("vms-qemu*")),
        "the VM's slice to go",
    )
    assert "internal error" not in log()
