"""The host keeps to its own CPUs, and gets back what it had, by what systemd and the kernel say."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ..live.harness import CONFIG, STATE, destroy_all_vms, running_vm, virsh
from ..live.pace import wait_for
from .faults import call_hook, read_only_run, stopped_bus, systemctl_that
from .host import (
    CGROUP,
    FENCE_CPUS,
    SYSTEMD,
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

thorough = (pytest.mark.thorough, pytest.mark.releases)
pytestmark = pytest.mark.skipif(not (SYSTEMD and V2), reason="systemd keeps no cpusets here")
LAYOUT = "/vms/$NAME"
HOST_UNITS = ("system.slice", "user.slice", "init.scope")
OWN = "0-1"
ALL = "0-7"
WRITTEN_DOWN = (
    Path("/etc/systemd/system.control"),
    Path("/run/systemd/system.control"),
    Path("/run/systemd/transient"),
)
ASKS = (
    "<metadata><s:settings xmlns:s='urn:libvirt-cgroup-hooks:domain:1'>"
    "<s:confine_host>yes</s:confine_host></s:settings></metadata>"
)


def confined(how: str, layout: str = LAYOUT) -> str:
    return fenced(layout, more=f'confine_host = "{how}"')


def cpus(unit: str) -> str:
    """What the processes of UNIT may use."""
    file = CGROUP / unit / "cpuset.cpus.effective"
    return file.read_text().strip() if file.exists() else ALL


def what_units_may_use() -> dict[str, object]:
    """By unit what its processes may use now, its property, and what is written down of it."""
    found: dict[str, object] = {}
    for unit in HOST_UNITS:
        files = {
            str(path): path.read_text()
            for directory in WRITTEN_DOWN
            for path in sorted(directory.glob(f"{unit}.d/*"))
        }
        shown = run("systemctl", "show", "--property=AllowedCPUs", unit).strip()
        found[unit] = (cpus(unit), shown, files)
    return found


def outside() -> list[str]:
    """The processes of the host, but for kernel threads, that may run on VMs' CPUs."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            path = (process / "cgroup").read_text().strip().rpartition(":")[2]
            command = (process / "cmdline").read_text()
            lines = (process / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        allowed = next(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list"))
        if command and not path.startswith(("/vms.slice", "/machine.slice")) and allowed != OWN:
            found.append(f"{path}: {command} on {allowed}")
    return found


@pytest.fixture
def before() -> Iterator[dict[str, object]]:
    """What there is once nothing is configured any more, too."""
    found = what_units_may_use()
    yield found
    destroy_all_vms()
    CONFIG.unlink(missing_ok=True)
    virt_cgroup("apply", "--parent")
    assert what_units_may_use() == found


@pytest.mark.parametrize("layout", [pytest.param("native", marks=thorough), LAYOUT])
def test_while_vms_run(before: dict[str, object], layout: str) -> None:
    """One is stopped, one crashes, and the daemon is killed in between."""
    configure(confined("running", layout))
    start("web")
    assert outside() == []
    assert cpus("system.slice") == OWN
    start("db")
    run("systemctl", "kill", "--signal=KILL", "libvirtd")
    restart_libvirtd()
    virsh("destroy", "web")
    assert outside() == []
    run("systemctl", "daemon-reload")
    assert outside() == []
    os.kill(running_vm("db").pid, signal.SIGKILL)
    wait_for(lambda: cpus("system.slice") == ALL, "the host to have its CPUs again")
    wait_for(lambda: what_units_may_use() == before, "all to be as before")


def test_what_the_administrator_had_set_comes_back() -> None:
    drop_in = Path("/etc/systemd/system/user.slice.d/50-ours.conf")
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text("[Slice]\nAllowedCPUs=0-6\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "set-property", "--runtime", "system.slice", "AllowedCPUs=0-5")
    try:
        before = what_units_may_use()
        assert (cpus("system.slice"), cpus("user.slice")) == ("0-5", "0-6")
        configure(confined("running"))
        start("web")
        assert outside() == []
        virsh("destroy", "web")
        assert what_units_may_use() == before
        run("systemctl", "daemon-reload")
        assert what_units_may_use() == before
    finally:
        drop_in.unlink()
        drop_in.parent.rmdir()
        for unit in ("system.slice", "user.slice"):
            run("systemctl", "set-property", "--runtime", unit, f"AllowedCPUs={ALL}")
            run("systemctl", "revert", unit)


@pytest.mark.thorough
@pytest.mark.releases
def test_while_one_runs_that_asks(before: dict[str, object]) -> None:
    configure(confined("asked"))
    start("web")
    assert cpus("system.slice") == ALL
    start("db", extra=ASKS)
    assert outside() == []
    virsh("destroy", "db")
    assert what_units_may_use() == before
    assert status()["domains"][0]["conforms"]


@pytest.mark.thorough
@pytest.mark.releases
def test_always_and_back(before: dict[str, object]) -> None:
    configure(confined("always"))
    virt_cgroup("apply", "--parent")
    assert outside() == []
    start("web")
    virsh("destroy", "web")
    assert outside() == []
    assert virt_cgroup("apply", "--parent") == "VM parent: nothing to do\n"
    virt_cgroup("reserve", "--confine", "no", "--live")
    assert what_units_may_use() == before
    virt_cgroup("reserve", "--confine", "always", "--cpus", "0-2", "--live")
    assert cpus("system.slice") == "0-2"
    virt_cgroup("hook", "remove")
    assert what_units_may_use() == before
    run("install", "-m", "755", "hooks/qemu", "/etc/libvirt/hooks/qemu")


@pytest.mark.thorough
@pytest.mark.releases
@pytest.mark.parametrize("pinned", [False, True], ids=["not pinned", "pinned"])
def test_vms_of_a_confined_daemon_have_their_cpus(before: dict[str, object], pinned: bool) -> None:
    configure(confined("running"))
    pins = {"vcpupin": {0: "3", 1: "4"}, "emulatorpin": "5-6", "iothreadpin": {1: "7"}}
    start("db")
    vm = start("web", **(pins if pinned else {}))
    wanted = {"5-6", "3", "4", "7"} if pinned else {FENCE_CPUS}
    assert {one.cpus_allowed for one in vm.threads().values()} == wanted
    virsh("setvcpus", "web", "3", "--live")
    vm = running_vm("web")
    plugged = vm.threads()[vm.vcpus[2]].cpus_allowed
    assert plugged in (FENCE_CPUS, "5-6")  # libvirt 12.8 leaves it those of the emulator
    assert outside() == []


@pytest.mark.thorough
@pytest.mark.releases
def test_a_stopped_bus_does_not_matter(before: dict[str, object]) -> None:
    configure(confined("running"))
    with stopped_bus():
        assert call_hook("web", "prepare", xml("web")).returncode == 0
        assert outside() == []
        assert call_hook("web", "release", xml("web")).returncode == 0
    assert what_units_may_use() == before


@pytest.mark.thorough
@pytest.mark.parametrize("fault", ["systemd refuses", "/run is read-only"])
def test_where_it_cannot_be(before: dict[str, object], tmp_path: Path, fault: str) -> None:
    configure(confined("running"))
    refusing = partial(systemctl_that, tmp_path, "echo Access denied >&2; exit 1")
    fails = refusing if fault == "systemd refuses" else read_only_run
    with fails():
        assert call_hook("web", "prepare", xml("web")).returncode == 1
    assert what_units_may_use() == before
    assert call_hook("web", "prepare", xml("web")).returncode == 0
    assert outside() == []
    with fails():
        assert call_hook("web", "release", xml("web")).returncode == 0
    for record in (STATE / "vms").iterdir():  # a VM with a younger one may be about to start
        os.utime(record, (0, 0))
    virt_cgroup("apply", "--parent")
    assert what_units_may_use() == before


@pytest.mark.thorough
def test_two_hundred_cycles(before: dict[str, object]) -> None:
    """Of the hook alone, as libvirtd calls it: each confines the host and opens it again."""
    configure(confined("running"))
    for number in range(200):
        assert call_hook("web", "prepare", xml("web")).returncode == 0
        if number % 20 == 0:
            assert call_hook("db", "prepare", xml("db")).returncode == 0
            assert call_hook("db", "release", xml("db")).returncode == 0
            assert cpus("system.slice") == OWN
        assert call_hook("web", "release", xml("web")).returncode == 0
        assert what_units_may_use() == before


@pytest.mark.thorough
@pytest.mark.releases
def test_the_next_vm_costs_no_call(before: dict[str, object]) -> None:
    configure(confined("running"))
    start("web")
    assert "systemctl" not in virt_cgroup("plan", "prepare", "-", stdin=xml("db"))


@pytest.mark.thorough
@pytest.mark.releases
def test_vms_within_the_hosts_units_are_refused(before: dict[str, object]) -> None:
    configure(fenced("/system/guests/$NAME", more='confine_host = "running"'))
    virsh("define", "/dev/stdin", stdin=xml("web"))
    refused = virsh("start", "web", check=False)
    assert refused.returncode
    assert "host_units" in refused.stderr
