"""Whatever a VM's XML, a layout or the administrator's own limits say: no VM leaves the fence, and
the host's own work is not put under it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.leave import leave

from ..live.harness import Vm, running_vm, virsh
from .drift import Shown, findings, not_started
from .host import FENCE_CPUS, V2, configure, directory, fenced, run, start, value, virt_cgroup, xml

ELSEWHERE = "<resource><partition>/virtualmachines/production</partition></resource>"
FENCE = "the limits of the VM parent"
OVERRIDE = Path("/etc/systemd/system/machine.slice.d/override.conf")
LIMIT = 700 << 20
pytestmark = pytest.mark.thorough


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    """Limits of other slices than the VM parent would be those of later tests, too."""
    yield
    leave(Host())


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


# a controller on v1 beside v2


@pytest.mark.skipif(not V2, reason="cgroup v1 is not beside v2 here")
@pytest.mark.parametrize("layout", ["native", "/vms/$NAME"])
def test_net_cls_is_mounted(layout: str) -> None:
    """As VPN daemons do."""
    mount = Path("/run/net_cls")
    mount.mkdir(exist_ok=True)
    run("mount", "-t", "cgroup", "-o", "net_cls", "net_cls", str(mount))
    try:
        configure(fenced(layout))
        assert allowed(start("web")) == {FENCE_CPUS}
        assert Shown().parent["cpus"] == FENCE_CPUS
        assert findings() == {}
    finally:
        virsh("destroy", "web", check=False)
        run("umount", str(mount))


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
def test_a_wider_one_that_comes_back_at_the_next_reload_is_told() -> None:
    configure(fenced("native", memory=False))
    start("web")
    with limited("AllowedCPUs=0-7"):
        message = findings()[FENCE]
        assert message.startswith(f"FAIL {OVERRIDE} sets AllowedCPUs=CPUs 0-7, which replaces")
