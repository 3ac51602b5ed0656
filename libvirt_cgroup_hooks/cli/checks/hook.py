# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks of the hook: whether libvirt knows it, may run it, and what else it runs."""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from ...cgroups import placements, systemd_key
from ...errors import Error, printable
from ...host import Host, Refused
from ...managers import BOOTED
from ...steps import SYSTEMCTL
from ..hookfile import RELOADED, elsewhere, ours, places, python_of
from .subject import Problem, Subject

IMPORTS = """
import sys
try:
    import configobj, libvirt_cgroup_hooks.hook
except ImportError as error:
    sys.exit(str(error))
"""
LEFT_BY_PACKAGES = "-dist -new -old -tmp -bak -remove -backup".split()
LEFTOVERS = (
    *(f".{manager}{word}" for manager in ("dpkg", "ucf") for word in LEFT_BY_PACKAGES),
    *".rpmnew .rpmsave .rpmorig .pacnew .pacsave .apk-new".split(),
    *".bak .orig .old .save .swp .rej ~".split(),
)
SELINUX = "/sys/fs/selinux"
APPARMOR = "/sys/module/apparmor/parameters/enabled"
PROFILES = "/sys/kernel/security/apparmor/profiles"
CONFINED = tuple(
    f"{prefix}{name} (enforce)"
    for name in ("libvirtd", "virtqemud")
    for prefix in ("", "/usr/sbin/")
)
# what these profiles let it run, beside the hooks
ALLOWED = ("/bin/", "/sbin/", "/usr/bin/", "/usr/sbin/")


class Script(NamedTuple):
    """A file that libvirt takes for a hook; `target` is where links lead to, `changed` seconds
    since the epoch.
    """

    path: str
    ours: bool
    executable: bool
    changed: float
    target: str

    @property
    def leftover(self) -> bool:
        name = self.path.rpartition("/")[2]
        return name != "qemu" and (name.startswith((".", "#")) or name.endswith(LEFTOVERS))


def scripts(host: Host) -> list[Script]:
    """As libvirt does: the hook, then every regular file of the directory, whatever its name.
    Raises Refused.
    """
    hook, directory, _ = places(host)
    try:
        names = sorted(os.listdir(host.root + directory))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise Refused(f"list {directory}", error) from None
    found = [_script(host, path) for path in (hook, *(f"{directory}/{name}" for name in names))]
    return [script for script in found if script]


