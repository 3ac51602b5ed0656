"""An interactive shell on a lab host, on the terminal of whoever asked."""

from __future__ import annotations

import base64
import os
import select
import shutil
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from .clock import Deadline
from .errors import LabError
from .host import Channel, LabHost

FRAME_TIMEOUT = 60.0


def interact(host: LabHost) -> int:
    """Be the host's terminal until its shell ends; the shell's exit status."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise LabError("a shell needs a terminal", "use: lab run RELEASE -- COMMAND")
    size = shutil.get_terminal_size()
    channel = host.open_shell(size.lines, size.columns, os.environ.get("TERM", "linux"))
    with raw_terminal():
        return relay(channel)


@contextmanager
def raw_terminal() -> Iterator[None]:
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def relay(channel: Channel) -> int:
    size = shutil.get_terminal_size()
    while True:
        ready = select.select([sys.stdin, channel], [], [], 1.0)[0]
        if sys.stdin in ready:
            channel.send({"input": base64.b64encode(os.read(0, 4096)).decode()})
        if size != (size := shutil.get_terminal_size()):
            channel.send({"rows": size.lines, "columns": size.columns})
        while channel in ready and channel.ready(0):
            frame = channel.next(Deadline(FRAME_TIMEOUT), "output", "exit")
            if frame.kind == "exit":
                return int(frame.facts["status"])
            os.write(1, frame.payload)
