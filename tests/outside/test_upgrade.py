"""From the first version that there was a package of to this one and back, with VMs running."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from labhost.image import build, recipe

from .packaged import FENCED, TREE, Packaged, package, packed

FIRST = "06455ef"
NARROWER = "3-7"
pytestmark = pytest.mark.thorough


def git(*arguments: str | Path) -> None:
    subprocess.run(["git", *map(str, arguments)], cwd=TREE, check=True)


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """0.deb is the first version, 1.deb this one."""
    tree = tmp_path_factory.mktemp("first") / "tree"
    git("clone", "--quiet", "--no-checkout", TREE, tree)
    git("-C", tree, "checkout", "--quiet", FIRST)
    return packed({"0": package(tree, "0"), "1": package(TREE, "1")})


@pytest.fixture(params=["13", "12"])
def host(request: pytest.FixtureRequest, debs: bytes) -> Iterator[Packaged]:
    found = Packaged(build(recipe(request.param, "")))
    with found:
        found.push(debs, "/root/packages")
        yield found


@pytest.mark.parametrize("layout", ["native", "/vms/$NAME"])
def test_there_and_back(host: Packaged, layout: str) -> None:
    host.install("0")
    host.configure(layout)
    for name in ("web", "db"):
        host.start(name)
    before = {name: (host.pid(name), host.place(name)) for name in ("web", "db")}

    host.install("1")
    assert {name: (host.pid(name), host.place(name)) for name in ("web", "db")} == before
    assert cpus(host, "web", "db") == {FENCED}
    assert host.conforming() == {"web", "db"}
    host.start("later")
    assert cpus(host, "later") == {FENCED}
    host.check("virt-cgroup reserve --cpus 0-2 --live")
    assert cpus(host, "web", "db", "later") == {NARROWER}
    host.check("virsh destroy db")

    host.install("0")
    assert (host.pid("web"), host.place("web")) == before["web"]
    host.start("back")
    assert cpus(host, "web", "later", "back") <= {FENCED, NARROWER}

    host.install("1")
    host.check("virt-cgroup apply --all")
    assert host.conforming() == {"web", "later", "back"}
    for name in ("web", "later", "back"):
        host.check(f"virsh destroy {name}")
    host.apt("purge", "libvirt-cgroup-hooks")
    assert host.ours() == []
    assert host.property("AllowedCPUs", "machine.slice") == ""
    assert host.property("MemoryMax", "machine.slice") == "infinity"


def cpus(host: Packaged, *names: str) -> set[str]:
    return {host.cpus(name) for name in names}
