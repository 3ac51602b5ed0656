"""virt-cgroup validate beside a real libvirtd: all is well, and then something is not. What it
says to do is carried out in test_remedies.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import (
    CONFIG,
    LAYOUT,
    VM_CPUS,
    Configure,
    Daemon,
    start_vm,
    virsh,
)
from .pace import patient, wait_for

HOOK = Path("/etc/libvirt/hooks/qemu")
DIRECTORY = Path("/etc/libvirt/hooks/qemu.d")
PARENT = "/vms"
FENCED = (
    'reserved_host_cpus = "0"\nreserved_host_mem = "1 GiB"\n'
    f'cgroup_layout = "{PARENT}/$DRIVER-$NAME"\n'
)
OF_MACHINE = (
    "core-split hugepage-pools hugepages-unused reserved-isolated swap-unlimited vm-cpus-isolated"
).split()
COMMAND = ["/usr/bin/python3", "-I", "-m", "libvirt_cgroup_hooks"]


def validate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "validate", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=patient(),
    )


def not_passed() -> dict[str, tuple[str, str]]:
    """Result and text by check; what the machine itself may be told of is left out."""
    done = validate("--json", "-q")
    assert done.stderr == ""
    rows = json.loads(done.stdout)
    found = {row["check"]: (row["result"], f"{row['message']}: {row['remedy']}") for row in rows}
    assert (done.returncode == 1) == any(result == "FAIL" for result, _ in found.values())
    machine = {row["check"] for row in rows if row["code"] in OF_MACHINE}
    return {title: problem for title, problem in found.items() if title not in machine}


@pytest.fixture(autouse=True)
def hook_as_before(daemon: Daemon) -> Iterator[None]:
    text, mode = HOOK.read_bytes(), HOOK.stat().st_mode
    yield
    HOOK.write_bytes(text)
    HOOK.chmod(mode)
    shutil.rmtree(DIRECTORY, ignore_errors=True)


@pytest.fixture
def web(daemon: Daemon, configure: Configure) -> None:
    """A VM that the hook has placed; the daemon has started after the hook was last changed."""
    time.sleep(0.05)  # the daemon's start is known in ticks of 10 ms
    daemon.restart()
    configure(FENCED)
    start_vm("web")


def test_all_is_well(web: None) -> None:
    assert not_passed() == {}
    done = validate()
    for title in ("if the daemon knows the hook", "if the hook finds this package"):
        assert f"  HOOK: Checking {title:<60}: PASS" in done.stdout.splitlines()


def test_before_the_first_vm(daemon: Daemon, configure: Configure) -> None:
    daemon.restart()
    configure(FENCED)
    assert {title: result for title, (result, _) in not_passed().items()} == {
        "the limits of the VM parent": "NOTE"
    }


def test_a_hook_that_is_put_beside_a_daemon_that_has_none_is_not_called(
    daemon: Daemon, configure: Configure
) -> None:
    """That is what the WARN is about."""
    text, mode = HOOK.read_bytes(), HOOK.stat().st_mode
    HOOK.unlink()
    daemon.restart()
    time.sleep(0.05)
    HOOK.write_bytes(text)
    HOOK.chmod(mode)
    configure(FENCED)
    start_vm("web")
    found = not_passed()
    assert found["if the daemon knows the hook"][0] == "WARN"
    assert found["that VMs match the configuration"][0] == "FAIL"
    daemon.restart()
    assert not_passed() == {}


def test_a_second_hook_needs_no_reload(daemon: Daemon, configure: Configure) -> None:
    """libvirt has seen that there is a hook, and looks into qemu.d at every call."""
    text = HOOK.read_bytes()
    HOOK.write_text("#!/bin/sh\nexit 0\n")
    time.sleep(0.05)
    daemon.restart()
    time.sleep(0.05)
    DIRECTORY.mkdir()
    second = DIRECTORY / "50-cgroup-hooks"
    second.write_bytes(text)
    second.chmod(0o755)
    configure(FENCED)
    start_vm("web")
    assert {title: result for title, (result, _) in not_passed().items()} == {
        "for hooks of other programs": "NOTE"
    }


def test_qemu_that_nobody_fences(web: None) -> None:
    """As that of qemu:///session: an ordinary user's, in no cgroup of VMs."""
    command = ["/usr/bin/qemu-system-x86_64", "-machine", "none", "-nographic", "-nodefaults", "-S"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, user=65534, group=65534
    )
    try:
        wait_for(
            lambda: Path(f"/proc/{process.pid}/comm").read_text().startswith("qemu-system"),
            "QEMU to run",
        )
        found = not_passed()
    finally:
        process.kill()
        process.wait()
    assert list(found) == ["for QEMU that is not limited"]
    result, text = found["for QEMU that is not limited"]
    assert result == "WARN"
    assert f"process {process.pid} (qemu-system-x86) of user 65534 is in /" in text
    assert not_passed() == {}


def apply(*arguments: str) -> dict[str, list[str]]:
    """The steps."""
    command = [*COMMAND, "apply", "--all", "--json", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=patient())
    steps: dict[str, list[str]] = json.loads(done.stdout)
    return steps


def test_a_file_before_it_is_in_place(web: None, tmp_path: Path) -> None:
    """And the steps that it would bring, which are those that it then brings."""
    assert apply() == {"parent": [], "web": []}
    proposed = tmp_path / "cgroup-hooks.conf"
    proposed.write_text(CONFIG.read_text().replace("1 GiB", "1280 MiB"))
    assert validate("--config", str(proposed)).returncode == 0
    foretold = apply("--dry-run", "--config", str(proposed))
    assert foretold["parent"]
    assert apply("--dry-run") == apply() == {"parent": [], "web": []}
    assert not_passed() == {}
    CONFIG.write_text(proposed.read_text())
    assert apply() == foretold
    assert not_passed() == {}


def test_a_file_that_takes_the_cpu_of_a_pin(configure: Configure, tmp_path: Path) -> None:
    """Pinned to others, as the remedy says, the VM is in nobody's way."""
    configure(LAYOUT)
    start_vm("web")
    virsh("vcpupin", "web", "0", "0", "--live")
    proposed = tmp_path / "cgroup-hooks.conf"
    proposed.write_text(FENCED)
    done = validate("-q", "--config", str(proposed))
    assert done.returncode == 1
    assert "web (vcpu0 to 0 (reserved: 0))" in done.stdout
    assert f"pin them within {VM_CPUS} (virsh vcpupin web 0 {VM_CPUS} --live), " in done.stdout
    assert "[pins-in-the-way]" in done.stdout
    virsh("vcpupin", "web", "0", VM_CPUS, "--live")
    assert validate("--config", str(proposed)).returncode == 0
