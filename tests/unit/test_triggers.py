"""What udev and systemd run when something has changed is there, and the same everywhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from libvirt_cgroup_hooks.cli import parser

PACKAGING = Path(__file__).parents[2] / "packaging"
NAME = "libvirt-cgroup-hooks"


def text(name: str) -> str:
    return (PACKAGING / name).read_text(encoding="utf-8")


def test_with_and_without_systemd_the_command_is_the_same() -> None:
    commands = [
        re.findall(r"/usr/bin/python3 -I -m libvirt_cgroup_hooks ([\w -]+)", text(name))
        for name in (f"{NAME}-apply.service", f"udev/{NAME}")
    ]
    assert [[command.partition(" 2")[0].strip() for command in found] for found in commands] == [
        ["apply --all --quiet"]
    ] * 2
    arguments = parser().parse_args(shlex.split(commands[0][0]))
    assert (arguments.all, arguments.quiet) == (True, True)


def test_each_starts_the_next() -> None:
    """As the packages name them."""
    rules = text(f"udev/90-{NAME}.rules")
    assert re.findall(r'RUN\+="([^"]*)"', rules) == [
        f"/bin/systemctl --no-block start {NAME}-changed.service",
        NAME,
    ]
    assert f"Unit={NAME}-changed.service" in text(f"{NAME}-threads.path")
    changed = text(f"{NAME}-changed.service").splitlines()
    assert (
        f"ExecStart=/bin/systemctl --no-block try-reload-or-restart {NAME}-apply.service" in changed
    )
    assert "StartLimitIntervalSec=0" in changed
    assert f"After={NAME}-changed.service" in text(f"{NAME}-apply.service")
