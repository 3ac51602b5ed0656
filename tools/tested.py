"""Writes docs/tested.md from the logs of `pytest -v` on each host: usage: tested.py DIRECTORY; a
log is named after its host and begins with the commit. What the document says of hosts that have no
log stays.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/tested.md"
LINE = re.compile(r"^(tests/\S+?\.py::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b")
SHOWN = {"PASSED": "yes", "SKIPPED": "-", "FAILED": "**no**", "ERROR": "**no**"}
HOSTS = {
    "here": "the live tests on the machine of the run, on a private host",
    "13": "Debian 13 in QEMU: machined, cgroup v2, AppArmor enforced",
    "11": "Debian 11 in QEMU: machined, cgroup v1 (`systemd.unified_cgroup_hierarchy=0`)",
    "12": "Debian 12 in QEMU: machined, cgroup v2, AppArmor enforced; what hangs on the release",
    "newest": "Debian sid in QEMU: machined, cgroup v2, AppArmor enforced; the same",
    "13-selinux": "Debian 13 in QEMU with SELinux, permissive; the plain tests",
    "13-openrc": "Debian 13 in QEMU with OpenRC in place of systemd: cgroup v2; the plain tests",
    "13-podman": "Debian 13 in QEMU with podman; containers beside VMs",
    "13-oomd": "Debian 13 in QEMU with systemd-oomd",
    "13-memory-node": "Debian 13 in QEMU with a NUMA node that has memory and no CPUs",
    "13-no-machined": (
        "Debian 13 in QEMU without machined: cgroup v2, the live tests on a private host"
    ),
    "outside": "lab hosts that are rebooted, installed from the packages, or work together",
}
HEAD = """\
# What was run where

Written by `tools/check --lab` from the output of the tests. "yes": run and passed; "-": does not
apply there, or was not run there. Each host was last run at the commit that is named.

"""


class Run:
    """What one host had at COMMIT: by test, "yes", "-" or "**no**"."""

    def __init__(self, commit: str) -> None:
        self.commit = commit
        self.results: dict[str, str] = {}


def from_log(text: str) -> Run:
    """A test that is there twice was run again: the last counts."""
    head, *lines = text.splitlines()
    run = Run(head.removeprefix("commit "))
    for match in filter(None, map(LINE.match, lines)):
        run.results[match[1].removeprefix("tests/").replace("|", " ")] = SHOWN[match[2]]
    return run


def from_document(text: str) -> dict[str, Run]:
    """By host."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    runs = {cells[0]: Run(cells[2]) for cells in rows if cells[0] in HOSTS}
    columns = next((cells[1:] for cells in rows if cells[0] == "test"), [])
    for name, *cells in rows:
        for host, cell in zip(columns, cells):
            if name.startswith("`"):
                runs[host].results[name.strip("`")] = cell
    return runs


def document(runs: dict[str, Run]) -> str:
    tests = sorted({test for run in runs.values() for test in run.results})
    rows = [["host", "", "commit"], ["---"] * 3]
    rows += [[host, HOSTS[host], run.commit] for host, run in runs.items()]
    table = [["test", *runs], ["---"] * (1 + len(runs))]
    for test in tests:
        table.append([f"`{test}`", *(run.results.get(test, "-") for run in runs.values())])
    return HEAD + _lines(rows) + "\n" + _lines(table)


def _lines(rows: list[list[str]]) -> str:
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def main(directory: str) -> None:
    runs = from_document(DOCUMENT.read_text()) if DOCUMENT.exists() else {}
    for host in HOSTS:
        log = Path(directory, host)
        if log.exists():
            runs[host] = from_log(log.read_text(errors="replace"))
    DOCUMENT.write_text(document({host: runs[host] for host in HOSTS if host in runs}))


if __name__ == "__main__":
    main(*sys.argv[1:])
