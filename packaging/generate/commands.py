# SPDX-License-Identifier: LGPL-2.1-or-later
"""What argparse knows of the commands, for the manual and for completion."""

from __future__ import annotations

import argparse
from collections.abc import Iterator


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """By name, in the order of `virt-cgroup --help`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (
        action
        for action in parser._actions
        if action.option_strings and action.help != argparse.SUPPRESS
    )


def positionals(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (
        a
        for a in parser._actions
        if not a.option_strings and not isinstance(a, argparse._SubParsersAction)
    )


def takes_value(action: argparse.Action) -> bool:
    return action.nargs != 0


def metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return " ".join(action.metavar) if action.metavar else action.dest.upper()


def help_of(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """With %(default)s and the like filled in."""
    return (action.help or "") % {**vars(action), "prog": parser.prog}
