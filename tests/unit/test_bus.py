"""The one call over the system bus: what is sent, and what is made of any answer."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.bus import padded, string
from libvirt_cgroup_hooks.host import BUS, Host, Refused

UNIT = "no-such.service"
OK = b"OK 0123456789abcdef0123456789abcdef\r\n"
RETURN, ERROR, SIGNAL = 2, 3, 4


def message(
    kind: int, order: str, body: bytes = b"", fields: bytes = b"\x05\x01u\0\x01\0\0\0"
) -> bytes:
    """As D-Bus has it, by the struct module."""
    mark = {"<": b"l", ">": b"B"}[order]
    return (
        padded(mark + struct.pack(f"{order}BBBIII", kind, 0, 1, len(body), 7, len(fields)) + fields)
        + body
    )


def text(order: str, value: str) -> bytes:
    return struct.pack(f"{order}I", len(value.encode())) + value.encode() + b"\0"


class Bus:
    """Takes one connection on the host's socket, keeps what is sent, and answers with PARTS, one at
    a time.
    """

    def __init__(self, root: Path) -> None:
        self.host = Host(str(root))
        path = root / BUS[1:]
        path.parent.mkdir(parents=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.sent = b""

    def answers(self, *parts: bytes) -> None:
        """The unit is loaded, with these answers."""

        def serve() -> None:
            connection = self.listener.accept()[0]
            with connection:
                self.sent = connection.recv(65536)
                for part in parts:
                    connection.sendall(part)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)  # until the other end closes

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        try:
            self.host.load_unit(UNIT)
        finally:
            server.join(10)
            assert not server.is_alive()


@pytest.fixture
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    made = Bus(tmp_path_factory.mktemp("b"))
    with made.listener:
        yield made


def test_what_is_sent(bus: Bus) -> None:
    bus.answers(OK, message(RETURN, "<"), message(RETURN, "<"))
    login, hello, load = re.split(rb"(?=l\x01\0\x01)", bus.sent)
    assert login == b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n"
    assert fields_of(hello) == {
        1: "/org/freedesktop/DBus",
        2: "org.freedesktop.DBus",
        3: "Hello",
        6: "org.freedesktop.DBus",
    }
    assert fields_of(load) == {
        1: "/org/freedesktop/systemd1",
        2: "org.freedesktop.systemd1.Manager",
        3: "LoadUnit",
        6: "org.freedesktop.systemd1",
        8: "s",
    }
    assert load.endswith(text("<", UNIT))
    assert struct.unpack_from("<II", load, 4) == (len(text("<", UNIT)), 2)


def fields_of(sent: bytes) -> dict[int, str]:
    """The header fields of a message, which has to end where its lengths say."""
    body, _, length = struct.unpack_from("<III", sent, 4)
    found, at = {}, 16
    while at < 16 + length:
        at += -at % 8
        code, kind = sent[at], sent[at + 2 : at + 3]
        assert sent[at + 1] == 1
        assert sent[at + 3] == 0
        size, begin = (
            (sent[at + 4], at + 5)
            if kind == b"g"
            else (struct.unpack_from("<I", sent, at + 4)[0], at + 8)
        )
        found[code] = sent[begin : begin + size].decode()
        at = begin + size + 1
        assert sent[at - 1] == 0
    assert at == 16 + length
    assert len(sent) == at + -at % 8 + body
    return found


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("size", [1, 5, 4096])
def test_answers_in_pieces_with_signals_between(bus: Bus, order: str, size: int) -> None:
    signal = message(SIGNAL, order, text(order, ":1.7"))
    stream = (
        OK
        + message(RETURN, order, text(order, ":1.7"))
        + signal
        + signal
        + message(RETURN, order, text(order, "/unit"))
    )
    bus.answers(*(stream[at : at + size] for at in range(0, len(stream), size)))


@pytest.mark.parametrize("order", "<>")
def test_a_refusal_says_why(bus: Bus, order: str) -> None:
    refusal = message(ERROR, order, text(order, "Access denied\n"))
    with pytest.raises(Refused) as caught:
        bus.answers(OK, message(RETURN, order), refusal)
    assert caught.value.message.startswith(
        f"cannot have systemd load {UNIT} through {BUS}: Access denied"
    )


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "the bus has ended the connection"),
        ([OK], "the bus has ended the connection"),
        ([OK, message(RETURN, "<"), message(RETURN, "<")[:9]], "the bus has ended the connection"),
        (
            [OK, message(RETURN, "<"), message(RETURN, "<", b"12345678")[:-1]],
            "the bus has ended the connection",
        ),
        ([b"REJECTED EXTERNAL\r\n"], "the bus said REJECTED EXTERNAL"),
        ([OK, message(ERROR, "<")], "no reason given"),
    ],
)
def test_no_answer(bus: Bus, parts: list[bytes], why: str) -> None:
    with pytest.raises(Refused, match=why):
        bus.answers(*parts)


def test_no_bus(tmp_path: Path) -> None:
    with pytest.raises(
        Refused, match=f"cannot have systemd load {UNIT} through {BUS}: No such file or directory"
    ):
        Host(str(tmp_path)).load_unit(UNIT)


def test_strings_are_counted_in_bytes() -> None:
    assert string("ü") == b"\x02\0\0\0\xc3\xbc\0"
