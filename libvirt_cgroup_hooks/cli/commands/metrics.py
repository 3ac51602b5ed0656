# SPDX-License-Identifier: LGPL-2.1-or-later
"""virt-cgroup metrics: what status tells, for Prometheus."""

from __future__ import annotations

import argparse
import io
import os
import stat
import sys
from typing import Any

from ...errors import Error, printable
from ...host import Host
from ..command import add as add_command
from ..look import look
from ..metrics import exposition, readings
from ..output import print_json


def add(commands: Any) -> None:
    add_command(
        commands,
        "metrics",
        run,
        "print metrics for Prometheus, or write them for node_exporter's textfile collector",
        "virt-cgroup metrics --output /var/lib/prometheus/node-exporter/libvirt-cgroup-hooks.prom",
    ).add_argument(
        "--output",
        metavar="FILE",
        help="write to FILE, which is replaced as a whole, or stays as it is if there is an error",
    )


def run(arguments: argparse.Namespace, host: Host) -> int:
    if arguments.output is not None and arguments.json:
        raise Error("Options --output and --json are mutually exclusive")
    samples = readings.read(*look(host))
    if arguments.json:
        print_json(exposition.as_json(samples))
    elif arguments.output is not None:
        _write(arguments.output, exposition.text(samples))
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # the format's, whatever the terminal's
        print(exposition.text(samples), end="")
    return 0


def _write(path: str, text: str) -> None:
    """A reader sees the old or the new text, never a part.

    The folder may be another user's, such as node_exporter's own: no symbolic link is followed, and
    what is in the way of the temporary file is removed.
    """
    folder, name = os.path.split(path)
    # not *.prom, so node_exporter leaves it alone
    temporary = os.path.join(folder, f".{name}.{os.getpid()}")
    try:
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            raise Error(f"cannot write {printable(path)}: it is not a regular file", "name another")
        _remove(temporary)
        try:
            _create(temporary, text)
            os.rename(temporary, path)
        except OSError:
            _remove(temporary)
            raise
    except OSError as error:
        hint = "name a file in a directory that is there and that you may write to"
        raise Error(f"cannot write {printable(path)}: {error.strerror}", hint) from None


def _create(path: str, text: str) -> None:
    """A new file that everyone may read, whatever the umask."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        print(text, end="", file=file)
        os.fchmod(file.fileno(), 0o644)


def _remove(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)
