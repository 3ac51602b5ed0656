"""What happens to a host while VMs run: CPUs go, /run is full, the clock jumps, machined dies. No
VM is killed, and those that start afterwards are fenced.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..live.harness import QEMU_CONF, running_vm, virsh
from ..live.pace import wait_for
from ..live.reserving import nobody_is_killed
from .drift import findings
from .host import (
    FENCE_CPUS,
    SYSTEMD,
    configure,
    drop_ins,
    fenced,
    log,
    run,
    start,
    status,
    virt_cgroup,
    xml,
)
from .test_kernel import give_back, without_cpu

pytestmark = pytest.mark.thorough
LAYOUT = "/vms/$NAME"
MACHINED = "systemd-machined.service"
DAY = 86400
needs_machined = pytest.mark.skipif(not SYSTEMD, reason="there is no machined here")


def all_conform(*names: str) -> bool:
    domains = {vm["name"]: vm for vm in status()["domains"]}
    assert set(domains) == set(names)
    return all(vm["conforms"] for vm in domains.values())


@pytest.mark.parametrize(
    ("count", "gone", "left"),
    [('"auto"', 7, "1-6"), ("2", 7, "1-3,5-6"), ("1", 7, "1-6"), ("2", 4, "1-3,6-7")],
)
def test_a_cpu_goes_under_a_count(count: str, gone: int, left: str) -> None:
    """The CPUs of a count are chosen among those that are there, and chosen again, whether a VM or
    the host had the one that goes: a count of two takes 0 and 4, or 0 and 5.
    """
    configure(f'reserved_host_cpus = {count}\ncgroup_layout = "{LAYOUT}"\n')
    web = start("web")
    before = status()["fence"]["cpus"]
    with nobody_is_killed(web):
        with without_cpu(gone):
            start("db")
            shown = status()
            assert shown["parent"]["cpus"] == shown["fence"]["cpus"] == left
            assert all_conform("web", "db")
        virt_cgroup("apply", "--all")
        shown = status()
        assert shown["parent"]["cpus"] == shown["fence"]["cpus"] == before
        assert findings() == {}
    give_back("2-6", FENCE_CPUS)


@contextmanager
def full(directory: str) -> Iterator[None]:
    """No byte is free below DIRECTORY, nor a file to be had."""
    filler = Path(directory) / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError:
            pass
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1))
        except OSError:
            pass
    try:
        yield
    finally:
        filler.unlink()


def test_run_is_full() -> None:
    configure(fenced(LAYOUT))
    web = start("web")
    start("db")
    virsh("destroy", "db")
    with nobody_is_killed(web):
        with full("/run"):
            refused = virsh("start", "db", check=False)
            assert refused.returncode
            assert "Traceback" not in refused.stderr + log()
            assert status()["domains"][0]["conforms"]
        virsh("start", "db")
    assert all_conform("web", "db")
    assert findings() == {}


@contextmanager
def clock_moved(seconds: int) -> Iterator[None]:
    began = time.monotonic()
    now = time.time()
    time.clock_settime(time.CLOCK_REALTIME, now + seconds)
    try:
        yield
    finally:
        time.clock_settime(time.CLOCK_REALTIME, now + time.monotonic() - began)


@pytest.mark.parametrize("seconds", [DAY, -DAY], ids=["on", "back"])
def test_the_clock_jumps(seconds: int) -> None:
    configure(fenced(LAYOUT))
    web = start("web")
    with nobody_is_killed(web), clock_moved(seconds):
        start("db")
        assert all_conform("web", "db")
        virt_cgroup("reserve", "--cpus", "0-2", "--live")
        assert status()["parent"]["cpus"] == "3-7"
        virsh("destroy", "db")
        virsh("start", "db")
        assert status()["parent"]["cpus"] == "3-7"
        virt_cgroup("reserve", "--cpus", "0-1", "--live")
    virsh("destroy", "db")
    assert findings() == {}
    assert all_conform("web")
    give_back("3-7", FENCE_CPUS)


@needs_machined
@pytest.mark.parametrize("layout", [LAYOUT, "native"])
def test_machined_is_killed(layout: str) -> None:
    configure(fenced(layout))
    web = start("web")
    with nobody_is_killed(web):
        run("systemctl", "kill", "--signal=KILL", MACHINED)
        start("db")
        assert all_conform("web", "db")
        run("systemctl", "kill", "--signal=KILL", MACHINED)
        virsh("destroy", "db")
        wait_for(lambda: len(drop_ins()) == (layout != "native"), "the drop-in to go")
    assert findings() == {}


@needs_machined
@pytest.mark.parametrize("layout", [LAYOUT, "native"])
def test_machined_is_masked(layout: str) -> None:
    """No VM starts outside the fence meanwhile: it is refused, or has it."""
    configure(fenced(layout))
    web = start("web")
    with nobody_is_killed(web):
        run("systemctl", "mask", "--runtime", "--now", MACHINED)
        try:
            assert status()["domains"][0]["conforms"]
            virsh("define", "/dev/stdin", stdin=xml("db"))
            result = virsh("start", "db", check=False)
            if result.returncode == 0:
                assert all_conform("web", "db")
                assert {one.cpus_allowed for one in running_vm("db").threads().values()} == {
                    FENCE_CPUS
                }
                virsh("destroy", "db")
            assert "Traceback" not in result.stderr + log()
        finally:
            run("systemctl", "unmask", "--runtime", MACHINED)
        virsh("start", "db")
        assert all_conform("web", "db")
    assert findings() == {}


def test_one_that_is_renamed() -> None:
    configure(fenced(LAYOUT))
    start("web")
    virsh("destroy", "web")
    virsh("domrename", "web", "db")
    virsh("start", "db")
    assert all_conform("db")
    assert running_vm("db").threads()[running_vm("db").pid].cpus_allowed == FENCE_CPUS
    virsh("destroy", "db")


OTHER_HOST = "6f9a1a52-1111-4222-8333-444455556666"
PRIVATE = ("/run/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")


@pytest.fixture
def second_daemon(tmp_path: Path) -> Iterator[str]:
    """Another host's libvirtd, as far as libvirt can tell, with no hook; gives its URI."""
    conf = tmp_path / "libvirtd.conf"
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    conf.write_text(
        f'host_uuid = "{OTHER_HOST}"\nunix_sock_dir = "{sockets}"\nauth_unix_rw="none"\n'
    )
    qemu_conf = tmp_path / "qemu.conf"  # there is no virtlogd where it looks
    qemu_conf.write_text(QEMU_CONF.read_text() + 'stdio_handler = "file"\n')
    mounts = "; ".join(
        [f"mkdir -p {path} && mount -t tmpfs none {path}" for path in PRIVATE]
        + ["mount -t tmpfs none /etc/libvirt/hooks", f"mount --bind {qemu_conf} {QEMU_CONF}"]
    )
    daemon = subprocess.Popen(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f"{mounts}; exec libvirtd --config {conf} --pid-file {tmp_path}/pid",
        ]
    )
    uri = f"qemu+unix:///system?socket={sockets}/libvirt-sock"
    ready = ("virsh", "--connect", uri, "list")
    wait_for(
        lambda: subprocess.run(ready, check=False, capture_output=True).returncode == 0,
        "the second daemon",
    )
    yield uri
    subprocess.run(("virsh", "--connect", uri, "destroy", "web"), check=False, capture_output=True)
    daemon.terminate()
    daemon.wait()


