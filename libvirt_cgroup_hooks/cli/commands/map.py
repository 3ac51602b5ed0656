# SPDX-License-Identifier: LGPL-2.1-or-later
"""virt-cgroup map: a picture of the host, its NUMA nodes, cores and CPUs, where the threads of VMs
run on them, and whose its memory is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ... import snapshot
from ...errors import Error, printable
from ...host import Host
from ..command import add as add_command
from ..map import model, svg, text
from ..output import print_json, print_warnings


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "map",
        run,
        "draw the host: NUMA nodes, cores and CPUs, where VMs may run, and who has its memory",
        "virt-cgroup map; virt-cgroup map --svg host.svg",
    )
    parser.add_argument(
        "--svg", metavar="FILE", help="write the picture to FILE as SVG; - for standard output"
    )


def run(arguments: argparse.Namespace, host: Host) -> int:
    if arguments.svg is not None and arguments.json:
        raise Error("Options --svg and --json are mutually exclusive")
    warnings: list[str] = []
    unreadable: dict[str, Error] = {}
    found = model.read(host, snapshot.load(host, warnings), unreadable)
    print_warnings([*warnings, *map(str, unreadable.values())])
    if arguments.json:
        print_json(model.as_json(found))
    elif arguments.svg is not None:
        _write(arguments.svg, svg.draw(found))
    else:
        encoding = sys.stdout.encoding or "ascii"
        print(text.draw(found, shutil.get_terminal_size().columns, encoding, _colour()))
    return 0


def _colour() -> bool:
    """On a terminal that has colours, unless the user wants none (https://no-color.org)."""
    return (
        sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") not in (None, "", "dumb")
    )


def _write(path: str, picture: str) -> None:
    if path == "-":
        sys.stdout.write(picture)
        return
    try:
        target = _target(path)
        if target.exists() and not target.is_file():
            # a pipe or device, which must not be replaced
            target.write_text(picture, encoding="ascii")
        else:
            _replace(target, picture)
    except OSError as error:
        hint = "name a file in a directory that you may write to"
        raise Error(f"cannot write {printable(path)}: {error.strerror}", hint) from None


def _target(path: str) -> Path:
    """PATH, or where it leads: a symbolic link stays one. Another user's, in /tmp perhaps, may lead
    anywhere. Raises OSError.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(path)
    # asked afterwards: who swaps the link meanwhile still owns it
    is_led = target != os.path.join(os.path.realpath(folder), name)
    if is_led and os.path.lexists(path) and os.lstat(path).st_uid not in (0, os.geteuid()):
        raise PermissionError(1, "it is another user's symbolic link")
    return Path(target)


def _replace(target: Path, text: str) -> None:
    """A reader sees the old or the new text, never a part."""
    temporary = target.with_name(f".virt-cgroup-map.{os.getpid()}")
    file = temporary.open("x", encoding="ascii")
    try:
        with file:
            file.write(text)
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.rename(target)
    except OSError:
        temporary.unlink()
        raise
