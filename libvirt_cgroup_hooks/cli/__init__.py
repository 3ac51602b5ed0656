# SPDX-License-Identifier: LGPL-2.1-or-later
"""virt-cgroup: one module a command, each with `add(commands)`; this one finds it, runs it and
tells its errors.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .. import __version__
from ..errors import Error, printable
from ..host import Host

Command = Callable[[argparse.Namespace, Host], int]


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 with "error: ..." on standard error; 2 where the command line is
    wrong.
    """
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a VM's name may have what the terminal's charset has not
    try:
        status: int = arguments.run(arguments, Host(getattr(arguments, "root", "/")))
        sys.stdout.flush()
        return status
    except Error as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except (
        BrokenPipeError
    ):  # the reader has enough; what is left unwritten must not be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    from . import apply, domain, hook, host, plan, reserve, status, validate
    from . import map as map_command

    parser = argparse.ArgumentParser(
        prog="virt-cgroup", description="What the host keeps for itself, and where its VMs are."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_root(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (status, map_command, validate, reserve, apply, domain, plan, host, hook):
        module.add(commands)
    return parser


def add(
    commands: Any, name: str, run: Command, summary: str, example: str
) -> argparse.ArgumentParser:
    """A command's own parser, with the options that all commands have. RUN gets the arguments and
    the host.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_root(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="read the host's files (proc, sys, etc, run) below DIR: a copy of another host",
    )