def _script(host: Host, path: str) -> Script | None:
    try:
        status = os.stat(host.root + path)
        link = os.lstat(host.root + path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Refused(f"look at {path}", error) from None
    if not stat.S_ISREG(status.st_mode):
        return None
    # Packages set the time of the last change of the text; a copy of a host has no other.
    changed = max((one.st_ctime if host.real else one.st_mtime) for one in (status, link))
    target = os.path.realpath(host.root + path).removeprefix(
        os.path.realpath(host.root or "/").rstrip("/")
    )
    return Script(path, ours(host.read(path)), bool(status.st_mode & 0o111), changed, target)


def _mine(subject: Subject) -> list[Script]:
    return [script for script in scripts(subject.host) if script.ours and not script.leftover]


def known(subject: Subject) -> bool:
    """Whether the hook is installed, executable or not."""
    return bool(_mine(subject))


def runs(subject: Subject) -> bool:
    return any(script.executable for script in _mine(subject))


def installed(subject: Subject) -> Iterator[Problem]:
    mine = _mine(subject)
    hook, _, hook_d = places(subject.host)
    unread = [path for path in elsewhere(subject.host) if _is_ours(subject.host, path)]
    if unread:
        text = f"the hook is {' and '.join(unread)}, and libvirt looks in {hook} and {hook_d}"
        yield Problem(
            "hook-left-elsewhere" if mine else "hook-elsewhere",
            text,
            "run virt-cgroup hook install",
        )
    elif not mine:
        yield Problem(
            "hook-missing",
            f"neither {hook} nor {hook_d} is this package's hook",
            "run virt-cgroup hook install",
        )
    for script in [script for script in mine if script.executable][1:]:
        yield Problem(
            "hook-twice",
            f"{script.path} is the same hook again, and libvirt runs both",
            f"rm {shlex.quote(script.path)}",
        )


def _is_ours(host: Host, path: str) -> bool:
    script = _script(host, path)
    return script is not None and script.ours


def executable(subject: Subject) -> Iterator[Problem]:
    for script in _mine(subject):
        if not script.executable:
            yield Problem(
                "hook-not-executable",
                f"{script.path} is not executable, so libvirt ignores it",
                f"chmod 755 {shlex.quote(script.path)}",
            )


def directory(subject: Subject) -> Iterator[Problem]:
    """Daemons of ordinary users read it too, and do not start where they cannot
    (VIR_DAEMON_ERR_HOOKS).
    """
    path = places(subject.host).directory
    try:
        mode = os.stat(subject.host.root + path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise Refused(f"look at {path}", error) from None
    if not stat.S_ISDIR(mode):
        yield Problem(
            "hooks-no-directory",
            f"{path} is not a directory, so every hook fails",
            f"rm {shlex.quote(path)}",
        )
    elif mode & 0o005 != 0o005:
        yield Problem(
            "hooks-unreadable",
            f"daemons of other users cannot read {path}",
            f"chmod 755 {shlex.quote(path)}",
        )


def program(subject: Subject) -> Iterator[Problem]:
    """The hook does nothing, and says nothing, where its package is gone."""
    path = next(script.path for script in _mine(subject) if script.executable)
    python = python_of(subject.host.read(path))
    try:
        subject.host.run([python, "-I", "-c", IMPORTS])
    except Error as error:
        reason = error.hint or error.message
        text = f"{printable(python)} runs the hook and lacks what it needs ({reason})"
        yield Problem(
            "hook-broken",
            text,
            "run virt-cgroup hook install, or install the package and configobj for that Python",
        )


def seen(subject: Subject) -> Iterator[Problem]:
    """The daemon looks whether there is any hook for QEMU at all when it starts and at SIGHUP, and
    remembers only that.
    """
    path = next(script.path for script in _mine(subject) if script.executable)
    changed = min(script.changed for script in scripts(subject.host) if script.executable)
    name = subject.daemon_name
    if name is None:
        yield Problem(
            "daemon-stopped",
            "neither libvirtd nor virtqemud is running",
            "it looks for hooks when it starts",
        )
    elif changed > _looked(subject):
        text = f"{path} was changed after {name} (process {subject.pid}) last looked for hooks"
        yield Problem(
            "hook-not-seen",
            f"{text}, so it may not know the hook",
            "run virt-cgroup hook reload",
        )


def _looked(subject: Subject) -> float:
    """When the daemon started, or systemd or virt-cgroup reloaded it; no other SIGHUP leaves a
    trace.
    """
    host, pid = subject.host, subject.pid
    fields = host.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    started = _booted(host) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    if pid in (host.read_optional(RELOADED) or "").split():
        started = max(started, host.written_at(RELOADED) or 0)
    cgroups = placements(host.read_optional(f"/proc/{pid}/cgroup") or "")
    unit = cgroups.get(systemd_key(host.read_optional), "").rpartition("/")[2]
    if not host.real or not unit.endswith(".service") or not host.exists(BOOTED):
        return started
    text = host.run([SYSTEMCTL, "show", "--value", "-p", "StateChangeTimestampMonotonic", unit])
    return max(started, time.time() - time.monotonic() + int(text or 0) / 1e6)


def _booted(host: Host) -> float:
    """Seconds since the epoch; /proc/stat knows whole ones only."""
    if host.real:
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    lines = [
        line.split() for line in host.read("/proc/stat").splitlines() if line.startswith("btime ")
    ]
    if not lines:
        raise Error("/proc/stat has no btime", "is /proc mounted?")
    return float(lines[0][1])


def others(subject: Subject) -> Iterator[Problem]:
    for script in scripts(subject.host):
        if script.executable and not script.ours and not script.leftover:
            yield Problem(
                "hook-foreign",
                f"{script.path} belongs to another program; if it fails, VMs do not start",
            )


def leftovers(subject: Subject) -> Iterator[Problem]:
    for script in scripts(subject.host):
        path = shlex.quote(script.path)
        if script.leftover and script.executable:
            text = f"libvirt runs {script.path} for every VM, whatever its name"
            yield Problem("hook-leftover-runs", text, f"rm {path}, or chmod a-x {path}")
        elif script.leftover:
            yield Problem(
                "hook-leftover",
                f"{script.path} is left over; it is not executable, so libvirt ignores it",
                f"rm {path}",
            )


def selinux(subject: Subject) -> Iterator[Problem]:
    if (subject.host.read_optional(f"{SELINUX}/enforce") or "0").strip() != "1":
        return
    boolean = subject.host.read_optional(f"{SELINUX}/booleans/virt_hooks_unconfined")
    if boolean is None:
        text = "SELinux is enforcing, and its policy has no boolean virt_hooks_unconfined"
        yield Problem("selinux-unknown", text, "see ausearch -m avc if VMs are not placed")
    elif boolean.split()[:1] != ["1"]:
        text = "SELinux is enforcing and may keep the hook from writing"
        yield Problem("selinux-denies", text, "run setsebool -P virt_hooks_unconfined on")


def apparmor(subject: Subject) -> Iterator[Problem]:
    """libvirt's profiles let the daemon run files of the hooks directory, but a link counts as what
    it leads to.
    """
    if (subject.host.read_optional(APPARMOR) or "N").strip() != "Y":
        return
    profiles = subject.host.read_optional(PROFILES)
    if profiles is None:
        yield Problem(
            "apparmor-unknown",
            f"AppArmor is enabled, but {PROFILES} is not there",
            "mount securityfs on /sys/kernel/security",
        )
    elif any(line.strip() in CONFINED for line in profiles.splitlines()):
        hooks = places(subject.host).hook.removesuffix("qemu")
        for script in _mine(subject):
            if not script.target.startswith((hooks, *ALLOWED)):
                text = (
                    f"AppArmor does not let libvirt run {script.target}, to which "
                    f"{script.path} links"
                )
                remedy = f"rm {shlex.quote(script.path)}, then run virt-cgroup hook install"
                yield Problem("apparmor-denies", text, remedy)
