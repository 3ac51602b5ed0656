"""A VM parent that holds, or will hold, more than VMs."""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cli.checks.host import beside_vms
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.domainxml import SETTINGS_URI
from libvirt_cgroup_hooks.errors import MIB, Error
from libvirt_cgroup_hooks.state import Remembered

from .support import reserving
from .support.hosts import PID, Kernel
from .support.machined import Machined
from .support.operations import CG, do, vm
from .support.reserving import KINDS

CONF = "reserved_host_cpus = '0'\ncgroup_layout = '{}'\n"
GIB = 1024 * MIB
OTHER = PID + 900


@pytest.fixture(params=KINDS)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Kernel:
    return reserving.made(tmp_path, str(request.param), "")


def runs(host: Kernel, path: str, comm: str, pid: int = OTHER) -> None:
    """A process in the cgroup PATH of every hierarchy."""
    for hierarchy in host.hierarchies:
        for directory in hierarchy.directories(path):
            host.make_directory(directory)
    host.start_thread(pid, pid, comm, {one.key: path for one in host.hierarchies})


def unit(host: Kernel, name: str) -> str:
    """The cgroup that the layout /NAME/... has for its parent."""
    return f"/{name}.slice" if isinstance(host, Machined) else f"/{name}"


@pytest.mark.parametrize("below", ["", "/cron.service", "/a/b"])
def test_one_with_the_hosts_own_work_is_refused(host: Kernel, below: str) -> None:
    runs(host, unit(host, "services") + below, "cron")
    host.configure(CONF.format("/services/$NAME"))
    with pytest.raises(Error) as error:
        do(host, "prepare", vm())
    place = unit(host, "services")
    assert f"cannot limit {place} as a parent of VMs: it holds the host's own work" in str(
        error.value
    )
    assert f"({place}{below})" in str(error.value)
    assert 'cgroup_layout = "/vms/$NAME"' in str(error.value)


def test_one_with_vms_is_not(host: Kernel) -> None:
    """They may have started before, and what was remembered may be lost."""
    runs(host, unit(host, "vms") + "/qemu-web", "qemu-system-x86")
    runs(host, unit(host, "vms") + "/machine-qemu\\x2d1\\x2dweb.scope", "swtpm", OTHER + 1)
    host.configure(CONF.format("/vms/$NAME"))
    do(host, "prepare", vm())


def test_containers_may_be_where_libvirt_puts_vms(host: Kernel) -> None:
    runs(host, unit(host, "machine") + "/libpod-0123.scope/container", "postgres")
    host.configure(CONF.format("native"))
    do(host, "prepare", vm())


def test_a_partition_with_the_hosts_own_work_is_refused(host: Kernel) -> None:
    top = "/system.slice" if isinstance(host, Machined) else "/system"
    runs(host, f"{top}/sshd.service", "sshd")
    host.configure(CONF.format("native"))
    with pytest.raises(Error, match=r"holds the host's own work.*--no-partition"):
        do(host, "prepare", vm(inner="<resource><partition>/system</partition></resource>"))


def test_a_layout_of_its_own_with_the_hosts_own_work_is_refused(host: Kernel) -> None:
    runs(host, unit(host, "services"), "cron")
    host.configure("reserved_host_cpus = '0'\n")
    own = "<s:layout>/services/$NAME</s:layout>"
    metadata = f"<metadata><s:settings xmlns:s='{SETTINGS_URI}'>{own}</s:settings></metadata>"
    with pytest.raises(Error) as error:
        do(host, "prepare", vm(inner=metadata))
    remedy = "virt-cgroup domain vm --unset layout --config"
    assert error.value.hint == f"that is the VM's own layout, so remove it: {remedy}"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "systemd" in kind])
@pytest.mark.parametrize(
    ("layout", "what"),
    [
        ("/user/0/$NAME", "the sessions of user 0"),
        ("/user/1000/vms/$NAME", "the sessions of user 1000"),
        ("/system/getty/$NAME", "getty@.service"),
        ("/system/serial-getty/$NAME", "serial-getty@.service"),
        ("/system/qemu/$NAME", None),
        ("/users/0/$NAME", None),
    ],
)
def test_what_systemd_will_put_there(
    tmp_path: Path, kind: str, layout: str, what: str | None
) -> None:
    host = reserving.made(tmp_path, kind, CONF.format(layout))
    for template in ("getty", "serial-getty"):
        host.put(f"/usr/lib/systemd/system/{template}@.service", "[Service]")
    if what is None:
        do(host, "prepare", vm())
        return
    with pytest.raises(Error) as error:
        do(host, "prepare", vm())
    assert f"({what})" in str(error.value)


def test_nothing_is_asked_again(host: Kernel) -> None:
    """A VM parent that has its limits keeps them; what else comes is told by validate."""
    host.configure(CONF.format("/vms/$NAME"))
    do(host, "prepare", vm())
    runs(host, unit(host, "vms") + "/other", "cron")
    do(host, "prepare", vm("second", uuid="0" * 8 + vm().uuid[8:]))


def test_what_else_is_in_it_is_told(host: Kernel) -> None:
    runs(host, unit(host, "machine") + "/libpod-0123.scope/container", "postgres")
    runs(host, unit(host, "machine") + "/machine-qemu\\x2d1\\x2dweb.scope", "swtpm", OTHER + 1)
    host.configure(CONF.format("native"))
    (problem,) = beside_vms(Subject(host))
    place = unit(host, "machine")
    assert problem.message == f"the limits of the VMs also apply to {place}/libpod-0123.scope"
    host.configure(CONF.format("/vms/$NAME"))
    assert list(beside_vms(Subject(host))) == []


def test_a_container_does_not_keep_the_fence_of_an_earlier_layout(host: Kernel) -> None:
    """It may be where libvirt puts VMs, too; they are elsewhere by now."""
    host.configure(CONF.format("/vms/$NAME"))
    do(host, "prepare", vm())
    place = unit(host, "vms")
    runs(host, f"{place}/libpod-0123.scope/container", "postgres")
    do(host, "release", vm())
    host.configure(CONF.format("/guests/$NAME"))
    do(host, "prepare", vm())
    paths = [path for _, path in Remembered(host).before]
    assert unit(host, "guests") in paths
    assert place not in paths


@pytest.mark.parametrize("reserved", ["400 MiB", "1 GiB"])
def test_what_uses_the_memory_is_named(tmp_path: Path, reserved: str) -> None:
    host = reserving.made(tmp_path, "systemd-v2", f"reserved_host_mem = '{reserved}'\n")
    below = {"libpod-0123.scope": 6 * GIB, "machine-build.scope": GIB + 900 * MIB, "empty.scope": 0}
    host.make_directory(f"{CG}/machine.slice")
    host.put(f"{CG}/machine.slice/memory.current", str(sum(below.values())))
    for name, used in below.items():
        host.make_directory(f"{CG}/machine.slice/{name}")
        host.put(f"{CG}/machine.slice/{name}/memory.current", str(used))
    with pytest.raises(Error, match=r"\(6 GiB by libpod-0123.scope, 1.9 GiB by machine-build"):
        do(host, "prepare", vm())
