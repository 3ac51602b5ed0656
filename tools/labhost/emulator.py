"""The QEMU that lab hosts run in: Debian 13's, whatever this machine has.

QEMU before 8.1 can keep code that it translated a moment ago, while the guest's kernel patched it,
the more often the busier the machine is: that kernel then dies of "Oops: int3" (QEMU's commit
deba78709a, "Always lock pages before translation").
"""

from __future__ import annotations

from pathlib import Path

from .clock import progress
from .debian import bootstrap
from .programs import program
from .store import building_alone, lab_folder, made

KEY = "emulator-13"
CODENAME = "trixie"
PACKAGES = ("qemu-system-x86",)


def install() -> None:
    """Unpack it into the lab's folder, if it is not there."""
    if not (lab_folder() / KEY).is_dir():
        with building_alone():
            made(KEY, unpack)


def unpack(new: Path) -> None:
    progress(f"unpacking QEMU of {CODENAME}")
    bootstrap(CODENAME, PACKAGES, new / "root", variant="extract")


def command() -> list[str]:
    """How it begins, on any machine: with the C library that it was built for."""
    usr = lab_folder() / KEY / "root/usr"
    libraries = usr / "lib/x86_64-linux-gnu"
    return [
        f"{libraries}/ld-linux-x86-64.so.2",
        "--library-path",
        f"{libraries}",
        f"{usr}/bin/qemu-system-x86_64",
        "-L",
        f"{usr}/share/qemu",
        "-L",
        f"{usr}/share/seabios",
    ]


def version() -> str:
    return program([*command(), "--version"], 30, capture=True).splitlines()[0]
