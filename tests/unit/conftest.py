"""Unit tests read recorded hosts and touch nothing else."""

from __future__ import annotations

import os
import posix
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from libvirt_cgroup_hooks.cli import main

from .support.operations import CONF

REAL = ("/dev/cgroup", "/etc/", "/proc/", "/run/", "/sys/", "/var/run/")
FILE_EVENTS = frozenset(
    "open os.chmod os.listdir os.mkdir os.remove os.rename os.rmdir os.scandir".split()
)
PROGRAM_EVENTS = frozenset(
    "os.exec os.fork os.forkpty os.posix_spawn os.system subprocess.Popen".split()
)
Command = Callable[..., tuple[int, str, str]]
DECLARED = "runs_programs: the test may start programs"


class Ban:
    """An audit hook can never be removed again; it forbids only while a unit test runs."""

    active = False
    programs = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in FILE_EVENTS and self.path(arguments[0]).startswith(REAL):
            self.fail(f"{event} {arguments[0]!r}")
        if event in PROGRAM_EVENTS and not self.programs:
            self.fail(f"{event} {arguments[0]!r}" if arguments else event)
        if (event == "import" and arguments[0] == "libvirt") or event.startswith("syslog."):
            self.fail(f"{event} {arguments[0]!r}")

    @staticmethod
    def path(value: object) -> str:
        """A descriptor has none."""
        return f"{os.fsdecode(value)}/" if isinstance(value, (str, bytes, os.PathLike)) else ""

    def fail(self, what: str) -> None:
        self.active = False  # else the report of the failure would fail too
        pytest.fail(f"a unit test touches the real host: {what}", pytrace=True)


BAN = Ban()
sys.addaudithook(BAN)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", DECLARED)


@pytest.fixture(autouse=True)
def nothing_real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file below /sys, /proc, /run or /etc, no program, no libvirt, no syslog, no thread's
    affinity.
    """

    def no_affinity(*arguments: object) -> None:
        pytest.fail(f"a unit test sets the affinity of a real thread: {arguments}")

    for module in (os, posix):
        monkeypatch.setattr(module, "sched_setaffinity", no_affinity)
    BAN.programs = request.node.get_closest_marker("runs_programs") is not None
    BAN.active = True
    yield
    BAN.active = False


# what a test module calls HOST, by the usual configuration


@pytest.fixture
def v1(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return request.module.HOST(tmp_path, "v1", CONF)


@pytest.fixture
def v2(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return request.module.HOST(tmp_path, "v2", CONF)


@pytest.fixture(params=["v1", "v2"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return request.module.HOST(tmp_path, request.param, CONF)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The exit status, standard output and standard error of virt-cgroup on 80 columns; no
    traceback in either.
    """
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return status, out, err

    return call
