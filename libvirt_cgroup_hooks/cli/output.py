# SPDX-License-Identifier: LGPL-2.1-or-later
"""Output in the manner of virsh."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence

from ..errors import printable


def count(number: int, noun: str) -> str:
    """NUMBER with NOUN in its singular or plural."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_json(value: object) -> None:
    """VALUE as all `--json` is printed."""
    print(json.dumps(value, indent=2))


def print_warnings(warnings: Iterable[str]) -> None:
    """A line each, on standard error."""
    for warning in warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """As `virsh dominfo`."""
    for name, value in pairs:
        print(f"{printable(name) + ':':<16}{printable(value)}")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """As `virsh list`."""
    shown = [list(head), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(head))]
    lines = [
        " " + "   ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in shown
    ]
    print("\n".join([lines[0], "-" * (sum(widths) + 3 * len(widths)), *lines[1:]]))
