# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every command of virt-cgroup has."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import virconf
from ..errors import Error, printable
from ..host import Host

Command = Callable[[argparse.Namespace, Host], int]


def add(
    commands: Any, name: str, run: Command, summary: str, example: str, root: bool = True
) -> argparse.ArgumentParser:
    """A command's own parser, with the options that all commands have. RUN gets the arguments and
    the host; ROOT: which may be a copy of one.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if root:
        add_root(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def given(path: str, limit: int, wanted: str) -> bytes:
    """What the file PATH has, whatever --root is, or standard input for "-": up to a byte more than
    LIMIT. WANTED says what it should be. Raises Error.
    """
    if path == "-":
        return sys.stdin.buffer.read(limit + 1)
    try:
        with Path(path).open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise Error(f"cannot read {printable(path)}: {error.strerror}", f"give {wanted}") from None


def given_configuration(path: str) -> str:
    """As `given`."""
    text = given(path, virconf.LIMIT * 4, "a file in the syntax of cgroup-hooks.conf")
    return text.decode("utf-8", "surrogateescape")


def add_root(parser: argparse.ArgumentParser) -> None:
    """Adds `--root`, for the commands that can tell of a copy of another host."""
    parser.add_argument(
        "--root",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="read the host's files (proc, sys, etc, run) below DIR: a copy of another host",
    )
