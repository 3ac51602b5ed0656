"""The documents against the code: the plans, settings, commands and files that they name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark.document import HEAD, SECTIONS
from libvirt_cgroup_hooks import operations, settings
from libvirt_cgroup_hooks.cli import parser
from libvirt_cgroup_hooks.cli.checks.codes import CODES
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.layout import NATIVE, PRESETS

from .support.hosts import Kernel, run
from .support.machined import Machined
from .support.operations import plan, vm

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
VALIDATE = (ROOT / "docs/validate.md").read_text(encoding="utf-8")
SPEED = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
BY_A_PROGRAM = ROOT / "docs/tested.md"
WRITTEN = [
    *ROOT.glob("*.md"),
    *(ROOT / "libvirt_cgroup_hooks").rglob("README.md"),
    *(path for path in (ROOT / "docs").glob("*.md") if path != BY_A_PROGRAM),
]
CONF = """\
reserved_host_cpus = "0-1"
reserved_host_mem = "4 GiB"
cgroup_layout = "/vms/$NAME"
"""
INNER = "<vcpu>1</vcpu><iothreads>1</iothreads>"
LIFE = ("prepare", "start", "started", "stopped", "release")


def life(host: Kernel) -> Iterator[tuple[str, str]]:
    """Each operation that has something to do for the first VM of HOST, and its plan."""
    subject = vm(inner=INNER, number=3)
    for operation in LIFE:
        if operation == "started":
            subject = runs(host, subject)
        if operation == "stopped":
            ends(host)
        steps = str(operations.plan(host, host.config(), operation, subject))
        run(host, plan(host, operation, subject))
        if steps:
            yield operation, steps


def runs(host: Kernel, subject: Domain) -> Domain:
    if isinstance(host, Machined):
        host.slice("vms.slice", "2-3", "4035678208")
        return host.starts(subject, "/vms.slice", INNER)
    return host.start_vm(subject, INNER)


def ends(host: Kernel) -> None:
    for name in host.directories("/proc"):
        if name.isdigit():
            shutil.rmtree(f"{host.root}/proc/{name}")
    host.remove("/run/libvirt/qemu/vm.xml")


@pytest.mark.parametrize("kind", [Machined, Kernel])
def test_the_plans_that_are_shown(tmp_path: Path, kind: type[Kernel]) -> None:
    assert "".join(f"    {line}\n" for line in CONF.splitlines()) in ARCHITECTURE
    for operation, steps in life(kind(tmp_path / "host", "v2", CONF)):
        assert f"```\n# virt-cgroup plan {operation} vm.xml\n{steps}\n```\n" in ARCHITECTURE


def test_the_table_of_settings_has_each_once() -> None:
    """In any order; a row may have several."""
    table = CONFIGURATION.partition("\n| setting ")[2].partition("\n\n")[0]
    rows = [line.partition(" | ")[0] for line in table.splitlines()[2:]]
    named = [name for row in rows for name in re.findall("`(.+?)`", row)]
    assert sorted(named) == sorted(setting.key for setting in settings.TABLE)


def test_each_layout_and_each_setting_of_a_vm_is_told() -> None:
    for name, template in PRESETS.items():
        assert f"| `{name}` | " in CONFIGURATION
        assert name == NATIVE or f"| `{name}` | `{template}` |" in CONFIGURATION
    told = CONFIGURATION.partition("\n## Settings of one VM\n")[2]
    for key in settings.OF_VM:
        assert f"`{key}`" in told


def test_the_codes_of_validate() -> None:
    rows = [f"| `{name}` | {code.result} | {code.meaning} |" for name, code in CODES.items()]
    assert [line for line in VALIDATE.splitlines() if line.startswith("| `")] == rows


def test_readme_has_every_command() -> None:
    usage = parser().format_help().partition("COMMAND\n")[2]
    for name in re.findall("^    ([a-z]+) ", usage, re.MULTILINE):
        assert f"    virt-cgroup {name} " in README


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    names = re.findall(r"(?<![\w./-])(?:tests|tools|docs|packaging)/[\w./-]*\w", text)
    links = re.findall(r"\]\(([\w./-]+)(?:#[\w-]*)?\)", text)
    missing = [name for name in names if not (ROOT / name).exists()]
    missing += [link for link in links if not (path.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_headings_that_are_linked_are_there(path: Path) -> None:
    links = re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", path.read_text(encoding="utf-8"))
    missing = [
        (name, anchor)
        for name, anchor in links
        if anchor not in anchors(path.parent / name if name else path)
    ]
    assert missing == []


def anchors(path: Path) -> set[str]:
    """As GitHub and GitLab make them of headings."""
    headings = re.findall("^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    words = [re.sub(r"[^\w -]", "", heading).lower() for heading in headings]
    return {text.replace(" ", "-") for text in words}


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_are_not_too_long(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []


def test_the_prose_about_speed_is_that_of_the_program() -> None:
    prose = [HEAD, *(f"## {one.title}\n\n{one.prose}" for one in SECTIONS.values())]
    shown = [text for text in prose if text.partition("\n")[0] + "\n" in SPEED]
    assert HEAD in shown
    assert [text for text in shown if text not in SPEED] == []
