# SPDX-License-Identifier: LGPL-2.1-or-later
"""virt-cgroup hook: puts the hook where libvirtd runs it, beside another's if there is one, and
takes it away again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from ... import idle, installation, snapshot
from ...config import PATH
from ...errors import Error, printable
from ...host import NEW, Host, Refused
from ...leave import leave
from ...managers import unitfiles
from ..command import add as add_command
from ..hookfile import (
    HOOK,
    HOOK_D,
    PYTHON,
    RELOADED,
    elsewhere,
    ours,
    places,
    python_of,
    shipped_file,
)
from ..output import print_json, print_pairs

SHIPPED = ("share/libvirt-cgroup-hooks/qemu", "hooks/qemu")  # installed, and in the source tree
UNIT = "libvirt-cgroup-hooks.service"
ACTIONS = ("install", "reload", "remove", "status")
NEEDS = "import libvirt_cgroup_hooks.hook, configobj"


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "hook",
        run,
        "install, remove or show the file that libvirtd runs",
        "virt-cgroup hook install",
    )
    parser.description = (
        "Install, remove or show the file that libvirtd runs.\n\n"
        f"  install  as {HOOK} or, if another program owns that file,\n"
        f"           {HOOK_D}\n"
        "           (if libvirt was built to read hooks elsewhere, there);\n"
        "           then sends libvirtd SIGHUP so that it finds the hook\n"
        "  reload   sends libvirtd SIGHUP, nothing else\n"
        "  remove   also lifts the limits and removes what is kept in /run;\n"
        "           VMs keep running where they are\n"
        "  status   where it is, and which Python runs it"
    )
    parser.add_argument("action", metavar="ACTION", choices=ACTIONS, help=", ".join(ACTIONS))


def run(arguments: argparse.Namespace, host: Host) -> int:
    if arguments.action == "status":
        _show(host, arguments.json)
        return 0
    if not host.real:
        raise Error(
            f"hook {arguments.action} cannot be used with --root",
            "virt-cgroup hook status can",
        )
    if arguments.action == "remove":
        done = remove(host) + comes_back(host)
    elif arguments.action == "reload":
        done = _reload(host)
    else:
        python = interpreter()
        check(host, python)
        done = install(host, python)
        host.forget(idle.PATH)  # of the package that this one replaces
        done += _reload(host) if any(line.startswith("installed") for line in done) else []
    if arguments.json:
        print_json(done)
    else:
        print("\n".join(map(printable, done)))
    return 0


# install


def install(host: Host, python: str) -> list[str]:
    """Puts the hook in its place, to be run by PYTHON; what was done. Raises Error."""
    text = shipped().replace(PYTHON, shlex.quote(python))
    hook, _, hook_d = places(host)
    if _foreign(host, hook) and ours(_read(host, hook)):
        return [f"{hook} belongs to another program, which already runs this hook"]
    place, other = (hook_d, hook) if _foreign(host, hook) else (hook, hook_d)
    if _foreign(host, place):
        raise Error(
            f"{place} exists but was not installed by this package", "rename it, and run this again"
        )
    unread = [path for path in elsewhere(host) if _text(host, path) is not None]
    if _text(host, place) == text and _text(host, other) is None and not unread:
        return [f"{place} is in place"]
    done = [f"{hook} belongs to another program and is left alone"] if place == hook_d else []
    done += _saved(host, place, text)
    _make_directories(host, place)
    host.replace(place, text, 0o755)
    done.append(f"installed {place}")
    superseded = [other, *unread] if place == hook else unread
    for path in superseded:
        done += _removed(host, path)
    return done


def interpreter() -> str:
    """The Python that runs this, by the name that finds the package: not resolved, as that would
    leave the venv.
    """
    python = sys.executable
    system = os.path.exists(PYTHON) and os.path.exists(python) and os.path.samefile(python, PYTHON)
    return PYTHON if system and sys.prefix == sys.base_prefix else python


def check(host: Host, python: str) -> None:
    """Raises Error where PYTHON, run as libvirtd runs it, does not find the package."""
    try:
        host.run([python, "-I", "-c", NEEDS])
    except Error as error:
        reason = (error.hint or error.message).split("\\n")[-1]  # the last line of what it printed
        raise Error(
            f"{printable(python)} does not find the package when run as libvirtd runs it: {reason}",
            "install the package as root for that Python, or in a virtual environment",
        ) from None


def shipped() -> str:
    for directory in Path(__file__).resolve().parents:
        for name in SHIPPED:
            if (directory / name).is_file():
                return (directory / name).read_text(encoding="utf-8")
    raise Error(
        f"cannot find {SHIPPED[0]}, which is part of the package", "install the package again"
    )


def _make_directories(host: Host, path: str) -> None:
    """0755 all: libvirtd fails on a qemu.d that a session daemon cannot read."""
    for directory in reversed(Path(path).parents):
        if not host.exists(str(directory)):
            host.make_directory(str(directory), 0o755)


def _saved(host: Host, path: str, new: str) -> list[str]:
    """One of ours that somebody has edited is kept beside it, where libvirt does not run it."""
    text = _text(host, path)
    if text is None or _pristine(text) or text == new:
        return []
    host.replace(f"{path}.save", text, 0o644)
    return [f"saved the edited {path} as {path}.save"]


def _reload(host: Host) -> list[str]:
    """libvirtd looks for hooks when it starts and at SIGHUP. One that starts and has not asked for
    SIGHUP would die. A SIGHUP leaves no trace, so validate goes by the note that is left here.
    """
    done, told = [], []
    for path in installation.PID_FILES:
        pid = (host.read_optional(path) or "").strip()
        name = installation.daemon_name(host, pid) if pid.isdigit() else None
        if name and _catches_sighup(host, pid):
            os.kill(int(pid), signal.SIGHUP)
            done.append(f"reloaded {name}")
            told.append(f"{pid}\n")
    if told:
        host.replace(RELOADED, "".join(told), 0o644)
    return done or ["libvirtd is not running; it finds the hook when it starts"]


def _catches_sighup(host: Host, pid: str) -> bool:
    status = host.read_optional(f"/proc/{pid}/status") or ""
    masks = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(masks and int(masks[0], 16) >> (signal.SIGHUP - 1) & 1)


# remove


def remove(host: Host) -> list[str]:
    """What was done. Raises Error once all that can be done is done."""
    done: list[str] = []
    for path in _all_places(host):
        done += _removed(host, path)
        host.remove(path + NEW)  # of an install that was killed
    host.remove(RELOADED)
    if not done:
        done = ["the hook is not installed"]
    return done + leave(host)


def comes_back(host: Host) -> list[str]:
    """What sets the limits again that have been lifted."""
    try:
        config = snapshot.load(host, [])
    except Error:
        return []
    reserves = config.reserved_host_cpus or config.reserved_host_mem
    if not reserves or not unitfiles.has_unit(host, UNIT):
        return []
    return [
        f"{PATH} stays, and {UNIT} applies it when libvirtd starts; to end that, too: "
        "virt-cgroup reserve --cpus none --memory none --config"
    ]


def _removed(host: Host, path: str) -> list[str]:
    if _text(host, path) is None:
        return []
    done = _saved(host, path, "")
    host.remove(path)
    return [*done, f"removed {path}"]


# what is there


def _text(host: Host, path: str) -> str | None:
    """The text of our hook at PATH; None where there is none, or another's."""
    text = _read(host, path)
    return text if shipped_file(text) else None


