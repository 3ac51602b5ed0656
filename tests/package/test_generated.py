"""What is made from the settings table and the commands' help: it is complete, and the tools that
read it accept it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import configfile, settings
from libvirt_cgroup_hooks.cli import parser

from .conftest import run

PATH = "/files/etc/libvirt/cgroup-hooks.conf"
PAGES = ("virt-cgroup.8", "cgroup-hooks.conf.5")
NAMES = [
    name
    for action in parser()._actions
    if isinstance(action.choices, dict)
    for name in action.choices
]


# the manual


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_clean(generated: Path, page: str) -> None:
    assert run("mandoc", "-T", "lint", "-W", "warning", generated / "man" / page, check=False) == ""


def shown(page: Path) -> str:
    return run("sh", "-c", 'mandoc -T ascii "$1" | col -b', "sh", page)


def test_the_page_has_every_command(generated: Path) -> None:
    text = shown(generated / "man/virt-cgroup.8")
    assert NAMES
    for name in NAMES:
        assert f"   {name}\n" in text
        assert f"virt-cgroup {name} " in text


def test_the_page_has_every_setting(generated: Path) -> None:
    text = shown(generated / "man/cgroup-hooks.conf.5")
    for setting in settings.TABLE:
        assert f"{setting.key} = {setting.example}" in text
    assert "Default: refuse." in text
    of_one_vm = text.partition("SETTINGS OF ONE VM")[2]
    assert all(key in of_one_vm for key in settings.OF_VM)


# augeas


def test_the_lens_reads_the_sample(generated: Path) -> None:
    test = generated / "lenses/tests/test_libvirt_cgroup_hooks.aug"
    assert run("augparse", "-I", generated / "lenses", test) == ""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    (tmp_path / "etc/libvirt").mkdir(parents=True)
    (tmp_path / "etc/libvirt/cgroup-hooks.conf").write_text(settings.sample())
    return tmp_path


def augtool(generated: Path, host: Path, key: str, value: str) -> str:
    """The configuration file after the setting is made."""
    nodes = {key: value}
    if value.startswith("["):
        names = [name.strip(' "') for name in value.strip("[]").split(",")]
        nodes = {f"{key}/{number}": name for number, name in enumerate(names, 1)}
    lines = [f"set {PATH}/{node} '{text}'\n" for node, text in nodes.items()]
    (host / "script").write_text("".join([*lines, "save\n"]))
    run("augtool", "--root", host, "-I", generated / "lenses", "--file", host / "script")
    return (host / "etc/libvirt/cgroup-hooks.conf").read_text()


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("reserved_host_cpus", "0-1", 'reserved_host_cpus = "0-1"'),
        ("reserved_host_cpus", "2", "reserved_host_cpus = 2"),
        ("reserved_host_cpus", '"2"', 'reserved_host_cpus = "2"'),
        ("reserved_host_cpus", "auto", 'reserved_host_cpus = "auto"'),
        ("emulator_cpus", "2", 'emulator_cpus = "2"'),
        ("vm_swap_max", "2 GiB", 'vm_swap_max = "2 GiB"'),
        ("cgroup_layout", "/vms/$DRIVER-$UUID", 'cgroup_layout = "/vms/$DRIVER-$UUID"'),
        *(
            (setting.key, setting.example.strip('"'), f"{setting.key} = {setting.example}")
            for setting in settings.TABLE
        ),
    ],
)
def test_what_augtool_sets_is_read(
    generated: Path, host: Path, key: str, value: str, line: str
) -> None:
    text = augtool(generated, host, key, value)
    assert text == f"{settings.sample()}{line}\n"
    needed = {
        "confine_host": 'reserved_host_cpus = "0"\n',
        "host_cpus_for": 'reserved_host_cpus = "0"\n',
        "protect_host_mem": 'reserved_host_mem = "1 GiB"\n',
    }.get(key, "")
    assert configfile.parse(text + needed).values[key]


def test_augtool_changes_a_line_and_no_other(generated: Path, host: Path) -> None:
    file = host / "etc/libvirt/cgroup-hooks.conf"
    file.write_text("# mine\n\n  reserved_host_cpus='0,3' # as ever\nhook_timeout = 5\n")
    text = augtool(generated, host, "reserved_host_cpus", "0-1")
    assert text == "# mine\n\n  reserved_host_cpus='0-1' # as ever\nhook_timeout = 5\n"
