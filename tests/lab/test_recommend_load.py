"""What virt-cgroup recommend proposes under load, against what the host uses in the ten minutes
after it: the error of each line.

The tables in docs/how-much.md are these.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..live.marks import ENDURANCE
from .host import CGROUP, SYSTEMD, V2, guest, run, virt_cgroup

MIB = 1024**2
LOOK = 60  # seconds that recommend looks
MINUTES = 10
SETTLE = 120  # seconds from the start of the load to the look
STEP = 1.0
WINDOW = 60  # seconds over which the host's most busy minute is measured
# A service whose memory rises and falls, in four minutes, and that works half of the time
SERVICE = """\
import time
held, begun = [], time.monotonic()
while True:
    part = (time.monotonic() - begun) % 240 / 240
    wanted = int(60 + 180 * (part if part < 0.8 else (1 - part) * 4))
    while len(held) < wanted:
        held.append(b'x' * 2**20)
    del held[wanted:]
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        pass
    time.sleep(0.5)
"""
# A backup: reads all of /usr, packs it, and pauses
BACKUP = """\
while :; do
    tar -cf - /usr/lib /usr/share 2>/dev/null | gzip -1 >/root/backup.tgz
    rm /root/backup.tgz
    sleep 30
done
"""
# An administrator's session: many small programs and files
SESSION = """\
while :; do
    find /usr /var -type f -newer /etc/passwd >/dev/null 2>&1
    journalctl -b -o cat >/dev/null
    sleep 5
done
"""
LOAD = {
    "service.service": ("service.slice", ["/usr/bin/python3", "-c", SERVICE]),
    "backup.service": ("system.slice", ["/bin/sh", "-c", BACKUP]),
    "session.service": ("user.slice", ["/bin/sh", "-c", SESSION]),
}
UNCHARGED = ("Slab", "PageTables", "SecPageTables", "Percpu", "VmallocUsed")

pytestmark = [
    *ENDURANCE,
    pytest.mark.skipif(not (SYSTEMD and V2), reason="the load is in units of systemd"),
]


@pytest.fixture
def load() -> Iterator[None]:
    for unit, (slice_unit, command) in LOAD.items():
        run("systemd-run", f"--unit={unit}", f"--slice={slice_unit}", *command)
    guest("web", 96)
    guest("db", 64)
    yield
    for unit in LOAD:
        run("systemctl", "stop", unit)
    Path("/root/backup.tgz").unlink(missing_ok=True)


class Look:
    """What there is at one moment, from the kernel's own files: bytes in use without page cache
    that can be dropped, and seconds of CPU time, by cgroup.
    """

    def __init__(self) -> None:
        self.time = time.monotonic()
        self.memory: dict[str, int] = {}
        self.cpu: dict[str, float] = {}
        charged = processes = 0
        for top in CGROUP.iterdir():
            if not (top / "memory.current").exists():
                continue
            stat = numbers(top / "memory.stat")
            charged += sum(
                stat[key]
                for key in ("slab", "pagetables", "sec_pagetables", "percpu", "vmalloc")
                if key in stat
            )
            processes += stat["anon"] + stat["shmem"]
            if top.name != "machine.slice":
                current = int((top / "memory.current").read_text())
                self.memory[top.name] = current - stat["inactive_file"]
                self.cpu[top.name] = numbers(top / "cpu.stat")["usage_usec"] / 1e6
        there = numbers(Path("/proc/meminfo"), 1024)
        self.memory["kernel, in no cgroup"] = sum(there[key] for key in UNCHARGED) - charged
        self.memory["processes in no cgroup"] = max(
            0, there["AnonPages"] + there["Shmem"] - processes
        )


def numbers(file: Path, unit: int = 1) -> dict[str, int]:
    rows = [line.split() for line in file.read_text().splitlines()]
    return {row[0].rstrip(":"): int(row[1]) * unit for row in rows}


def watched() -> list[Look]:
    looks = [Look()]
    while looks[-1].time - looks[0].time < MINUTES * 60:
        time.sleep(STEP)
        looks.append(Look())
    return looks


def busiest(looks: list[Look], name: str) -> float:
    """The most CPUs that NAME had, on average over WINDOW seconds."""
    found = 0.0
    for first, last in zip(looks, looks[WINDOW:]):
        used = last.cpu.get(name, 0) - first.cpu.get(name, 0)
        found = max(found, used / (last.time - first.time))
    return found


def average(looks: list[Look], name: str) -> float:
    seconds = looks[-1].time - looks[0].time
    return (looks[-1].cpu.get(name, 0) - looks[0].cpu.get(name, 0)) / seconds


def test_the_proposal_against_ten_minutes(load: None) -> None:
    time.sleep(SETTLE)
    report: dict[str, Any] = json.loads(virt_cgroup("recommend", "--json", "--seconds", str(LOOK)))
    looks = watched()

    print(f"\nMemory, MiB: counted, the most in {MINUTES} minutes, error")
    for line in report["memory"]:
        most = max(look.memory.get(line["name"], 0) for look in looks)
        tell(line["name"], line["counted"] / MIB, most / MIB)
    counted = sum(line["counted"] for line in report["memory"])
    most = max(sum(look.memory.values()) for look in looks)
    tell("sum", counted / MIB, most / MIB)
    tell("proposed", report["proposed"]["memory"] / MIB, most / MIB)

    print(f"CPUs: in the look, the average of {MINUTES} minutes, error, the busiest minute")
    own = 0.0
    for line in report["cpu"]:
        if line["name"] in looks[0].cpu:
            mean = average(looks, line["name"])
            own += mean
            tell(line["name"], line["now"], mean, busiest(looks, line["name"]))
    lines = {line["name"]: line["now"] for line in report["cpu"]}
    seen = sum(lines[name] for name in lines if name in looks[0].cpu)
    tell("host, in cgroups", seen, own)

    assert report["proposed"]["memory"] >= most
    assert counted <= 2.5 * most
    assert abs(seen - own) <= 0.25 * own


def tell(name: str, told: float, was: float, *more: float) -> None:
    error = f"{(told - was) / was:+.0%}" if was else "-"
    rest = " ".join(f"{one:9.2f}" for one in more)
    print(f"{name:24} {told:9.2f} {was:9.2f} {error:>7} {rest}")
