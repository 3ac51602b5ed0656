"""A copy of this machine on which packages can be installed: an overlay in a mount namespace that
goes with it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType

# A tmpfs, because an overlay cannot be kept below its own lower layer; no daemon of this machine
# can be reached by its pid file, as /run is empty.
MOUNT = """
set -e
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o lowerdir=/,upperdir="$1/upper",workdir="$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /sys "$1/root/sys"
mount -t tmpfs none "$1/root/run"
mount -t tmpfs none "$1/root/tmp"
mount --bind /dev "$1/root/dev"
rm -rf "$1/root/etc/libvirt/hooks" "$1/root/etc/libvirt/cgroup-hooks.conf"
mkdir -p "$1/root/etc/libvirt/hooks"
echo ready
exec sleep infinity
"""


class Machine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"  # in the namespace only

    def __enter__(self) -> Machine:
        command = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            MOUNT,
            "sh",
            str(self.folder),
        ]
        self._holder = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._holder.stdout
        said = self._holder.stdout.readline()
        assert said == "ready\n", said + self._holder.stdout.read()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout:
            self._holder.stdout.close()

    def outside(self, *command: str | Path, check: bool = True, stdin: str = "") -> str:
        """What COMMAND prints, run where the machine is seen at `root`."""
        whole = ["nsenter", f"--target={self._holder.pid}", "--mount", *command]
        result = subprocess.run(
            whole, input=stdin, capture_output=True, text=True, check=False, timeout=120
        )
        output = result.stdout + result.stderr
        assert not check or result.returncode == 0, f"{' '.join(map(str, command))}: {output}"
        return output

    def run(self, script: str, check: bool = True, stdin: str = "") -> str:
        """What a shell's SCRIPT prints, run on the machine."""
        environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]
        return self.outside(
            "chroot", self.root, *environment, "sh", "-c", script, check=check, stdin=stdin
        )

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        self.run(f"mkdir -p $(dirname {path}); cat >{path}; chmod {mode:o} {path}", stdin=text)

    def hooks(self) -> list[str]:
        """What libvirtd would run."""
        found = self.run("cd /etc/libvirt/hooks; find . -type f -perm -100 | sort")
        return [line.removeprefix("./") for line in found.splitlines()]
