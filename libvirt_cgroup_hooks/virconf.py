# SPDX-License-Identifier: LGPL-2.1-or-later
"""The grammar of qemu.conf (libvirt's src/util/virconf.c).

    file      = { statement separator }
    statement = name "=" value [ "#" comment ]      or a comment, or nothing
    separator = end of line, or ";"
    value     = integer | 'string' | "string" | \"\"\"string\"\"\" | "[" value, value... "]"

Strings have no escapes; only \"\"\"strings\"\"\" and lists may run over lines.
A list may end in a comma and holds no comments.
"""

from __future__ import annotations

from .errors import Error, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    Value = Union[int, str, list["Value"]]

BLANK = " \t"
SPACE = " \t\r\n"
EOL = "\r\n"
MAX_NESTING = 32
LIMIT = 1 << 20  # characters
LONGEST_WORD = 30


class Statement:
    """One `key = value`, with where its text begins and ends."""

    __slots__ = ("end", "key", "line", "start", "value")

    def __init__(self, key: str, value: Value, line: int, start: int, end: int) -> None:
        self.key = key
        self.value = value
        self.line = line
        self.start = start
        self.end = end


def parse(text: str, path: str) -> list[Statement]:
    """All statements of TEXT in order, duplicates included. Raises Error naming PATH and line."""
    if len(text) > LIMIT:
        raise Error(f"{path} is larger than {LIMIT >> 20} MiB", "is it a configuration file?")
    return _Parser(text, path).statements()


def edited(text: str, path: str, key: str, value: str | None) -> str:
    """TEXT with KEY set to VALUE, which is written as given, or with None no longer set; all else
    is kept.

    What was set is put into a comment where it stood alone on its line. A key that was not set goes
    below its commented-out sample, else to the end. Raises Error where TEXT is not understood.
    """
    statements = parse(text, path)
    found = [statement for statement in statements if statement.key == key]
    if value is not None and found:
        return f"{text[: found[0].start]}{key} = {value}{text[found[0].end :]}"
    for statement in reversed(found):
        text = _without(text, statement)
    return text if value is None else _inserted(text, key, f"{key} = {value}", statements)


def _without(text: str, statement: Statement) -> str:
    head, inside, tail = (
        text[: statement.start],
        text[statement.start : statement.end],
        text[statement.end :],
    )
    line, _, _ = tail.partition("\n")
    if (
        head.rpartition("\n")[2].strip(SPACE)
        or line.strip(SPACE)[:1] not in ("", "#")
        or any(c in inside for c in EOL)
    ):
        return head + tail.lstrip(BLANK).removeprefix(";")
    return f"{head}#{inside}{tail}"


def _inserted(text: str, key: str, setting: str, statements: list[Statement]) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    at = 0
    for line in text.splitlines(keepends=True):
        at += len(line)
        named = line.lstrip(BLANK + "#").partition("=")[0].strip(BLANK)
        sample = named == key and line.endswith("\n")
        # that is a string over several lines
        if sample and not any(one.start < at <= one.end for one in statements):
            return f"{text[:at]}{setting}{newline}{text[at:]}"
    return text + ("" if text.endswith("\n") or not text else newline) + setting + newline


def is_word(text: str) -> bool:
    """Whether TEXT is short and may have been meant as a string."""
    return 0 < len(text.strip()) <= LONGEST_WORD and not set(text) & set("=;\"'[]")


