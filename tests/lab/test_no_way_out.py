"""Whatever a VM's XML, a layout or the administrator's own limits say: no VM leaves the fence, and
the host's own work is not put under it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from ..live.harness import Vm, running_vm, virsh
from ..live.pace import wait_for
from ..live.reserving import COMMAND
from .drift import findings, not_started
from .host import (
    FENCE_CPUS,
    V2,
    configure,
    directory,
    fenced,
    run,
    start,
    status,
    value,
    virt_cgroup,
    xml,
)

ELSEWHERE = "<resource><partition>/virtualmachines/production</partition></resource>"
FENCE = "the limits of the VM parent"
OVERRIDE = Path("/etc/systemd/system/machine.slice.d/override.conf")
LIMIT = 700 << 20
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.releases,
    pytest.mark.usefixtures("nothing_is_kept"),
]


def allowed(vm: Vm) -> set[str]:
    return {thread.cpus_allowed for thread in vm.threads().values()}


# the VM's XML


def test_a_partition_elsewhere_is_fenced_too() -> None:
    configure(fenced("native", memory=False))
    web = start("web", extra=ELSEWHERE)
    assert "virtualmachines" in Path(f"/proc/{web.pid}/cgroup").read_text()
    assert allowed(web) == {FENCE_CPUS}
    virsh("setvcpus", "web", "3", "--live")
    assert allowed(running_vm("web")) == {FENCE_CPUS}


def test_beside_the_memory_limit_it_is_refused_until_the_command_is_run() -> None:
    configure(fenced("native"))
    virsh("define", "/dev/stdin", stdin=xml("web", extra=ELSEWHERE))
    result = virsh("start", "web", check=False)
    assert result.returncode
    assert "has the partition /virtualmachines/production in its XML" in result.stderr
    assert "virt-cgroup domain web --no-partition" in result.stderr
    virt_cgroup("domain", "web", "--no-partition")
    virsh("start", "web")
    assert "/machine.slice/" in Path(f"/proc/{running_vm('web').pid}/cgroup").read_text()


def test_one_that_ran_before_is_told_and_apply_limits_it() -> None:
    configure("")
    web = start("web", extra=ELSEWHERE)
    configure(fenced("native"))
    assert "FAIL" in findings()["that VMs match the configuration"]
    virt_cgroup("apply", "--all")
    assert allowed(running_vm("web")) == {FENCE_CPUS}
    limit = value("memory", "/virtualmachines.slice", "memory.max", "memory.limit_in_bytes")
    assert limit == value("memory", "/machine.slice", "memory.max", "memory.limit_in_bytes")
    assert running_vm("web").pid == web.pid


# other ways for a VM to begin, and to change


def test_one_that_is_restored() -> None:
    configure(fenced("/vms/$NAME"))
    start("web")
    image = "/var/lib/libvirt/qemu/save/web.saved"
    virsh("save", "web", image)
    virsh("restore", image)
    assert allowed(running_vm("web")) == {FENCE_CPUS}
    assert status()["domains"][0]["conforms"]


def test_one_that_is_put_back_to_a_snapshot() -> None:
    if int(virsh("version").stdout.split("Using library: libvirt ")[1].split(".")[0]) < 10:
        pytest.skip("this libvirt cannot revert to an external snapshot")
    configure(fenced("/vms/$NAME"))
    start("web")
    virsh(
        "snapshot-create-as",
        "web",
        "first",
        "--memspec",
        "file=/var/lib/libvirt/qemu/save/web.memory",
    )
    virsh("snapshot-revert", "web", "first", "--running")
    assert allowed(running_vm("web")) == {FENCE_CPUS}
    assert status()["domains"][0]["conforms"]
    virsh("snapshot-delete", "web", "first", "--metadata")


def test_one_that_is_created_with_other_xml_than_it_was_defined_with() -> None:
    configure(fenced("native"))
    virsh("define", "/dev/stdin", stdin=xml("web"))
    message = not_started("web", extra=ELSEWHERE)
    assert "has the partition /virtualmachines/production in its XML" in message
    virsh("create", "/dev/stdin", stdin=xml("web", vcpupin={0: "2-3"}))
    assert allowed(running_vm("web")) == {FENCE_CPUS, "2-3"}


@pytest.mark.parametrize("layout", ["native", "/vms/$NAME"])
def test_threads_that_are_added(layout: str) -> None:
    configure(fenced(layout))
    start("web")
    virsh("setvcpus", "web", "3", "--live")
    virsh("iothreadadd", "web", "7", "--live")
    vm = running_vm("web")
    assert {"vcpu2", "iothread7"} <= {row["group"] for row in status()["domains"][0]["threads"]}
    assert allowed(vm) == {FENCE_CPUS}


def test_what_systemctl_is_told_of_its_scope() -> None:
    """No scope has more than its slice, on v2; on v1 systemd has no cpusets."""
    configure(fenced("native"))
    web = start("web")
    scope = Path(f"/proc/{web.pid}/cgroup").read_text().split("machine.slice/")[1].split("/")[0]
    run("systemctl", "set-property", "--runtime", scope.strip(), "MemoryMax=infinity")
    run("systemctl", "set-property", "--runtime", scope.strip(), "AllowedCPUs=0-7", check=False)
    assert allowed(running_vm("web")) == {FENCE_CPUS}
    assert findings() == {}


@pytest.mark.parametrize("pins", [False, True], ids=["", "pinned"])
def test_one_that_somebody_has_moved_out_is_told(pins: bool) -> None:
    """Its pins still hold where only CPUs are reserved, and whoever changes them is stopped by
    nothing.
    """
    configure(fenced("native", memory=not pins))
    vcpus = dict.fromkeys(range(3), "3")
    pinned = {"vcpupin": vcpus, "emulatorpin": "4", "iothreadpin": {1: "4"}} if pins else {}
    web = start("web", **pinned)
    for controller in ("cpuset", "memory"):
        outside = directory(controller, "/somewhere")
        outside.mkdir(exist_ok=True)
        if not V2 and controller == "cpuset":
            (outside / "cpuset.mems").write_text("0-1")
            (outside / "cpuset.cpus").write_text("0-7")
        (outside / "cgroup.procs").write_text(str(web.pid))
    try:
        assert findings()["that VMs match the configuration"].startswith("FAIL VM web: ")
    finally:
        virsh("destroy", "web")
        for controller in ("cpuset", "memory"):
            outside = directory(controller, "/somewhere")
            wait_for(partial(_removed, outside), f"{outside} to be empty")


def _removed(path: Path) -> bool:
    with suppress(OSError):
        path.rmdir()
    return not path.exists()


def test_qemu_that_libvirt_has_not_started_is_told() -> None:
    configure(fenced("native"))
    qemu = subprocess.Popen(
        ["/usr/bin/qemu-system-x86_64", "-S", "-display", "none", "-nodefaults", "-m", "16"]
    )
    try:
        told = f"process {qemu.pid} (qemu-system-x86) of user 0 is in "
        wait_for(
            lambda: f"WARN ({told}" in run(*COMMAND, "validate", check=False), "validate to tell"
        )
    finally:
        qemu.kill()
        qemu.wait()


# the host as VM parent


@pytest.mark.parametrize("layout", ["/user/0/$NAME", "/system/getty/$NAME"])
def test_the_hosts_own_work_is_not_put_under_the_limits(layout: str) -> None:
    configure(fenced(layout, memory=False))
    message = not_started("web")
    assert "it holds the host's own work" in message
    assert 'cgroup_layout = "/vms/$NAME"' in message


def test_a_partition_with_the_hosts_own_work_is_refused() -> None:
    configure(fenced("native", memory=False))
    message = not_started("web", extra="<resource><partition>/system</partition></resource>")
    assert "it holds the host's own work" in message
    assert "--no-partition" in message
    path = directory("cpuset", "/system.slice/cpuset.cpus")
    assert not path.exists() or path.read_text().strip() in ("", "0-7")


# the administrator's own limits


@contextmanager
def limited(*properties: str) -> Iterator[None]:
    OVERRIDE.parent.mkdir(exist_ok=True)
    OVERRIDE.write_text("\n".join(["[Slice]", *properties, ""]))
    run("systemctl", "daemon-reload")
    run("systemctl", "stop", "machine.slice")  # and so it is made anew
    run("systemctl", "start", "machine.slice")
    try:
        yield
    finally:
        OVERRIDE.unlink()
        run("systemctl", "daemon-reload")


def machine_limit() -> int:
    return int(value("memory", "/machine.slice", "memory.max", "memory.limit_in_bytes"))


def test_a_narrower_limit_of_the_administrators_stays() -> None:
    with limited(f"MemoryMax={LIMIT}"):
        assert machine_limit() == LIMIT
        configure(fenced("native"))
        web = start("web")
        assert (allowed(web), machine_limit()) == ({FENCE_CPUS}, LIMIT)
        run("systemctl", "daemon-reload")
        assert (allowed(running_vm("web")), machine_limit()) == ({FENCE_CPUS}, LIMIT)
        assert "the narrower limit stays" in findings()[FENCE]
        virt_cgroup("reserve", "--cpus", "none", "--memory", "none", "--live")
        assert machine_limit() == LIMIT


@pytest.mark.skipif(not V2, reason="systemd has no cpusets on cgroup v1")
def test_narrower_cpus_of_the_administrators_stay() -> None:
    with limited("AllowedCPUs=4-5"):
        configure(fenced("native", memory=False))
        assert allowed(start("web")) == {"4-5"}
        run("systemctl", "daemon-reload")
        assert allowed(running_vm("web")) == {"4-5"}
        assert "the narrower limit stays" in findings()[FENCE]
        virt_cgroup("reserve", "--cpus", "none", "--live")
        assert allowed(running_vm("web")) == {"4-5"}


@pytest.mark.skipif(not V2, reason="systemd has no cpusets on cgroup v1")
def test_a_wider_one_that_comes_back_at_the_next_reload_is_told() -> None:
    configure(fenced("native", memory=False))
    start("web")
    with limited("AllowedCPUs=0-7"):
        message = findings()[FENCE]
        assert message.startswith(f"FAIL {OVERRIDE} sets AllowedCPUs=0-7, which replaces")
