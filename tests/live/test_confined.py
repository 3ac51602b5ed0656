"""Where nobody owns cgroups, the host's own work keeps to its CPUs while VMs run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import (
    ALL_CPUS,
    VM_CPUS,
    cgroup_directory,
    destroy_vm,
    domain_xml,
    running_vm,
    start_vm,
    status_value,
    virsh,
)

CONF = """\
reserved_host_cpus = "0"
cgroup_layout = "{}"
confine_host = "running"
host_units = ["services", "not-there"]
"""


@pytest.fixture
def service() -> Iterator[int]:
    """The id of a process in a cgroup at the top, where host_units names it."""
    top = cgroup_directory("cpuset")
    if not (top / "cgroup.controllers").exists():
        pytest.skip("cpusets are on cgroup v1 here, where nothing is confined")
    directory = top / "services"
    directory.mkdir()
    process = subprocess.Popen(["sleep", "infinity"])
    (directory / "cgroup.procs").write_text(str(process.pid))
    yield process.pid
    process.kill()
    process.wait()
    directory.rmdir()


def cpus(process: int) -> str:
    return status_value(Path(f"/proc/{process}/status").read_text(), "Cpus_allowed_list")


@pytest.mark.parametrize("layout", ["native", "/vms/$NAME"])
def test_from_the_first_vm_to_the_last(
    configure: Callable[[str | None], None], service: int, layout: str
) -> None:
    configure(CONF.format(layout))
    start_vm("web")
    assert cpus(service) == "0"
    start_vm("db")
    destroy_vm("web")
    assert cpus(service) == "0"
    assert {thread.cpus_allowed for thread in running_vm("db").threads().values()} == {VM_CPUS}
    destroy_vm("db")
    assert cpus(service) == ALL_CPUS
    assert not (cgroup_directory("cpuset") / "not-there").exists()


def test_v1_is_refused(configure: Callable[[str | None], None]) -> None:
    if (cgroup_directory("cpuset") / "cgroup.controllers").exists():
        pytest.skip("cpusets are on cgroup v2 here")
    configure(CONF.format("native"))
    virsh("define", "/dev/stdin", stdin=domain_xml("web"))
    refused = virsh("start", "web", check=False)
    assert refused.returncode
    assert "confine_host" in refused.stderr
    assert "cgroup v1" in refused.stderr
    virsh("undefine", "web")
