"""What is remembered between runs of the hook: when the snapshot holds, and that records say what
was saved.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import snapshot, state
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.state import Record

from .support.hosts import CONF, UUID, Kernel

TEXT = "reserved_host_cpus = 2\nhook_timeout = 3\ncgroup_layout = '/my vms/$NAME'\n"


@pytest.fixture
def host(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path, "smt", TEXT)


def load(host: Kernel, save: bool = True) -> tuple[str, int, str]:
    made = snapshot.load(host, [], save=save)
    return str(made.reserved_host_cpus), made.hook_timeout, made.cgroup_layout.preset


def test_no_file_is_no_configuration(tmp_path: Path) -> None:
    host = Kernel(tmp_path, "smt")
    before = host.snapshot()
    assert not snapshot.load(host, [], save=True)
    assert host.snapshot() == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "# prose\n#hook_timeout = 5\n",
        "hook_timeout = 5\n",
        "cgroup_layout = 'native'\n",
    ],
)
def test_nothing_is_written_where_nothing_is_configured(host: Kernel, text: str) -> None:
    host.configure(text)
    before = host.snapshot()
    assert not snapshot.load(host, [], save=True)
    assert host.snapshot() == before
    assert not host.exists(state.DIRECTORY)


def test_only_who_may_save_does(host: Kernel) -> None:
    before = host.snapshot()
    assert load(host, save=False) == ("0,4", 3, "/my vms/$NAME")
    assert host.snapshot() == before


def test_the_snapshot_says_the_same(host: Kernel) -> None:
    first = snapshot.load(host, [], save=True)
    text = host.read(snapshot.SNAPSHOT)
    again = snapshot.load(host, [], save=True)
    assert again.values == first.values
    assert host.read(snapshot.SNAPSHOT) == text


def tampered(host: Kernel) -> None:
    """A snapshot that says 7 seconds, so that one sees where it is used."""
    load(host)
    host.replace(
        snapshot.SNAPSHOT, host.read(snapshot.SNAPSHOT).replace("hook_timeout 3", "hook_timeout 7")
    )


def test_the_snapshot_is_used_while_nothing_changes(host: Kernel) -> None:
    tampered(host)
    assert load(host) == ("0,4", 7, "/my vms/$NAME")


def test_the_file_is_read_again_when_it_changes(host: Kernel) -> None:
    tampered(host)
    host.configure(TEXT.replace("2", "4"))
    assert load(host) == ("0-1,4-5", 3, "/my vms/$NAME")


def test_the_file_is_read_again_when_only_its_time_changes(host: Kernel) -> None:
    tampered(host)
    os.utime(host.root + CONF, ns=(1, 1))
    assert load(host)[1] == 3


def test_a_count_is_resolved_again_when_cpus_come_or_go(host: Kernel) -> None:
    tampered(host)
    host.put("/sys/devices/system/cpu/online", "1-3,5-7")
    assert load(host) == ("1,5", 3, "/my vms/$NAME")


def test_another_versions_snapshot_is_not_used(host: Kernel) -> None:
    tampered(host)
    host.replace(snapshot.SNAPSHOT, host.read(snapshot.SNAPSHOT).replace("for ", "for 0."))
    assert load(host)[1] == 3


@pytest.mark.parametrize("text", ["", "garbage", "\x00" * 100, "libvirt-cgroup-hooks 2\n"])
def test_a_damaged_snapshot_is_not_used(host: Kernel, text: str) -> None:
    load(host)
    host.replace(snapshot.SNAPSHOT, text)
    assert load(host) == ("0,4", 3, "/my vms/$NAME")


def test_warnings_are_told_once(host: Kernel) -> None:
    host.configure(TEXT + "hook_timeout = 4\n")
    warnings: list[str] = []
    for _ in range(2):
        snapshot.load(host, warnings, save=True)
    assert warnings == [f"{CONF}:4: hook_timeout is already set in line 2; that value is used"]


def test_a_bad_file_is_an_error_each_time_and_leaves_no_snapshot(host: Kernel) -> None:
    host.configure("reserved_host_cpus = '99'\n")
    for _ in range(2):
        with pytest.raises(Error, match=f"{CONF}:1: .*this host has no CPU 99"):
            snapshot.load(host, [], save=True)
    assert not host.exists(snapshot.SNAPSHOT)


def record(name: str, groups: list[str]) -> Record:
    made = Record(UUID, name)
    made.groups = groups
    return made


NAMES = [
    "web",
    "a b",
    " a ",
    "..",
    ".",
    "-x",
    "a'b\"c\\d",
    "💩",
    "x" * 200,
    "group /x",
    "name x",
    "a\rb",
    "a\u2028b\x85",
    "\t",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_record_says_what_was_saved(host: Kernel, name: str) -> None:
    state.prepare_directory(host)
    saved = record(name, [f"/sys/fs/cgroup/cpu/{name}", "/sys/fs/cgroup/memory/x"])
    for step in saved.save(None):
        step.run(host)
    found = Record.read(host, UUID)
    assert found
    assert (found.uuid, found.name, found.groups) == (UUID, name, saved.groups)
    assert state.recorded(host) == [UUID]
    assert saved.save(found) == []
    state.forget(host, UUID).run(host)
    assert Record.read(host, UUID) is None
    assert state.recorded(host) == []


def test_a_record_of_another_format_is_none(host: Kernel) -> None:
    state.prepare_directory(host)
    host.replace(f"{state.VMS}/{UUID}", "libvirt-cgroup-hooks 2\nname x\n")
    assert Record.read(host, UUID) is None


def test_a_record_that_changes_is_undone_to_what_it_was(host: Kernel) -> None:
    state.prepare_directory(host)
    old, new = record("vm", []), record("vm", ["/a"])
    [first] = old.save(None)
    [second] = new.save(old)
    first.run(host)
    second.run(host)
    back = second.undo()
    assert back
    back.run(host)
    assert host.read(f"{state.VMS}/{UUID}") == str(old)


def test_a_file_that_is_being_written_is_no_record(host: Kernel) -> None:
    state.prepare_directory(host)
    host.put(f"{state.VMS}/{UUID}.new", "half")
    assert state.recorded(host) == []


def test_what_we_keep_is_roots(host: Kernel) -> None:
    load(host)
    modes = {
        path: os.stat(host.root + path).st_mode & 0o777
        for path in (state.DIRECTORY, state.VMS, snapshot.SNAPSHOT)
    }
    assert modes == {state.DIRECTORY: 0o755, state.VMS: 0o700, snapshot.SNAPSHOT: 0o600}


def test_who_is_left_behind(host: Kernel) -> None:
    """A record that is old, of a VM that libvirt has no status XML of."""
    state.prepare_directory(host)
    for number, name in enumerate(["running", "ended", "starting"]):
        path = f"{state.VMS}/{number}"
        host.put(path, f"{state.FORMAT}\nname {name}")
        if name != "starting":
            os.utime(host.root + path, (1, 1))
    host.put(f"{state.VMS}/3", "damaged")
    os.utime(f"{host.root}{state.VMS}/3", (1, 1))
    host.put("/run/libvirt/qemu/running.xml", "<domstatus/>")
    assert state.left_behind(host) == ["1", "3"]
    assert state.left_behind(host, running={"running"}) == ["1", "3"]
    assert state.left_behind(host, running=set()) == ["0", "1", "3"]
