# SPDX-License-Identifier: LGPL-2.1-or-later
"""`<resource><partition>` in a domain's XML, edited in place: every other byte stays as libvirt
gave it.
"""

from __future__ import annotations

from pyexpat import ParserCreate
from xml.sax.saxutils import escape

from ..errors import Error, printable

RESOURCE, PARTITION = "domain/resource", "domain/resource/partition"


def check(path: str) -> str:
    """PATH, where it can be a partition. Raises Error."""
    shown = f'partition "{printable(path[:200])}"'
    if not path.startswith("/"):
        raise Error(
            f"{shown} is not an absolute path", "begin it with /, as in /machine/production"
        )
    if any(component in ("", ".", "..") for component in path.split("/")[1:]):
        raise Error(
            f"{shown} has an empty or impossible component",
            'write it without "//", "." and "..", and end it in a name',
        )
    if not path.isprintable():
        raise Error(
            f"{shown} has a character that cannot be shown", "write it without control characters"
        )
    return path


def edit(xml: str, path: str | None) -> str:
    """XML, as libvirt gives it, with PATH as its partition; None: with none."""
    text = xml.encode()
    spans = _Finder(text).spans
    if path is None:
        return _without(text, spans).decode()
    element = f"<partition>{escape(path)}</partition>".encode()
    if PARTITION in spans:
        first, end = spans[PARTITION]
    elif RESOURCE in spans:
        first = end = text.index(b">", spans[RESOURCE][0]) + 1
        element = b"\n    " + element
    else:  # the order is free; libvirt puts it where it wants it
        first = end = text.rindex(b"</domain>")
        element = b"  <resource>\n    " + element + b"\n  </resource>\n"
    return (text[:first] + element + text[end:]).decode()


def _without(text: bytes, spans: dict[str, tuple[int, int]]) -> bytes:
    """Without the partition, or <resource> where that has nothing else; and without the white space
    before it.
    """
    if PARTITION not in spans:
        return text
    first, end = spans[RESOURCE]
    inner, after = spans[PARTITION]
    if (
        text[text.index(b">", first) + 1 : inner].strip()
        or text[after : text.rindex(b"<", first, end)].strip()
    ):
        first, end = inner, after
    return text[:first].rstrip() + text[end:]


class _Finder:
    """Where the elements that matter begin and end, in bytes."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.path: list[str] = []
        self.spans: dict[str, tuple[int, int]] = {}
        self.parser = ParserCreate()
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.Parse(text, True)

    def start(self, element: str, _: dict[str, str]) -> None:
        self.path.append(element)
        path = "/".join(self.path)
        if path in (RESOURCE, PARTITION):
            first = self.parser.CurrentByteIndex
            # where it ends if it is <partition/>
            self.spans[path] = (first, self.text.index(b">", first) + 1)

    def end(self, _: str) -> None:
        path = "/".join(self.path)
        self.path.pop()
        index = self.parser.CurrentByteIndex
        if path in self.spans and self.text.startswith(b"</", index):
            self.spans[path] = (self.spans[path][0], self.text.index(b">", index) + 1)
