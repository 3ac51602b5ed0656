"""virt-cgroup hook: where the file goes, whose file it is, and what is left after it has gone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import config, managers, snapshot, state
from libvirt_cgroup_hooks.cli import main
from libvirt_cgroup_hooks.cli.commands import hook
from libvirt_cgroup_hooks.cli.hookfile import HOOK, HOOK_D, shipped_file
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.leave import leave

from ..support.hosts import Kernel, domain
from ..support.machined import Machined
from ..support.operations import do

SOURCE = (Path(__file__).parents[3] / "hooks/qemu").read_text()
VDSM = "#!/usr/bin/python3\nimport hooking\n"
PYTHON = "/usr/bin/python3"
VENV = "/opt/my venv/bin/python"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "etc/libvirt/hooks").mkdir(parents=True)
    return Host(str(tmp_path))


def put(host: Host, path: str, text: str) -> Path:
    file = Path(host.root + path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return file


def tree(host: Host) -> dict[str, str]:
    """The files below /etc/libvirt/hooks, those that libvirt would run with a *."""
    top = Path(host.root + "/etc/libvirt/hooks")
    files = [path for path in sorted(top.rglob("*")) if path.is_file()]
    return {
        f"{path.relative_to(top)}{'*' if os.access(path, os.X_OK) else ''}": path.read_text()
        for path in files
    }


# whose file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SOURCE, True),
        (SOURCE.replace(PYTHON, VENV), True),
        (SOURCE + "logger started\n", True),
        (VDSM, False),
        ("", False),
        ("#!/usr/bin/python3\nfrom libvirt_cgroup_hooks.hook import main\n", False),
        ("#!/bin/sh\n# calls /usr/share/libvirt-cgroup-hooks/qemu\n", False),
    ],
)
def test_whose_file(text: str, expected: bool) -> None:
    assert shipped_file(text) is expected


# install


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_where_nobody_has_a_hook(host: Host, umask: int) -> None:
    old = os.umask(umask)
    try:
        assert hook.install(host, PYTHON) == [f"installed {HOOK}"]
    finally:
        os.umask(old)
    assert tree(host) == {"qemu*": SOURCE}
    assert stat.S_IMODE(os.stat(host.root + HOOK).st_mode) == 0o755


def test_where_libvirt_is_not_installed_yet(tmp_path: Path) -> None:
    assert hook.install(Host(str(tmp_path)), PYTHON) == [f"installed {HOOK}"]


def test_again_changes_nothing(host: Host) -> None:
    hook.install(host, PYTHON)
    before = os.stat(host.root + HOOK)
    assert hook.install(host, PYTHON) == [f"{HOOK} is in place"]
    assert os.stat(host.root + HOOK).st_mtime_ns == before.st_mtime_ns


def test_beside_another_program(host: Host) -> None:
    put(host, HOOK, VDSM)
    assert hook.install(host, PYTHON) == [
        f"{HOOK} belongs to another program and is left alone",
        f"installed {HOOK_D}",
    ]
    assert tree(host) == {"qemu*": VDSM, "qemu.d/50-cgroup-hooks*": SOURCE}
    assert hook.install(host, PYTHON) == [f"{HOOK_D} is in place"]


SYSCONFDIRS = [
    ({"/var/lib/libvirt/qemu.conf": ""}, "/var/lib/libvirt/hooks"),
    ({"/usr/local/etc/libvirt/qemu.conf": ""}, "/usr/local/etc/libvirt/hooks"),
    (
        {
            "/run/libvirtd.pid": "77",
            "/proc/77/comm": "libvirtd",
            "/proc/77/maps": "1-2 r--p 0 fd:00 1 /opt/lib/libvirt.so.0.1\n",
            "/opt/lib/libvirt.so.0.1": "\0/opt/etc/libvirt/hooks\0",
            "/etc/libvirt/qemu.conf": "",
        },
        "/opt/etc/libvirt/hooks",
    ),
]


@pytest.mark.parametrize(("files", "folder"), SYSCONFDIRS)
def test_where_the_daemon_of_this_host_looks(
    host: Host, files: dict[str, str], folder: str
) -> None:
    for path, text in files.items():
        put(host, path, text)
    assert hook.install(host, PYTHON) == [f"installed {folder}/qemu"]
    assert hook.install(host, PYTHON) == [f"{folder}/qemu is in place"]
    put(host, f"{folder}/qemu", VDSM)
    assert hook.install(host, PYTHON)[-1] == f"installed {folder}/qemu.d/50-cgroup-hooks"
    assert hook.state(host) == {
        "path": f"{folder}/qemu.d/50-cgroup-hooks",
        "python": PYTHON,
        "edited": False,
        "other": f"{folder}/qemu",
    }
    assert hook.remove(host) == [f"removed {folder}/qemu.d/50-cgroup-hooks"]


@pytest.mark.parametrize(("files", "folder"), SYSCONFDIRS)
def test_a_hook_where_the_daemon_does_not_look(
    host: Host, capsys: pytest.CaptureFixture[str], files: dict[str, str], folder: str
) -> None:
    """It moves to where the daemon looks, or goes altogether."""
    put(host, HOOK, SOURCE)
    put(host, HOOK_D, VDSM)
    for path, text in files.items():
        put(host, path, text)
    main(["--root", host.root, "hook", "status"])
    shown = capsys.readouterr().out
    assert f"{HOOK}, where libvirt does not look: run virt-cgroup hook install\n" in shown
    assert hook.install(host, PYTHON) == [f"installed {folder}/qemu", f"removed {HOOK}"]
    assert tree(host) == {"qemu.d/50-cgroup-hooks*": VDSM}
    put(host, HOOK, SOURCE)
    assert hook.remove(host) == [f"removed {folder}/qemu", f"removed {HOOK}"]


def test_a_folder_that_is_a_link_to_where_the_daemon_looks(host: Host) -> None:
    put(host, "/var/lib/libvirt/qemu.conf", "")
    put(host, "/var/lib/libvirt/hooks/README", "")
    Path(host.root + "/etc/libvirt/hooks").rmdir()
    Path(host.root + "/etc/libvirt/hooks").symlink_to("../../var/lib/libvirt/hooks")
    for done in ("installed", "/var/lib/libvirt/hooks/qemu is"):
        assert hook.install(host, PYTHON)[0].startswith(done)
    assert hook.state(host)["path"] == "/var/lib/libvirt/hooks/qemu"


def test_beside_a_link_that_leads_nowhere(host: Host) -> None:
    Path(host.root + HOOK).symlink_to("/opt/not/there")
    assert hook.install(host, PYTHON)[-1] == f"installed {HOOK_D}"
    assert os.readlink(host.root + HOOK) == "/opt/not/there"


def test_beside_a_directory(host: Host) -> None:
    Path(host.root + HOOK).mkdir()
    assert hook.install(host, PYTHON)[-1] == f"installed {HOOK_D}"


def test_another_that_runs_ours(host: Host) -> None:
    text = "#!/usr/bin/python3\nfrom libvirt_cgroup_hooks.hook import main\n"
    put(host, HOOK, text)
    assert hook.install(host, PYTHON) == [
        f"{HOOK} belongs to another program, which already runs this hook"
    ]
    assert tree(host) == {"qemu*": text}


def test_both_places_are_anothers(host: Host) -> None:
    put(host, HOOK, VDSM)
    put(host, HOOK_D, VDSM)
    with pytest.raises(Error, match=f"{HOOK_D} exists but was not installed by this package"):
        hook.install(host, PYTHON)
    assert set(tree(host).values()) == {VDSM}


def test_the_other_has_gone_since(host: Host) -> None:
    put(host, HOOK_D, SOURCE)
    assert hook.install(host, PYTHON) == [f"installed {HOOK}", f"removed {HOOK_D}"]
    assert tree(host) == {"qemu*": SOURCE}


def test_another_has_come_since(host: Host) -> None:
    hook.install(host, PYTHON)
    put(host, HOOK, VDSM)
    hook.install(host, PYTHON)
    assert tree(host) == {"qemu*": VDSM, "qemu.d/50-cgroup-hooks*": SOURCE}


def test_another_python(host: Host) -> None:
    hook.install(host, VENV)
    text = SOURCE.replace(PYTHON, f"'{VENV}'")
    assert tree(host) == {"qemu*": text}
    assert hook.state(host)["python"] == VENV
    hook.install(host, PYTHON)
    assert tree(host) == {"qemu*": SOURCE}


def test_an_edited_one_is_saved(host: Host) -> None:
    edited = SOURCE + "# mine\n"
    put(host, HOOK, edited)
    assert hook.state(host) == {"path": HOOK, "python": None, "edited": True, "other": None}
    assert hook.install(host, PYTHON) == [
        f"saved the edited {HOOK} as {HOOK}.save",
        f"installed {HOOK}",
    ]
    assert tree(host) == {"qemu*": SOURCE, "qemu.save": edited}


@pytest.mark.runs_programs
def test_the_hook_is_run_by_the_python_that_is_recorded(host: Host, tmp_path: Path) -> None:
    """It asks for the package of that Python alone, and without it does nothing."""
    python = tmp_path / "my venv/python"
    put(
        Host(),
        str(python),
        f'#!/bin/sh\n[ "$1 $2" = "-IS -c" ] || exit 9\nshift 3\necho "$@" >"{tmp_path}/seen"\n',
    )
    hook.install(host, str(python))
    text = Path(host.root + HOOK).read_text().replace("/etc/libvirt/cgroup-hooks.conf", "/")
    subprocess.run(["sh", "-c", text, "qemu", "-x 'y", "prepare", "begin", "-"], check=True)
    assert (tmp_path / "seen").read_text() == "-x 'y prepare begin - \n"


@pytest.mark.runs_programs
def test_a_python_without_the_package(tmp_path: Path) -> None:
    python = put(
        Host(),
        str(tmp_path / "python"),
        "#!/bin/sh\necho Traceback >&2\necho 'No module named x' >&2\nexit 1\n",
    )
    with pytest.raises(
        Error, match=r"does not find the package .*: No module named x: install the package as root"
    ):
        hook.check(Host(), str(python))


def test_the_systems_python_goes_by_its_plain_name() -> None:
    expected = (
        PYTHON
        if sys.prefix == sys.base_prefix and os.path.samefile(sys.executable, PYTHON)
        else sys.executable
    )
    assert hook.interpreter() == expected


# remove


@pytest.mark.parametrize(
    ("files", "done", "left"),
    [
        ({}, ["the hook is not installed"], {}),
        ({HOOK: SOURCE}, [f"removed {HOOK}"], {}),
        ({HOOK: VDSM, HOOK_D: SOURCE}, [f"removed {HOOK_D}"], {"qemu*": VDSM}),
        ({HOOK: SOURCE, HOOK_D: SOURCE}, [f"removed {HOOK}", f"removed {HOOK_D}"], {}),
        ({HOOK: SOURCE, HOOK_D: VDSM}, [f"removed {HOOK}"], {"qemu.d/50-cgroup-hooks*": VDSM}),
        ({HOOK: VDSM}, ["the hook is not installed"], {"qemu*": VDSM}),
        (
            {HOOK: SOURCE + "#\n"},
            [f"saved the edited {HOOK} as {HOOK}.save", f"removed {HOOK}"],
            {"qemu.save": SOURCE + "#\n"},
        ),
    ],
)
def test_remove(host: Host, files: dict[str, str], done: list[str], left: dict[str, str]) -> None:
    for path, text in files.items():
        put(host, path, text)
    assert hook.remove(host) == done
    assert tree(host) == left


@pytest.mark.parametrize(
    "conf", ["reserved_host_cpus = '0'\n", "reserved_host_mem = '1 GiB'\n", ""]
)
@pytest.mark.parametrize("unit", ["/usr/lib/systemd/system/libvirt-cgroup-hooks.service", None])
def test_whatcomes_back_is_told(tmp_path: Path, conf: str, unit: str | None) -> None:
    host = Machined(tmp_path, "v2", conf)
    if unit:
        host.put(unit, "")
    told = hook.comes_back(host)
    assert [text.partition(" stays")[0] for text in told] == [config.PATH] * bool(conf and unit)


CONF = "reserved_host_cpus = '0'\nreserved_host_mem = '512 MiB'\ncgroup_layout = '{}'\n"
PARENT = "/sys/fs/cgroup/vms.slice"


def started(host: Kernel, vm_starts: Callable[[], object]) -> None:
    vm = domain(id=3)
    state.prepare_directory(host)
    snapshot.load(host, [], save=True)
    with host.locked(state.LOCK):
        pass
    for operation in ("prepare", "start"):
        do(host, operation, vm)
    vm_starts()
    do(host, "started", vm)


def test_leaving_a_host_of_systemd(tmp_path: Path) -> None:
    host = Machined(tmp_path, "v2", CONF.format("/vms/$NAME"))
    everything = host.read("/sys/devices/system/cpu/online").strip()
    host.slice("vms.slice")
    started(host, lambda: host.starts(domain(), "/vms.slice"))
    places = {number: host.where(*number) for number in host.all_tasks()}
    assert host.read(f"{PARENT}/cpuset.cpus").strip() != everything
    assert leave(host) == [
        "lifted the limits of the VM parent",
        "removed /run/libvirt-cgroup-hooks",
    ]
    assert host.read(f"{PARENT}/cpuset.cpus").strip() == ""
    assert host.read(f"{PARENT}/memory.max").strip() == "max"
    assert [name for name in host.names("/run/systemd/system.control") if name.endswith(".d")] == []
    assert [name for name in host.names("/run/systemd/system") if name.endswith(".d")] == []
    assert not host.exists(state.DIRECTORY)
    assert places and {number: host.where(*number) for number in host.all_tasks()} == places
    assert leave(host) == []


def test_leaving_where_each_vm_carries_the_fence(tmp_path: Path) -> None:
    host = Machined(tmp_path, "v2", "reserved_host_cpus = '0'\ncgroup_layout = '/$DRIVER-$NAME'\n")
    started(host, lambda: host.starts(domain(), ""))
    host.written.clear()
    leave(host)
    online = host.read("/sys/devices/system/cpu/online").strip()
    assert (
        f"set-property --runtime machine-qemu\\x2d3\\x2dvm.scope AllowedCPUs={online}"
        in host.written
    )
    assert not host.exists(state.DIRECTORY)


def test_leaving_where_the_cpuset_of_each_vm_carries_it(tmp_path: Path) -> None:
    host = Machined(tmp_path, "v1", "reserved_host_cpus = '0'\ncgroup_layout = '/$DRIVER-$NAME'\n")
    vm = domain(id=3)
    scope = managers.choose(host, host.config()).scope_path(vm)  # type: ignore[attr-defined]
    started(host, lambda: host.starts(vm, scope.rpartition("/")[0]))
    cpusets = [f"/sys/fs/cgroup/cpuset{scope}{below}" for below in ("", "/libvirt/vcpu0")]
    online = host.read("/sys/devices/system/cpu/online").strip()
    assert online not in [host.read(f"{path}/cpuset.cpus").strip() for path in cpusets]
    leave(host)
    assert {host.read(f"{path}/cpuset.cpus").strip() for path in cpusets} == {online}


@pytest.mark.parametrize("kind", ["v2", "v1"])
@pytest.mark.parametrize("layout", ["native", "/vms/$NAME"])
def test_leaving_a_host_that_nobody_owns(tmp_path: Path, kind: str, layout: str) -> None:
    """What was made for VMs, while there are none in it, goes too."""
    host = Kernel(tmp_path, kind, CONF.format(layout))
    before = host.cgroups()
    state.prepare_directory(host)
    do(host, "prepare", domain(id=3))
    assert host.cgroups() != before
    leave(host)
    assert host.cgroups() == before
    assert not host.exists(state.DIRECTORY)


def test_a_cgroup_with_vms_is_opened_and_stays(tmp_path: Path) -> None:
    host = Kernel(tmp_path, "v2", CONF.format("native"))
    vm = domain(id=3)
    started(host, lambda: host.start_vm(vm))
    limits = [f"/sys/fs/cgroup/machine/{name}" for name in ("cpuset.cpus", "memory.max")]
    places = {number: host.where(*number) for number in host.all_tasks()}
    assert host.read(limits[1]).strip() != "max"
    leave(host)
    assert [host.read(file).strip() for file in limits] == [
        host.read("/sys/fs/cgroup/cpuset.cpus.effective").strip(),
        "max",
    ]
    assert {number: host.where(*number) for number in host.all_tasks()} == places


def test_what_cannot_be_opened_is_told_and_the_rest_goes(tmp_path: Path) -> None:
    class Deaf(Machined):
        deaf = False

        def run(self, command: list[str]) -> str:
            if self.deaf:
                raise Error("cannot run systemctl", "no bus")
            return super().run(command)

    host = Deaf(tmp_path, "v2", CONF.format("/vms/$NAME"))
    host.slice("vms.slice")
    started(host, lambda: host.starts(domain(), "/vms.slice"))
    host.deaf = True
    with pytest.raises(Error, match="cannot run systemctl: no bus"):
        leave(host)
    assert not host.exists(state.DIRECTORY)


# the command


def test_status(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    put(host, HOOK, VDSM)
    assert main(["--root", host.root, "hook", "status"]) == 0
    assert (
        capsys.readouterr().out
        == f"Hook:           not installed\nPython:         -\nOther hooks:    {HOOK}\n"
    )
    hook.install(host, PYTHON)
    assert main(["--root", host.root, "hook", "status", "--json"]) == 0
    assert f'"path": "{HOOK_D}"' in capsys.readouterr().out


@pytest.mark.parametrize("action", ["install", "reload", "remove"])
def test_a_copy_of_a_host_is_only_looked_at(
    host: Host, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", host.root, "hook", action]) == 1
    assert capsys.readouterr().err.startswith(f"error: hook {action} cannot be used with --root")
