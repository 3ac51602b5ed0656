# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one exception that is meant for the user, and how text and sizes are shown to them."""

from __future__ import annotations

MIB = 1024**2


class Error(Exception):
    """What was attempted, on what, with which value (message), and what to do about it (hint).

    `denied`: root might do it.
    """

    denied = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message

    def of(self, subject: str) -> Error:
        """The same, and that it is about SUBJECT."""
        told = Error(f"{subject}: {self.message}", self.hint)
        told.denied = self.denied
        return told


class Refusal(Error):
    """The VM asks for what the configuration forbids: no failure, so `on_error` does not apply."""


def printable(text: str) -> str:
    """TEXT with every control, format and undecodable character escaped, for one line of a log or
    terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(amount: int) -> str:
    """Bytes for people: whole where they are whole, else one decimal."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        tenths = round(amount * 10 / (1 << shift))
        if tenths >= 10 and amount >= 1024:
            return (
                f"{tenths // 10} {unit}"
                if amount % (1 << shift) == 0
                else f"{tenths / 10:.1f} {unit}"
            )
    return f"{amount} bytes"
