"""The two hosts of docs/how-much.md: what is shown there is what the program prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..conftest import Command
from ..support.hosts import DATA
from ..support.machines import unpack

PAGE = (DATA.parents[1] / "docs/how-much.md").read_text(encoding="utf-8")
HOSTS = {"desktop": "A desktop with one VM", "server": "A server with 60 VMs"}


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", HOSTS)
def test_a_worked_host(tmp_path: Path, command: Command, name: str) -> None:
    status, out, err = command("--root", unpack(name, tmp_path), "recommend")
    assert (status, err) == (0, "")
    blocks = re.findall(r"^```\n(.*?\n)```$", section(HOSTS[name]), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    assert [block for block in blocks if block not in out] == []


def test_figures_in_the_prose(tmp_path: Path, command: Command) -> None:
    """Those that the text between the blocks takes from them."""
    for name, figures in {
        "desktop": ("1.6 GiB", "316 MiB", "20.5 GiB", "12 CPUs"),
        "server": ("8 GiB", "437.6 GiB", "362.3"),
    }.items():
        out = command("--root", unpack(name, tmp_path / name), "recommend")[1]
        prose = re.sub(r"```.*?```", "", section(HOSTS[name]), flags=re.DOTALL)
        for figure in figures:
            assert figure in prose
            assert figure in out
