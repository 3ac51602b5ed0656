"""What fails on a whole host: its bus, its systemd, its /run; and the hook by itself."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..live.harness import LAB_FACTS
from ..live.pace import patient
from .host import HOOK, run

SYSTEMCTL = Path("/bin/systemctl").resolve()
CHOSEN = 5


def some_of(calls: list[tuple[str, int]], what: str) -> list[tuple[str, int]]:
    """A VM takes some seconds on a lab host, so a few of the CALLS at WHAT are drawn, others on
    each host; tests/live has them all.
    """
    drawn = random.Random(f"{LAB_FACTS.read_text()} {what}")
    return drawn.sample(calls, min(CHOSEN, len(calls)))


def call_hook(name: str, operation: str, given: str) -> subprocess.CompletedProcess[str]:
    """As libvirtd does. It has to end by itself, and long before what hangs."""
    return subprocess.run(
        [str(HOOK), name, operation, "begin", "-"],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(),
    )


@contextmanager
def stopped_bus() -> Iterator[None]:
    pid = run("systemctl", "show", "-P", "MainPID", "dbus.service").strip()
    run("kill", "-STOP", pid)
    try:
        yield
    finally:
        run("kill", "-CONT", pid)


@contextmanager
def systemctl_that(folder: Path, does: str) -> Iterator[None]:
    """A shell script that DOES this instead of systemctl, kept in FOLDER."""
    script = folder / "systemctl"
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o755)
    run("mount", "--bind", str(script), str(SYSTEMCTL))
    try:
        yield
    finally:
        run("umount", str(SYSTEMCTL))


@contextmanager
def read_only_run() -> Iterator[None]:
    """For everybody. /run itself has files open for writing, so this is a second mount of it."""
    run("mount", "--bind", "/run", "/run")
    run("mount", "-o", "remount,bind,ro", "/run")
    try:
        yield
    finally:
        run("umount", "--lazy", "/run")
