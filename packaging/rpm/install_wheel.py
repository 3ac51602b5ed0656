# SPDX-License-Identifier: LGPL-2.1-or-later
"""Unpacks a wheel as upstream Python lays out /usr: usage: install_wheel.py WHEEL ROOT. Debian's
pip has another layout.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from installer import install
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile


def main(wheel: str, root: str) -> None:
    scheme = sysconfig.get_paths("posix_prefix", {"base": "/usr", "platbase": "/usr"})
    destination = SchemeDictionaryDestination(scheme, "/usr/bin/python3", "posix", destdir=root)
    with WheelFile.open(Path(wheel)) as source:
        install(source, destination, {"INSTALLER": b"rpm\n"})


main(*sys.argv[1:])
