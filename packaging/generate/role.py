# SPDX-License-Identifier: LGPL-2.1-or-later
"""The variables of the Ansible role: one for each setting, which its name begins with.

They are in the source tree, as the collection is used from there, too:

    python3 packaging/generate/role.py
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import lens

from libvirt_cgroup_hooks import settings
from libvirt_cgroup_hooks.settings import Setting

ROLE = Path(__file__).resolve().parents[1] / "ansible/roles/cgroup_hooks"
WIDTH = 100
HEAD = "---\n# Made from the settings by packaging/generate/role.py\n"
SPECS = """\
argument_specs:
  main:
    short_description: Keep CPUs and memory of a virtualization host for the host
    description:
      - Installs libvirt-cgroup-hooks, writes C(/etc/libvirt/cgroup-hooks.conf), and has it take
        effect. The file has what these variables say and nothing else. A variable that is not set,
        or empty, leaves its setting out.
      - A file that is not right for the host, or for the VMs that run, is not put in place.
    options:
      cgroup_hooks_packages:
        description:
          - Packages to install from the repositories that the host has. An empty list installs
            none.
        type: list
        elements: str
        default: [libvirt-cgroup-hooks]
      cgroup_hooks_package_files:
        description:
          - Package files on the controller to install instead. They are copied to
            C(/var/cache/libvirt-cgroup-hooks).
        type: list
        elements: path
        default: []
      cgroup_hooks_apply:
        description:
          - When a change takes effect. V(live) also for the VMs that run, at once.
          - V(next_start) for all of them when the next VM starts.
        type: str
        choices: [live, next_start]
        default: live
      cgroup_hooks_metrics:
        description:
          - Whether the timer runs that writes metrics for node_exporter's textfile collector.
        type: bool
        default: false
"""
TYPES = {"both": "raw", "number": "int", "text": "str", "list": "list"}


def files(table: Iterable[Setting]) -> dict[str, str]:
    """By path in the role."""
    table = list(table)
    types = "".join(f"  {setting.key}: {TYPES[lens.kind(setting)]}\n" for setting in table)
    return {
        "meta/argument_specs.yml": HEAD + SPECS + "".join(map(_option, table)),
        "vars/main.yml": f"{HEAD}__cgroup_hooks_settings:\n{types}",
    }


def _option(setting: Setting) -> str:
    kind = lens.kind(setting)
    lines = [f"cgroup_hooks_{setting.key}:", "  description:"]
    for paragraph in _paragraphs(setting.prose):
        lines += ["    - >-", *_wrapped(paragraph, 6)]
    lines.append(f"  type: {TYPES[kind]}")
    if kind == "list":
        lines.append("  elements: str")
    if setting.choices:
        lines.append(f"  choices: {_sequence(kind, setting.choices)}")
    if setting.default and kind == "list":
        lines.append(f"  default: {_sequence(kind, setting.default.split())}")
    elif setting.default:
        lines.append(f"  default: {_value(kind, setting.default)}")
    return "".join(f"      {line}\n" for line in lines)


def _paragraphs(prose: str) -> list[str]:
    """Lines that are indented stand alone."""
    found: list[str] = []
    flows = False
    for line in prose.splitlines():
        alone = line.startswith(" ")
        if flows and not alone:
            found[-1] += f" {line}"
        else:
            found.append(" ".join(line.split()))
        flows = not alone
    return found


def _wrapped(text: str, indent: int) -> list[str]:
    before = " " * indent
    return textwrap.wrap(
        text,
        WIDTH - indent,
        initial_indent=before,
        subsequent_indent=before,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _sequence(kind: str, values: Iterable[str]) -> str:
    return f"[{', '.join(_value(kind, value) for value in values)}]"


def _value(kind: str, value: str) -> str:
    """In quotes: YAML takes no for false."""
    return value if kind == "number" else f'"{value}"'


def main() -> None:
    parser = argparse.ArgumentParser(prog="role", description="Make the role's variables.")
    parser.add_argument(
        "directory", type=Path, nargs="?", default=ROLE, help="the role's (default: in this tree)"
    )
    directory: Path = parser.parse_args().directory
    for name, text in files(settings.TABLE).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")


main()
