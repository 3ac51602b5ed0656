"""Debian packages that are downloaded and not installed on this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

from labhost.debian import debian_mirror
from labhost.programs import program

TIMEOUT = 600.0


def download(folder: Path, *names: str, codename: str = "") -> None:
    """Puts the packages of the release CODENAME, or of this machine's own, into FOLDER."""
    options = ["-o", "APT::Sandbox::User=root"]  # FOLDER is not for others to read
    options += _of_release(folder / "apt", codename) if codename else []
    program(["apt-get", "-qq", *options, "update"], TIMEOUT)
    get = " ".join(["apt-get", "-qq", *options, "download", *names])
    program(["sh", "-c", f'cd "$1" && {get}', "sh", folder], TIMEOUT)


def _of_release(folder: Path, codename: str) -> list[str]:
    """Options with which apt knows of nothing but that release."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    mirror = [*debian_mirror(), "http://deb.debian.org/debian"][0]
    (folder / "sources.list").write_text(f"deb {mirror} {codename} main\n")
    (folder / "status").touch()
    values = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::State::Status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": "none",
        "Acquire::Check-Valid-Until": "false",
    }
    return [word for key, value in values.items() for word in ("-o", f"{key}={value}")]


def unpack(folder: Path) -> None:
    """What the packages in FOLDER have, below it."""
    for deb in folder.glob("*.deb"):
        program(["dpkg-deb", "-x", deb, folder], TIMEOUT)


def index(folder: Path) -> None:
    """Makes FOLDER a repository of the packages in it."""
    entries = []
    for deb in sorted(folder.glob("*.deb")):
        told = program(["dpkg-deb", "-f", deb], TIMEOUT, capture=True)
        data = deb.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        entries.append(f"{told}Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {digest}\n")
    (folder / "Packages").write_text("\n".join(entries))
