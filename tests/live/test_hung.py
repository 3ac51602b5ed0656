"""Parts that refuse, are full, or are slow: in time, prepare refuses or warns as configured, and no
VM that runs is harmed.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .faults import calls_at, refused, traced
from .harness import (
    FENCED,
    STATE,
    Configure,
    Daemon,
    all_cgroups,
    destroy_vm,
    domain_xml,
    running_vm,
    start_vm,
    virsh,
)
from .marks import ENDURANCE
from .pace import hook_timeout, patient
from .test_operations import assert_nothing_left, status, virt_cgroup

XML = domain_xml("web", vcpus=2, iothreads=1)
WARN = 'on_error = "warn"\n' + FENCED
TIMEOUT = 4  # seconds, fewer than all changes of one run take when each takes half a second


@contextlib.contextmanager
def mounted(*options: str) -> Iterator[None]:
    """Something else where we keep what we know."""
    STATE.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(STATE), *options], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(STATE)], check=True)


def start(config: str, message: str) -> None:
    """Refused with MESSAGE, or warned, as CONFIG says."""
    result = virsh("create", "/dev/stdin", stdin=XML, check=False)
    if "warn" in config:
        assert result.returncode == 0, result.stderr
        assert running_vm("web").alive()
    else:
        assert message in result.stderr


@pytest.mark.parametrize("config", [FENCED, WARN], ids=["refuse", "warn"])
@pytest.mark.parametrize(
    ("options", "message"),
    [("ro", "Read-only file system"), ("size=4k,nr_inodes=4", "No space left on device")],
)
def test_no_place_for_what_we_know(
    configure: Configure, config: str, options: str, message: str
) -> None:
    before = all_cgroups()
    configure(config)
    with mounted("-o", options):
        start(config, message)
        destroy_vm("web")
    start_vm("web", xml=XML)
    assert status("web")["conforms"]
    destroy_vm("web")
    assert_nothing_left(before)


@pytest.mark.parametrize("config", [FENCED, WARN], ids=["refuse", "warn"])
@pytest.mark.parametrize("errno", ["EIO", "ENOSPC"])
def test_the_kernel_refuses_a_write_at_prepare(
    configure: Configure, config: str, errno: str
) -> None:
    before = all_cgroups()
    configure(config)
    start_vm("db", xml=domain_xml("db"))
    destroy_vm("db")
    with refused("prepare", "write", errno, "4"):  # the first are files of ours
        start(config, "cannot write")
    destroy_vm("web")
    assert_nothing_left(before)


def test_what_is_busy_once_is_planned_anew(configure: Configure) -> None:
    configure(FENCED)
    with refused("prepare", "write", "EBUSY", "4"):
        start_vm("web", xml=XML)
    assert status("web")["conforms"]


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=ENDURANCE)])
@pytest.mark.parametrize("errno", ["EBUSY", "ENOSPC", "ESRCH"])
def test_the_kernel_refuses_a_write_at_started(
    configure: Configure, errno: str, every: int, record_property: Callable[[str, object], None]
) -> None:
    """Also as when a thread ends while it is being placed. The VM goes on; `virt-cgroup apply`
    brings it right.
    """
    before = all_cgroups()
    configure(FENCED)
    calls = calls_at("started", lambda: start_vm("web", xml=XML))
    chosen = [number for call, number in calls if call == "write"][::every]
    for number in chosen:
        with refused("started", "write", errno, str(number)):
            vm = start_vm("web", xml=XML)
        virt_cgroup("apply", "--all")
        found = status("web")
        assert vm.alive()
        assert found["conforms"], (number, found["problems"])
        destroy_vm("web")
        assert_nothing_left(before)
    record_property("faults injected", len(chosen))


@pytest.mark.parametrize("operation", ["prepare", "started", "release"])
def test_slow_files(configure: Configure, operation: str) -> None:
    """Every change takes half a second, as on a file system of a slow user-space server."""
    configure(FENCED)
    if operation != "prepare":  # of the first VM it has the most to do
        start_vm("db", xml=domain_xml("db"))
    seconds = hook_timeout(TIMEOUT)
    configure(f"hook_timeout = {seconds}\n{FENCED}")
    changes = "write,mkdir,rmdir"
    delay = f"delay_enter={patient(0.5) * 1e6:.0f}"
    with traced(operation, f"-o /dev/null -e trace={changes} -e inject={changes}:{delay}"):
        began = time.monotonic()
        result = virsh("create", "/dev/stdin", stdin=XML, check=False)
        if operation == "prepare":
            assert f"timed out after {seconds} seconds" in result.stderr
        else:
            assert running_vm("web").alive()
            destroy_vm("web")
        assert time.monotonic() - began < 3 * seconds
    destroy_vm("db")


def test_threads_come_and_go(daemon: Daemon, configure: Configure, tmp_path: Path) -> None:
    """I/O threads come and go, and vCPUs are plugged, while the VM is placed again and again."""
    configure("cgroup_layout = 'native'\nemulator_cpus = '0'\niothread_cpus = '1'\n")
    vm = start_vm("web", xml=domain_xml("web", vcpus=4, current=1, iothreads=1, machine="q35"))
    for number in range(2, 12):
        adder = subprocess.Popen(["virsh", "-q", "iothreadadd", "web", str(number), "--live"])
        virt_cgroup("apply", "--all")
        assert adder.wait(patient()) == 0
        remover = subprocess.Popen(["virsh", "-q", "iothreaddel", "web", str(number), "--live"])
        virt_cgroup("apply", "--all")
        assert remover.wait(patient()) == 0
    assert vm.alive()
    virt_cgroup("apply", "--all")
    found = status("web")
    assert found["conforms"], found["problems"]