@pytest.mark.parametrize("layout", [LAYOUT, "native"])
def test_one_that_migrates_in_and_out(layout: str, second_daemon: str) -> None:
    configure(fenced(layout))
    there = ("virsh", "--quiet", "--connect", second_daemon)
    for _ in range(2):  # machined takes no two machines of one name, which has the VM's id
        start("db")
        virsh("destroy", "db")
    run(*there, "create", "/dev/stdin", stdin=xml("web"))
    run(*there, "migrate", "--live", "web", "qemu:///system", "tcp://127.0.0.1")
    assert all_conform("web")
    assert {one.cpus_allowed for one in running_vm("web").threads().values()} == {FENCE_CPUS}
    virsh("migrate", "--live", "web", second_daemon, "tcp://127.0.0.1")
    assert status()["domains"] == []
    assert not drop_ins()
    assert os.listdir("/run/libvirt-cgroup-hooks/vms") == []


def test_one_that_does_not_fit_does_not_migrate_in(second_daemon: str) -> None:
    virt_cgroup("apply", "--parent")  # nothing is configured, so that it can have CPU 0 there
    there = ("virsh", "--quiet", "--connect", second_daemon)
    run(*there, "create", "/dev/stdin", stdin=xml("web", vcpupin={0: "0"}))
    configure(fenced(LAYOUT))
    result = subprocess.run(
        (*there, "migrate", "--live", "web", "qemu:///system", "tcp://127.0.0.1"),
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode
    assert "Hook script execution failed" in result.stderr
    assert "is pinned to reserved CPUs" in result.stderr
    assert run(*there, "domstate", "web").strip() == "running"
