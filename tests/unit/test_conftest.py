"""The ban itself: a unit test that touches the real host fails, and says with what."""

from __future__ import annotations

import os
import subprocess
import syslog
from collections.abc import Callable
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.host import Host


@pytest.mark.parametrize(
    ("attempt", "what"),
    [
        (lambda: Host().read("/proc/self/cgroup"), "open '/proc/self/cgroup'"),
        (
            lambda: Host("/").write("/sys/fs/cgroup/cgroup.procs", "0"),
            "open '/sys/fs/cgroup/cgroup.procs'",
        ),
        (
            lambda: Host().read_optional("/etc/libvirt/cgroup-hooks.conf"),
            "open '/etc/libvirt/cgroup-hooks.conf'",
        ),
        (lambda: Host().make_directory("/run/x"), "os.mkdir '/run/x'"),
        (lambda: Host().replace("/run/x", ""), "os.remove '/run/x.new'"),
        (lambda: Host().remove("/run/x"), "os.remove '/run/x'"),
        (lambda: Host().names("/sys"), "os.listdir '/sys'"),
        (lambda: Host().directories("/sys/fs/cgroup"), "os.scandir '/sys/fs/cgroup'"),
        (lambda: Host().set_affinity(0, [0]), "affinity of a real thread: (0, [0])"),
        (lambda: subprocess.run(["true"], check=False), "subprocess.Popen 'true'"),
        (lambda: os.posix_spawn("/bin/true", ["true"], {}), "os.posix_spawn '/bin/true'"),
        (lambda: syslog.syslog("text"), "syslog."),
        (lambda: __import__("libvirt"), "import 'libvirt'"),
    ],
)
def test_what_a_unit_test_cannot_do(attempt: Callable[[], object], what: str) -> None:
    with pytest.raises(pytest.fail.Exception) as failure:
        attempt()
    assert what in str(failure.value)


@pytest.mark.runs_programs
def test_a_test_that_declares_it_may_run_programs() -> None:
    assert subprocess.run(["true"], check=False).returncode == 0


def test_other_files_may_be_used(tmp_path: Path) -> None:
    Host(str(tmp_path)).make_directory("/proc")
    assert Host(str(tmp_path)).names("/") == ["proc"]
