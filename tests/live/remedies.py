"""The remedies that virt-cgroup validate prints, carried out as they are written."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from libvirt_cgroup_hooks.cli.checks.codes import NOTE

from .harness import Vm
from .pace import patient

COMMAND = "/usr/bin/python3 -I -m libvirt_cgroup_hooks"
PROGRAMS = "virt-cgroup|virsh|chmod|echo|mount -o|rm|rmdir|systemctl"
# a command ends where the sentence goes on
TYPED = re.compile(rf"(?:^|\s|\()((?:{PROGRAMS})\s.*?)(?=\)|[,;.]\s|\.?$)")


def nothing() -> None:
    pass


class Case(NamedTuple):
    """CODE is found once FAULT is made beside the VM web. BY_HAND is what the remedy says in words,
    before the commands in it are run.

    CONFIG and XML are those of the module where they are "".
    """

    code: str
    fault: Callable[[], object]
    config: str = ""
    xml: str = ""
    by_hand: Callable[[], object] = nothing
    name: str = ""

    def __str__(self) -> str:
        return f"{self.code}-{self.name}" if self.name else self.code


def assert_the_remedy_helps(case: Case, vm: Vm, folder: Path) -> None:
    """And so does that of what it brings to light, which is more than a note."""
    before = set(found())
    case.fault()
    runs = vm.alive()
    told = found()[case.code]
    case.by_hand()
    carry_out(told, folder)
    assert case.code not in found(), told
    for row in new_since(before):
        carry_out(row, folder)
    assert not new_since(before), told
    assert vm.alive() == runs


def found() -> dict[str, dict[str, str]]:
    """What `validate` tells, by code; of several with one code the first."""
    done = shell(f"{COMMAND} validate --json -q", check=False)
    assert done.stderr == ""
    return {row["code"]: row for row in reversed(json.loads(done.stdout))}


def new_since(before: set[str]) -> list[dict[str, str]]:
    return [row for code, row in found().items() if code not in before and row["result"] != NOTE]


def commands(row: dict[str, str]) -> list[str]:
    """Those in the remedy of ROW.

    "Run A, or B": each is enough, so A is run. "Run A, then B": both are.
    """
    text = row["remedy"] or ""
    typed: list[str] = TYPED.findall(text.partition(", or ")[0]) or TYPED.findall(text)[:1]
    return typed


def shell(command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """As an administrator types it."""
    done = subprocess.run(
        ["sh", "-ec", command],
        check=False,
        capture_output=True,
        text=True,
        timeout=patient(),
    )
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


def runs(command: str) -> Callable[[], object]:
    return lambda: shell(command)


def carry_out(row: dict[str, str], folder: Path) -> None:
    """With the virt-cgroup of this tree on the PATH, from FOLDER."""
    typed = commands(row)
    program = folder / "virt-cgroup"
    program.write_text(f'#!/bin/sh\nexec {COMMAND} "$@"\n')
    program.chmod(0o755)
    for command in typed:
        shell(f"PATH={folder}:{os.environ['PATH']}; {command}")
