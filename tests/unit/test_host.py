"""The door to the kernel's files: what it says when it is shut, and that it never opens half."""

from __future__ import annotations

import os
import posix
import signal
import threading
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.host import ABSENT, Host, Refused

from .support.hosts import recorded


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text("old")
    return Host(str(tmp_path))


def test_read(host: Host, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 200_000 + b"\xff\n")
    assert host.read("/a/file") == "old"
    assert host.read("/big") == "x" * 200_000 + "\udcff\n"  # what is no UTF-8 survives
    assert host.read_optional("/a/none") is None
    assert host.read_optional("/a/file/none") is None


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda host: host.read("/no\n"), r"cannot read /no\n: No such file or directory"),
        (lambda host: host.read("/a"), "cannot read /a: Is a directory"),
        (lambda host: host.read_optional("/a"), "cannot read /a: Is a directory"),
        (
            lambda host: host.write("/a/none", "0-3"),
            'cannot write "0-3" to /a/none: No such file or directory',
        ),
        (lambda host: host.write("/a", "\x1b"), r'cannot write "\x1b" to /a: Is a directory'),
        (lambda host: host.make_directory("/x/y"), "cannot make /x/y: No such file or directory"),
        (lambda host: host.remove_directory("/a"), "cannot remove /a: Directory not empty"),
        (lambda host: host.replace("/x/y", "text"), "cannot write /x/y: No such file or directory"),
        (lambda host: host.remove("/a"), "cannot remove /a: Is a directory"),
        (
            lambda host: host.locked("/x/y").__enter__(),
            "cannot lock /x/y: No such file or directory",
        ),
    ],
)
def test_each_failure_names_the_path_and_the_value(
    host: Host, attempt: object, message: str
) -> None:
    assert callable(attempt)
    with pytest.raises(Refused) as error:
        attempt(host)
    assert str(error.value) == message
    assert error.value.errno


def test_write_makes_no_file(host: Host) -> None:
    host.write("/a/file", "new")
    assert (host.read("/a/file"), host.names("/a")) == ("new", ["file"])


def test_what_may_be_there_already_or_gone(host: Host) -> None:
    host.make_directory("/a")
    host.make_directory("/b")
    host.remove_directory("/b")
    host.remove_directory("/b")
    host.remove("/a/file")
    host.remove("/a/file")
    assert (host.exists("/b"), host.names("/a"), host.names("/b")) == (False, [], [])


def test_directories(host: Host, tmp_path: Path) -> None:
    for name in ("z", "b"):
        host.make_directory(f"/a/{name}")
    (tmp_path / "a/link").symlink_to("z")
    assert host.directories("/a") == ["b", "z"]
    assert host.names("/a") == ["b", "file", "link", "z"]
    assert host.directories("/none") == []


def test_replace_is_whole_and_leaves_nothing_beside(host: Host, tmp_path: Path) -> None:
    host.replace("/a/file", "newer\n")
    host.replace("/a/other", "name \udcff\n")
    assert (host.read("/a/file"), host.read("/a/other")) == ("newer\n", "name \udcff\n")
    assert host.names("/a") == ["file", "other"]
    assert (tmp_path / "a/other").stat().st_mode & 0o777 == 0o600


