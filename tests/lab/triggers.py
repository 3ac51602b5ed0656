"""What udev and systemd start when CPUs, memory or threads of VMs come and go, as the packages
install it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..live.pace import wait_for
from .host import SYSTEMD, run

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
UNITS = Path("/etc/systemd/system")
APPLY = "libvirt-cgroup-hooks-apply.service"
CHANGED = "libvirt-cgroup-hooks-changed.service"
THREADS = "libvirt-cgroup-hooks-threads.path"
RULES = Path("/etc/udev/rules.d/90-libvirt-cgroup-hooks.rules")
PROGRAM = Path("/usr/lib/udev/libvirt-cgroup-hooks")
IN_TIME = 2.0  # seconds on an idle machine, from the change to its effect


@contextmanager
def installed() -> Iterator[None]:
    """The units and the rule. What looks at VMs is off, as after an installation."""
    if SYSTEMD:
        for unit in (APPLY, CHANGED, THREADS):
            shutil.copyfile(PACKAGING / unit, UNITS / unit)
        run("systemctl", "daemon-reload")
        run("systemctl", "enable", "--now", APPLY)
    shutil.copy(PACKAGING / "udev" / PROGRAM.name, PROGRAM)
    shutil.copyfile(PACKAGING / "udev" / RULES.name, RULES)
    run("udevadm", "control", "--reload")
    try:
        yield
    finally:
        RULES.unlink()
        PROGRAM.unlink()
        run("udevadm", "control", "--reload")
        if SYSTEMD:
            run("systemctl", "disable", "--now", THREADS, APPLY, check=False)
            wait_for(lambda: state(CHANGED)["ActiveState"] == "inactive", "what has been started")
            for unit in (APPLY, CHANGED, THREADS):
                (UNITS / unit).unlink()
            run("systemctl", "daemon-reload")
        else:
            wait_for(lambda: not run("pgrep", "-f", str(PROGRAM), check=False), "udev's program")


def state(unit: str) -> dict[str, str]:
    """The properties of UNIT."""
    lines = run("systemctl", "show", unit).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def shown(unit: str) -> list[str]:
    """What the journal has of UNIT."""
    return run("journalctl", "--no-pager", "-o", "cat", "-u", unit, check=False).splitlines()


def in_time(what: str, wanted: object, found: Callable[[], object]) -> None:
    """FOUND comes to return WANTED. On a host with nothing else to do that takes IN_TIME at most;
    how long it took here is printed, and is no verdict: the host may have become slower since its
    slowness was measured.
    """
    begin = time.monotonic()
    try:
        wait_for(lambda: found() == wanted, what)
    except AssertionError:
        pytest.fail(f"{what}: {found()} and not {wanted} after {time.monotonic() - begin:.1f} s")
    print(f"{what}: {time.monotonic() - begin:.2f} s")
