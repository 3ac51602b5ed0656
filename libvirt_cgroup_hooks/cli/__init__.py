# SPDX-License-Identifier: LGPL-2.1-or-later
"""virt-cgroup: finds the command, runs it and tells its errors."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..errors import Error, printable
from ..host import Host
from ..settings import UNITS
from .command import add_root

COMMANDS = (
    "status",
    "map",
    "validate",
    "recommend",
    "reserve",
    "apply",
    "domain",
    "plan",
    "host",
    "metrics",
    "hook",
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0; 1 with "error: ..." on standard error; 2 for a wrong command line."""
    words = sys.argv[1:] if argv is None else argv
    made = parser(words[0] if words else None)  # what the others import costs more than most do
    arguments, rest = made.parse_known_args(words)
    if rest:
        quoted = "; put a size with a space in quotes: '4 GiB'" if rest[0] in UNITS else ""
        made.error(f"unrecognized arguments: {printable(' '.join(rest))}{quoted}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a VM's name may have what the terminal's charset has not
        sys.stdout.reconfigure(errors="backslashreplace")
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
    except BrokenPipeError:
        # the reader has enough; what is left unwritten must not be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line of COMMAND alone, or else of all, from which the manual and the completion
    are made, too.
    """
    made = argparse.ArgumentParser(
        prog="virt-cgroup", description="What the host keeps for itself, and where its VMs are."
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add_root(made)
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    names = [name for name in COMMANDS if name == command] or COMMANDS
    for name in names:
        import_module(f"{__name__}.commands.{name}").add(commands)
    return made