def test_a_file_keeps_its_owner(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator may have given the configuration to a group."""
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(posix, "fchown", lambda _, user, group: given.append((user, group)))
    before = os.stat(host.root + "/a/file")
    host.replace("/a/file", "newer\n")
    host.replace("/a/none", "new\n")
    assert given == [(before.st_uid, before.st_gid), (-1, -1)]


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_what_is_made_is_open_to_no_one_else(host: Host, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        host.replace("/a/secret", "x")
        host.replace("/a/shown", "x", mode=0o644)
        host.make_directory("/a/new")
    finally:
        os.umask(before)
    assert (tmp_path / "a/secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a/shown").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "a/new").stat().st_mode & 0o777 == 0o755 & ~umask


def test_replace_follows_no_link_and_takes_over_no_file(host: Host, tmp_path: Path) -> None:
    """Whatever is where the new file is written first, and whatever is where it goes."""
    target, new = tmp_path / "target", tmp_path / "a/file.new"
    target.write_text("mine")
    for put in (
        lambda: new.symlink_to(target),
        lambda: os.link(target, new),
        lambda: new.write_text("half"),
    ):
        put()
        host.replace("/a/file", "x")
        assert (target.read_text(), host.read("/a/file"), host.names("/a")) == (
            "mine",
            "x",
            ["file"],
        )
    (tmp_path / "a/link").symlink_to(target)
    host.replace("/a/link", "x")
    assert (target.read_text(), host.read("/a/link")) == ("mine", "x")


def test_replace_that_fails_leaves_the_old_file_alone(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the file system becomes full in the middle: it takes a part first."""
    write, room = os.write, [3]

    def until_full(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        taken = data[: room[0]]
        room[0] -= len(taken)
        return write(descriptor, taken)

    monkeypatch.setattr(posix, "write", until_full)
    with pytest.raises(Refused, match=r"^cannot write /a/file: No space left on device$"):
        host.replace("/a/file", "newer")
    assert (host.read("/a/file"), host.names("/a")) == ("old", ["file"])
    monkeypatch.setattr(posix, "write", lambda descriptor, data: write(descriptor, data[:1]))
    host.replace("/a/file", "newest")
    assert host.read("/a/file") == "newest"


def test_a_fingerprint_changes_with_the_file(host: Host) -> None:
    first = host.fingerprint("/a/file")
    assert host.fingerprint("/a/file") == first != ""
    host.replace("/a/file", "old")
    assert host.fingerprint("/a/file") != first
    assert host.fingerprint("/a/none") == ""


def test_the_lock_is_exclusive(host: Host) -> None:
    import fcntl

    with host.locked("/a/lock"):
        second = os.open(host.root + "/a/lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(second)


def test_a_lock_can_be_shared_but_nobody_passes_those_who_wait(host: Host) -> None:
    import fcntl

    with host.locked("/a/lock", shared=True), host.locked("/a/lock", shared=True):
        second = os.open(host.root + "/a/lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        waits = threading.Thread(target=lambda: host.locked("/a/lock").__enter__())
        waits.start()
        turn = os.open(host.root + "/a/lock.turn", os.O_RDWR)
        while waits.is_alive() and not taken(turn):
            pass
        assert waits.is_alive()
    waits.join(10)
    assert not taken(turn)
    assert taken(second)


def taken(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def test_what_counts_as_absent() -> None:
    assert [os.strerror(number) for number in ABSENT] == [
        "No such file or directory",
        "No such process",
        "No such device",
        "Not a directory",
        "File name too long",
        "Operation not supported",
    ]


@pytest.mark.parametrize(
    ("root", "real"), [("/", True), ("", True), ("/copy", False), ("/copy/", False)]
)
def test_the_root_is_this_host_or_a_copy(root: str, real: bool) -> None:
    assert Host(root).real == real


def test_a_thread_that_has_ended() -> None:
    assert Host().affinity(2**22 + 1) is None  # above the kernel's largest pid


def test_a_copy_does_not_know_the_threads_of_this_host() -> None:
    assert recorded("smt").affinity(os.getpid()) is None


@pytest.mark.runs_programs
@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["/bin/echo", " a b "], "a b"),
        (["/bin/cat"], ""),  # there is nothing to read
        (
            ["/bin/sh", "-c", "echo told >&2; echo $LC_ALL; head -c 100000 /dev/zero | wc -c"],
            "told\nC\n100000",
        ),
    ],
)
def test_a_programs_output(host: Host, command: list[str], text: str) -> None:
    assert host.run(command) == text
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # no child is left


@pytest.mark.runs_programs
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["/bin/sh", "-c", "echo no; exit 3"],
            "cannot run /bin/sh -c echo no; exit 3: exit status 3: no",
        ),
        (["/bin/false"], "cannot run /bin/false: exit status 1: it said nothing"),
        (["/bin/none", "\n"], r"cannot run /bin/none \n: No such file or directory"),
    ],
)
def test_a_program_that_fails(host: Host, command: list[str], message: str) -> None:
    with pytest.raises(Error) as error:
        host.run(command)
    assert str(error.value) == message


@pytest.mark.runs_programs
@pytest.mark.parametrize("moment", [0.1, *(n / 10000 for n in range(1, 40))])
def test_a_program_that_takes_too_long_is_ended(host: Host, moment: float) -> None:
    """Whenever the deadline comes: also while the program is being started."""

    def late(*_: object) -> None:
        raise Error("late")

    def sleep() -> None:
        signal.setitimer(signal.ITIMER_REAL, moment)
        host.run(["/bin/sleep", "60"])

    old = signal.signal(signal.SIGALRM, late)
    try:
        with pytest.raises(Error, match=r"^late$"):
            sleep()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
