"""Hosts of many kinds, each in one text file of tests/data/machines (see its README.md)."""

from __future__ import annotations

from pathlib import Path

from .hosts import DATA

MACHINES = DATA / "machines"
NAMES = sorted(path.stem for path in MACHINES.glob("*.txt"))


def files(name: str) -> dict[str, str]:
    """The files of the machine NAME, by path."""
    found: dict[str, str] = {}
    path = ""
    for line in (MACHINES / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("/"):
            path, _, value = line.partition(":")
            found[path] = value.strip()
        elif line.startswith("    "):
            found[path] += f"{line[4:]}\n"
    return found


def unpack(name: str, root: Path) -> Path:
    """The machine NAME below ROOT, as `virt-cgroup --root` reads it."""
    for path, text in files(name).items():
        file = root / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root
