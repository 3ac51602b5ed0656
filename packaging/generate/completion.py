# SPDX-License-Identifier: LGPL-2.1-or-later
"""Completion for bash and zsh: shtab makes it from the parser.

What shtab cannot know, the names of VMs and KEY=VALUE, is in completion.bash and completion.zsh.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import shtab
from commands import commands

from libvirt_cgroup_hooks.layout import PRESETS
from libvirt_cgroup_hooks.settings import OF_VM

HERE = Path(__file__).resolve().parent


def _function(name: str) -> dict[str, str]:
    return dict.fromkeys(("bash", "zsh"), f"_virt_cgroup_{name}")


# Both by an argument's name in the parser. Values that stand in neither are not completed.
WORDS = {"cpus": ["auto", "none"], "memory": ["auto", "none"], "unset": list(OF_VM)}
SOURCES = {
    "root": shtab.DIRECTORY,
    "svg": shtab.FILE,
    "output": shtab.FILE,
    "file": shtab.FILE,
    "proposed": shtab.FILE,
    "domain": _function("domains"),
    "domains": _function("running"),
    "set": _function("setting"),
}


def bash(parser: argparse.ArgumentParser) -> str:
    """Changes PARSER."""
    for action in _actions(parser):
        _describe(action)
    text: str = shtab.complete(parser, "bash")
    return text + "\n\n" + _own("completion.bash")


def zsh(parser: argparse.ArgumentParser) -> str:
    """Changes PARSER."""
    for action in _actions(parser):
        _describe(action)
        _offer_choices_once(action)
    text: str = shtab.complete(parser, "zsh", preamble=_own("completion.zsh"))
    # shtab's form for any number of arguments completes the first alone.
    return text.replace('"(*)::', '"*:') + "\n"


def _actions(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    return (action for each in (parser, *commands(parser).values()) for action in each._actions)


def _describe(action: argparse.Action) -> None:
    if action.dest in WORDS:
        action.choices = WORDS[action.dest]
    if action.dest in SOURCES:
        vars(action)["complete"] = SOURCES[action.dest]
    if action.nargs == argparse.OPTIONAL and action.option_strings:
        action.nargs = None  # shtab 1.7 and older: bash would calculate with "?"


def _offer_choices_once(action: argparse.Action) -> None:
    """shtab 1.7 and older write a positional argument that has choices twice for zsh."""
    if action.choices and not action.option_strings and not isinstance(action.choices, dict):
        vars(action)["complete"] = {"zsh": f"({' '.join(action.choices)})"}
        action.choices = None


def _own(name: str) -> str:
    text = (HERE / name).read_text(encoding="utf-8")
    return text.replace("@SETTINGS@", " ".join(OF_VM)).replace("@LAYOUTS@", " ".join(PRESETS))
