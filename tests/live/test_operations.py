"""What the hook does at each operation of a real libvirtd, when all goes well and when not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .harness import (
    ALL_CPUS,
    FENCED,
    HAS_V1,
    STATE,
    VM_CPUS,
    Configure,
    Daemon,
    all_cgroups,
    cgroup_directory,
    destroy_vm,
    domain_xml,
    qemu_processes,
    running_vm,
    start_vm,
    virsh,
)
from .pace import hook_timeout, patient, wait_for

HOOK = "/etc/libvirt/hooks/qemu"


def virt_cgroup(*arguments: str, stdin: str = "") -> str:
    command = ["/usr/bin/python3", "-I", "-m", "libvirt_cgroup_hooks", *arguments]
    done = subprocess.run(
        command,
        input=stdin,
        check=False,
        capture_output=True,
        text=True,
        timeout=patient(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(virt_cgroup("status", "--json"))["domains"]
    return next(vm for vm in found if vm["name"] == name)


def left_since(before: set[Path]) -> set[Path]:
    """libvirt itself never removes /machine."""
    return {group for group in all_cgroups() - before if group.name != "machine"}


def cleaned_up(before: set[Path]) -> bool:
    return not left_since(before) and not (STATE / "shared").exists()


def assert_nothing_left(before: set[Path]) -> None:
    assert not left_since(before)
    assert not list((STATE / "vms").iterdir())
    assert not (STATE / "shared").exists()


def refused(xml: str) -> str:
    result = virsh("create", "/dev/stdin", stdin=xml, check=False)
    assert result.returncode != 0
    return result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reserved_cpus = 1\n", "cgroup-hooks.conf:1: reserved_cpus = 1: there is no such setting"),
        (
            'reserved_host_cpus = "99"\n',
            'cgroup-hooks.conf:1: reserved_host_cpus = "99": this host has no CPU 99',
        ),
        ('\nreserved_host_mem = "9000 GiB"\n', "cgroup-hooks.conf:2: reserved_host_mem"),
        (
            'reserved_host_mem = "1 GiB"\ncgroup_layout = "root"\n',
            "no cgroup that holds only VMs",
        ),
        ('cgroup_layout = "/vms/$VM"\n', "unknown variable"),
    ],
)
def test_prepare_refuses_with_our_sentence(configure: Configure, text: str, message: str) -> None:
    before = all_cgroups()
    configure(text)
    assert message in refused(domain_xml("web"))
    assert not qemu_processes()
    assert not left_since(before)


def test_pin_outside_the_fence(configure: Configure) -> None:
    before = all_cgroups()
    configure(FENCED)
    message = refused(domain_xml("greedy", vcpus=2, vcpupin={1: "0"}))
    assert "VM greedy is pinned to reserved CPUs: vcpu1 to 0 (reserved: 0)" in message
    assert_nothing_left(before)


def test_what_libvirt_says_of_a_pin_outside_the_fence(configure: Configure) -> None:
    """docs/configuration.md and the configuration file name both messages."""
    configure('pin_conflict = "warn"\n' + FENCED)
    message = refused(domain_xml("greedy", vcpus=2, vcpupin={1: "0"}))
    assert ("Permission denied" if HAS_V1 else "Invalid argument") in message


def test_on_error_warn_starts_the_vm(configure: Configure) -> None:
    """A directory with a process in it, where the VM parent should be, cannot be fenced on either
    version.
    """
    configure('on_error = "warn"\n' + FENCED.replace("/vms/", "/vms/" + "x" * 300 + "/"))
    vm = start_vm("web")
    assert vm.alive()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    ["a b", "..", ".", "-x", "a'b\"c\\d", "\N{PILE OF POO}", "n" * 200, "tasks", "_x", "cpu.max"],
)
@pytest.mark.parametrize("layout", ["nested", "/vms/$DRIVER-$NAME"])
def test_odd_names(configure: Configure, layout: str, name: str) -> None:
    before = all_cgroups()
    configure(f'cgroup_layout = "{layout}"\n')
    vm = start_vm(name)
    found = status(name)
    assert found["conforms"], found["problems"]
    assert found["pid"] == vm.pid
    assert found["cgroup"].rpartition("/")[0] == ("/vms" if layout != "nested" else "/qemu")
    destroy_vm(vm.uuid)
    assert_nothing_left(before)


def test_qemu_crashes(configure: Configure) -> None:
    before = all_cgroups()
    configure(FENCED)
    vm = start_vm("web")
    os.kill(vm.pid, signal.SIGKILL)
    wait_for(lambda: virsh("list", "--name").stdout.strip() == "", "libvirtd to see the crash")
    wait_for(lambda: cleaned_up(before), "the hook to clean up")
    assert_nothing_left(before)


def test_vm_ends_while_the_daemon_is_dead(daemon: Daemon, configure: Configure) -> None:
    before = all_cgroups()
    configure(FENCED)
    vm = start_vm("web")
    daemon.kill()
    os.kill(vm.pid, signal.SIGKILL)
    wait_for(lambda: not vm.alive(), "QEMU to end")
    daemon.start()
    wait_for(lambda: cleaned_up(before), "the hook to clean up")
    assert_nothing_left(before)


def test_started_never_comes(configure: Configure) -> None:
    before = all_cgroups()
    configure(FENCED)
    broken = (
        "<disk type='file' device='disk'><source file='/nonexistent'/><target dev='hda'/></disk>"
    )
    assert "nonexistent" in refused(domain_xml("web", devices=broken))
    assert_nothing_left(before)


def test_save_and_restore_leave_the_xml_alone(configure: Configure, tmp_path: Path) -> None:
    configure(FENCED)
    vm = start_vm("web", xml=domain_xml("web", vcpus=2, iothreads=1))
    before = virsh("dumpxml", "web", "--inactive").stdout
    virsh("save", "web", str(tmp_path / "image"))
    virsh("restore", str(tmp_path / "image"))
    assert virsh("dumpxml", "web", "--inactive").stdout == before
    assert running_vm("web").pid != vm.pid
    assert status("web")["conforms"]


def test_tuning_is_carried_over(configure: Configure) -> None:
    configure(FENCED)
    extra = (
        "<cputune><shares>2000</shares><period>50000</period><quota>25000</quota>"
        "<emulator_period>60000</emulator_period><emulator_quota>30000</emulator_quota></cputune>"
        "<memtune><soft_limit unit='MiB'>900</soft_limit></memtune>"
        "<numatune><memory mode='strict' nodeset='0'/></numatune>"
    )
    start_vm("web", xml=domain_xml("web", extra=extra))
    cpu, memory = (
        cgroup_directory("cpu", "/vms/qemu-web"),
        cgroup_directory("memory", "/vms/qemu-web"),
    )
    if HAS_V1:
        expected = {
            cpu / "cpu.shares": "2000",
            cpu / "vcpu0/cpu.cfs_period_us": "50000",
            cpu / "vcpu0/cpu.cfs_quota_us": "25000",
            cpu / "emulator/cpu.cfs_quota_us": "30000",
            memory / "memory.soft_limit_in_bytes": str(900 << 20),
        }
    else:
        expected = {
            cpu / "cpu.weight": "2000",
            cpu / "vcpu0/cpu.max": "25000 50000",
            cpu / "emulator/cpu.max": "30000 60000",
            memory / "memory.high": str(900 << 20),
        }
    expected[cgroup_directory("cpuset", "/vms/qemu-web/vcpu0") / "cpuset.mems"] = "0"
    assert {path: path.read_text().strip() for path in expected} == expected


@pytest.mark.parametrize("layout", ["native", "/vms/$DRIVER-$NAME"])
def test_host_wide_thread_sets(configure: Configure, layout: str) -> None:
    configure(
        f'cgroup_layout = "{layout}"\nemulator_cpus = "0"\nvcpu_cpus = "1"\niothread_cpus = "0"\n'
    )
    vm = start_vm("web", xml=domain_xml("web", vcpus=2, iothreads=1, vcpupin={1: "0"}))
    allowed = {row["group"]: row["cpus"] for row in status("web")["threads"]}
    # vcpu1: its own pin wins
    assert allowed == {"emulator": "0", "vcpu0": "1", "vcpu1": "0", "iothread1": "0"}
    assert vm.alive()


def test_plugged_vcpu_is_placed_at_reconnect(daemon: Daemon, configure: Configure) -> None:
    if not HAS_V1:
        pytest.skip("on cgroup v2 libvirt cannot plug a vCPU into a VM that was moved")
    configure(FENCED)
    start_vm("web", xml=domain_xml("web", vcpus=2, current=1, machine="q35"))
    virsh("setvcpus", "web", "2", "--live")
    assert not status("web")["conforms"]
    daemon.restart()
    assert status("web")["conforms"]


def test_many_at_once(configure: Configure) -> None:
    before = all_cgroups()
    configure(FENCED)
    names = [f"vm{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start_vm, names))
    assert all(status(name)["conforms"] for name in names)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(destroy_vm, names))
    assert_nothing_left(before)


def test_fence_follows_the_configuration(configure: Configure) -> None:
    """A changed reservation reaches the VM parent and the VMs below it when the next VM starts."""
    configure(FENCED.replace('reserved_host_cpus = "0"\n', ""))
    start_vm("old")
    assert status("old")["threads"][0]["cpus"] == ALL_CPUS
    configure(FENCED)
    start_vm("new")
    assert {row["cpus"] for name in ("old", "new") for row in status(name)["threads"]} == {VM_CPUS}


def test_nothing_configured_nothing_written(configure: Configure, tmp_path: Path) -> None:
    shutil.rmtree(STATE, ignore_errors=True)
    configure("# only prose\n#reserved_host_cpus = 1\n")
    trace = tmp_path / "trace"
    for operation in (
        "prepare",
        "start",
        "started",
        "stopped",
        "release",
        "reconnect",
        "migrate",
        "restore",
    ):
        command = [
            "strace",
            "-f",
            "-e",
            "trace=%file",
            "-o",
            str(trace),
            HOOK,
            "web",
            operation,
            "begin",
            "-",
        ]
        result = subprocess.run(
            command,
            input=domain_xml("web"),
            capture_output=True,
            text=True,
            check=True,
            timeout=patient(),
        )
        assert result.stdout == ""
        writes = [
            line
            for line in trace.read_text().splitlines()
            if any(
                word in line
                for word in (
                    "O_WRONLY",
                    "O_RDWR",
                    "O_CREAT",
                    "mkdir",
                    "rmdir",
                    "unlink",
                    "rename",
                    "mount(",
                )
            )
        ]
        assert not writes
    assert not STATE.exists()


@pytest.mark.parametrize(
    "operation", ["started", "stopped", "release", "reconnect", "migrate", "restore", "nonsense"]
)
@pytest.mark.parametrize(
    "xml",
    ["", "<domain", "<domain/>", domain_xml("ghost", uuid="6a0e1f9c-7c5b-4d0a-9f7e-0123456789ab")],
)
def test_later_operations_never_fail(configure: Configure, operation: str, xml: str) -> None:
    configure(FENCED)
    command = [HOOK, "ghost", operation, "begin", "-"]
    result = subprocess.run(
        command,
        input=xml,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(),
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_hook_timeout(configure: Configure) -> None:
    """Somebody holds the lock and does not let go: prepare says so in time, and a VM that runs is
    left alone.
    """
    configure(FENCED)
    start_vm("web")
    seconds = hook_timeout(1)
    configure(f"hook_timeout = {seconds}\n{FENCED}")
    holder = subprocess.Popen(["flock", str(STATE / "lock"), "sleep", "10000"])
    try:
        wait_for(
            lambda: (
                subprocess.run(["flock", "-n", str(STATE / "lock"), "true"], check=False).returncode
                == 1
            ),
            "the lock",
        )
        told = f"timed out after {seconds} seconds"
        assert told in refused(domain_xml("late"))
        command = [HOOK, "web", "reconnect", "begin", "-"]
        xml = virsh("dumpxml", "web").stdout
        assert (
            subprocess.run(
                command,
                input=xml,
                text=True,
                check=False,
                timeout=patient(),
            ).returncode
            == 0
        )
    finally:
        subprocess.run(["pkill", "-P", str(holder.pid)], check=False)
        holder.kill()
        holder.wait()


def test_plan_is_what_the_hook_does(configure: Configure) -> None:
    configure(FENCED)
    xml = domain_xml("web", uuid="6a0e1f9c-7c5b-4d0a-9f7e-0123456789ab")
    planned = virt_cgroup("plan", "prepare", "-", stdin=xml).splitlines()
    assert [line for line in planned if line.startswith("make ")]
    before = all_cgroups()
    subprocess.run(
        [HOOK, "web", "prepare", "begin", "-"],
        input=xml,
        text=True,
        check=True,
        timeout=patient(),
    )
    made = {Path(line.removeprefix("make ")) for line in planned if line.startswith("make ")}
    assert all_cgroups() - before == made
    for line in planned:
        if line.startswith("write "):
            value, _, path = line.removeprefix("write ").partition(" to ")
            assert Path(path).read_text().strip() == value.strip('"')
    assert virt_cgroup("plan", "prepare", "-", stdin=xml) == "Nothing to do.\n"
    subprocess.run(
        [HOOK, "web", "release", "end", "-"],
        input=xml,
        text=True,
        check=True,
        timeout=patient(),
    )
    assert_nothing_left(before)


def test_no_reservation_no_fence(configure: Configure) -> None:
    """A reservation that is taken back is gone for VMs that run, when the next one starts, and for
    all later ones.
    """
    configure(FENCED)
    start_vm("old")
    configure("# nothing\n")
    start_vm("new")
    assert {row["cpus"] for name in ("old", "new") for row in status(name)["threads"]} == {ALL_CPUS}
    assert not (STATE / "shared").exists() or "limit " not in (STATE / "shared").read_text()


def test_memory_admission(configure: Configure) -> None:
    total = next(
        int(line.split()[1]) // 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if "MemTotal" in line
    )
    configure(f'reserved_host_mem = "{total - 300} MiB"\nmemory_admission = 1\n')
    start_vm("first", xml=domain_xml("first", memory_mib=64))
    message = refused(domain_xml("second", memory_mib=128))
    assert "VM second needs 200.2 MiB including QEMU's overhead" in message
    assert "stop another VM" in message
    destroy_vm("first")
    start_vm("second", xml=domain_xml("second", memory_mib=128))


def test_apply_mends_and_then_has_nothing_to_do(configure: Configure) -> None:
    configure(FENCED)
    start_vm("web", xml=domain_xml("web", vcpus=2))
    thread = status("web")["threads"][-1]
    groups = cgroup_directory("cpuset") / (
        "tasks" if HAS_V1 else "vms/qemu-web/emulator/cgroup.threads"
    )
    groups.write_text(str(thread["tid"]))
    assert not status("web")["conforms"]
    assert json.loads(virt_cgroup("apply", "--all", "--json"))["web"]
    assert status("web")["conforms"]
    assert json.loads(virt_cgroup("apply", "--all", "--json")) == {"parent": [], "web": []}


def test_device_program_goes_along(configure: Configure) -> None:
    """On cgroup v2 libvirt's list of allowed devices is a program attached to the VM's cgroup."""
    if HAS_V1:
        pytest.skip("the hybrid's v2 hierarchy, which has the program, is left as libvirt made it")
    configure(FENCED)
    start_vm("web")
    shown = subprocess.run(
        ["bpftool", "cgroup", "show", str(cgroup_directory("cpu", "/vms/qemu-web"))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cgroup_device" in shown.stdout or "device" in shown.stdout


def test_virsh_after_the_move(configure: Configure, tmp_path: Path) -> None:
    """What docs/running.md says of a VM that has left the cgroup libvirt made for it."""
    configure('cgroup_layout = "/vms/$DRIVER-$NAME"\n')
    xml = domain_xml("web", vcpus=2, current=1, iothreads=1, machine="q35")
    vm = start_vm("web", xml=xml.replace("model='none'/>", "model='nec-xhci'/>", 1))
    virsh("vcpupin", "web", "0", "1", "--live")
    virsh("emulatorpin", "web", "1", "--live")
    virsh("iothreadpin", "web", "1", "1", "--live")
    assert {
        row["cpus"]
        for row in status("web")["threads"]
        if row["comm"] in ("CPU 0/TCG", "IO iothread1")
    } == {"1"}
    assert vm.threads()[vm.pid].cpus_allowed == "1"
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    source = f"<source file='{disk}'/><driver name='qemu' type='raw'/><target dev='sdz' bus='usb'/>"
    virsh(
        "attach-device",
        "web",
        "/dev/stdin",
        "--live",
        stdin=f"<disk type='file' device='disk'>{source}</disk>",
    )
    assert "sdz" in virsh("domblklist", "web").stdout
    for change in (("setvcpus", "web", "2", "--live"), ("iothreadadd", "web", "7", "--live")):
        assert (virsh(*change, check=False).returncode == 0) == HAS_V1
