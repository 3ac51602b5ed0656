"""Unit tests read recorded hosts and touch nothing else; the tests of the folders below have a real host of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
REAL = ("/dev/cgroup", "/etc/", "/proc/", "/run/", "/sys/", "/var/run/")
FILE_EVENTS = frozenset("open os.chmod os.listdir os.mkdir os.remove os.rename os.rmdir os.scandir".split())
PROGRAM_EVENTS = frozenset("os.exec os.fork os.forkpty os.posix_spawn os.system subprocess.Popen".split())
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
    """No file below /sys, /proc, /run or /etc, no program, no libvirt, no syslog, no thread's affinity."""
    if Path(str(request.module.__file__)).parent != HERE:  # request.path came with pytest 7
        yield
        return

    def no_affinity(*arguments: object) -> None:
        pytest.fail(f"a unit test sets the affinity of a real thread: {arguments}")

    monkeypatch.setattr(os, "sched_setaffinity", no_affinity)
    BAN.programs = request.node.get_closest_marker("runs_programs") is not None
    BAN.active = True
    yield
    BAN.active = False
