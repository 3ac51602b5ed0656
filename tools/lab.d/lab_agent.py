#!/usr/bin/python3
"""The lab host's remote control: runs inside the guest, answers on a virtio port. Works on Python 3.9.

Requests are JSON lines; a push is followed by its bytes. Answers are a JSON line with `kind` and `size`, then `size`
bytes. One request at a time:
  {"op": "hello", "time": seconds}              -> hello (boot id); sets the clock, which stood still in the snapshot
  {"op": "push", "to": folder, "size": n}       -> exit; the bytes are a gzipped tar
  {"op": "run", "command": [...], "cwd": folder, "timeout": seconds}   -> output..., exit
  {"op": "shell", "rows": n, "columns": n}      -> output..., exit; takes {"input": base64} and {"rows", "columns"}
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any

PORT = "/dev/virtio-ports/lab"
BLOCK = 65536
TIMED_OUT = 124  # the status timeout(1) gives
Request = dict[str, Any]


class Port:
    """The agent's end of the virtio port."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._pending = b""

    def _fill(self) -> None:
        chunk = os.read(self.fd, BLOCK)
        if not chunk:  # nobody holds the other end: the snapshot is being taken, or not yet picked up
            time.sleep(0.1)
        self._pending += chunk

    def lines(self) -> Iterator[bytes]:
        """The complete lines received so far; never waits."""
        while b"\n" in self._pending:
            line, self._pending = self._pending.split(b"\n", 1)
            yield line

    def receive(self) -> None:
        self._fill()

    def request(self) -> Request:
        while True:
            for line in self.lines():
                return dict(json.loads(line))
            self._fill()

    def blocks(self, size: int) -> Iterator[bytes]:
        while size:
            if not self._pending:
                self._fill()
            block, self._pending = self._pending[:size], self._pending[size:]
            size -= len(block)
            yield block

    def send(self, kind: str, payload: bytes = b"", **facts: object) -> None:
        header = json.dumps({"kind": kind, "size": len(payload), **facts}).encode()
        data = header + b"\n" + payload
        while data:
            data = data[os.write(self.fd, data) :]


def open_port() -> Port:
    while not os.path.exists(PORT):  # udev makes the link
        time.sleep(0.1)
    return Port(os.open(PORT, os.O_RDWR))


def hello(port: Port, request: Request) -> None:
    if "time" in request:
        time.clock_settime(time.CLOCK_REALTIME, request["time"])
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot_id:
        port.send("hello", boot_id=boot_id.read().strip())


def push(port: Port, request: Request) -> None:
    os.makedirs(request["to"], exist_ok=True)
    tar = subprocess.Popen(["tar", "-xz", "-C", request["to"]], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert tar.stdin
    for block in port.blocks(request["size"]):
        with contextlib.suppress(BrokenPipeError):  # tar's own words and status follow; the rest must still be read
            tar.stdin.write(block)
    _, errors = tar.communicate()
    port.send("output", errors)
    port.send("exit", status=tar.returncode)


def environment() -> dict[str, str]:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": "/root", "USER": "root", "LOGNAME": "root", "LANG": "C.UTF-8", "SHELL": "/bin/bash"}


def send_available(port: Port, fd: int) -> bool:
    try:
        data = os.read(fd, BLOCK)
    except OSError:  # a terminal whose last user is gone gives EIO
        return False
    if data:
        port.send("output", data)
    return bool(data)


def drain(port: Port, fd: int) -> None:
    while select.select([fd], [], [], 0)[0] and send_available(port, fd):
        pass


def run(port: Port, request: Request) -> None:
    try:
        process = subprocess.Popen(
            request["command"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=request["cwd"],
            env=environment(),
            start_new_session=True,
        )
    except OSError as error:
        port.send("output", f"{error}\n".encode())
        port.send("exit", status=127)
        return
    port.send("exit", status=watch(port, process, time.monotonic() + request["timeout"]))


def watch(port: Port, process: subprocess.Popen[bytes], deadline: float) -> int:
    """Pass output on until the command ends. A daemon it leaves behind may hold the pipe: the command's end counts."""
    assert process.stdout
    output, ended = process.stdout.fileno(), os.pidfd_open(process.pid)
    watched = [output, ended]
    try:
        while ended in watched:
            ready = select.select(watched, [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready:
                return kill(port, process)
            if output in ready and not send_available(port, output):
                watched.remove(output)
            if ended in ready:
                watched.remove(ended)
        drain(port, output)
    finally:
        os.close(ended)
        process.stdout.close()
    status = process.wait()
    return 128 - status if status < 0 else status


def kill(port: Port, process: subprocess.Popen[bytes]) -> int:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    port.send("output", b"\nlab: timed out, killed\n")
    return TIMED_OUT


def resize(terminal: int, request: Request) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", request["rows"], request["columns"], 0, 0))


def shell(port: Port, request: Request) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir("/root")
        os.execve("/bin/bash", ["bash", "-l"], {**environment(), "TERM": request.get("term", "linux")})
    resize(terminal, request)
    while True:
        ready = select.select([terminal, port.fd], [], [])[0]
        if port.fd in ready:
            port.receive()
        for line in port.lines():
            type_in(terminal, json.loads(line))
        if terminal in ready and not send_available(port, terminal):
            break
    os.close(terminal)
    port.send("exit", status=exit_status(os.waitpid(pid, 0)[1]))


def exit_status(wait_status: int) -> int:
    status = os.waitstatus_to_exitcode(wait_status)
    return 128 - status if status < 0 else status


def type_in(terminal: int, request: Request) -> None:
    if "input" in request:
        os.write(terminal, base64.b64decode(request["input"]))
    else:
        resize(terminal, request)


OPERATIONS = {"hello": hello, "push": push, "run": run, "shell": shell}


def main(arguments: list[str] | None = None) -> None:
    port = open_port()
    hello(port, {})
    while True:
        request = port.request()
        OPERATIONS[request["op"]](port, request)


if __name__ == "__main__":
    main(sys.argv[1:])
