"""At which operations hooks/qemu ends without starting Python, and when it does not go by that."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import (
    __version__,
    changes,
    hook,
    idle,
    managers,
    operations,
    snapshot,
    state,
)
from libvirt_cgroup_hooks.config import Config
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.plan import Plan

from .support.entrypoint import aged, told
from .support.hosts import CONF as CONF_PATH
from .support.hosts import UUID, Kernel, domain, run
from .support.machined import Machined
from .support.operations import CPUS, OTHER, do, plan

SCRIPT = Path(__file__).parents[2] / "hooks/qemu"
SHELLS = [shell for shell in ("dash", "bash", "busybox", "ksh", "mksh") if shutil.which(shell)]
SHELL_OF = {"busybox": ["busybox", "sh"]}
EACH = ("start", "started", "stopped", "release")
PLACED = "cgroup_layout = '/vms/$NAME'\n"
SETS = "vcpu_cpus = '1'\n"
SECOND = 10**9
OWN = (
    "<metadata><settings xmlns='urn:libvirt-cgroup-hooks:domain:1'><vcpu_cpus>1</vcpu_cpus>"
    "</settings></metadata>"
)


# what Python leaves


@pytest.mark.parametrize(
    ("conf", "inner", "machined", "recorded", "version", "found"),
    [
        (CPUS, "", True, False, "v2", EACH),
        ("reserved_host_mem = '512 MiB'\n", "", True, False, "v2", EACH),
        ("vm_cpu_weight = 50\n", "", True, False, "v2", EACH),
        (CPUS + SETS, "", True, False, "v2", ("start", "stopped", "release")),
        (CPUS, OWN, True, True, "v2", ("start", "stopped")),
        (CPUS + PLACED, "", True, True, "v2", ("start", "stopped")),
        (CPUS + "cgroup_layout = 'root'\n", "", True, True, "v2", ("start", "stopped")),
        (
            "reserved_host_mem = '1 GiB'\nmemory_admission = 1\n",
            "",
            True,
            True,
            "v2",
            ("start", "stopped"),
        ),
        (CPUS + "confine_host = 'running'\n", "", True, True, "v2", ("start", "stopped")),
        (CPUS + "confine_host = 'asked'\n", "", True, True, "v2", ("start", "stopped")),
        (
            "reserved_host_mem = '1 GiB'\nprotect_host_mem = 'low'\n",
            "",
            True,
            True,
            "v2",
            ("start", "stopped"),
        ),
        (CPUS + "host_cpus_for = ['emulator']\n", "", True, True, "v2", ("start", "stopped")),
        (
            CPUS,
            "<memoryBacking><hugepages/></memoryBacking>",
            True,
            True,
            "v2",
            ("start", "stopped"),
        ),
        (CPUS, "", True, True, "v1", ("stopped",)),
        (CPUS, "", False, True, "v2", ("start",)),
        (CPUS + PLACED, "", False, True, "v1", ("start",)),
        (CPUS + "host_cpus_for = ['emulator']\n", "", False, True, "v2", ()),
    ],
)
def test_where_there_is_nothing_to_do(
    tmp_path: Path,
    conf: str,
    inner: str,
    machined: bool,
    recorded: bool,
    version: str,
    found: tuple[str, ...],
) -> None:
    host = aged((Machined if machined else Kernel)(tmp_path, version, conf))
    subject = domain("vm", f"<memory unit='MiB'>64</memory>{inner}", id=3)
    do(host, "prepare", subject)
    assert told(host) == list(found)
    version, folder = host.get(idle.PATH).splitlines()[:2]
    assert (version, folder) == (f'"{__version__}"', str(SCRIPT.parents[1]))
    assert state.Record.exists(host, UUID) == recorded
    host.written.clear()
    for operation in found:
        if operation != "started":  # which finds no process here
            assert do(host, operation, subject) == []


def test_after_memory_was_admitted(tmp_path: Path) -> None:
    """Turning memory_admission off ends what was kept for it."""
    admits = "reserved_host_mem = '512 MiB'\nmemory_admission = 1\n"
    host = aged(Machined(tmp_path, "v2", admits))
    subject = domain("vm", "<memory unit='MiB'>64</memory>", id=3)
    do(host, "prepare", subject)
    do(host, "release", subject)
    assert host.exists(state.ADMITTED)
    host.configure(admits.replace("1\n", "0\n"))
    aged(host)
    do(host, "prepare", subject)
    assert told(host) == list(EACH)
    assert not host.exists(state.ADMITTED)
    assert not state.Record.exists(host, UUID)


@pytest.fixture
def usual(tmp_path: Path) -> Kernel:
    host = aged(Machined(tmp_path, "v2", CPUS))
    do(host, "prepare", domain("vm"))
    assert told(host) == list(EACH)
    return host


def test_the_next_vm_has_nothing_to_write(usual: Kernel) -> None:
    made = plan(usual, "prepare", domain("db", uuid=OTHER))
    assert (made.steps, made.exclusive) == ([], False)


def test_a_vm_with_settings_of_its_own_has_python_started_for_all(usual: Kernel) -> None:
    """Until the next VM starts after it."""
    own = domain("db", OWN, uuid=OTHER, id=4)
    made = plan(usual, "prepare", own)
    assert made.exclusive
    steps = str(made).splitlines()
    assert (steps[0], steps[-1]) == (f"remove {idle.PATH}", f"save {idle.PATH}")
    run(usual, made)
    assert told(usual) == ["start", "stopped"]
    do(usual, "prepare", domain("vm"))
    assert told(usual) == ["start", "stopped"]
    do(usual, "release", own)
    assert told(usual) == ["start", "stopped"]
    do(usual, "prepare", domain("vm"))
    assert told(usual) == list(EACH)


@pytest.mark.parametrize("seconds", [0.5, 1.9, -60, 57 * 365.25 * 24 * 3600])
def test_of_a_configuration_whose_age_says_nothing(tmp_path: Path, seconds: float) -> None:
    """It may be edited once more in the same second; or all files of an image have one age."""
    host = aged(Machined(tmp_path, "v2", CPUS), seconds)
    do(host, "prepare", domain("vm"))
    assert not host.exists(idle.PATH)


def test_a_change_of_the_configuration_is_seen(usual: Kernel) -> None:
    usual.configure(CPUS + PLACED)
    assert told(usual) is None
    aged(usual, 600)
    assert told(usual) is None
    do(usual, "prepare", domain("vm", id=3))
    assert told(usual) == ["start", "stopped"]


def test_a_change_at_run_time_takes_it_away_first(usual: Kernel) -> None:
    """Before anything else is changed: whoever makes it may be killed."""
    config = usual.config()
    config.confine_host = "running"
    usual.start_vm(domain("vm", id=3))
    made = Plan("reserve")
    changes.refit(made, managers.choose(usual, config), [usual.start_vm(domain("vm", id=3))])
    assert str(made.steps[0]) == f"remove {idle.PATH}"


def test_what_failed_is_tried_again(usual: Kernel) -> None:
    made = hook._Run(usual, "vm", "prepare")
    made.config = Config({"on_error": "warn"})
    assert made.failed(Error("no room", "make some")) == 0
    assert told(usual) is None


def test_what_is_only_done_with_a_new_configuration_is_done_when_it_has_failed(
    usual: Kernel,
) -> None:
    usual.configure(CPUS + "hook_timeout = 77\n")
    made = hook._Run(usual, "vm", "prepare")
    made.config = snapshot.load(usual, [], save=True)
    assert made.config.anew
    assert not snapshot.load(usual, []).anew
    made.failed(Error("no room", "make some"))
    assert snapshot.load(usual, []).anew
    assert snapshot.timeout(usual) == 77


def test_after_an_upgrade_the_configuration_is_read_anew(usual: Kernel) -> None:
    text = usual.get(idle.PATH)
    usual.put(idle.PATH, text.replace(__version__, "0.0.1"))
    moment = usual.moment(CONF_PATH) or 0
    usual.touch(idle.PATH, moment)
    do(usual, "prepare", domain("vm"))
    assert usual.get(idle.PATH) == text


# VMs without a record, once something is counted


def test_vms_that_were_not_counted_are_counted_when_they_have_to_be(usual: Kernel) -> None:
    subject = usual.start_vm(domain("vm", "<memory unit='MiB'>100</memory>", id=3))
    do(usual, "prepare", subject)
    assert not state.Record.exists(usual, UUID)
    usual.configure(CPUS + "reserved_host_mem = '512 MiB'\nmemory_admission = 1\n")
    do(usual, "prepare", domain("db", "<memory unit='MiB'>100</memory>", uuid=OTHER))
    records = [state.Record.read(usual, uuid) for uuid in (UUID, OTHER)]
    assert state.Admitted(usual).total == sum(one.memory for one in records if one)
    assert all(records)


def test_the_host_stays_confined_for_vms_that_were_not_counted(usual: Kernel) -> None:
    subject = usual.start_vm(domain("vm", id=3))
    usual.configure(CPUS + "confine_host = 'running'\n")
    other = domain("db", uuid=OTHER, id=4)
    do(usual, "prepare", other)
    assert state.Remembered(usual).confined
    do(usual, "release", other)
    assert state.Remembered(usual).confined
    do(usual, "release", subject)
    assert not state.Remembered(usual).confined


# what the shell goes by


class Entrypoint:
    """hooks/qemu in FOLDER, with a stand-in for Python that notes what it is called for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf, self.state = folder / "conf", folder / "state"
        self.package = folder / "with blanks" / "libvirt_cgroup_hooks"
        self.package.mkdir(parents=True)
        shutil.copy(SCRIPT.parents[1] / "libvirt_cgroup_hooks/__init__.py", self.package)
        self.state.mkdir()
        self.conf.write_text(CPUS)
        (folder / "python3").write_text(f'#!/bin/sh\necho "$5:$8" >>{folder}/notes\n')
        (folder / "python3").chmod(0o755)
        text = SCRIPT.read_text()
        for path, stand_in in (
            ("/etc/libvirt/cgroup-hooks.conf", self.conf),
            ("/run/libvirt-cgroup-hooks", self.state),
            ("/usr/bin/python3", folder / "python3"),
        ):
            assert path in text
            text = text.replace(path, str(stand_in))
        (folder / "qemu").write_text(text)

    def tell(self, text: str | None = None, later: int = 0) -> None:
        """As Python tells it, LATER (in nanoseconds) than the configuration was written."""
        whole = f'"{__version__}"\n{self.package.parent}\n{" ".join(EACH)}\n'
        (self.state / "idle").write_text(whole if text is None else text)
        moment = self.conf.stat().st_mtime_ns + later
        os.utime(self.state / "idle", ns=(moment, moment))

    def run(self, shell: str, operations: tuple[str, ...] = hook.OPERATIONS) -> list[str]:
        """The operations that Python is started for, and the folder that it is told."""
        notes = self.folder / "notes"
        notes.unlink(missing_ok=True)
        for operation in operations:
            arguments = [
                *SHELL_OF.get(shell, [shell]),
                str(self.folder / "qemu"),
                "a b",
                operation,
                "begin",
                "-",
            ]
            done = subprocess.run(
                arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return notes.read_text().splitlines() if notes.exists() else []


@pytest.fixture
def entrypoint(tmp_path: Path) -> Entrypoint:
    return Entrypoint(tmp_path)


ALL = [f"{operation}:" for operation in hook.OPERATIONS]
every_shell = pytest.mark.parametrize("shell", SHELLS)
programs = pytest.mark.runs_programs


@programs
@every_shell
def test_python_is_started_only_where_there_is_something_to_do(
    entrypoint: Entrypoint, shell: str
) -> None:
    entrypoint.tell()
    folder = entrypoint.package.parent
    assert entrypoint.run(shell) == [f"prepare:{folder}", f"reconnect:{folder}"]
    text = (entrypoint.state / "idle").read_text()
    entrypoint.tell(text.replace("start started stopped release", "stopped"))
    assert entrypoint.run(shell) == [
        f"{operation}:{folder}" for operation in hook.OPERATIONS if operation != "stopped"
    ]
    entrypoint.tell(text.replace("start started stopped release", ""))
    assert entrypoint.run(shell) == [f"{operation}:{folder}" for operation in hook.OPERATIONS]


@programs
@every_shell
@pytest.mark.parametrize("later", [SECOND, -SECOND, 3600 * SECOND, -3600 * SECOND])
def test_it_is_as_old_as_the_configuration(entrypoint: Entrypoint, shell: str, later: int) -> None:
    """Also where an older file takes its place, or the clock was set back."""
    entrypoint.tell(later=later)
    assert entrypoint.run(shell) == ALL


@programs
@every_shell
@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        f'"{__version__}"\n',
        '"{version}"\n{folder}\n',
        '"{version}"\n{folder}',
        '"0.0.0"\n{folder}\nstart started\n',
        "{version}\n{folder}\nstart started\n",
        '"{version}"\n/nowhere\nstart started\n',
        '"{version}"\n\nstart started\n',
        "\n{folder}\nstart started\n",
        "\0\n\0\n\0\n",
    ],
)
def test_what_it_cannot_go_by(entrypoint: Entrypoint, shell: str, text: str) -> None:
    entrypoint.tell(text.format(version=__version__, folder=entrypoint.package.parent))
    started = [note.partition(":")[0] for note in entrypoint.run(shell)]
    assert started == list(hook.OPERATIONS)


@programs
@every_shell
def test_what_is_not_there(entrypoint: Entrypoint, shell: str) -> None:
    assert entrypoint.run(shell) == ALL
    entrypoint.tell()
    entrypoint.conf.unlink()
    assert entrypoint.run(shell) == ALL
    entrypoint.conf.write_text(CPUS)
    entrypoint.tell()
    shutil.rmtree(entrypoint.package)
    assert entrypoint.run(shell) == ALL
    (entrypoint.state / "idle").unlink()
    (entrypoint.state / "idle").mkdir()
    assert entrypoint.run(shell) == ALL


@programs
@every_shell
def test_of_another_version(entrypoint: Entrypoint, shell: str) -> None:
    entrypoint.tell()
    init = entrypoint.package / "__init__.py"
    init.write_text(init.read_text().replace(__version__, "99.1"))
    assert entrypoint.run(shell) == ALL


def test_the_operations_are_those_of_the_hook() -> None:
    assert (*idle.OPERATIONS,) == EACH
    assert set(EACH) | {"prepare", "reconnect"} == set(operations.ENFORCE + operations.CLEAN_UP)