class _Parser:
    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self.path = path
        self.at = 0
        self.counted = (0, 1)  # up to where lines are counted, and the line there

    def statements(self) -> list[Statement]:
        found: list[Statement] = []
        while True:
            self.skip(SPACE)
            if not self.peek():
                return found
            if self.peek() == "#":
                self.comment()
            else:
                found.append(self.statement())
                self.separator(found[-1])

    def statement(self) -> Statement:
        start, line = self.at, self.line()
        key = self.name()
        self.skip(BLANK)
        if self.peek() != "=":
            raise self.error(f'"{key}" is not followed by "="', "write key = value")
        self.at += 1
        self.skip(BLANK)
        value = self.value()
        return Statement(key, value, line, start, self.at)

    def separator(self, before: Statement) -> None:
        self.skip(BLANK)
        if self.peek() == "#":
            self.comment()
        elif self.peek() == ";":
            self.at += 1
        elif self.peek() and self.peek() not in EOL:
            raise self.error(
                f"unexpected {self.shown()} after the value",
                self._remedy(before),
            )

    def _remedy(self, before: Statement) -> str:
        """0-1 without quotes is a number, and then what nobody expects."""
        value = self.rest_of_line(before.start).partition("=")[2]
        if isinstance(before.value, int) and is_word(value):
            return f'put it in quotes: "{printable(value.strip())}"'
        return 'write one setting per line, or ";" between two'

    def name(self) -> str:
        start = self.at
        while self.peek().isascii() and (self.peek().isalnum() or self.peek() == "_"):
            self.at += 1
        name = self.text[start : self.at]
        if not name[:1].isalpha():
            self.at = start
            raise self.error(
                f"expected a setting's name, found {self.shown()}",
                "write key = value, or # before a comment",
            )
        return name

    def value(self, depth: int = 0) -> Value:
        first = self.peek()
        if first == "[":
            return self.list(depth)
        if first in ("'", '"'):
            return self.string(first)
        if first and (first in "+-" or (first.isascii() and first.isdigit())):
            return self.integer()
        rest = self.rest_of_line(self.at)
        remedy = 'write a number, a "string" or a [ "list" ]'
        if not depth and is_word(rest):
            remedy = f'put it in quotes: "{printable(rest.strip())}"'
        raise self.error(f"expected a value, found {self.shown()}", remedy)

    def integer(self) -> int:
        start = self.at
        self.at += 1
        while self.peek().isascii() and self.peek().isdigit():
            self.at += 1
        digits = self.text[start : self.at]
        if not digits[-1].isdigit() or len(digits) > 20:
            self.at = start
            raise self.error(f'"{digits[:30]}" is not a number', "write decimal digits")
        return int(digits)

    def string(self, quote: str) -> str:
        long = self.text.startswith('"""', self.at) and len(self.text) - self.at > 6
        mark = '"""' if long else quote
        start = self.at + len(mark)
        end = self.text.find(mark, start)
        value = self.text[start:end]
        if end < 0 or (not long and any(c in value for c in EOL)):
            raise self.error(
                f"the string that begins here has no closing {mark}",
                "close it" + ("" if long else " on the same line"),
            )
        self.at = end + len(mark)
        return value

    def list(self, depth: int) -> list[Value]:
        if depth >= MAX_NESTING:
            raise self.error("lists are nested too deeply", "no setting takes a list in a list")
        start = self.at
        self.at += 1
        values: list[Value] = []
        while True:
            self.skip(SPACE)
            if self.peek() == "]":
                self.at += 1
                return values
            if not self.peek():
                self.at = start
                raise self.error("the list that begins here has no closing ]", "close it")
            values.append(self.value(depth + 1))
            self.skip(SPACE)
            if self.peek() == ",":
                self.at += 1
            elif self.peek() != "]":
                raise self.error(
                    f"expected , or ] in the list, found {self.shown()}",
                    "comments are not allowed in lists",
                )

    def comment(self) -> None:
        while self.peek() and self.peek() not in EOL:
            self.at += 1

    def skip(self, characters: str) -> None:
        while self.peek() and self.peek() in characters:
            self.at += 1

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def shown(self) -> str:
        """What comes next, for a message."""
        rest = self.text[self.at : self.at + 20].splitlines()
        if not rest:
            return "the end of the file"
        return f'"{printable(rest[0])}"' if rest[0] else "the end of the line"

    def rest_of_line(self, at: int) -> str:
        """What is there from AT on, without a comment."""
        return (self.text[at:].splitlines() or [""])[0].partition("#")[0]

    def line(self) -> int:
        at, line = self.counted if self.counted[0] <= self.at else (0, 1)
        line += sum(self.text.count(end, at, self.at) for end in EOL) - self.text.count(
            "\r\n", at, self.at
        )
        self.counted = (self.at, line)
        return line

    def error(self, message: str, hint: str) -> Error:
        return Error(f"{self.path}:{self.line()}: {message}", hint)
