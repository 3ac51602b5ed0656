"""Who may do what: an ordinary user's libvirtd, our files and their modes, what reaches a log."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from .harness import CONFIG, FENCED, STATE, Configure, all_cgroups, destroy_vm, domain_xml, start_vm
from .pace import patient
from .test_operations import HOOK, assert_nothing_left

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
OPERATIONS = (
    "prepare",
    "start",
    "started",
    "stopped",
    "release",
    "reconnect",
    "migrate",
    "restore",
    "attach",
)
SECRET = "hunter2-of-the-console"  # noqa: S105


def nobody(*command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NOBODY, *command],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(),
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_ordinary_users_hook_does_nothing(configure: Configure, operation: str) -> None:
    """qemu:///session runs the same file, as the user."""
    configure(FENCED)
    start_vm("web")
    before = {path: path.stat().st_mtime_ns for path in STATE.rglob("*")}
    cgroups = all_cgroups()
    done = nobody(HOOK, "web", operation, "begin", "-", stdin=domain_xml("web"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert all_cgroups() == cgroups
    assert {path: path.stat().st_mtime_ns for path in STATE.rglob("*")} == before


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    return nobody("/usr/bin/python3", "-I", "-m", "libvirt_cgroup_hooks", *command)


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("map",),
        ("metrics",),
        ("recommend", "--seconds", "1"),
        ("apply", "--all"),
        ("reserve", "--cpus", "none", "--live"),
    ],
    ids=" ".join,
)
def test_an_ordinary_user_is_told_to_be_root(
    configure: Configure, command: tuple[str, ...]
) -> None:
    configure(FENCED)
    start_vm("web")
    done = as_nobody(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("Permission denied: run as root\n")


def test_what_an_ordinary_user_cannot_read_is_no_failure(configure: Configure) -> None:
    """Nor is it taken for what is not there."""
    configure(FENCED)
    start_vm("web")
    done = as_nobody("validate")
    assert (done.returncode, "FAIL" in done.stdout) == (0, False), done
    assert "WARN (only root can read some of the files: run as root) [not-root]\n" in done.stdout
    destroy_vm("web")
    shutil.rmtree(STATE)  # as where nothing was ever configured
    configure("")
    start_vm("web")
    done = as_nobody("map")
    assert done.stderr.endswith("web.xml: Permission denied: run as root\n")
    assert "\n1 VM cannot be shown.\n" in done.stdout


def test_what_we_keep_is_roots_alone(configure: Configure) -> None:
    """Nobody else can write, replace or remove any of it, nor read what VMs there are."""
    configure(FENCED)
    before = all_cgroups()
    old = os.umask(0)
    try:
        start_vm("web")
    finally:
        os.umask(old)
    for path in [STATE, *STATE.rglob("*"), *(group for group in all_cgroups() - before)]:
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (0, 0), path
        assert not stat.S_ISLNK(status.st_mode), path
        assert not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH), path
    for command in (
        ["touch", str(STATE / "new")],
        ["rm", "-f", str(STATE / "config")],
        ["mv", str(STATE / "vms"), str(STATE / "other")],
        ["ln", "-s", "/etc/passwd", str(STATE / "shared.new")],
        ["ls", str(STATE / "vms")],
        ["sh", "-c", f"echo >>{CONFIG}"],
        ["mkdir", "/run/libvirt-cgroup-hooks-2"],
    ):
        assert nobody(*command).returncode, command
    destroy_vm("web")
    assert_nothing_left(before)


def test_links_in_our_way_are_not_followed(configure: Configure, tmp_path: Path) -> None:
    """Wherever a link may have come from: what it points to stays as it is."""
    before = all_cgroups()
    configure(FENCED)
    start_vm("first")
    target = tmp_path / "target"
    target.write_text("mine")
    for name in ("config.new", "shared.new", "lock.new"):
        (STATE / name).symlink_to(target)
    (STATE / "config").unlink()
    (STATE / "config").symlink_to(tmp_path / "none")
    start_vm("second")
    assert target.read_text() == "mine"
    assert not (tmp_path / "none").exists()
    destroy_vm("first")
    destroy_vm("second")
    assert not [path for path in STATE.rglob("*") if path.is_symlink()]
    assert_nothing_left(before)


def test_a_lock_that_is_a_link_is_refused(configure: Configure, tmp_path: Path) -> None:
    configure(FENCED)
    start_vm("first")
    (STATE / "lock").unlink()
    (STATE / "lock").symlink_to(tmp_path / "none")
    done = subprocess.run(
        [HOOK, "x", "prepare", "begin", "-"],
        input=domain_xml("x"),
        capture_output=True,
        text=True,
        check=False,
    )
    (STATE / "lock").unlink()
    assert done.returncode == 1
    assert "cannot lock /run/libvirt-cgroup-hooks/lock" in done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "broken", ["", "<", "</domain>", "<memory>x</memory>", "<vcpu cpuset='x'>1</vcpu>"]
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_secret_is_told(configure: Configure, operation: str, broken: str) -> None:
    """The XML of migrate and restore has the console's password; syslog is a socket, which strace
    sees us write to.
    """
    configure(FENCED)
    graphics = f"<graphics type='vnc' passwd='{SECRET}'/>"
    xml = domain_xml("web", devices=graphics).replace("<devices>", f"{broken}<devices>")
    trace = STATE.parent / "secret.trace"
    command = [
        "strace",
        "-f",
        "-qq",
        "-s",
        "4096",
        "-e",
        "trace=write,sendto,sendmsg,connect",
        "-o",
        str(trace),
    ]
    done = subprocess.run(
        [*command, HOOK, "web", operation, "begin", "-"],
        input=xml,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(),
    )
    assert done.stdout == ""
    assert SECRET not in done.stderr
    assert SECRET not in trace.read_text()
    assert not any(SECRET in path.read_text() for path in STATE.rglob("*") if path.is_file())
    trace.unlink()
    subprocess.run(
        [HOOK, "web", "release", "end", "-"],
        input=domain_xml("web"),
        text=True,
        check=True,
        timeout=patient(),
    )


def test_an_ordinary_users_daemon(configure: Configure, tmp_path: Path) -> None:
    """qemu:///session with the hook installed: its VM starts and ends, and no cgroup, file or line
    of ours is made.
    """
    configure(FENCED)
    before, cgroups = set(STATE.rglob("*")), all_cgroups()
    home = Path("/run/nobody")
    home.mkdir(mode=0o700)
    os.chown(home, 65534, 65534)
    environment = [
        f"HOME={home}",
        f"XDG_RUNTIME_DIR={home}",
        f"XDG_CONFIG_HOME={home}",
        f"XDG_CACHE_HOME={home}",
    ]
    daemon = subprocess.Popen(
        [*NOBODY, "env", *environment, "libvirtd", "--timeout", "30"],
        cwd="/",
        stderr=subprocess.PIPE,
    )
    try:
        virsh = ["env", *environment, "virsh", "--quiet", "--connect", "qemu:///session"]
        file = home / "web.xml"
        file.write_text(domain_xml("web"))
        started = nobody(*virsh, "create", str(file))
        assert started.returncode == 0, started.stderr
        assert all_cgroups() == cgroups
        assert nobody(*virsh, "destroy", "web").returncode == 0
        assert (set(STATE.rglob("*")), all_cgroups()) == (before, cgroups)
    finally:
        daemon.terminate()
        daemon.wait(patient())
        subprocess.run(["rm", "-rf", str(home)], check=True)
