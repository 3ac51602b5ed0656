"""virt-cgroup reserve: its arguments, and what it shows. Changes are tested in test_reserve.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cli import main
from libvirt_cgroup_hooks.cli.commands.reserve import NO_HOOK, NOT_YET, UNTIL

from ..support import reserving
from ..support.hosts import CONF as PATH
from ..support.hosts import Kernel
from ..support.operations import MIB
from ..test_reserve import change


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--cpus 0-0 --live --current", "Options --current and --live are mutually exclusive"),
        ("--cpus 0-0 --current --config", "Options --current and --config are mutually exclusive"),
        ("--current --live", "Options --current and --live are mutually exclusive"),
        (
            "--wait",
            "One of --cpus, --memory, --swap, --confine is required by option --wait",
        ),
        (
            "--force --live",
            "One of --cpus, --memory, --swap, --confine is required by option --force",
        ),
        ("--memory 10% --wait 5 --config", "Option --live is required by option --wait"),
        ("--cpus 0-0 --force --config", "Option --live is required by option --force"),
        ("--cpus x", '--cpus x: "x" is not a CPU list'),
        ("--cpus 3-1", "--cpus 3-1: "),
        ("--cpus=", "--cpus : "),
        ("--memory 4", "--memory 4: "),
        ("--memory 0%", '--memory 0%: "0%" of memory cannot be reserved'),
        ("--memory \x1b", "--memory \\x1b: "),
        ("--cpus 0", "--cpus 0: the count of CPUs has to be 1 or more"),
        (
            "--cpus 0-0",
            "nothing can be changed with --root: edit the file in that copy",
        ),
        ("--cpus none --memory none --config", "nothing can be changed with --root"),
        (
            "--cpus 0-0 --live --config --wait --force",
            "nothing can be changed with --root",
        ),
    ],
)
def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    host = reserving.made(tmp_path, "cgroupfs-v2")
    before = host.snapshot()
    assert main(["reserve", "--root", host.root, *arguments.split()]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert host.snapshot() == before


@pytest.mark.parametrize("text", ["x", "0", "-1", "nan", "inf", "86400"])
def test_a_time_that_cannot_be_waited(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["reserve", "--cpus", "0", f"--wait={text}"])
    assert end.value.code == 2
    assert (
        f'argument --wait: "{text}" is not a number of seconds, above 0 and below 86400'
        in capsys.readouterr().err
    )


def show(host: Kernel, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["reserve", "--root", host.root, *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ("" if "--json" in arguments else f"warning: {NO_HOOK}\n")
    return out


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = reserving.running(tmp_path, "cgroupfs-v2")
    reserving.use(host, 300 * MIB)
    change(host, "live", cpus="0-1", mem="1 GiB").run()
    host.put(reserving.file(host, "cpuset.cpus.effective"), "2-3")
    rows = [line.split("   ") for line in show(host, capsys).splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[0] == ["In the file", "Required now", "In the kernel"]
    assert cells[2:] == [
        ["Reserved CPUs", "0", "0-1", "0-1"],
        ["Reserved memory", "512 MiB", "1 GiB", "1 GiB"],
        ["CPUs for VMs", "1-3", "2-3", "2-3"],
        ["Memory for VMs", "7.3 GiB", "6.8 GiB", "6.8 GiB"],
        [],
        ["VM parent: /vms, 300 MiB of memory in use"],
        [],
        [UNTIL],
    ]
    assert "Required now" not in show(host, capsys, "--config")
    for option in ("--live", "--current"):
        assert "In the file" not in show(host, capsys, option)
        assert UNTIL not in show(host, capsys, option)
    assert "In the file" in show(host, capsys, "--live", "--config")


@pytest.mark.parametrize("kind", reserving.KINDS)
@pytest.mark.parametrize(("what", "value"), [("cpus", "0-1"), ("cpus", None), ("mem", "1 GiB")])
def test_what_is_not_in_effect_yet(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    what: str,
    value: str | None,
) -> None:
    host = reserving.running(tmp_path, kind)
    effective = reserving.file(host, "cpuset.cpus.effective")
    host.put(effective, "1-3")
    assert NOT_YET not in show(host, capsys)
    change(host, "config", False, **{what: value}).run()
    for arguments in ([], ["--config"]):
        assert NOT_YET in show(host, capsys, *arguments)
    change(host, "live config", False, **{what: value}).run()
    host.put(effective, reserving.says(host, "cpuset.cpus") or "0-3")
    assert NOT_YET not in show(host, capsys)


def test_where_no_parent_has_the_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = reserving.made(
        tmp_path, "cgroupfs-v2", "reserved_host_cpus = '0'\ncgroup_layout = 'root'\n"
    )
    assert NOT_YET not in show(host, capsys)
    assert NOT_YET in show(host, capsys, "--config")


def test_where_each_vm_has_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "reserved_host_cpus = '0'\nreserved_host_mem = '1 GiB'\nhost_cpus_for = ['emulator']\n"
    host = reserving.made(tmp_path, "systemd-v2", text)
    reserving.start(host, layout="native")
    shown = show(host, capsys)
    assert shown.count("in each VM") == len(("Reserved CPUs", "CPUs for VMs"))
    assert NOT_YET not in shown


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = reserving.running(tmp_path, "systemd-v2")
    host.put(reserving.file(host, "cpuset.cpus.effective"), "1-3")
    limit = reserving.total(host) - 512 * MIB
    found = {
        "reserved_cpus": "0",
        "reserved_memory": 512 * MIB,
        "cpus": "1-3",
        "memory_limit": limit,
        "swap": None,
        "cpu_weight": None,
        "protected": None,
        "confine_host": None,
    }
    report = json.loads(show(host, capsys, "--json"))
    assert report == {
        "configured": found,
        "live": found,
        "in_effect": found,
        "confine_now": False,
        "parent": "/vms.slice",
        "cpus_of_each_vm": False,
        "memory_current": 0,
        "memory_left_out": {},
    }


@pytest.mark.parametrize("text", [None, "", "# prose\n"])
def test_with_nothing_reserved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    host = reserving.made(tmp_path, "cgroupfs-v1", text)
    report = json.loads(show(host, capsys, "--json"))
    keys = ["reserved_cpus", "reserved_memory", "cpus", "memory_limit"]
    keys += ["swap", "cpu_weight", "protected", "confine_host"]
    nothing = dict.fromkeys(keys)
    assert (report["configured"], report["live"], report["in_effect"]) == (
        nothing,
        nothing,
        nothing,
    )
    assert main(["reserve", "--root", host.root]) == 0
    out, err = capsys.readouterr()
    assert ("Reserved CPUs" in out, err) == (True, "")


def test_a_file_with_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = reserving.made(tmp_path, "cgroupfs-v2", "reserved_host_cpus = '9'\n")
    assert main(["reserve", "--root", host.root]) == 1
    assert (
        f'error: {PATH}:1: reserved_host_cpus = "9": this host has no CPU 9'
        in capsys.readouterr().err
    )
