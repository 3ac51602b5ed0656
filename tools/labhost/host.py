"""A whole host in QEMU: restore it, run commands on it, push files to it, reboot it."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from .clock import Deadline, progress
from .errors import LabError
from .programs import program
from .qemu import Boot, Qemu

# Ends of waits for what does happen, and soon, on a machine with nothing else to do.
LOAD_TIMEOUT = 600.0
BOOT_TIMEOUT = 1800.0
SAVE_TIMEOUT = 1200.0
SEND_TIMEOUT = 300.0
COMMAND_TIMEOUT = 600.0  # times the host's slowness
GRACE = 300.0  # the guest's own time-out comes first, and says more
# Without systemd: once the daemon that tests need answers.
UP_SCRIPT = """\
if [ -d /run/systemd/system ]; then
    systemctl is-system-running --wait
else
    until virsh -q list >/dev/null 2>&1; do sleep 0.5; done
    echo running
fi
"""
FORWARDED_TO = "10.0.2.15"  # by QEMU
# $1: the host's address
NETWORK_SCRIPT = """\
set -e
until card=$(ls /sys/class/net | grep -v '^lo$'); do sleep 0.1; done
udevadm settle
card=$(ls /sys/class/net | grep -v '^lo$')
ip address add "$1/24" dev "$card"
ip link set "$card" up
"""
PACE = Path(__file__).with_name("pace.py")
SLOWNESS = "CGROUP_HOOKS_SLOWNESS"  # tests/live/pace.py reads it

Sink = Callable[[bytes], object]


@dataclass(frozen=True)
class HostImage:
    """A booted host on disk.

    `folder` holds disk.qcow2 (never written to), state, vmlinuz and initrd.
    """

    folder: Path
    kernel_arguments: tuple[str, ...]

    def boot(self, disk: Path) -> Boot:
        return Boot(
            disk,
            self.folder / "vmlinuz",
            self.folder / "initrd",
            self.kernel_arguments,
            self.folder / "state",
        )


class Result(NamedTuple):
    """A command's exit status, and its stdout and stderr as one text.

    Status 124: timed out; 128 + n: killed by signal n.
    """

    status: int
    output: str


class Frame(NamedTuple):
    kind: str
    facts: dict[str, Any]
    payload: bytes


def overlay(backing: Path, disk: Path) -> None:
    """Make a disk that reads from `backing` and keeps the writes."""
    program(
        [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2" if backing.suffix == ".qcow2" else "raw",
            "-b",
            backing,
            disk,
        ],
        60,
    )


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens at."""
    with ExitStack() as sockets:
        taken = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in taken]


