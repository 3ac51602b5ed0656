# SPDX-License-Identifier: LGPL-2.1-or-later
"""Recipes for isolating CPUs that were left in other hooks, and set the CPUs of the same cgroups.
They are read, a little of each, and never run.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from itertools import islice

from ... import installation
from ...errors import printable
from ...host import Host
from ...kinds import CPUS, HOST_CPUS
from ...managers.base import Manager
from ...managers.units import unit_of
from .subject import Problem, Subject

FILES, DEPTH = 500, 5  # that are looked at; helpers keep a folder for each VM and moment
BYTES, COLUMNS = 64 * 1024, 1000  # of a file, and of a line
SHOWN = 10
# A shell takes no "then" without a command
REMEDY = "take that line out (a shell needs : in its place), then run virt-cgroup apply --parent"
WORD = re.compile(r"[\w.@:\\-]+")
CSET = re.compile(r"(?:^|[\s;&|(/'\"])cset\s+(?:set|shield|proc)\b")
WRITES = re.compile(r"(?:>\s*\S*|\btee\s.*|\bcgset\s.*)cpuset\.cpus(?![\w.])")


def left(subject: Subject) -> Iterator[Problem]:
    host, places = subject.host, _places(subject.manager())
    found = [
        (path, number, what)
        for path in islice(_executables(host, installation.hooks(host), DEPTH), FILES)
        for number, what in setting_cpus(_beginning(host, path), places)
    ]
    for path, number, what in found[:SHOWN]:
        text = f"{path}:{number} {what}, and so does the hook of this package"
        yield Problem("hook-recipe", text, REMEDY)
    if len(found) > SHOWN:
        yield Problem("hook-recipe", f"{len(found) - SHOWN} more lines do so")


def _places(manager: Manager) -> list[str]:
    """The cgroups whose CPUs are set here."""
    places = [] if manager.fence.cpus is None else manager.parents(CPUS, [])
    return places if manager.config.confine_host == "no" else places + manager.host_units(HOST_CPUS)


def _executables(host: Host, folder: str, depth: int) -> Iterator[str]:
    for name in host.names(folder):
        path = f"{folder}/{name}"
        try:
            mode = os.stat(host.root + path).st_mode
        except (OSError, ValueError):
            continue
        if stat.S_ISDIR(mode) and depth:
            yield from _executables(host, path, depth - 1)
        elif stat.S_ISREG(mode) and mode & 0o111:
            yield path


def _beginning(host: Host, path: str) -> str:
    try:
        with open(host.root + path, "rb") as file:
            return file.read(BYTES).decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def setting_cpus(text: str, places: list[str]) -> Iterator[tuple[int, str]]:
    """The lines of a script's TEXT that set CPUs of the cgroups PLACES: the number of each, and
    what it does.

    Where a line has variables, any of PLACES that TEXT names may be meant.
    """
    anywhere = _named(text, places)
    for number, line in _lines(text):
        named = _named(line, places) or (anywhere if "$" in line else [])
        names = ", ".join(map(printable, named))
        if CSET.search(line):
            yield number, "runs cset, which moves processes away from the CPUs of their cgroups"
        elif named and WRITES.search(line):
            yield number, f"writes cpuset.cpus of {names}"
        elif named and "set-property" in line and "AllowedCPUs" in (text if "$" in line else line):
            yield number, f"sets AllowedCPUs of {names}"


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Those that are no comments, with the numbers at which they begin. A backslash at the end
    joins a line with the next.
    """
    begun, first = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        begun += line[:COLUMNS]
        if line.endswith("\\") and len(begun) < COLUMNS:
            begun = begun[:-1] + " "
            continue
        if not begun.lstrip().startswith("#"):
            yield first, begun[:COLUMNS]
        begun, first = "", number + 1


def _named(text: str, places: list[str]) -> list[str]:
    """Those of PLACES of which TEXT names the unit, or the cgroup."""
    words = set(WORD.findall(text))
    return [place for place in places if unit_of(place) in words]
