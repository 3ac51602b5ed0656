"""virt-cgroup map: the picture of a host as SVG, and the file that it is written to."""

from __future__ import annotations

import os
import re
import stat
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest

from libvirt_cgroup_hooks.cli.map import model

from ..conftest import Command
from ..support.mapping import BUSY, LARGE, Made, pins

ROOT = Path(__file__).parents[3]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def command(command: Command) -> Command:
    """`virt-cgroup map --root ROOT ...`"""
    return partial(command, "map", "--root")


def svg(command: Command, root: object) -> ElementTree.Element:
    status, out, err = command(root, "--svg", "-")
    assert (status, err) == (0, "")
    return ElementTree.fromstring(out)


def test_the_picture_in_the_readme(command: Command) -> None:
    """Made anew by: virt-cgroup --root tests/data/hosts/busy map --svg docs/map.svg"""
    assert command(BUSY, "--svg", "-")[1] == (ROOT / "docs/map.svg").read_text(encoding="ascii")
    assert "(docs/map.svg)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_svg_tells_the_same_as_the_text(command: Command) -> None:
    found = svg(command, BUSY)
    rows = [
        (group.findtext(f"{SVG}title"), [path.get("class") for path in group.iter(f"{SVG}path")])
        for group in found.iter(f"{SVG}g")
    ]
    assert rows[1:3] == [
        ("database emulator: may run on 5,13, pinned to 5,13", ["neither", "pinned"]),
        ("database vcpu0-1: may run on 6,14, pinned to 6,14", ["neither", "pinned"]),
    ]
    assert rows[-8] == ("old all threads: may run on 0-15", ["trespass", "allowed"])
    numbers = [
        element.text for element in found.iter(f"{SVG}text") if element.get("class") == "number"
    ]
    assert sorted(map(int, filter(None, numbers))) == list(range(16))
    kept = [element for element in found.iter(f"{SVG}rect") if element.get("class") == "kept"]
    assert len(kept) == 4 + 1  # and in the legend


def test_svg_stands_alone(command: Command) -> None:
    found = svg(command, BUSY)
    assert found.findtext(f"{SVG}title") == "Where VMs run on this host"
    assert "Host keeps: 0,4,8,12." in str(found.findtext(f"{SVG}desc"))
    assert found.get("aria-labelledby") == "title desc"
    assert {element.tag.removeprefix(SVG) for element in found.iter()} == set(
        "svg title desc style defs pattern clipPath rect text line g path".split()
    )
    attributes = {(name, value) for element in found.iter() for name, value in element.items()}
    assert [name for name, _ in attributes if name.startswith("on") or "href" in name] == []
    style = str(found.findtext(f"{SVG}style"))
    references = re.findall(r"url\(.*?\)", style + " ".join(value for _, value in attributes))
    assert set(references) == {"url(#hatch)", "url(#names)", "url(#groups)"}
    assert "@import" not in style
    classes = {value for name, value in attributes if name == "class"}
    assert {name for name in classes if f".{name} " not in style.replace(",", " ")} == set()


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "&lt;",
        "]]>",
        '"onload="x',
        "\u202egnp.exe",
        "💩漢字",
        "x" * 200,
    ],
)
def test_names_in_svg_are_text(command: Command, tmp_path: Path, name: str) -> None:
    Made(tmp_path, [["0", "1"]]).start(name.replace("/", "|"), {"emulator": "0"})
    found = svg(command, tmp_path)
    name = name.replace("/", "|").replace("\u202e", "\\u202e")
    assert f"{name} emulator: may run on 0." in str(found.findtext(f"{SVG}desc"))
    labels = [
        str(element.text)
        for element in found.iter(f"{SVG}text")
        if element.get("clip-path") == "url(#names)"
    ]
    assert labels == [model.cut(name, 24), "VMs"]


@pytest.mark.parametrize(
    "nodes", [LARGE, [["0"]], [["0"], ["1"]], [[str(cpu) for cpu in range(300)]], [["0,1"], []]]
)
def test_svg_keeps_within_its_frame(
    command: Command, tmp_path: Path, nodes: list[list[str]]
) -> None:
    made = Made(
        tmp_path,
        nodes,
        conf="reserved_host_cpus = '0'\npin_conflict = 'warn'" if nodes != [["0"]] else "",
    )
    made.start("x" * 99, {"emulator": "0", "vcpu0": "0"}, pins(vcpu0="0-1"))
    found = svg(command, tmp_path)
    right, bottom = (float(str(found.get(key))) for key in ("width", "height"))
    for element in found.iter():
        x, y, wide, high = (float(element.get(key, 0)) for key in ("x", "y", "width", "height"))
        assert x + wide <= right
        assert y + high <= bottom
    for corner in re.findall(r"M(\S+) (\S+)m", ElementTree.tostring(found, "unicode")):
        assert float(corner[0]) + 18 <= right
        assert float(corner[1]) + 18 <= bottom


# where it is written


def test_a_new_file(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "map.svg"
    old = os.umask(0o027)
    try:
        assert command(BUSY, "--svg", str(file)) == (0, "", "")
    finally:
        os.umask(old)
    assert file.read_text(encoding="ascii") == command(BUSY, "--svg", "-")[1]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["map.svg"]


def test_a_file_is_replaced_and_a_link_to_it_stays(command: Command, tmp_path: Path) -> None:
    file, link = tmp_path / "map.svg", tmp_path / "link.svg"
    file.write_text("old")
    file.chmod(0o600)
    link.symlink_to("map.svg")
    with file.open() as reader:
        assert command(BUSY, "--svg", str(link)) == (0, "", "")
        assert reader.read() == "old"  # who reads it has one or the other
    assert link.is_symlink()
    assert file.read_text(encoding="ascii").startswith("<svg")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["link.svg", "map.svg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes links of others")
def test_a_link_of_another_user_is_not_followed(command: Command, tmp_path: Path) -> None:
    file, link = tmp_path / "map.svg", tmp_path / "link.svg"
    file.write_text("old")
    link.symlink_to("map.svg")
    os.chown(link, 65534, 65534, follow_symlinks=False)
    assert command(BUSY, "--svg", str(link)) == (
        1,
        "",
        f"error: cannot write {link}: it is another user's symbolic link: "
        "name a file in a directory that you may write to\n",
    )
    assert file.read_text() == "old"
    os.chown(file, 65534, 65534)  # which is no link
    assert command(BUSY, "--svg", str(file))[0] == 0


def test_a_pipe_is_not_replaced(command: Command, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR)
    try:
        assert command(BUSY, "--svg", str(pipe)) == (0, "", "")
        assert os.read(reader, 4) == b"<svg"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none/map.svg", "No such file or directory"),
        ("file/map.svg", "Not a directory"),
        ("", "Is a directory"),
        ("x" * 300, "File name too long"),
        ("a\nb/c", "No such file or directory"),
    ],
)
def test_a_path_that_cannot_be_written(
    command: Command, tmp_path: Path, path: str, message: str
) -> None:
    (tmp_path / "file").write_text("")
    shown = f"{tmp_path}/{path}".replace("\n", "\\n")
    assert command(BUSY, "--svg", f"{tmp_path}/{path}") == (
        1,
        "",
        f"error: cannot write {shown}: {message}: "
        "name a file in a directory that you may write to\n",
    )
    assert os.listdir(tmp_path) == ["file"]
