"""virt-cgroup map: the picture of a host, as text, JSON and SVG."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest

from libvirt_cgroup_hooks.cli import main
from libvirt_cgroup_hooks.cli.map import model, text
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.state import load

from .hosts import DATA, UUID

ROOT = Path(__file__).parent.parent
BUSY = str(DATA / "hosts/busy")  # a host with VMs that run, which is in the README too
SVG = "{http://www.w3.org/2000/svg}"
LARGE = [[f"{cpu},{cpu + 32}" for cpu in range(first, first + 16)] for first in (0, 16)]  # 2 nodes, 64 CPUs, SMT
EVIL = ["a\u009b1m", "\u202egnp.exe", "<script>", "&amp;", "']]>\"", "\\x1b", "x" * 200, "💩" * 50, "..", "-x", " "]
Command = Callable[..., tuple[int, str, str]]


class Made:
    """A host made of files below ROOT: NODES are lists of cores, each a CPU list."""

    def __init__(
        self, root: Path, nodes: Sequence[Sequence[str]], offline: str = "", isolated: str = "", conf: str = ""
    ) -> None:
        self.root = root
        self.vms = 0
        cores = [core for node in nodes for core in node]
        online = CpuSet(cpu for core in cores for cpu in CpuSet.parse(core))
        cpus = "sys/devices/system/cpu"
        self.put(f"{cpus}/online", str(online))
        self.put(f"{cpus}/present", str(online | CpuSet.parse(offline)))
        self.put(f"{cpus}/isolated", isolated)
        for core in cores:
            for cpu in CpuSet.parse(core):
                self.put(f"{cpus}/cpu{cpu}/topology/thread_siblings_list", core)
        self.put("sys/devices/system/node/online", f"0-{len(nodes) - 1}")
        for number, node in enumerate(nodes):
            self.put(f"sys/devices/system/node/node{number}/cpulist", str(CpuSet.parse(",".join(node))))
        self.put("proc/meminfo", "MemTotal: 67108864 kB")
        if conf:
            self.put("etc/libvirt/cgroup-hooks.conf", conf)

    def start(self, name: str, groups: Mapping[str, str], inner: str = "") -> None:
        """A VM with a thread in each of GROUPS, which may run on the CPUs that are told."""
        self.vms += 1
        pid = 1000 + 100 * self.vms
        vcpus = ""
        for number, (group, cpus) in enumerate(groups.items()):
            task = f"proc/{pid}/task/{pid + number}"
            self.put(f"{task}/comm", _comm(group))
            self.put(f"{task}/cgroup", f"0::/vms/qemu-{name}/{group}")
            self.put(f"{task}/status", f"Cpus_allowed_list:\t{cpus}")
            if group.startswith("vcpu"):
                vcpus += f"<vcpu id='{group[4:]}' pid='{pid + number}'/>"
        count = sum(group.startswith("vcpu") for group in groups)
        inner = f"<name>{escape(name)}</name><uuid>{UUID[:-2]}{self.vms:02}</uuid><vcpu>{count}</vcpu>{inner}"
        domain = f"<domain type='kvm' id='{self.vms}'>{inner}</domain>"
        status = f"<domstatus state='running' pid='{pid}'>\n<vcpus>{vcpus}</vcpus>\n{domain}\n</domstatus>"
        self.put(f"run/libvirt/qemu/{name}.xml", status)

    def put(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n", encoding="utf-8")


def _comm(group: str) -> str:
    if group.startswith("vcpu"):
        return f"CPU {group[4:]}/KVM"
    return "qemu-system-x86" if group == "emulator" else f"IO {group}"


def pins(**groups: str) -> str:
    """<cputune> with the pins of GROUPS."""
    found = ""
    for group, cpus in groups.items():
        kind = group.rstrip("0123456789")
        number = "" if kind == "emulator" else f"{kind}='{group[len(kind) :]}' "
        found += f"<{kind}pin {number}cpuset='{cpus}'/>"
    return f"<cputune>{found}</cputune>"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The exit status, standard output and standard error of `virt-cgroup --root ROOT map ...` on 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(root: object, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["--root", str(root), "map", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def picture(command: Command, root: object) -> list[str]:
    status, out, err = command(root)
    assert (status, err) == (0, "")
    return out.splitlines()


def drawn(root: object, columns: int = 80, encoding: str = "utf-8", colour: bool = False) -> str:
    host = Host(str(root))
    return text.draw(model.read(host, load(host, [])), columns, encoding, colour)


def large(root: Path, vms: int = 20) -> Made:
    """64 CPUs, of which the host keeps 4, and VMs without pins."""
    made = Made(root, LARGE, conf="reserved_host_cpus = 4")
    for number in range(vms):
        made.start(f"web{number:02}", dict.fromkeys(("emulator", "vcpu0", "vcpu1"), "1-15,17-31,33-47,49-63"))
    return made


# as text


def test_the_picture(command: Command) -> None:
    assert picture(command, BUSY) == [
        "CPUs:           0-15 in 8 cores on 2 NUMA nodes",
        "Host keeps:     0,4,8,12",
        "VMs may use:    1-3,5-7,9-11,13-15",
        "Isolated:       7,15",
        "",
        "                      node 0      | node 1",
        "                             1  1 |  1  1  1  1",
        " CPU                  08 19 20 31 | 42 53 64 75",
        " host                 HH          | HH",
        " isolated                         |          ii",
        " web      all threads -- oo oo oo | -- oo oo oo",
        " database emulator    -- .. .. .. | -- ## .. ..",
        "          vcpu0-1     -- .. .. .. | -- .. ## ..",
        "          iothread1   -- .. .. .. | -- #. .. ..",
        " realtime emulator    -- oo oo oo | -- oo oo oo",
        "          vcpu0       -- .. .. .. | -- .. .. #.",
        "          vcpu1       -- .. .. .. | -- .. .. .#",
        " old      all threads !! oo oo oo | !! oo oo oo",
        "",
        " H kept for the host   - kept for the host, so not for this VM",
        " i isolated from the scheduler   # pinned here   o may run here",
        " . may not run here   ! may run here, though it is kept for the host",
        " CPU numbers read downwards; the siblings of a core stand together.",
    ]


def test_a_small_host_without_reservation_or_vms(command: Command) -> None:
    assert picture(command, DATA / "hosts/unified") == [
        "CPUs:           0-3 in 4 cores on 1 NUMA node",
        "Host keeps:     nothing",
        "VMs may use:    all CPUs",
        "",
        "          node 0",
        " CPU      0 1 2 3",
        "",
        "No VM is running.",
    ]


def test_offline_cpus_and_pins_that_do_not_hold(command: Command, tmp_path: Path) -> None:
    """The kernel takes offline CPUs out of their node. A pin is cut by the fence, and by what is offline."""
    made = Made(tmp_path, [["0", "1", "2"]], offline="3", conf="reserved_host_cpus = '0'")
    made.start("vm", {"emulator": "1-2", "vcpu0": "2", "vcpu1": "2"}, pins(vcpu0="0-3", vcpu1="2"))
    assert picture(command, tmp_path)[3:] == [
        "Offline:        3",
        "",
        "                   node 0 | no node",
        " CPU               0 1 2  | 3",
        " host              H      |",
        " offline                  | /",
        " vm       emulator - o o  | /",
        "          vcpu0    x x #  | x",
        "          vcpu1    - . #  | /",
        "",
        " H kept for the host   - kept for the host, so not for this VM   / offline",
        " # pinned here   o may run here   . may not run here",
        " x pinned here, but may not run here",
    ]


def test_what_the_kernel_allows_beyond_the_cpus_there_are(command: Command, tmp_path: Path) -> None:
    """A thread in the root cpuset may use every possible CPU."""
    Made(tmp_path, [["0", "1"]]).start("vm", {"emulator": "0-255"})
    assert " vm       emulator o o" in picture(command, tmp_path)
    assert json.loads(command(tmp_path, "--json")[1])["domains"][0]["groups"][0]["cpus"] == "0-1"


def test_a_thread_that_has_ended_meanwhile(command: Command, tmp_path: Path) -> None:
    made = Made(tmp_path, [["0"], ["1"]])
    made.start("vm", {"emulator": "0-1", "vcpu0": "0"})
    (tmp_path / "proc/1100/task/1101/status").unlink()
    assert [line for line in picture(command, tmp_path) if "vcpu" in line] == ["          vcpu0    .      | ."]


def test_a_node_with_memory_only(command: Command, tmp_path: Path) -> None:
    lines = picture(command, Made(tmp_path, [["0,1"], []]).root)
    assert "Without CPUs:   NUMA node 1" in lines
    assert [line for line in lines if "node " in line][-1] == "          node 0"


def test_large_host_with_twenty_vms(command: Command, tmp_path: Path) -> None:
    large(tmp_path)
    lines = picture(command, tmp_path)
    assert max(map(len, lines)) <= 80
    assert [line.strip() for line in lines if line.strip().startswith("node")] == ["node 0", "node 1"]
    assert [line for line in lines if line.startswith(" web07")] == [
        " web07    all threads -- oo oo oo oo oo oo oo oo oo oo oo oo oo oo oo",
        " web07    all threads -- oo oo oo oo oo oo oo oo oo oo oo oo oo oo oo",
    ]
    assert len(lines) < 60


def test_a_group_is_left_out_where_it_may_not_run(command: Command, tmp_path: Path) -> None:
    large(tmp_path, 0).start("db", {"emulator": "1-15", "vcpu0": "17", "vcpu1": "17"}, pins(vcpu0="17", vcpu1="17"))
    rows = [line.split()[:2] for line in picture(command, tmp_path) if "emulator" in line or "vcpu" in line]
    assert rows == [["db", "emulator"], ["db", "vcpu0-1"]]


@pytest.mark.parametrize(
    ("columns", "nodes"),
    [
        (200, ["node 0 node 1"]),
        (119, ["node 0 node 1"]),
        (118, ["node 0", "node 1"]),
        (80, ["node 0", "node 1"]),
        (50, ["node 0", "node 0", "node 1", "node 1"]),
        (40, ["node 0"] * 3 + ["node 1"] * 3),
        (1, ["node 0"] * 16 + ["node 1"] * 16),
    ],
)
def test_wrapping(tmp_path: Path, columns: int, nodes: list[str]) -> None:
    large(tmp_path, 1)
    lines = drawn(tmp_path, columns).splitlines()
    assert [" ".join(line.replace("|", "").split()) for line in lines if re.match(r" +node", line)] == nodes
    assert columns < 40 or max(len(line) for line in lines if line.startswith(" web")) <= columns


def test_without_siblings_the_cells_stand_closer_when_room_is_short(tmp_path: Path) -> None:
    Made(tmp_path, [[str(cpu) for cpu in range(60)]]).start("vm", {"emulator": "0-59"})
    assert " vm       emulator " + "o" * 60 in drawn(tmp_path).splitlines()
    assert " vm       emulator " + " ".join("o" * 60) in drawn(tmp_path, 150).splitlines()


@pytest.mark.parametrize(
    ("name", "encoding", "shown"),
    [
        ("web", "utf-8", "web     "),
        ("e\u0301te\u0301", "utf-8", "été     "),
        ("x\u0302\u0323", "utf-8", "x\u0323\u0302       "),  # there is no single character for it
        ("💩", "utf-8", "💩      "),
        ("漢字", "utf-8", "漢字    "),
        ("❤\ufe0f", "utf-8", "❤       "),
        ("漢字", "ascii", "\\u6f22\\u5b57"),
        ("é", "iso-8859-1", "é       "),
        ("a\x1bb", "utf-8", "a\\x1bb  "),
        ("a\u200bb", "utf-8", "a\\u200bb"),
        ("\udcff", "utf-8", "\\udcff  "),
        (f"prod{'-' * 100}01", "utf-8", f"prod{'-' * 7}..{'-' * 9}01"),
        (f"漢字{'x' * 100}漢字", "utf-8", f"漢字{'x' * 7}..{'x' * 7}漢字"),
        (f"漢字x{'漢' * 99}", "utf-8", f"漢字x{'漢' * 3}..{'漢' * 5}"),
    ],
)
def test_names(tmp_path: Path, name: str, encoding: str, shown: str) -> None:
    """Whatever a name holds, the cells of its row begin in the same column as those of others."""
    Made(tmp_path, [["0", "1"]]).start("vm", {"emulator": "0"})
    found = model.read(Host(str(tmp_path)), load(Host(str(tmp_path)), []))
    found = replace(found, vms=(replace(found.vms[0], name=name),))
    rows = [line for line in text.draw(found, 80, encoding, False).splitlines() if "emulator" in line]
    assert rows == [f" {shown} emulator o ."]


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("form", [(), ("--json",), ("--svg", "-")])
def test_no_control_character_comes_out(command: Command, tmp_path: Path, name: str, form: Sequence[str]) -> None:
    Made(tmp_path, [["0", "1"]]).start(name, {"emulator": "0", "vcpu0": "1"})
    status, out, err = command(tmp_path, *form)
    assert (status, err) == (0, "")
    assert [c for c in out if not c.isprintable() and c != "\n"] == []
    if form == ("--json",):
        assert json.loads(out)["domains"][0]["name"] == name


@pytest.mark.parametrize(
    ("groups", "pinned", "labels"),
    [
        ({"emulator": "0"}, {}, ["emulator"]),
        ({"emulator": "0", "vcpu0": "0", "iothread1": "0"}, {}, ["all threads"]),
        ({"emulator": "0", "vcpu0": "0"}, {"vcpu0": "0"}, ["emulator", "vcpu0"]),
        ({"emulator": "0", "vcpu0": "1", "vcpu1": "1", "vcpu2": "0", "vcpu3": "1"}, {}, ["emulator", "vcpu0-1,3", "vcpu2"]),
        ({"emulator": "0", "iothread2": "1", "iothread1": "1", "vcpu0": "1"}, {}, ["emulator", "vcpu0", "iothread1-2"]),
        ({"emulator": "0", "vcpu10": "1", "vcpu9": "0-1"}, {}, ["emulator", "vcpu9", "vcpu10"]),
        (
            {"emulator": "0-1", **{f"vcpu{n}": "01"[n % 2] for n in range(20)}},
            {},
            ["emulator", "vcpu0,..,16,18", "vcpu1,..,17,19"],
        ),
    ],
)
def test_groups_that_are_alike_share_a_row(
    tmp_path: Path, groups: dict[str, str], pinned: dict[str, str], labels: list[str]
) -> None:
    Made(tmp_path, [["0", "1"]]).start("vm", groups, pins(**pinned))
    lines = drawn(tmp_path).splitlines()
    found = [" ".join(line[10:].split()[:-2]) for line in lines if re.search(r"emulator|vcpu|iothread|threads", line)]
    assert found == labels


# colour


def test_colour_only_repeats_what_the_characters_say() -> None:
    coloured = drawn(BUSY, colour=True)
    assert coloured.count("\033[") > 50
    assert re.sub(r"\033\[[\d;]*m", "", coloured) == drawn(BUSY)


@pytest.mark.parametrize(
    ("terminal", "environment", "colour"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": ""}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_colour(monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], colour: bool) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stdout", out)
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["--root", BUSY, "map"]) == 0
    assert ("\033[" in out.getvalue()) == colour


# as JSON


def test_json(command: Command) -> None:
    status, out, err = command(BUSY, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    domains = {vm["name"]: vm for vm in found.pop("domains")}
    assert found == {
        "cpus": "0-15",
        "offline": "",
        "isolated": "7,15",
        "reservation": {"cpus": "0,4,8,12"},
        "fence": {"cpus": "1-3,5-7,9-11,13-15"},
        "nodes": [
            {"node": 0, "cpus": "0-3,8-11", "cores": ["0,8", "1,9", "2,10", "3,11"]},
            {"node": 1, "cpus": "4-7,12-15", "cores": ["4,12", "5,13", "6,14", "7,15"]},
        ],
    }
    assert list(domains) == ["web", "database", "realtime", "old"]
    assert domains["database"] == {
        "name": "database",
        "uuid": f"{UUID[:-2]}02",
        "id": 2,
        "groups": [
            {"group": "emulator", "threads": 1, "cpus": "5,13", "pinned": "5,13"},
            {"group": "vcpu0", "threads": 1, "cpus": "6,14", "pinned": "6,14"},
            {"group": "vcpu1", "threads": 1, "cpus": "6,14", "pinned": "6,14"},
            {"group": "iothread1", "threads": 1, "cpus": "5", "pinned": "5"},
        ],
    }
    assert domains["old"]["groups"][0] == {"group": "emulator", "threads": 1, "cpus": "0-15", "pinned": None}


# as SVG


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
    assert rows[-1] == ("old all threads: may run on 0-15", ["trespass", "allowed"])
    numbers = [element.text for element in found.iter(f"{SVG}text") if element.get("class") == "number"]
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
    "name", ["<script>alert(1)</script>", "&lt;", "]]>", '"onload="x', "\u202egnp.exe", "💩漢字", "x" * 200]
)
def test_names_in_svg_are_text(command: Command, tmp_path: Path, name: str) -> None:
    Made(tmp_path, [["0", "1"]]).start(name.replace("/", "|"), {"emulator": "0"})
    found = svg(command, tmp_path)
    name = name.replace("/", "|").replace("\u202e", "\\u202e")
    assert f"{name} emulator: may run on 0." in str(found.findtext(f"{SVG}desc"))
    labels = [str(element.text) for element in found.iter(f"{SVG}text") if element.get("clip-path") == "url(#names)"]
    assert labels == [model.cut(name, 24)]


@pytest.mark.parametrize("nodes", [LARGE, [["0"]], [["0"], ["1"]], [[str(cpu) for cpu in range(300)]], [["0,1"], []]])
def test_svg_keeps_within_its_frame(command: Command, tmp_path: Path, nodes: list[list[str]]) -> None:
    made = Made(tmp_path, nodes, conf="reserved_host_cpus = '0'\npin_conflict = 'warn'" if nodes != [["0"]] else "")
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
def test_a_path_that_cannot_be_written(command: Command, tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    shown = f"{tmp_path}/{path}".replace("\n", "\\n")
    assert command(BUSY, "--svg", f"{tmp_path}/{path}") == (
        1,
        "",
        f"error: cannot write {shown}: {message}: name a file in a directory that you may write to\n",
    )
    assert os.listdir(tmp_path) == ["file"]


# the command line


def test_two_forms_at_once(command: Command) -> None:
    assert command(BUSY, "--json", "--svg", "-") == (
        1,
        "",
        "error: --svg and --json are two forms of one answer: give one of them\n",
    )


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["map", "--help"])
    assert not end.value.code
    out = capsys.readouterr().out
    assert "example: virt-cgroup map" in out
    assert all(option in out for option in ("--root DIR", "--svg FILE", "--json"))


@pytest.mark.parametrize("form", [(), ("--json",), ("--svg", "-")])
def test_a_root_with_nothing_in_it(command: Command, tmp_path: Path, form: Sequence[str]) -> None:
    message = "error: cannot read /sys/devices/system/cpu/online: is /sys mounted?\n"
    assert command(tmp_path, *form) == (1, "", message)


def test_a_bad_configuration(command: Command, tmp_path: Path) -> None:
    Made(tmp_path, [["0", "1"]], conf="reserved_host_cpus = '9'")
    status, out, err = command(tmp_path)
    assert (status, out) == (1, "")
    assert err.startswith('error: /etc/libvirt/cgroup-hooks.conf:1: reserved_host_cpus = "9": this host has no CPU 9')


def test_a_warning_is_told(command: Command, tmp_path: Path) -> None:
    Made(tmp_path, [["0", "1"]], conf="on_error = 'warn'\non_error = 'refuse'")
    assert command(tmp_path)[2].startswith("warning: /etc/libvirt/cgroup-hooks.conf:2: on_error is set in line 1")
