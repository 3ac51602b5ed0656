"""The hook, killed by the kernel as it enters its Nth system call of a kind; a stand-in for Python
does that, no code of ours.

libvirtd runs the installed hook, whose Python is strace here (`--inject`) with the real Python
below it.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .harness import STATE, destroy_vm

HOOK = Path("/etc/libvirt/hooks/qemu")
PYTHON = "/usr/bin/python3"
STAND_IN = HOOK.with_name("python-with-faults")  # /run may be mounted noexec
TRACE = Path("/run/python-with-faults.trace")
# Whatever changes something, or ends the run
CALLS = (
    "mkdir",
    "rmdir",
    "write",
    "rename",
    "unlink",
    "fsync",
    "flock",
    "sched_setaffinity",
    "utimensat",
    "bpf",
    "exit_group",
)


@contextlib.contextmanager
def traced(operation: str, options: str) -> Iterator[None]:
    """At OPERATION, the hook runs below strace with OPTIONS."""
    text = HOOK.read_text()
    assert f"\n{PYTHON} " in text
    STAND_IN.write_text(
        f'#!/bin/sh\n[ "$5" = {operation} ] && exec strace -qq {options} {PYTHON} "$@"\n'
        f'exec {PYTHON} "$@"\n'
    )
    STAND_IN.chmod(0o755)
    try:
        HOOK.write_text(text.replace(f"\n{PYTHON} ", f"\n{STAND_IN} "))
        yield
    finally:
        HOOK.write_text(text)
        STAND_IN.unlink()


@contextlib.contextmanager
def killed(operation: str, call: str, number: int) -> Iterator[None]:
    """At OPERATION, the hook is killed where it would make the system call CALL for the NUMBERth
    time.
    """
    with traced(
        operation, f"-o /dev/null -e trace={call} -e inject={call}:signal=KILL:when={number}"
    ):
        yield


@contextlib.contextmanager
def refused(operation: str, call: str, errno: str, when: str) -> Iterator[None]:
    """At OPERATION, the kernel refuses the system call CALL with ERRNO, WHEN (as strace: "3",
    "3+").
    """
    with traced(
        operation, f"-o {TRACE} -e trace={call} -e inject={call}:error={errno}:when={when}"
    ):
        yield


def calls_at(
    operation: str, begin: Callable[[], object], restart: Callable[[], object] | None = None
) -> list[tuple[str, int]]:
    """Each of CALLS that the hook makes at OPERATION in the life of the VM web, and the how many-th
    it is of its kind. BEGIN starts that VM; RESTART the daemon, for `reconnect`.
    """
    begin()  # what Python compiles once is compiled
    destroy_vm("web")
    TRACE.unlink(missing_ok=True)
    with traced(operation, f"-o {TRACE} -e trace={','.join(CALLS)}"):
        begin()
        if restart and operation == "reconnect":
            restart()
        destroy_vm("web")
    text = TRACE.read_text() if TRACE.exists() else ""
    found = collections.Counter(re.findall(r"^(\w+)\(", text, re.MULTILINE))
    assert found
    return [(call, number) for call, count in found.items() for number in range(1, count + 1)]


def age_records() -> None:
    """As if the VMs had begun to start an hour ago: what is younger may still be starting."""
    for path in (STATE / "vms").iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
