"""Many VMs at once, and very many one after another: every one conforms, and nothing is left or
grows.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.reserve import Change

from .harness import (
    FENCED,
    HAS_V1,
    LAST_CPU,
    STATE,
    Configure,
    Daemon,
    all_cgroups,
    cgroup_directory,
    destroy_vm,
    domain_xml,
    end_all_vms,
    qemu_processes,
    start_vm,
    virsh,
)
from .marks import ENDURANCE
from .pace import EVENT, patient, wait_for
from .test_operations import assert_nothing_left, left_since, status, virt_cgroup

Record = Callable[[str, object], None]
WORKERS = 8


@contextmanager
def reserving() -> Iterator[list[int]]:
    """Meanwhile the reservation is changed again and again; gives the exit statuses."""
    statuses: list[int] = []
    end = threading.Event()

    def reserve() -> None:
        while not end.is_set():
            for memory in ("1 GiB", "900 MiB"):
                command = [
                    "/usr/bin/python3",
                    "-I",
                    "-m",
                    "libvirt_cgroup_hooks",
                    "reserve",
                    "--memory",
                    memory,
                    "--live",
                ]
                statuses.append(
                    subprocess.run(
                        command,
                        capture_output=True,
                        check=False,
                        timeout=patient(),
                    ).returncode
                )
            end.wait(0.5)

    thread = threading.Thread(target=reserve)
    thread.start()
    try:
        yield statuses
    finally:
        end.set()
        thread.join()


@contextmanager
def copying(parent: Path) -> Iterator[list[str]]:
    """Meanwhile cpusets are made below PARENT as libvirt makes a VM's, copies of what is above
    them; gives what each had.
    """
    made: list[str] = []
    end = threading.Event()

    def copy(worker: int) -> None:
        while not end.is_set():
            child = parent / f"copy{worker}-{len(made)}"
            for group in (child, child / "emulator"):
                group.mkdir()
                for name in ("cpuset.mems", "cpuset.cpus"):
                    text = (group.parent / name).read_text()
                    with suppress(OSError):  # it may have got less meanwhile
                        (group / name).write_text(text)
            made.append((child / "cpuset.cpus").read_text().strip())
            (child / "emulator").rmdir()
            child.rmdir()

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(copy, worker) for worker in range(3)]
        try:
            yield made
        finally:
            end.set()
        for one in running:
            one.result()


def tried(name: str) -> None:
    """Starts the VM, however often the daemon dies meanwhile."""
    end = time.monotonic() + patient()
    while time.monotonic() < end:
        if virsh("create", "/dev/stdin", stdin=domain_xml(name), check=False).returncode == 0:
            return
        if name in virsh("list", "--name", check=False).stdout.split():
            return
        time.sleep(0.5)
    raise AssertionError(f"{name} does not start")


def half_done(futures: Sequence[Future[None]]) -> bool:
    return sum(future.done() for future in futures) > len(futures) // 2


def again(daemon: Daemon, names: list[str]) -> None:
    """A VM that a daemon was just starting when it was killed: the next one may wait for its
    monitor for ever.
    """
    daemon.kill()
    for pid in qemu_processes():
        if any(
            f"guest={name},".encode() in Path(f"/proc/{pid}/cmdline").read_bytes() for name in names
        ):
            os.kill(pid, signal.SIGKILL)
    daemon.start()
    for name in names:
        destroy_vm(name)
        start_vm(name)


@pytest.mark.parametrize("count", [10, pytest.param(50, marks=ENDURANCE)])
def test_many_at_once_and_a_daemon_that_is_killed(
    daemon: Daemon, configure: Configure, count: int, record_property: Record
) -> None:
    before = all_cgroups()
    configure(FENCED)
    names = [f"vm{number}" for number in range(count)]
    with reserving() as statuses, ThreadPoolExecutor(WORKERS) as pool:
        running = [pool.submit(tried, name) for name in names]
        wait_for(lambda: half_done(running), "half of the VMs to start", 3 * EVENT)
        daemon.kill()
        daemon.start()
        for one in running:
            one.result(patient(5 * EVENT))
    assert statuses and not any(statuses)
    virt_cgroup("apply", "--all")
    found = {vm["name"] for vm in json.loads(virt_cgroup("status", "--json"))["domains"]}
    lost = [name for name in names if name not in found]
    assert len(lost) <= WORKERS, lost
    if lost:
        again(daemon, lost)
    for name in names:
        assert status(name)["conforms"], status(name)["problems"]
    with ThreadPoolExecutor(WORKERS) as pool:
        stopping = [pool.submit(destroy_vm, name) for name in names]
        wait_for(lambda: half_done(stopping), "half of the VMs to stop", 3 * EVENT)
        daemon.kill()
        daemon.start()
        for one in stopping:
            one.exception(patient(5 * EVENT))
    end_all_vms(daemon)
    for path in (STATE / "vms").iterdir():
        os.utime(path, (1, 1))
    # a daemon that was killed in the middle of a stop has forgotten that VM
    virt_cgroup("apply", "--parent")
    start_vm("last")
    destroy_vm("last")
    remove_libvirts_own(left_since(before))
    assert_nothing_left(before)
    record_property("VMs at once", count)


@pytest.mark.skipif(
    not HAS_V1, reason="on cgroup v2 a cgroup may be configured for CPUs that its parent has not"
)
@pytest.mark.parametrize("changes", [20, pytest.param(500, marks=ENDURANCE)])
def test_cpusets_that_are_made_while_the_reservation_changes(
    configure: Configure, changes: int
) -> None:
    configure(FENCED)
    start_vm("web")
    with copying(cgroup_directory("cpuset", "/machine")) as made:
        for number in range(changes):
            value = ["0-0", f"{LAST_CPU}-{LAST_CPU}"][number % 2]
            change = Change(Host(), {"reserved_host_cpus": value}, live=True, config=False)
            change.run()
            assert not change.warnings
    assert len(set(made)) > 1
    assert status("web")["conforms"], status("web")["problems"]


def remove_libvirts_own(left: set[Path]) -> None:
    """libvirt itself leaves the cgroup of a VM that a daemon was making when it was killed; it is
    empty.
    """
    for group in sorted(left, reverse=True):
        if any(part.endswith(".libvirt-qemu") for part in group.parts):
            group.rmdir()


def daemon_size(daemon: Daemon) -> tuple[int, int]:
    """(open descriptors, KiB of memory)"""
    lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())), resident


def lives(name: str, count: int) -> None:
    for _ in range(count):
        start_vm(name)
        destroy_vm(name)


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=ENDURANCE)])
def test_start_and_stop_again_and_again(
    daemon: Daemon, configure: Configure, count: int, record_property: Record
) -> None:
    """Four VMs at a time. Ids go on, process ids come again."""
    before = all_cgroups()
    configure(FENCED)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lives, ["warm1", "warm2", "warm3", "warm4"], [2] * 4))
        descriptors, resident = daemon_size(daemon)
        files = sorted(path.name for path in STATE.rglob("*"))
        list(pool.map(lives, ["a", "b", "c", "d"], [count // 4] * 4))
    now, size = daemon_size(daemon)
    assert_nothing_left(before)
    assert not left_since(before)
    assert sorted(path.name for path in STATE.rglob("*")) == files
    assert now <= descriptors + 2
    assert size <= resident + 32 * 1024, "libvirtd itself grows"
    record_property("cycles", count)
