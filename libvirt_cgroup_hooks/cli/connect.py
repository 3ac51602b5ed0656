# SPDX-License-Identifier: LGPL-2.1-or-later
"""The connection to libvirt, and its errors as ours; VMs are found as virsh finds them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..domain import UUID_LENGTH
from ..errors import Error, printable

DEFAULT_URI = "qemu:///system"

T = TypeVar("T")


def add_connect(parser: argparse.ArgumentParser) -> None:
    """Adds `--connect`, for the commands that ask libvirt."""
    parser.add_argument(
        "-c",
        "--connect",
        metavar="URI",
        help=f"the libvirt to ask; default $LIBVIRT_DEFAULT_URI, then {DEFAULT_URI}",
    )


@contextmanager
def connection(uri: str | None, read_only: bool = False) -> Iterator[Any]:
    """An open `virConnect`. Raises Error."""
    libvirt = binding()
    libvirt.registerErrorHandler(_ignore, None)  # the binding's own prints what is raised as well
    wanted = uri or os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI
    opened = asked(
        f"connect to libvirt at {printable(wanted)}",
        libvirt.openReadOnly if read_only else libvirt.open,
        wanted,
    )
    try:
        yield opened
    finally:
        opened.close()


def asked(attempt: str, call: Callable[..., T], *arguments: object) -> T:
    """What CALL answers; where libvirt refuses, Error with ATTEMPT and libvirt's own words."""
    try:
        return call(*arguments)
    except binding().libvirtError as error:
        raise Error(f"cannot {attempt}", error.get_error_message() or str(error)) from None
    except UnicodeError:  # of arguments that are no UTF-8
        raise Error(f"cannot {attempt}", "libvirt accepts UTF-8 only") from None


def find_domain(connection: Any, wanted: str) -> Any:
    """The `virDomain` with that id, UUID or name, which are tried in this order as in virsh. Raises
    Error.
    """
    libvirt = binding()
    if wanted.isascii() and wanted.isdigit() and int(wanted) < 1 << 31:
        try:
            return connection.lookupByID(int(wanted))
        except libvirt.libvirtError:
            pass
    if len(wanted) == UUID_LENGTH:
        try:
            return connection.lookupByUUIDString(wanted)
        except (libvirt.libvirtError, UnicodeError):
            pass
    return asked(f"find VM '{printable(wanted)}'", connection.lookupByName, wanted)


def binding() -> Any:
    """The `libvirt` module. Raises Error where it is not installed."""
    try:
        import libvirt
    except ImportError:
        raise Error(
            "cannot ask libvirt: its Python binding is not installed", "install python3-libvirt"
        ) from None
    return libvirt


def _ignore(*_: object) -> None:
    pass
