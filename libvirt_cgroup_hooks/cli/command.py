# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every command of virt-cgroup has."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

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


def add_root(parser: argparse.ArgumentParser) -> None:
    """Adds `--root`, for the commands that can tell of a copy of another host."""
    parser.add_argument(
        "--root",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="read the host's files (proc, sys, etc, run) below DIR: a copy of another host",
    )
