"""The program that udev runs where there is no systemd."""

from __future__ import annotations

import re
import stat
import subprocess
import time
from pathlib import Path

UDEV = Path(__file__).parents[2] / "packaging/udev/libvirt-cgroup-hooks"
CHANGED = "/run/libvirt-cgroup-hooks-changed"
APPLY = re.compile("/usr/bin/python3 .* --quiet")


def test_nobody_else_can_keep_the_lock(tmp_path: Path) -> None:
    """flock(1) takes a lock on whatever may be read."""
    changed, done, program = tmp_path / "changed", tmp_path / "done", tmp_path / "program"
    script = UDEV.read_text(encoding="utf-8").replace(CHANGED, str(changed))
    program.write_text(APPLY.sub(f"touch {done}", script), encoding="utf-8")
    program.chmod(0o755)
    held = subprocess.Popen(["flock", str(program), "sleep", "60"])
    try:
        subprocess.run([str(program)], check=True)
        end = time.monotonic() + 30
        while not done.exists() and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        held.kill()
        held.wait()
    assert done.exists()
    assert stat.S_IMODE(done.stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "changed.lock").stat().st_mode) == 0o600
