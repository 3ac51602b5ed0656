"""Trees of Debian packages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .errors import LabError
from .programs import program

BOOTSTRAP_TIMEOUT = 3600.0  # for a busy machine, too; a minute or two on an idle one
DPKG_OPTIONS = (
    "force-unsafe-io",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
)


def bootstrap(
    codename: str,
    packages: Sequence[str],
    tree: Path,
    variant: str = "minbase",
    apt_options: Sequence[str] = (),
) -> None:
    """Install PACKAGES of a release, and what they need, into a new TREE.

    VARIANT is mmdebstrap's: with "extract" they are unpacked and no more.
    """
    if os.geteuid() != 0:
        raise LabError("installing Debian packages into a folder needs root", "run it as root")
    options = [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
    options += [f"--aptopt={option}" for option in apt_options]
    program(
        [
            "mmdebstrap",
            f"--variant={variant}",
            "--mode=root",
            *options,
            f"--include={','.join(packages)}",
            codename,
            tree,
            *debian_mirror(),
        ],
        BOOTSTRAP_TIMEOUT,
    )


def debian_mirror() -> list[str]:
    """The mirror of this machine's own sources.

    None on a machine that has no Debian source: mmdebstrap knows one.
    """
    targets = [
        "apt-get",
        "indextargets",
        "--format",
        "$(ORIGIN) $(CODENAME) $(REPO_URI)",
        "Identifier: Packages",
    ]
    for line in program(targets, 60, capture=True).splitlines():
        origin, codename, uri = line.rsplit(" ", 2)
        if origin == "Debian" and codename.isalpha():  # not bookworm-security and the like
            return [uri]
    return []
