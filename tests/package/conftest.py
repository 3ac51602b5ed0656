"""The packages of the last commit, built once, and copies of this machine to install them on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .machine import Machine

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, check: bool = True) -> str:
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=600
    )
    assert not check or result.returncode == 0, (
        f"{' '.join(map(str, command))}: {result.stdout}{result.stderr}"
    )
    return result.stdout + result.stderr


def package(kind: str, revision: int = 1) -> list[Path]:
    return [
        ROOT / line
        for line in run("tools/package", kind, str(revision)).splitlines()
        if line.startswith("dist/")
    ]


@pytest.fixture(scope="session")
def deb() -> Path:
    return package("deb")[0]


@pytest.fixture(scope="session")
def rpms() -> dict[str, Path]:
    """By name, of the first revision and of the "next"."""
    first, selinux = package("rpm")
    newer = package("rpm", 2)[0]
    return {"first": first, "selinux": selinux, "next": newer}


@pytest.fixture(scope="session")
def wheel() -> Path:
    return package("wheel")[0]


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manual pages, completion and lens."""
    folder = tmp_path_factory.mktemp("generated")
    run("/usr/bin/python3", "packaging/generate/generate.py", folder)
    return folder


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of Debian's promtool and node_exporter, which are not installed: their packages
    start daemons.
    """
    folder = tmp_path_factory.mktemp("prometheus")
    download = "apt-get -qq download prometheus prometheus-node-exporter"
    run("sh", "-c", f"cd {folder} && ({download} || (apt-get -qq update && {download}))")
    for deb in folder.glob("*.deb"):
        run("dpkg-deb", "-x", deb, folder)
    return folder / "usr/bin"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path) as found:
        yield found
