"""What libvirt gives to hooks, recorded while a VM starts, and replayed on that VM while it runs.

Before each operation the VM is put where libvirt has it at that moment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from libvirt_cgroup_hooks.cgroups import detect
from libvirt_cgroup_hooks.host import Host
from tests.live.harness import configure, destroy_vm, running_vm

from .timing import run
from .vm_host import HOOK, NAME, SCRATCH, STATE, UUID, VmHost, remove_tree, settings

OPERATIONS = ("prepare", "start", "started", "reconnect", "stopped", "release")
STARTING = ("prepare", "start", "started")
SUB_OPERATIONS = {"reconnect": "begin", "stopped": "end", "release": "end"}


def hook(operation: str, path: Path = HOOK) -> list[str]:
    return [str(path), NAME, operation, SUB_OPERATIONS.get(operation, "begin"), "-"]


def recorded(operation: str) -> str:
    """The XML of `started` is what `reconnect`, `stopped` and `release` get too."""
    known = operation if operation in STARTING else "started"
    return str(SCRATCH / f"{NAME}.{known}")


def without_python(operation: str) -> str:
    """Whether the hook ends in its shell, as a note; "" where Python is started."""
    file = STATE / "idle"
    told = file.read_text().splitlines() if file.exists() else []
    return "nothing to do" if operation in " ".join(told[2:]).split() else ""


class Replay:
    """The running VM whose operations are replayed, and its way back to where libvirt put it."""

    def __init__(self, host: VmHost, layout: str) -> None:
        configure(None)
        destroy_vm(NAME)
        host.record()
        # Where nobody owns cgroups, a VM is in libvirt's own place before the hook moves it.
        host.start(NAME, layout if host.systemd else None)
        configure(settings(layout))
        self.systemd = host.systemd
        self.hierarchies = detect(Host().read_optional).hierarchies
        self.pid = running_vm(NAME).pid
        self.home = self._places()

    def _places(self) -> dict[tuple[int, str], str]:
        """The cgroup of each thread in each hierarchy, the process itself first."""
        tids = [int(name) for name in os.listdir(f"/proc/{self.pid}/task")]
        tids.sort(key=lambda tid: (tid != self.pid, tid))
        return {(tid, key): path for tid in tids for key, path in self._cgroups(tid).items()}

    def _cgroups(self, tid: int) -> dict[str, str]:
        """By the hierarchy's controllers, which are "" on cgroup v2."""
        lines = Path(f"/proc/{self.pid}/task/{tid}/cgroup").read_text().splitlines()
        fields = [line.split(":", 2) for line in lines]
        return {key: path for _, key, path in fields}

    def leave(self, remove: bool = True) -> None:
        """Back to libvirt's cgroups; with REMOVE also nothing is left of the VM cgroup."""
        if self.systemd:
            return
        now = self._places()
        left = set()
        for hierarchy in self.hierarchies:
            threads = {tid: path for (tid, key), path in self.home.items() if key == hierarchy.key}
            moved = [tid for tid in threads if now.get((tid, hierarchy.key)) != threads[tid]]
            if not moved:
                continue
            vm_cgroup = now[self.pid, hierarchy.key].removesuffix("/emulator")
            left.add(hierarchy.directory(vm_cgroup))
            # The process first, with all its threads; then each thread to its own place.
            Path(hierarchy.directory(threads[self.pid]), "cgroup.procs").write_text(str(self.pid))
            file = "cgroup.threads" if hierarchy.version == 2 else "tasks"
            for tid in moved:
                if tid != self.pid:
                    Path(hierarchy.directory(threads[tid]), file).write_text(str(tid))
        if remove:
            for directory in left:
                remove_tree(directory)

    def before(self, operation: str) -> None:
        record = STATE / "vms" / UUID
        if operation == "prepare":
            self.leave()
            record.unlink(missing_ok=True)
        elif operation == "stopped":  # the processes have ended
            self.leave(remove=False)
        elif operation == "release" and record.exists():
            # libvirt has removed its own cgroups; nobody may stop the slice of a VM that goes on.
            lines = record.read_text().splitlines(keepends=True)
            kept = [
                line
                for line in lines
                if not line.startswith("slice") and not line.endswith(".libvirt-qemu\n")
            ]
            record.write_text("".join(kept))

    def operations(self) -> Iterator[str]:
        """Each in its turn, with the VM where it has to be."""
        for operation in OPERATIONS:
            self.before(operation)
            yield operation

    def depth(self) -> int:
        """Of a vCPU's cgroup in the hierarchy that schedules, once the VM is placed."""
        for operation in STARTING:
            self.before(operation)
            run(hook(operation), recorded(operation))
        cgroups = self._cgroups(running_vm(NAME).vcpus[0])
        scheduling = [path for key, path in cgroups.items() if "cpu" in key.split(",")]
        path = scheduling[0] if scheduling else cgroups[""]
        return path.strip("/").count("/") + 1
