"""Writes docs/tested.md from the logs of `pytest -v` on each host: usage: tested.py DIRECTORY; a
log is named after its host and begins with the commit.
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
    "12": "Debian 12 in QEMU: machined, cgroup v2, AppArmor enforced",
    "11": "Debian 11 in QEMU: machined, cgroup v1 (`systemd.unified_cgroup_hierarchy=0`)",
    "newest": "Debian sid in QEMU: machined, cgroup v2, AppArmor enforced",
    "13-selinux": "Debian 13 in QEMU with SELinux, permissive; the plain tests",
    "13-openrc": "Debian 13 in QEMU with OpenRC in place of systemd: cgroup v2; the plain tests",
    "13-podman": "Debian 13 in QEMU with podman; containers beside VMs",
    "13-no-machined": (
        "Debian 13 in QEMU without machined: cgroup v2, the live tests on a private host"
    ),
    "outside": "lab hosts that are rebooted, or installed from the packages",
}
HEAD = """\
# What was run where

Written by `tools/check --lab` from the output of the tests. "yes": run and passed; "-": does not
apply there, or was not run there. Each host was last run at the commit that is named.

"""


def commit(log: Path) -> str:
    return log.read_text(errors="replace").partition("\n")[0].removeprefix("commit ")


def results(log: Path) -> dict[str, str]:
    found = (LINE.match(line) for line in log.read_text(errors="replace").splitlines())
    return {match[1].removeprefix("tests/"): SHOWN[match[2]] for match in found if match}


def table(hosts: dict[str, dict[str, str]]) -> str:
    tests = sorted({test for found in hosts.values() for test in found})
    rows = [["test", *hosts], ["---"] * (1 + len(hosts))]
    rows += [
        [f"`{test.replace('|', ' ')}`", *(found.get(test, "-") for found in hosts.values())]
        for test in tests
    ]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def main(directory: str) -> None:
    logs = {host: Path(directory, host) for host in HOSTS if Path(directory, host).exists()}
    head = [
        "| host | | commit |",
        "|---|---|---|",
        *(f"| {host} | {HOSTS[host]} | {commit(logs[host])} |" for host in logs),
    ]
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(
        HEAD + "\n".join(head) + "\n\n" + table({host: results(log) for host, log in logs.items()})
    )


main(*sys.argv[1:])
