"""The metrics' timer and service, and a limit that systemd is told to lift."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..live.harness import virsh
from ..live.pace import wait_for
from ..unit.support.exposition import value
from .host import configure, fenced, needs_systemd, run, start, virt_cgroup

SOURCE = Path(__file__).resolve().parents[2] / "packaging"
UNITS = Path("/etc/systemd/system")
NAME = "libvirt-cgroup-hooks-metrics"
SERVICE, TIMER = f"{NAME}.service", f"{NAME}.timer"
FOLDER = Path("/var/lib/prometheus/node-exporter")
FILE = FOLDER / "libvirt-cgroup-hooks.prom"
ELSEWHERE = Path("/run/textfiles")
pytestmark = needs_systemd


@pytest.fixture(autouse=True)
def units() -> Iterator[None]:
    """As the packages install them."""
    for unit in (SERVICE, TIMER):
        (UNITS / unit).write_text((SOURCE / unit).read_text())
    FOLDER.mkdir(parents=True)
    run("systemctl", "daemon-reload")
    yield
    run("systemctl", "disable", "--now", TIMER, check=False)
    for unit in (SERVICE, TIMER):
        (UNITS / unit).unlink()
    run("systemctl", "daemon-reload")
    run("rm", "-rf", str(FOLDER.parent), str(ELSEWHERE))


def test_the_units_are_right() -> None:
    files = [str(UNITS / unit) for unit in (TIMER, SERVICE)]
    done = subprocess.run(
        ["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False
    )
    # the page is not there: "Command 'man virt-cgroup(8)' failed", or "Can't show" (systemd 262)
    said = [line for line in done.stderr.splitlines() if "virt-cgroup(8)" not in line]
    assert not [line for line in said if NAME in line]


def test_the_timer_writes_the_file_again_and_again() -> None:
    configure(fenced("native"))
    vm = start("web")
    assert not FILE.exists()
    run("systemctl", "enable", "--now", TIMER)
    wait_for(FILE.exists, "the first file")
    first = FILE.stat().st_ino
    assert FILE.stat().st_mode & 0o7777 == 0o644
    assert value(FILE.read_text(), "vm_conforms", "web", vm.uuid) == 1
    print(FILE.read_text())
    virsh("destroy", "web")
    wait_for(lambda: FILE.stat().st_ino != first, "the next file")
    assert value(FILE.read_text(), "running_vms") == 0
    assert [path.name for path in FOLDER.iterdir()] == [FILE.name]
    text = run("systemctl", "list-timers", "--no-pager", TIMER)
    assert "1 timers listed" in text
    said = run("journalctl", "--no-pager", "-o", "cat", "-u", SERVICE, check=False)
    assert "Starting" not in said


def test_a_limit_that_systemctl_lifts_is_told() -> None:
    configure(fenced("native"))
    start("web")
    run("systemctl", "start", SERVICE)
    for kind in ("cpus", "memory"):
        assert value(FILE.read_text(), "limit_wanted", kind) == 1
        assert value(FILE.read_text(), "limit_in_effect", kind) == 1
    run("systemctl", "set-property", "--runtime", "machine.slice", "MemoryMax=infinity")
    run("systemctl", "start", SERVICE)
    assert value(FILE.read_text(), "limit_in_effect", "memory") == 0
    assert value(FILE.read_text(), "limit_in_effect", "cpus") == 1
    assert value(FILE.read_text(), "vms_memory_limit_bytes") is None
    virt_cgroup("apply", "--parent")
    run("systemctl", "start", SERVICE)
    assert value(FILE.read_text(), "limit_in_effect", "memory") == 1


def test_without_node_exporter_nothing_is_written_and_nothing_fails() -> None:
    """Until it is installed; the timer goes on."""
    FOLDER.rmdir()
    since = f"--since=@{time.time():.0f}"
    run("systemctl", "enable", "--now", TIMER)
    wait_for(lambda: _ran(SERVICE), "the first run")
    run("systemctl", "start", SERVICE)
    assert run("systemctl", "is-failed", SERVICE, check=False).strip() == "inactive"
    assert not FOLDER.exists()
    said = run("journalctl", "--no-pager", "-q", "-p", "notice", since, "-u", SERVICE, check=False)
    # systemd 247 tells what the condition's program has returned
    assert not [line for line in said.splitlines() if "Control process exited" not in line]
    FOLDER.mkdir()
    wait_for(FILE.exists, "the first file")


def _ran(unit: str) -> bool:
    shown = run("systemctl", "show", "--property=InactiveExitTimestampMonotonic", unit)
    return shown.strip().rpartition("=")[2] != "0"


def test_another_directory_and_one_that_is_not_there() -> None:
    """The reason is in the journal."""
    FOLDER.rmdir()  # that of the unit decides nothing then
    drop_in = UNITS / f"{SERVICE}.d/override.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\nEnvironment=TEXTFILE_DIRECTORY={ELSEWHERE}\n")
    run("systemctl", "daemon-reload")
    try:
        run("systemctl", "start", SERVICE, check=False)
        state = run("systemctl", "is-failed", SERVICE, check=False)
        assert state.strip() == "failed"
        said = run("journalctl", "--no-pager", "-o", "cat", "-u", SERVICE)
        assert f"error: cannot write {ELSEWHERE}/{FILE.name}: No such file or directory" in said
        ELSEWHERE.mkdir()
        run("systemctl", "start", SERVICE)
        assert value((ELSEWHERE / FILE.name).read_text(), "running_vms") == 0
        assert not FILE.exists()
    finally:
        drop_in.unlink()
        drop_in.parent.rmdir()
        run("systemctl", "reset-failed", SERVICE, check=False)


def test_what_has_failed_is_not_listed_once_the_package_is_gone() -> None:
    drop_in = UNITS / f"{SERVICE}.d/override.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\nEnvironment=TEXTFILE_DIRECTORY={ELSEWHERE}\n")
    text = (UNITS / SERVICE).read_text()
    try:
        run("systemctl", "daemon-reload")
        run("systemctl", "start", SERVICE, check=False)
        (UNITS / SERVICE).unlink()
        run("systemctl", "daemon-reload")
        assert listed().split()[1:3] == ["not-found", "failed"]
        run("sh", str(SOURCE / "deb/postrm"), "remove")
        assert listed() == ""
    finally:
        (UNITS / SERVICE).write_text(text)
        drop_in.unlink()
        drop_in.parent.rmdir()


def listed() -> str:
    return run("systemctl", "list-units", "--failed", "--plain", "--no-legend", SERVICE).strip()
