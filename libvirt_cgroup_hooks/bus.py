# SPDX-License-Identifier: LGPL-2.1-or-later
"""One call to systemd over the system bus, as the D-Bus specification has it.

systemctl would do, but the hook would wait for a program to be loaded where all that is needed is
one small message.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
else:
    # what the socket module is made of, without the enum and selectors that it loads
    import _socket as socket

# 30 is the user id 0 in hexadecimal ASCII: the hook works for root alone
LOGIN = b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n"
CALL, RETURN, ERROR = 1, 2, 3  # message types
PATH, INTERFACE, MEMBER, DESTINATION, SIGNATURE = 1, 2, 3, 6, 8  # header fields
HEADER = 16  # bytes of a header before its fields


def load_unit(address: str, unit: str) -> None:
    """Has systemd load UNIT, and waits for its answer, through the bus whose socket is at ADDRESS.

    Raises OSError, also where the bus or systemd refuses.
    """
    systemd = "org.freedesktop.systemd1"
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(address)
        hello = call(
            1, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello"
        )
        load = call(2, systemd, "/org/freedesktop/systemd1", f"{systemd}.Manager", "LoadUnit", unit)
        connection.sendall(LOGIN + hello + load)
        for _ in zip(range(2), answers(connection)):  # Hello's, which names us, then systemd's
            pass
    finally:
        connection.close()


def call(
    serial: int,
    destination: str,
    path: str,
    interface: str,
    member: str,
    argument: str | None = None,
) -> bytes:
    """A method call with at most one argument, a string."""
    body = b""
    fields = field(PATH, b"o", string(path))
    for code, text in ((INTERFACE, interface), (MEMBER, member), (DESTINATION, destination)):
        fields = padded(fields) + field(code, b"s", string(text))
    if argument is not None:
        body = string(argument)
        fields = padded(fields) + field(SIGNATURE, b"g", b"\1s\0")
    sizes = b"".join(size.to_bytes(4, "little") for size in (len(body), serial, len(fields)))
    return padded(b"l" + bytes([CALL, 0, 1]) + sizes + fields) + body


def field(code: int, kind: bytes, value: bytes) -> bytes:
    """One header field, of D-Bus type KIND."""
    return bytes([code, 1]) + kind + b"\0" + value


def string(text: str) -> bytes:
    """A D-Bus string's bytes."""
    raw = text.encode()
    return len(raw).to_bytes(4, "little") + raw + b"\0"


def padded(data: bytes) -> bytes:
    """DATA up to the next multiple of eight bytes, as the D-Bus specification aligns it."""
    return data + bytes(-len(data) % 8)


def answers(connection: socket.socket) -> Iterator[None]:
    """Each answer as it comes, one for each call; signals are passed over."""
    data = receive(connection, b"", 1)
    while b"\r\n" not in data:
        data = receive(connection, data, len(data) + 1)
    said, _, data = data.partition(b"\r\n")
    if not said.startswith(b"OK "):
        raise OSError(None, f"the bus said {said.decode('utf-8', 'replace')}")
    while True:
        data = receive(connection, data, HEADER)
        body = HEADER + number(data, 12) + -number(data, 12) % 8
        end = body + number(data, 4)
        data = receive(connection, data, end)
        if data[1] == ERROR:
            reason = data[body + 4 : body + 4 + number(data, body)] if end > body else b""
            raise OSError(None, reason.decode("utf-8", "replace") or "no reason given")
        if data[1] == RETURN:
            yield
        data = data[end:]


def number(message: bytes, at: int) -> int:
    """The UINT32 there, in the byte order that the message begins with."""
    return int.from_bytes(message[at : at + 4], "little" if message[:1] == b"l" else "big")


def receive(connection: socket.socket, data: bytes, size: int) -> bytes:
    """DATA and what comes until there are SIZE bytes, or more."""
    while len(data) < size:
        part = connection.recv(65536)
        if not part:
            raise OSError(None, "the bus has ended the connection")
        data += part
    return data
