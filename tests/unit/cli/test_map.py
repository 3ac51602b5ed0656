"""virt-cgroup map: the picture of a host, as text and as JSON."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cli import main
from libvirt_cgroup_hooks.cli.map import model, text
from libvirt_cgroup_hooks.errors import MIB
from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.memory import GIB
from libvirt_cgroup_hooks.snapshot import load

from ..conftest import Command
from ..support.hosts import DATA, UUID
from ..support.machines import unpack
from ..support.mapping import BUSY, LARGE, Made, pins

EVIL = [
    "a\u009b1m",
    "\u202egnp.exe",
    "<script>",
    "&amp;",
    "']]>\"",
    "\\x1b",
    "x" * 200,
    "💩" * 50,
    "..",
    "-x",
    " ",
]


@pytest.fixture
def command(command: Command) -> Command:
    """`virt-cgroup map --root ROOT ...`"""
    return partial(command, "map", "--root")


def picture(command: Command, root: object) -> list[str]:
    status, out, err = command(root)
    assert (status, err) == (0, "")
    return out.splitlines()


def drawn(root: object, columns: int = 80, encoding: str = "utf-8", colour: bool = False) -> str:
    host = Host(str(root))
    return text.draw(model.read(host, load(host, []), {}), columns, encoding, colour)


def large(root: Path, vms: int = 20) -> Made:
    """64 CPUs, of which the host keeps 4, and VMs without pins."""
    made = Made(root, LARGE, conf="reserved_host_cpus = 4")
    for number in range(vms):
        made.start(
            f"web{number:02}",
            dict.fromkeys(("emulator", "vcpu0", "vcpu1"), "1-15,17-31,33-47,49-63"),
        )
    return made


# as text


def test_the_picture(command: Command) -> None:
    assert picture(command, BUSY) == [
        "CPUs:           0-15 in 8 cores on 2 NUMA nodes",
        "Host keeps:     0,4,8,12",
        "VMs may use:    1-3,5-7,9-11,13-15",
        "Isolated:       7,15",
        "",
        "                      node 0             | node 1",
        "                                  1    1 |   1    1    1    1",
        " CPU                  0 8  1 9  2 0  3 1 | 4 2  5 3  6 4  7 5",
        " host                 H H                | H H",
        " isolated                                |                i i",
        " web      all threads - -  o o  o o  o o | - -  o o  o o  o o",
        " database emulator    - -  . .  . .  . . | - -  # #  . .  . .",
        "          vcpu0-1     - -  . .  . .  . . | - -  . .  # #  . .",
        "          iothread1   - -  . .  . .  . . | - -  # .  . .  . .",
        " realtime emulator    - -  o o  o o  o o | - -  o o  o o  o o",
        "          vcpu0       - -  . .  . .  . . | - -  . .  . .  # .",
        "          vcpu1       - -  . .  . .  . . | - -  . .  . .  . #",
        " old      all threads ! !  o o  o o  o o | ! !  o o  o o  o o",
        "",
        "          memory 62.8 GiB, 1.7 GiB a column",
        " host     HHHH                                   6 GiB",
        " pools        PPPPP                              10 GiB",
        " VMs               ____________________________  limit 46.8 GiB, 26.3 GiB in use",
        " web               =====                         8.0 GiB",
        " database     ====      =                        196 MiB, 8 GiB of hugepages",
        " realtime               ==                       2.1 GiB",
        " old                      =========              16.0 GiB",
        "",
        " H reserved for the host   - reserved, so not for this VM",
        " i isolated from the scheduler   # pinned here   o may run here",
        " . may not run here   ! may run here, though reserved for the host",
        " P hugepage pools   _ for VMs   = in use by the VM",
        " A column is a CPU, its number reads downwards; siblings stand together.",
    ]


def test_a_small_host_without_reservation_or_vms(command: Command) -> None:
    assert picture(command, DATA / "hosts/v2") == [
        "CPUs:           0-3 in 4 cores on 1 NUMA node",
        "Host keeps:     nothing",
        "VMs may use:    all CPUs",
        "",
        "          node 0",
        " CPU      0 1 2 3",
        "",
        "          memory 7.8 GiB, 132.4 MiB a column",
        f" VMs      {60 * '_'}  no limit",
        "",
        "No VM is running.",
        "",
        " _ for VMs",
        " A column is a CPU.",
    ]


def test_offline_cpus_and_pins_that_do_not_hold(command: Command, tmp_path: Path) -> None:
    """The kernel takes offline CPUs out of their node. A pin is cut by the fence, and by what is
    offline.
    """
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
        "          memory 64 GiB, 1.1 GiB a column",
        f" VMs      {60 * '_'}  no limit",
        "",
        " H reserved for the host   - reserved, so not for this VM   / offline",
        " # pinned here   o may run here   . may not run here",
        " x pinned here, but may not run here   _ for VMs",
        " A column is a CPU.",
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
    assert [line for line in picture(command, tmp_path) if "vcpu" in line] == [
        "          vcpu0    .      | ."
    ]


def test_a_node_with_memory_only(command: Command, tmp_path: Path) -> None:
    lines = picture(command, Made(tmp_path, [["0,1"], []]).root)
    assert "Without CPUs:   NUMA node 1" in lines
    assert [line for line in lines if "node " in line][-1] == "          node 0"


def test_large_host_with_twenty_vms(command: Command, tmp_path: Path) -> None:
    large(tmp_path)
    lines = picture(command, tmp_path)
    assert max(map(len, lines)) <= 80
    assert [line.strip() for line in lines if line.strip().startswith("node")] == [
        "node 0",
        "node 1",
    ]
    assert [line for line in lines if line.startswith(" web07")] == [
        " web07    all threads -- oo oo oo oo oo oo oo oo oo oo oo oo oo oo oo",
        " web07    all threads -- oo oo oo oo oo oo oo oo oo oo oo oo oo oo oo",
    ]
    assert len(lines) < 66


def test_a_group_is_left_out_where_it_may_not_run(command: Command, tmp_path: Path) -> None:
    large(tmp_path, 0).start(
        "db", {"emulator": "1-15", "vcpu0": "17", "vcpu1": "17"}, pins(vcpu0="17", vcpu1="17")
    )
    rows = [
        line.split()[:2]
        for line in picture(command, tmp_path)
        if "emulator" in line or "vcpu" in line
    ]
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
    headings = [line.replace("|", "") for line in lines if re.match(r" +node", line)]
    assert [" ".join(line.split()) for line in headings] == nodes
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
    host = Host(str(tmp_path))
    found = model.read(host, load(host, []), {})
    found = replace(found, vms=(replace(found.vms[0], name=name),))
    rows = [
        line for line in text.draw(found, 80, encoding, False).splitlines() if "emulator" in line
    ]
    assert rows == [f" {shown} emulator o ."]


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("form", [(), ("--json",), ("--svg", "-")])
def test_no_control_character_comes_out(
    command: Command, tmp_path: Path, name: str, form: Sequence[str]
) -> None:
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
        (
            {"emulator": "0", "vcpu0": "1", "vcpu1": "1", "vcpu2": "0", "vcpu3": "1"},
            {},
            ["emulator", "vcpu0-1,3", "vcpu2"],
        ),
        (
            {"emulator": "0", "iothread2": "1", "iothread1": "1", "vcpu0": "1"},
            {},
            ["emulator", "vcpu0", "iothread1-2"],
        ),
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
    found = [
        " ".join(line[10:].split()[:-2])
        for line in lines
        if re.search(r"emulator|vcpu|iothread|threads", line)
    ]
    assert found == labels


# 200 CPUs


def test_200_cpus_in_80_columns(command: Command, tmp_path: Path) -> None:
    """Siblings are apart from other cores, and CPU numbers read downwards."""
    nodes = [[f"{cpu},{cpu + 100}" for cpu in range(first, first + 50)] for first in (0, 50)]
    made = Made(tmp_path, nodes, conf="reserved_host_cpus = 4")
    made.start("web", dict.fromkeys(("emulator", "vcpu0"), "1-49,51-99,101-149,151-199"))
    lines = picture(command, tmp_path)
    assert max(map(len, lines)) <= 80
    assert [line.strip() for line in lines if line.strip().startswith("node")] == [
        *["node 0"] * 3,
        *["node 1"] * 3,
    ]
    first = lines.index("                      node 0")
    assert [line[:40].rstrip() for line in lines[first : first + 8]] == [
        "                      node 0",
        "",
        " CPU                  0  1  2  3  4  5",
        "                       1  1  1  1  1  1",
        "                       0  0  0  0  0  0",
        " sibling               0  1  2  3  4  5",
        " host                 HH",
        " web      all threads -- oo oo oo oo oo",
    ]
    assert lines[-1] == " A column is a CPU, its number reads downwards; siblings stand together."


# memory


def bar(lines: list[str]) -> list[str]:
    first = next(number for number, line in enumerate(lines) if " memory " in line)
    return lines[first : lines.index("", first)]


@pytest.mark.parametrize(
    ("machine", "reserved", "shown"),
    [
        (
            "desktop",
            "4 GiB",
            [
                "          memory 31.2 GiB, 864.8 MiB a column",
                " host     HHHHH                                  4 GiB",
                " VMs           ________________________________  limit 27.2 GiB, 16.3 GiB in use",
                " windows       ===================               16.3 GiB",
            ],
        ),
        (
            "hugepages",
            "4 GiB",
            [
                "          memory 251.6 GiB, 4.6 GiB a column",
                f" host     H{54 * ' '}  4 GiB",
                f" pools     {52 * 'P'}    240 GiB",
                f" VMs      {53 * ' '}__  limit 7.6 GiB",
            ],
        ),
        (
            "zfs",
            "",
            [
                "          memory 62.7 GiB, 1.0 GiB a column",
                f" VMs      {60 * '_'}  no limit",
            ],
        ),
    ],
)
def test_the_bar_of_memory(
    command: Command, tmp_path: Path, machine: str, reserved: str, shown: list[str]
) -> None:
    unpack(machine, tmp_path)
    configure(tmp_path, f'reserved_host_mem = "{reserved}"' if reserved else "")
    assert bar(picture(command, tmp_path)) == shown


def test_the_bar_with_60_vms(command: Command, tmp_path: Path) -> None:
    """Each has a row, and a cell at least; together they are as long as what they use."""
    unpack("server", tmp_path)
    configure(tmp_path, 'reserved_host_mem = "64 GiB"')
    lines = bar(picture(command, tmp_path))
    assert max(map(len, lines)) <= 80
    cells = [range(line.index("="), line.rindex("=") + 1) for line in lines if " vm" in line]
    assert len(cells) == 60
    assert {cell for row in cells for cell in row} == set(range(cells[0][0], cells[-1][-1] + 1))


def test_vms_that_use_more_than_their_limit(command: Command, tmp_path: Path) -> None:
    """As when they ran before there was a limit: the bar ends, the figures say it."""
    unpack("desktop", tmp_path)
    configure(tmp_path, 'reserved_host_mem = "24 GiB"')
    assert bar(picture(command, tmp_path))[2:] == [
        " VMs                                   _________  limit 7.2 GiB, 16.3 GiB in use",
        " windows                               =========  16.3 GiB",
    ]


def test_hugepages_that_the_kernel_charges_count_once(command: Command, tmp_path: Path) -> None:
    unpack("desktop", tmp_path)
    scope = tmp_path / "sys/fs/cgroup/machine.slice/machine-qemu\\x2d1\\x2dwindows.scope"
    (scope / "memory.stat").write_text(f"hugetlb {16 * GIB}\n")
    assert bar(picture(command, tmp_path))[-1].split(None, 2)[2] == "316 MiB"


def configure(root: Path, text: str) -> None:
    file = root / "etc/libvirt/cgroup-hooks.conf"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


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
def test_colour(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], colour: bool
) -> None:
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
        "host": {"cpus": ""},
        "dedicated": [],
        "nodes": [
            {"node": 0, "cpus": "0-3,8-11", "cores": ["0,8", "1,9", "2,10", "3,11"]},
            {"node": 1, "cpus": "4-7,12-15", "cores": ["4,12", "5,13", "6,14", "7,15"]},
        ],
        "memory": {
            "total": 65842104 * 1024,
            "hugepage_pools": 10 * GIB,
            "reserved": 6 * GIB,
            "limit": 65842104 * 1024 - 16 * GIB,
            "domains": [
                {"name": "web", "memory": 8230 * MIB, "hugepages": 0},
                {"name": "database", "memory": 196 * MIB, "hugepages": 8 * GIB},
                {"name": "realtime", "memory": 2130 * MIB, "hugepages": 0},
                {"name": "old", "memory": 16420 * MIB, "hugepages": 0},
            ],
        },
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
    assert domains["old"]["groups"][0] == {
        "group": "emulator",
        "threads": 1,
        "cpus": "0-15",
        "pinned": None,
    }


# the command line


def test_two_forms_at_once(command: Command) -> None:
    assert command(BUSY, "--json", "--svg", "-") == (
        1,
        "",
        "error: Options --svg and --json are mutually exclusive\n",
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
    assert err.startswith(
        'error: /etc/libvirt/cgroup-hooks.conf:1: reserved_host_cpus = "9": this host has no CPU 9'
    )


def test_a_warning_is_told(command: Command, tmp_path: Path) -> None:
    Made(tmp_path, [["0", "1"]], conf="on_error = 'warn'\non_error = 'refuse'")
    assert command(tmp_path)[2].startswith(
        "warning: /etc/libvirt/cgroup-hooks.conf:2: on_error is already set in line 1"
    )
