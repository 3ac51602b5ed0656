"""virt-cgroup validate beside a real libvirtd: all is well, and then one thing after the other is
not.
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
    ALL_CPUS,
    CONFIG,
    LAST_CPU,
    VM_CPUS,
    Configure,
    Daemon,
    cgroup_directory,
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


def test_the_hook_is_removed(web: None) -> None:
    HOOK.unlink()
    found = not_passed()
    assert list(found) == ["for the hook"]
    assert found["for the hook"][0] == "FAIL"


def test_the_hook_is_not_executable(web: None) -> None:
    HOOK.chmod(0o644)
    assert not_passed() == {
        "if the hook is executable": (
            "FAIL",
            f"{HOOK} is not executable, so libvirt ignores it: chmod 755 {HOOK}",
        )
    }


def test_the_hook_is_newer_than_the_daemon(web: None, daemon: Daemon) -> None:
    time.sleep(0.05)
    HOOK.write_bytes(HOOK.read_bytes())
    found = not_passed()
    assert list(found) == ["if the daemon knows the hook"]
    assert found["if the daemon knows the hook"][0] == "WARN"
    time.sleep(0.05)
    daemon.restart()
    assert not_passed() == {}


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


def test_a_leftover(web: None) -> None:
    DIRECTORY.mkdir()
    leftover = DIRECTORY / "50-cgroup-hooks.dpkg-dist"
    leftover.write_text("#!/bin/sh\nexit 0\n")
    leftover.chmod(0o755)
    assert {title: result for title, (result, _) in not_passed().items()} == {
        "for leftovers in qemu.d": "WARN"
    }


def test_somebody_else_writes_the_fence(web: None) -> None:
    file = cgroup_directory("cpuset", PARENT) / "cpuset.cpus"
    assert file.read_text().strip() == VM_CPUS
    file.write_text(ALL_CPUS)
    result, text = not_passed()["the limits of the VM parent"]
    assert result == "FAIL"
    assert text.endswith("including reserved CPUs 0: run virt-cgroup apply --parent")
    subprocess.run(
        [*COMMAND, "apply", "--parent"],
        check=True,
        capture_output=True,
        timeout=patient(),
    )
    assert not_passed() == {}


def test_somebody_else_lifts_the_memory_limit(web: None) -> None:
    directory = cgroup_directory("memory", PARENT)
    v2 = (directory / "memory.max").exists()
    (directory / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(
        "max" if v2 else "-1"
    )
    result, text = not_passed()["the limits of the VM parent"]
    assert result == "FAIL"
    assert "has no memory limit" in text
    subprocess.run(
        [*COMMAND, "apply", "--parent"],
        check=True,
        capture_output=True,
        timeout=patient(),
    )
    assert not_passed() == {}


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


def test_a_file_that_takes_the_cpu_of_a_pin(web: None, tmp_path: Path) -> None:
    virsh("vcpupin", "web", "0", LAST_CPU, "--live")
    proposed = tmp_path / "cgroup-hooks.conf"
    proposed.write_text(CONFIG.read_text().replace('"0"', f'"{LAST_CPU}"'))
    done = validate("-q", "--config", str(proposed))
    assert done.returncode == 1
    assert f"web (vcpu0 to {LAST_CPU} (reserved: {LAST_CPU}))" in done.stdout
    assert "[pins-in-the-way]" in done.stdout
