"""The host that VMs run on: a private host with a libvirtd of its own, or a lab host."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from libvirt_cgroup_hooks import managers
from libvirt_cgroup_hooks.host import Host
from tests.live.harness import (
    CONFIG,
    Daemon,
    configure,
    destroy_all_vms,
    domain_xml,
    virsh,
    wait_for,
)

TREE = Path(__file__).resolve().parents[2]
HOOK = Path("/etc/libvirt/hooks/qemu")
RECORDER = Path("/etc/libvirt/hooks/qemu.d/00-record")
SCRATCH = Path("/var/lib/libvirt/bench")  # not below /run, where systemd lets no program run
RECORD = f'#!/bin/sh\ncat >"{SCRATCH}/$1.$2"\n'
STATE = Path("/run/libvirt-cgroup-hooks")
MOVED = "/vms/$DRIVER-$NAME"  # the layout of VMs that are moved to where nobody else has any
LAYOUTS = ("native", "legacy", "nested", "flat", "root", "uuid", MOVED)
WITHOUT_PARENT = ("flat", "root", "uuid")  # these take no memory reservation
LONG = "hook_timeout = 120\n"  # a hook that is slowed down by measuring it is not ended
NAME, UUID = "bench", "6a0e1f9c-7c5b-4d0a-9f7e-0123456789ab"


def settings(layout: str) -> str:
    memory = "" if layout in WITHOUT_PARENT else 'reserved_host_mem = "512 MiB"\n'
    return f'reserved_host_cpus = "0"\n{memory}cgroup_layout = "{layout}"\n'


def vm_xml(name: str, vcpus: int = 2, iothreads: int = 1, pinned: str = "") -> str:
    """With PINNED, every vCPU is pinned to these CPUs."""
    pins = dict.fromkeys(range(vcpus), pinned) if pinned else None
    uuid = UUID if name == NAME else None
    return domain_xml(name, uuid=uuid, vcpus=vcpus, iothreads=iothreads, vcpupin=pins)


class VmHost:
    """While it is open: a daemon with the hook, and nothing configured."""

    def __enter__(self) -> VmHost:
        self.systemd = managers.name(Host()) == "systemd"
        SCRATCH.mkdir(exist_ok=True)
        if not HOOK.exists():  # a private host has that of the tree it belongs to
            self.install_hook()
        self._daemon = None if self.systemd else Daemon()
        if self._daemon:
            self._daemon.start()
        else:
            self.reload()
        return self

    def __exit__(self, *_: object) -> None:
        destroy_all_vms()
        CONFIG.unlink(missing_ok=True)
        if self._daemon:
            self._daemon.stop()

    def install_hook(self, text: str | None = None) -> None:
        """Install the hook, or TEXT in its place."""
        install(HOOK, (TREE / "hooks/qemu").read_text() if text is None else text)

    @staticmethod
    def record() -> None:
        """From now on, keep what libvirt gives to hooks.

        Beside another hook, libvirtd calls a new one at once.
        """
        install(RECORDER, RECORD)

    def reload(self) -> None:
        """Have the daemon look for hooks again. It does so in its own time and tells nobody."""
        if self._daemon:
            os.kill(self._daemon.pid, signal.SIGHUP)
        else:
            _systemctl("kill", "--kill-whom=main", "-s", "HUP", "libvirtd")
        time.sleep(0.5)
        wait_for(_answers, "libvirtd to answer")

    def restart(self) -> None:
        """Returns when all VMs are connected again."""
        if self._daemon:
            self._daemon.restart()
        else:
            _systemctl("restart", "libvirtd")
            wait_for(_answers, "libvirtd to answer")
            wait_for(Daemon.reconnected, "libvirtd to reconnect to its VMs", 120)

    def start(self, name: str, layout: str | None) -> None:
        configure(settings(layout) if layout else None)
        virsh("create", "/dev/stdin", stdin=vm_xml(name))


def _systemctl(*arguments: str) -> None:
    subprocess.run(["systemctl", *arguments], check=True)


def _answers() -> bool:
    return virsh("list", check=False).returncode == 0


def install(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")  # a script that runs cannot be written to
    new.write_text(text)
    new.chmod(0o755)
    new.rename(path)


def remove_tree(directory: str) -> None:
    """A cgroup and those below it."""
    for top, _, _ in os.walk(directory, topdown=False):
        for _ in range(100):
            try:
                os.rmdir(top)
                break
            except OSError:  # what left it has not quite gone
                time.sleep(0.005)


def have(*programs: str) -> bool:
    return all(shutil.which(one) for one in programs)