def _read(host: Host, path: str) -> str:
    try:
        return host.read_optional(path) or ""
    except Refused:  # a directory
        return ""


def _foreign(host: Host, path: str) -> bool:
    """Something is there that is not ours: also a directory, or a link that leads nowhere."""
    directory, _, name = path.rpartition("/")
    return name in host.names(directory) and _text(host, path) is None


def _pristine(text: str) -> bool:
    try:
        return text == shipped().replace(PYTHON, shlex.quote(python_of(text)))
    except Error:  # nothing to compare with
        return False


def _all_places(host: Host) -> list[str]:
    """Where the daemon looks comes first."""
    hook, _, hook_d = places(host)
    return [hook, hook_d, *elsewhere(host)]


def state(host: Host) -> dict[str, Any]:
    found = [(path, _text(host, path)) for path in _all_places(host)]
    path, text = next(((path, text) for path, text in found if text is not None), (None, None))
    pristine = text is not None and _pristine(text)
    return {
        "path": path,
        "python": python_of(text) if text is not None and pristine else None,
        "edited": text is not None and not pristine,
        "other": places(host).hook if _foreign(host, places(host).hook) else None,
    }


def _shown(host: Host, path: str | None) -> str:
    if path in elsewhere(host):
        return f"{path}, where libvirt does not look: run virt-cgroup hook install"
    return path or "not installed"


def _show(host: Host, as_json: bool) -> None:
    found = state(host)
    if as_json:
        print_json(found)
        return
    print_pairs(
        [
            ("Hook", _shown(host, found["path"])),
            (
                "Python",
                found["python"] or ("unknown: the file was edited" if found["edited"] else "-"),
            ),
            ("Other hooks", found["other"] or "none"),
        ]
    )
