"""Completion as a user sees it: keys are pressed in bash and in zsh."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cli import parser
from libvirt_cgroup_hooks.layout import PRESETS
from libvirt_cgroup_hooks.settings import OF_VM

from .conftest import run
from .shell import Shell

# A name may be anything that has no line break; the last would run a command if it were expanded.
RUNNING = ("web", "data base", "$(touch ran)")
STOPPED = ("old",)
VIRSH = f"""
virsh() {{
    printf '%s\\n' {" ".join(f"'{name}'" for name in RUNNING)}
    case $* in *--all*) printf '%s\\n' {" ".join(STOPPED)} ;; esac
    echo
}}
"""


def commands() -> dict[str, argparse.ArgumentParser]:
    found = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found[0].choices)


COMMANDS = commands()


@pytest.fixture(scope="module", params=["bash", "zsh"])
def shell(
    request: pytest.FixtureRequest,
    generated: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shell]:
    directory = tmp_path_factory.mktemp(request.param)
    (directory / "vm.xml").touch()
    (directory / "hosts").mkdir()
    with Shell(request.param, generated / "completions", VIRSH, directory) as opened:
        yield opened


def test_commands(shell: Shell) -> None:
    assert set(shell.all("virt-cgroup ")) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command(shell: Shell, name: str) -> None:
    expected = {
        option
        for action in COMMANDS[name]._actions
        for option in action.option_strings
        if action.help != argparse.SUPPRESS and option.startswith("--")
    }
    assert set(shell.all(f"virt-cgroup {name} --")) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("apply ", set(RUNNING)),
        ("apply web ", set(RUNNING)),
        ("status ", set(RUNNING)),
        ("domain ", {*RUNNING, *STOPPED}),
        ("domain --live ", {*RUNNING, *STOPPED}),
        ("domain -c qemu:///system ", {*RUNNING, *STOPPED}),
        ("domain web --set ", {f"{key}=" for key in OF_VM}),
        ("domain web --unset ", set(OF_VM)),
        ("domain web --set layout=legacy --unset ", set(OF_VM)),
        ("domain --set layout=legacy -c qemu:///system ", {*RUNNING, *STOPPED}),
        ("hook ", {"install", "reload", "remove", "status"}),
        ("plan sta", {"start", "started"}),
        ("reserve --cpus ", {"auto", "none"}),
        ("reserve --memory ", {"auto", "none"}),
    ],
)
def test_values(shell: Shell, line: str, expected: set[str]) -> None:
    assert set(shell.all(f"virt-cgroup {line}")) == expected


def test_layouts(shell: Shell) -> None:
    line = "virt-cgroup domain web --set layout="
    assert {word.removeprefix("layout=") for word in shell.all(line)} == set(PRESETS)


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("st", "status "),
        ("--root / st", "--root / status "),
        ("--ver", "--version "),
        ("--root ho", "--root hosts/"),
        ("apply --par", "apply --parent "),
        ("apply web --j", "apply web --json "),
        ("domain web --set lay", "domain web --set layout="),
        ("domain web --set layout=leg", "domain web --set layout=legacy "),
        ("domain web --set vcpu_cpus=", "domain web --set vcpu_cpus="),
        ("domain web --liv", "domain web --live "),
        ("domain ol", "domain old "),
        ("apply dat", "apply data\\ base "),
        ("map --svg vm", "map --svg vm.xml "),
        ("validate --config vm", "validate --config vm.xml "),
        ("reserve --config --li", "reserve --config --live "),
        ("reserve --wait 30 --cpus au", "reserve --wait 30 --cpus auto "),
        ("plan prepare vm", "plan prepare vm.xml "),
        ("status we", "status web "),
    ],
)
def test_the_tabulator_key(shell: Shell, line: str, after: str) -> None:
    assert shell.tab(f"virt-cgroup {line}") == f"virt-cgroup {after}"


def test_nothing_else_is_offered(shell: Shell) -> None:
    """Options, which zsh names where no more values are wanted, do not count."""
    for line in ("hook install ", "plan prepare vm.xml ", "reserve --cpus auto "):
        assert [word for word in shell.all(f"virt-cgroup {line}") if word[0] != "-"] == []


def test_a_name_is_not_run(shell: Shell) -> None:
    shell.all("virt-cgroup apply ")
    assert shell.run("ls").split() == ["hosts", "vm.xml"]


def test_the_variables_of_bash_stay_the_users(generated: Path, tmp_path: Path) -> None:
    with Shell("bash", generated / "completions", "prefix=mine\n", tmp_path) as shell:
        shell.tab("virt-cgroup st")
        assert shell.run("echo $prefix $current_action").strip() == "mine"


# the scripts


def test_bash_is_clean(generated: Path) -> None:
    """What is our own; the rest is shtab's."""
    assert run("shellcheck", "packaging/generate/completion.bash", check=False) == ""
    assert run("bash", "-n", generated / "completions/virt-cgroup") == ""


def test_zsh_is_clean(generated: Path) -> None:
    assert run("zsh", "-n", generated / "completions/_virt-cgroup") == ""
