# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes what is made from the settings table and the commands' own help: manual pages, completion,
augeas lens.

usage: python3 packaging/generate/generate.py DIRECTORY     from the source tree, when a package is
built
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["COLUMNS"] = "80"  # argparse asks for the terminal's width

import completion
import lens
import manual

from libvirt_cgroup_hooks import __version__, settings
from libvirt_cgroup_hooks.cli import parser


def files() -> dict[str, str]:
    date = time.strftime(
        "%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    )
    return {
        "man/virt-cgroup.8": manual.program(parser(), date, __version__),
        "man/cgroup-hooks.conf.5": manual.configuration(settings.TABLE, date, __version__),
        "completions/virt-cgroup": completion.bash(parser()),
        "completions/_virt-cgroup": completion.zsh(parser()),
        "lenses/libvirt_cgroup_hooks.aug": lens.lens(settings.TABLE),
        "lenses/tests/test_libvirt_cgroup_hooks.aug": lens.test(settings.TABLE, settings.sample()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="generate", description="Make manual pages, completion and augeas lens."
    )
    parser.add_argument("directory", type=Path, help="where to; made if missing")
    directory: Path = parser.parse_args().directory
    for name, text in files().items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")


main()
