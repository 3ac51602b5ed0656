"""The harness itself: what the other live tests build on."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .guests import firmware
from .harness import (
    CONFIG,
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
from .pace import patient, wait_for

pytestmark = pytest.mark.thorough

PRIVATE_HOST = Path(__file__).resolve().parents[2] / "tools/private-host"


def test_vm_threads_pins_and_groups(daemon: Daemon) -> None:
    pinned = domain_xml(
        "pinned", vcpus=4, current=2, iothreads=1, vcpupin={0: "1"}, emulatorpin="0"
    )
    before = all_cgroups()

    vm = start_vm("pinned", xml=pinned)
    threads = vm.threads()
    assert {number: threads[tid].comm for number, tid in vm.vcpus.items()} == {
        0: "CPU 0/TCG",
        1: "CPU 1/TCG",
    }
    assert threads[vm.vcpus[0]].cpus_allowed == "1"
    assert threads[vm.pid].cpus_allowed == "0"

    iothread = next(thread for thread in threads.values() if thread.comm == "IO iothread1")
    groups = {"emulator": threads[vm.pid], "vcpu0": threads[vm.vcpus[0]], "iothread1": iothread}
    for name, thread in groups.items():
        for controller in ("cpu", "cpuset"):
            assert thread.group(controller) == f"/machine/qemu-{vm.id}-pinned.libvirt-qemu/{name}"
            assert cgroup_directory(controller, thread.group(controller)) in all_cgroups() - before

    daemon.restart()
    assert running_vm("pinned") == vm
    assert vm.alive()
    assert virsh("domstate", "pinned").stdout.strip() == "running"

    destroy_vm("pinned")
    assert not vm.alive()
    assert {group.name for group in all_cgroups() - before} <= {"machine"}


def test_vms_survive_a_killed_daemon(daemon: Daemon) -> None:
    vm = start_vm("survivor", paused=True)
    daemon.kill()
    assert not daemon.running
    assert vm.alive()
    assert qemu_processes() == {vm.pid}
    daemon.start()
    assert virsh("domstate", "survivor").stdout.strip() == "paused"


def test_plugged_vcpu_gets_a_thread() -> None:
    vm = start_vm("plug", xml=domain_xml("plug", vcpus=2, current=1, machine="q35"))
    assert set(vm.vcpus) == {0}
    virsh("setvcpus", "plug", "2", "--live")
    vm = running_vm("plug")
    assert vm.threads()[vm.vcpus[1]].comm == "CPU 1/TCG"


@pytest.mark.parametrize(
    "name", ["a&b <c>", "-x", "..", 'it\'s "quoted"', "back\\slash", "bull\N{PILE OF POO}"]
)
def test_odd_names(name: str) -> None:
    vm = start_vm(name)
    assert (vm.name, vm.alive()) == (name, True)


def test_failed_start_names_the_reason(daemon: Daemon) -> None:
    result = virsh(
        "create", "/dev/stdin", check=False, stdin=domain_xml("bad", vcpupin={0: "4000"})
    )
    assert result.returncode
    assert "Failed to create domain" in result.stderr
    assert " error : " in daemon.messages()


class TestEachTestStartsClean:
    def test_leaves_much(self, daemon: Daemon, configure: Callable[[str | None], None]) -> None:
        configure("# nothing\n")
        virsh("define", "/dev/stdin", stdin=domain_xml("defined"))
        virsh("start", "defined")
        start_vm("transient")
        daemon.kill()

    def test_finds_nothing(self, daemon: Daemon) -> None:
        assert daemon.running
        assert virsh("list", "--all", "--name").stdout.strip() == ""
        assert not qemu_processes()
        assert not CONFIG.exists()


class TestPrivateHost:
    """One private host within another: the outer one's groups stand for the host's."""

    @pytest.fixture(autouse=True)
    def unchanged(self) -> Iterator[None]:
        def state() -> tuple[set[Path], set[Path], str]:
            return (
                all_cgroups(),
                set(Path("/run").rglob("*")),
                Path("/proc/self/mounts").read_text(),
            )

        before = state()
        yield
        assert state() == before

    @pytest.mark.parametrize(
        ("script", "status"),
        [("true", 0), ("exit 5", 5), ("kill -9 $$", 137), ("setsid sleep 100 & exit 6", 6)],
    )
    def test_exit_status(self, script: str, status: int) -> None:
        assert (
            subprocess.run(
                [PRIVATE_HOST, "sh", "-c", script],
                check=False,
                timeout=patient(),
            ).returncode
            == status
        )

    def test_command_not_found(self) -> None:
        assert (
            subprocess.run(
                [PRIVATE_HOST, "/nonexistent"],
                check=False,
                timeout=patient(),
            ).returncode
            == 127
        )

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signal(self, number: signal.Signals) -> None:
        script = f"{sys.executable} -c 'import time; time.sleep(100)' & echo ready; exec sleep 100"
        process = subprocess.Popen(
            [PRIVATE_HOST, "sh", "-c", script], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(patient()) == 128 + number

    def test_libvirtd_and_its_vm_end_with_it(self) -> None:
        script = "libvirtd --daemon && virsh -q create /dev/stdin"
        subprocess.run(
            [PRIVATE_HOST, "sh", "-c", script],
            input=domain_xml("left").replace(firmware(), ""),  # /run is another one there
            text=True,
            check=True,
            timeout=patient(),
        )
        wait_for(lambda: not any(b"guest=left" in one for one in command_lines()), "QEMU to end")

    def test_package_is_the_systems(self) -> None:
        if not (PRIVATE_HOST.parents[1] / "libvirt_cgroup_hooks").is_dir():
            pytest.skip("no package in this tree yet")
        command = [
            "/usr/bin/python3",
            "-I",
            "-c",
            "import libvirt_cgroup_hooks as it; print(it.__path__[0])",
        ]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        assert found.endswith("-packages/libvirt_cgroup_hooks")


def command_lines() -> list[bytes]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_bytes())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