class LabHost:
    """One host. `with LabHost(image) as host:` restores it and ends it.

    Each restore begins from the same snapshot.
    """

    def __init__(self, image: HostImage) -> None:
        self.image = image
        self._folder: Path | None = None
        self._qemu: Qemu | None = None
        self._channel: Channel | None = None
        self._boot_id = ""
        self.slowness = 1.0
        """How many times longer than on an idle machine all takes, as measured at `restore`."""

    def __enter__(self) -> LabHost:
        self.restore()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def restore(self) -> None:
        """Bring back the booted host as it was saved; what an earlier restore left is gone."""
        folder = self._fresh_folder()
        overlay(self.image.folder / "disk.qcow2", folder / "disk.qcow2")
        qemu = self._start(self.image.boot(folder / "disk.qcow2"), folder)
        qemu.wait_until_loaded(LOAD_TIMEOUT)
        self._greet(LOAD_TIMEOUT)
        self.slowness = float(self.check(["python3", "-I", "-c", PACE.read_text()]))
        progress(f"host restored; all takes {self.slowness:g} times as long as on an idle machine")

    def boot(self, boot: Boot) -> None:
        """Boot from the kernel, for making an image."""
        qemu = self._start(boot, self._fresh_folder())
        self._wait_for_boot(qemu, BOOT_TIMEOUT)

    def run(
        self,
        command: str | Sequence[str],
        timeout: float = COMMAND_TIMEOUT,
        cwd: str = "/root",
        echo: Sink | None = None,
    ) -> Result:
        """Run a command (a text goes to the shell); `echo` gets the output as it comes.

        It is killed after `timeout` seconds, times the host's slowness, which it is told.
        """
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        told = ["env", f"{SLOWNESS}={self.slowness:g}"]
        end = timeout * self.slowness
        self._open().send({"op": "run", "command": told + words, "timeout": end, "cwd": cwd})
        return self._result(end + GRACE, echo)

    def check(self, command: str | Sequence[str], timeout: float = COMMAND_TIMEOUT) -> str:
        """Run a command that must succeed; its output."""
        result = self.run(command, timeout)
        if result.status:
            raise LabError(f"exit status {result.status} on the lab host: {command}", result.output)
        return result.output

    def push(self, tar: bytes, to: str, timeout: float = COMMAND_TIMEOUT) -> None:
        """Unpack a gzipped tar into a folder of the guest, which is made when missing."""
        self._open().send({"op": "push", "to": to, "size": len(tar)}, tar, timeout)
        result = self._result(timeout, None)
        if result.status:
            raise LabError(
                f"could not unpack {len(tar)} bytes into {to} on the lab host", result.output
            )

    def reboot(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Reboot in the orderly way and wait until the host is up again; its disk stays."""
        # Detached and a moment later: the answer is here before the remote control is ended.
        self.check("setsid sh -c 'sleep 1; systemctl reboot' >/dev/null 2>&1 &", 60)
        self._wait_for_boot(self._running(), timeout)

    def forward(self, *ports: int) -> dict[int, int]:
        """By port of the guest, the port at which this machine's 127.0.0.1 reaches it from now on.

        The guest itself reaches nothing. Once for each restore, and not with `join`.
        """
        forwarded = dict(zip(ports, free_ports(len(ports))))
        self._running().add_network(forwarded, SEND_TIMEOUT)
        self._set_address(FORWARDED_TO)
        return forwarded

    def join(self, other: LabHost) -> tuple[str, str]:
        """Lay a network cable between this host and OTHER; their addresses.

        They reach nothing else. Once for each restore, and not with `forward`.
        """
        addresses = ("10.0.2.1", "10.0.2.2")
        socket_path = self._running().console.with_name("cable")
        for number, host in enumerate((self, other)):
            mac = f"52:54:00:00:00:0{number + 1}"
            host._running().add_cable(socket_path, host is self, mac, SEND_TIMEOUT)
            host._set_address(addresses[number])
        return addresses

    def _set_address(self, address: str) -> None:
        self.check(["sh", "-c", NETWORK_SCRIPT, "sh", address])

    def open_shell(self, rows: int, columns: int, term: str) -> Channel:
        """Start an interactive shell; what it is typed and shows goes over the channel."""
        channel = self._open()
        channel.send({"op": "shell", "rows": rows, "columns": columns, "term": term})
        return channel

    def save(self, state: Path, timeout: float = SAVE_TIMEOUT) -> None:
        """Save the running host for `restore`, and end it. Its disk stays where it is."""
        self._running().save(state, timeout)
        self.close()

    def close(self) -> None:
        if self._qemu:
            self._qemu.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._qemu = self._channel = self._folder = None

    def _fresh_folder(self) -> Path:
        self.close()
        self._folder = Path(tempfile.mkdtemp(prefix="libvirt-cgroup-hooks-lab-"))
        return self._folder

    def _start(self, boot: Boot, folder: Path) -> Qemu:
        self._qemu = Qemu(boot, folder)
        self._channel = Channel(self._qemu.agent, self._qemu.last_words)
        return self._qemu

    def _running(self) -> Qemu:
        if not self._qemu:
            raise LabError("the lab host is not running", "restore() it first")
        return self._qemu

    def _open(self) -> Channel:
        if not self._channel:
            raise LabError("the lab host is not running", "restore() it first")
        return self._channel

    def _greet(self, timeout: float) -> None:
        self._open().send({"op": "hello", "time": time.time()})
        self._boot_id = self._open().next(Deadline(timeout), "hello").facts["boot_id"]

    def _wait_for_boot(self, qemu: Qemu, timeout: float) -> None:
        deadline = Deadline(timeout)
        while (boot_id := self._next_hello(qemu, deadline)) == self._boot_id:
            pass
        self._boot_id = boot_id
        state = self.run(UP_SCRIPT, deadline.left()).output.strip()
        progress(f"host up: {state}")
        if state != "running":
            raise LabError(
                f"the lab host came up as {state!r}",
                self.run("systemctl --failed --no-legend").output,
            )

    def _next_hello(self, qemu: Qemu, deadline: Deadline) -> str:
        while not self._open().ready(min(15.0, deadline.left())):
            progress("booting")
            if deadline.passed():
                raise LabError(
                    f"the lab host did not come up in {deadline.seconds:.0f} s", qemu.last_words()
                )
        return str(self._open().next(deadline, "hello").facts["boot_id"])

    def _result(self, timeout: float, echo: Sink | None) -> Result:
        deadline = Deadline(timeout)
        output = bytearray()
        while (frame := self._open().next(deadline, "output", "exit")).kind == "output":
            output += frame.payload
            if echo:
                echo(frame.payload)
        return Result(int(frame.facts["status"]), output.decode(errors="replace"))


class Channel:
    """The outer end of the agent's port; agent.py tells what is spoken."""

    def __init__(self, connection: socket.socket, last_words: Callable[[], str]) -> None:
        self._connection = connection
        self._pending = b""
        self._last_words = last_words

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(
        self, request: Mapping[str, object], payload: bytes = b"", timeout: float = SEND_TIMEOUT
    ) -> None:
        self._connection.settimeout(timeout)
        try:
            self._connection.sendall(json.dumps(request).encode() + b"\n" + payload)
        except OSError as error:
            raise LabError(
                f"the lab host does not take a request: {error}", self._last_words()
            ) from error

    def ready(self, timeout: float) -> bool:
        """Whether something arrives within `timeout` seconds."""
        deadline = Deadline(timeout)
        while not self._pending:
            self._receive(deadline, must=False)
            if deadline.passed():
                break
        return bool(self._pending)

    def next(self, deadline: Deadline, *kinds: str) -> Frame:
        """The next frame, which must be one of these kinds."""
        facts = json.loads(self._line(deadline))
        while len(self._pending) < facts["size"]:
            self._receive(deadline)
        payload, self._pending = self._pending[: facts["size"]], self._pending[facts["size"] :]
        if facts["kind"] not in kinds:
            raise LabError(
                f"the lab host sent {facts['kind']!r} where {' or '.join(kinds)} was due",
                "it rebooted, or its remote control was restarted; its console:\n"
                f"{self._last_words()}",
            )
        return Frame(facts["kind"], facts, payload)

    def _line(self, deadline: Deadline) -> bytes:
        while b"\n" not in self._pending:
            self._receive(deadline)
        line, self._pending = self._pending.split(b"\n", 1)
        return line

    def _receive(self, deadline: Deadline, must: bool = True) -> None:
        self._connection.settimeout(max(0.01, deadline.left()))
        try:
            chunk = self._connection.recv(65536)
        except TimeoutError as error:
            if must:
                raise LabError(
                    f"no answer from the lab host in {deadline.seconds:.0f} s", self._last_words()
                ) from error
            return
        except ConnectionError:
            chunk = b""
        if not chunk:
            raise LabError("QEMU has ended", self._last_words())
        self._pending += chunk
