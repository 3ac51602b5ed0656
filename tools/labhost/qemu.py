"""One QEMU process: its command line, its monitor, and how it begins: boot, or load a state."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import emulator
from .clock import Deadline
from .errors import LabError
from .recipe import ROOT_LABEL

KERNEL_ARGUMENTS = (
    f"root=LABEL={ROOT_LABEL} rw quiet panic=-1",
    # Debian 12 does not come up with one console alone.
    "console=ttyS0 console=hvc0",
    # What costs most here are page tables and jumps.
    "mitigations=off",
    # The kernel distrusts the emulated CPUs' clocks and takes the HPET, where half of the host's
    # time then goes: every look at the time waits for QEMU's one big lock. The clocks are all the
    # outer machine's.
    "tsc=reliable",
)

# 8 CPUs and 3 GiB in 2 NUMA nodes. KVM is not used: a saved state must load on any machine.
MACHINE = (
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-nic",
    "none",
    "-rtc",
    "base=utc",
    "-machine",
    "pc",
    "-accel",
    "tcg,thread=multi",
    "-cpu",
    "max,la57=off",
    "-smp",
    "8,sockets=2,cores=4,threads=1",
    "-m",
    "3072M",
    "-object",
    "memory-backend-ram,id=memory0,size=1536M",
    "-numa",
    "node,nodeid=0,cpus=0-3,memdev=memory0",
    "-object",
    "memory-backend-ram,id=memory1,size=1536M",
    "-numa",
    "node,nodeid=1,cpus=4-7,memdev=memory1",
    "-device",
    "virtio-serial-pci,id=ports",
    "-device",
    "virtconsole,chardev=hvc",
    "-device",
    "virtserialport,chardev=agent,name=lab",
    "-device",
    f"virtio-blk-pci,drive=root,serial={ROOT_LABEL}",
    "-serial",
    "chardev:serial",
    "-mon",
    "chardev=monitor,mode=control",
)


@dataclass(frozen=True)
class Boot:
    """What QEMU begins with: the disk is written to; without a saved `state` the kernel boots."""

    disk: Path
    kernel: Path
    initrd: Path
    kernel_arguments: tuple[str, ...]
    state: Path | None = None


def saved_state_uri(action: str, state: Path) -> str:
    return f"exec:{action} {shlex.quote(str(state))}"


class Qemu:
    """A running QEMU.

    `agent` is the outer end of the guest's control port, `console` the file of what it printed.
    """

    def __init__(self, boot: Boot, folder: Path) -> None:
        self.console = folder / "console.log"
        self.messages = folder / "qemu.log"
        self.agent, agent_end = socket.socketpair()
        monitor, monitor_end = socket.socketpair()
        with agent_end, monitor_end, self.messages.open("wb") as messages:
            self.process = subprocess.Popen(
                self._command(boot, agent_end.fileno(), monitor_end.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                pass_fds=(agent_end.fileno(), monitor_end.fileno()),
                start_new_session=True,
            )
        self.monitor = Monitor(monitor)

    def _command(self, boot: Boot, agent: int, monitor: int) -> list[str]:
        append = " ".join((*KERNEL_ARGUMENTS, *boot.kernel_arguments))
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            *emulator.command(),  # whatever ends the lab ends it
            "-chardev",
            f"file,id=hvc,path={self.console}",
            "-chardev",
            f"file,id=serial,path={self.console.with_name('serial.log')}",
            "-chardev",
            f"socket,id=agent,fd={agent}",
            "-chardev",
            f"socket,id=monitor,fd={monitor}",
            "-drive",
            f"if=none,id=root,file={boot.disk},format=qcow2,cache=unsafe",
            "-kernel",
            str(boot.kernel),
            "-initrd",
            str(boot.initrd),
            "-append",
            append,
            *MACHINE,
        ]
        return command + (
            ["-incoming", saved_state_uri("exec cat", boot.state)] if boot.state else []
        )

    def wait_until_loaded(self, timeout: float) -> None:
        """Wait until a saved state is in, then let the CPUs run."""
        deadline = Deadline(timeout)
        self.monitor.open(deadline)
        while self.monitor.ask("query-status", deadline)["status"] == "inmigrate":
            time.sleep(0.05)
        self.monitor.ask("cont", deadline)

    def add_network(self, forwarded: Mapping[int, int], timeout: float) -> None:
        """Plug in a network card that reaches nothing. FORWARDED: by port of the guest, at the
        address 10.0.2.15, the port of this machine, at 127.0.0.1.
        """
        rules = [f"tcp:127.0.0.1:{here}-:{there}" for there, here in forwarded.items()]
        hostfwd = [{"str": rule} for rule in rules]
        self._add_card({"type": "user", "restrict": True, "hostfwd": hostfwd}, {}, timeout)

    def add_cable(self, end: Path, server: bool, mac: str, timeout: float) -> None:
        """Plug in a network card with a cable to END, a Unix socket that the server makes."""
        address = {"type": "unix", "path": str(end)}
        network = {"type": "stream", "server": server, "addr": address}
        self._add_card(network, {"mac": mac}, timeout)

    def _add_card(
        self, network: Mapping[str, object], card: Mapping[str, object], timeout: float
    ) -> None:
        deadline = Deadline(timeout)
        self.monitor.open(deadline)
        self.monitor.ask("netdev_add", deadline, {"id": "network", **network})
        device = {"driver": "virtio-net-pci", "id": "card", "netdev": "network", **card}
        self.monitor.ask("device_add", deadline, device)

    def save(self, state: Path, timeout: float) -> None:
        """Stop the CPUs, write the state of all but the disk to a file, and end QEMU."""
        deadline = Deadline(timeout)
        self.monitor.open(deadline)
        self.monitor.ask("stop", deadline)
        self.monitor.ask("migrate-set-parameters", deadline, {"max-bandwidth": 1 << 40})
        self.monitor.ask("migrate", deadline, {"uri": saved_state_uri("exec cat >", state)})
        while (status := self.monitor.ask("query-migrate", deadline)["status"]) != "completed":
            if status in ("failed", "cancelled"):
                raise LabError(f"QEMU did not save its state to {state}", self.last_words())
            time.sleep(0.1)
        self.monitor.ask("quit", deadline)
        self.process.wait(deadline.left())

    def last_words(self) -> str:
        """The ends of what QEMU said and of what the guest printed on its console."""
        texts = [
            path.read_text(errors="replace")
            for path in (self.messages, self.console)
            if path.exists()
        ]
        return "\n".join(line for text in texts for line in text.splitlines()[-60:])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.agent.close()
        self.monitor.close()


class Monitor:
    """QEMU's monitor, spoken to one command at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pending = b""
        self._opened = False

    def open(self, deadline: Deadline) -> None:
        if not self._opened:
            self._opened = True
            self._answer(deadline, "QMP")
            self.ask("qmp_capabilities", deadline)

    def ask(
        self, command: str, deadline: Deadline, arguments: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The answer to one command.

        LabError when QEMU refuses, is gone, or is silent until the deadline.
        """
        self._connection.sendall(
            json.dumps({"execute": command, "arguments": dict(arguments or {})}).encode()
        )
        answer = self._answer(deadline, "return", "error")
        if "error" in answer:
            raise LabError(f"QEMU refused {command}: {answer['error'].get('desc')}")
        return dict(answer["return"])

    def _answer(self, deadline: Deadline, *keys: str) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = json.loads(self._line(deadline))
            if any(key in message for key in keys):  # all others are events
                return message

    def _line(self, deadline: Deadline) -> bytes:
        while b"\n" not in self._pending:
            self._connection.settimeout(max(0.01, deadline.left()))
            try:
                chunk = self._connection.recv(65536)
            except TimeoutError as error:
                raise LabError(f"QEMU's monitor is silent for {deadline.seconds:.0f} s") from error
            except ConnectionError:
                chunk = b""
            if not chunk:
                raise LabError("QEMU has ended")
            self._pending += chunk
        line, self._pending = self._pending.split(b"\n", 1)
        return line

    def close(self) -> None:
        self._connection.close()
