#!/usr/bin/python3
"""The lab host's remote control: runs inside the guest, answers on a virtio port.

Works on Python 3.9. Requests are JSON lines; a push is followed by its bytes. Answers are a JSON
line with `kind` and `size`, then `size` bytes. One request at a time:
  {"op": "hello", "time": seconds}
    -> hello (boot id); sets the clock, which stood still in the snapshot
  {"op": "push", "to": folder, "size": n}
    -> exit; the bytes are a gzipped tar
  {"op": "run", "command": [...], "cwd": folder, "timeout": seconds}
    -> output..., exit
  {"op": "shell", "rows": n, "columns": n}
    -> output..., exit; takes {"input": base64} and {"rows", "columns"}
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import tempfile
import termios
import time
from collections.abc import Iterator
from typing import Any

PORT = "/dev/virtio-ports/lab"
BLOCK = 65536
TIMED_OUT = 124  # as timeout(1) says it
NOT_FOUND = 127  # as a shell says it
Request = dict[str, Any]


class Port:
    """The agent's end of the virtio port."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._pending = b""

    def receive(self) -> None:
        """Wait for more."""
        chunk = os.read(self.fd, BLOCK)
        if not chunk:
            # nobody holds the other end: the snapshot is being taken, or not yet picked up
            time.sleep(0.1)
        self._pending += chunk

    def lines(self) -> Iterator[bytes]:
        """The complete lines received so far; never waits."""
        while b"\n" in self._pending:
            line, self._pending = self._pending.split(b"\n", 1)
            yield line

    def request(self) -> Request:
        while True:
            for line in self.lines():
                return dict(json.loads(line))
            self.receive()

    def blocks(self, size: int) -> Iterator[bytes]:
        while size:
            if not self._pending:
                self.receive()
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
    with tempfile.TemporaryFile() as archive:
        for block in port.blocks(request["size"]):
            archive.write(block)
        archive.seek(0)
        command = ["tar", "-xz", "-C", request["to"]]
        tar = subprocess.run(
            command, stdin=archive, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    port.send("output", tar.stdout)
    port.send("exit", status=tar.returncode)


def environment() -> dict[str, str]:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {
        "PATH": path,
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "LANG": "C.UTF-8",
        "SHELL": "/bin/bash",
    }


def send_available(port: Port, fd: int) -> bool:
    try:
        data = os.read(fd, BLOCK)
    except OSError:  # a terminal whose last user is gone gives EIO
        return False
    if data:
        port.send("output", data)
    return bool(data)


def send_rest(port: Port, fd: int) -> None:
    """A pipe holds no more than one block."""
    if select.select([fd], [], [], 0)[0]:
        send_available(port, fd)


def run(port: Port, request: Request) -> None:
    output, output_end = os.pipe()
    try:
        process = subprocess.Popen(
            request["command"],
            stdin=subprocess.DEVNULL,
            stdout=output_end,
            stderr=output_end,
            cwd=request["cwd"],
            env=environment(),
            start_new_session=True,
        )
    except OSError as error:
        os.close(output)
        port.send("output", f"{error}\n".encode())
        port.send("exit", status=NOT_FOUND)
        return
    finally:
        os.close(output_end)
    with open(output, "rb", buffering=0):  # closes it
        status = watch(port, process, output, time.monotonic() + request["timeout"])
    port.send("exit", status=status)


def watch(port: Port, process: subprocess.Popen[bytes], output: int, deadline: float) -> int:
    """Pass output on until the command ends. A daemon it leaves behind may hold the pipe: the
    command's end counts.
    """
    ended = os.pidfd_open(process.pid)
    watched = [output, ended]
    try:
        while ended in watched:
            left = deadline - time.monotonic()
            if left <= 0:
                return kill(port, process, output)
            ready = select.select(watched, [], [], left)[0]
            if output in ready and not send_available(port, output):
                watched.remove(output)
            if ended in ready:
                watched.remove(ended)
    finally:
        os.close(ended)
    send_rest(port, output)
    return shell_status(process.wait())


def kill(port: Port, process: subprocess.Popen[bytes], output: int) -> int:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    send_rest(port, output)
    port.send("output", b"\nlab: timed out, killed\n")
    return TIMED_OUT


def resize(terminal: int, request: Request) -> None:
    fcntl.ioctl(
        terminal, termios.TIOCSWINSZ, struct.pack("HHHH", request["rows"], request["columns"], 0, 0)
    )


def shell(port: Port, request: Request) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir("/root")
        os.execve(
            "/bin/bash", ["bash", "-l"], {**environment(), "TERM": request.get("term", "linux")}
        )
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
    port.send("exit", status=shell_status(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))


def shell_status(status: int) -> int:
    """128 + n for death by signal n, as a shell says it."""
    return 128 - status if status < 0 else status


def type_in(terminal: int, request: Request) -> None:
    if "input" in request:
        os.write(terminal, base64.b64decode(request["input"]))
    else:
        resize(terminal, request)


OPERATIONS = {"hello": hello, "push": push, "run": run, "shell": shell}


def main() -> None:
    port = open_port()
    hello(port, {})
    while True:
        request = port.request()
        OPERATIONS[request["op"]](port, request)


if __name__ == "__main__":
    main()
