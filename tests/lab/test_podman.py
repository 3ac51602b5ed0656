"""Containers beside VMs: podman, too, puts what root runs into machine.slice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..live.harness import status_value, virsh
from .host import FENCE_CPUS, configure, fenced, run, start, status

BUSYBOX = Path("/bin/busybox")
ALL_CPUS = "0-7"


class Container:
    """Does nothing, for as long as it is let."""

    def __init__(self, root: Path) -> None:
        (root / "bin").mkdir(parents=True)
        shutil.copy(BUSYBOX, root / "bin/busybox")
        options = ("--detach", "--network", "none", "--rootfs", str(root))
        self.name = run("podman", "run", *options, "/bin/busybox", "sleep", "100000").strip()
        self.pid = run("podman", "inspect", "--format", "{{.State.Pid}}", self.name).strip()

    def cgroup(self) -> str:
        return Path(f"/proc/{self.pid}/cgroup").read_text().strip().rpartition(":")[2]

    def cpus(self) -> str:
        return status_value(Path(f"/proc/{self.pid}/status").read_text(), "Cpus_allowed_list")


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    if not shutil.which("podman"):
        pytest.skip("no podman here; run: tools/lab run 13 --variant podman tests/lab")
    found = Container(tmp_path / "root")
    yield found
    run("podman", "rm", "--force", "--time", "0", found.name)


def test_a_container_in_the_vm_parent_shares_the_fence(container: Container) -> None:
    configure(fenced("native"))
    assert container.cgroup().startswith("/machine.slice/libpod-")
    start("web")
    found = status()
    assert found["parent"]["path"] == "/machine.slice"
    assert [vm["name"] for vm in found["domains"]] == ["web"]
    assert found["domains"][0]["conforms"], found["domains"][0]["problems"]
    assert container.cpus() == FENCE_CPUS
    virsh("destroy", "web")
    assert container.cgroup().startswith("/machine.slice/libpod-")


def test_a_container_outside_the_vm_parent_is_left_alone(container: Container) -> None:
    configure(fenced("/vms/$NAME"))
    start("web")
    assert status()["domains"][0]["conforms"]
    assert container.cpus() == ALL_CPUS
    assert container.cgroup().startswith("/machine.slice/libpod-")
