from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from .harness import LIVE, PRIVATE_HOST, Daemon, configure, end_all_vms, qemu_processes
from .pace import wait_for


@pytest.fixture(scope="session", autouse=True)
def private_host() -> None:
    if os.environ.get(PRIVATE_HOST) != "1":
        pytest.skip(
            "not on a private host; run: tools/private-host /usr/bin/python3 -m pytest tests/live"
        )


@pytest.fixture(scope="session")
def session_daemon(private_host: None) -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.stop()


@pytest.fixture(autouse=True)
def daemon(session_daemon: Daemon) -> Iterator[Daemon]:
    """The one libvirtd of all tests: running, with no VM and no configuration, before and after
    each.
    """
    session_daemon.mark()
    if not session_daemon.running:
        session_daemon.start()
    yield session_daemon
    LIVE.unlink(missing_ok=True)
    configure(None)
    clean_up(session_daemon)


def clean_up(daemon: Daemon) -> None:
    try:
        if not daemon.running:
            daemon.start()
        end_all_vms(daemon)
    except subprocess.TimeoutExpired:
        # a hook that hangs holds its VM's lock, and with it every listing
        daemon.kill()
        for pid in qemu_processes():
            os.kill(pid, signal.SIGKILL)
        raise
    wait_for(lambda: not qemu_processes(), "the VMs to end")


@pytest.fixture(name="configure")
def configure_fixture(daemon: Daemon) -> Callable[[str | None], None]:
    """configure(text) writes /etc/libvirt/cgroup-hooks.conf; it is absent again after the test."""
    return configure


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    daemon = getattr(item, "funcargs", {}).get("daemon")
    if report.failed and isinstance(daemon, Daemon):
        report.sections.append(("libvirtd", daemon.messages()))
