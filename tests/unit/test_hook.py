"""The contract with libvirt: when to do nothing, when to refuse, and what to say where."""

from __future__ import annotations

import gc
import os
import posix
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import cli, hook, operations, snapshot, state
from libvirt_cgroup_hooks.config import Config
from libvirt_cgroup_hooks.domainxml import parse
from libvirt_cgroup_hooks.errors import Error, Refusal
from libvirt_cgroup_hooks.hook import _Run
from libvirt_cgroup_hooks.settings import TABLE

from .support.hosts import UUID, Kernel, domain, domain_xml, recorded

gc.enable()  # which the hook disables in its own process, and so just now in this one
SCRIPT = Path(__file__).parents[2] / "hooks/qemu"
CONF = "reserved_host_cpus = '0'\ncgroup_layout = '/vms/$NAME'\n"
FOREIGN = ["migrate", "restore", "attach", "", "PREPARE", "prepare ", "unplugged", "-h"]


@pytest.mark.parametrize("operation", FOREIGN)
def test_foreign_operations_exit_at_once(operation: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is read, written or printed: what is printed at migrate and restore becomes the
    domain XML.
    """
    assert hook.main(["qemu", "vm", operation, "begin", "-"]) == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("argv", [[], ["qemu"], ["qemu", "vm"]])
def test_missing_arguments(argv: list[str]) -> None:
    assert hook.main(argv) == 0


@pytest.mark.parametrize("operation", hook.OPERATIONS)
def test_an_ordinary_user_is_left_alone(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix, "geteuid", lambda: 1000)
    assert hook.main(["qemu", "vm", operation, "begin", "-"]) == 0


def run(operation: str, on_error: str = "refuse") -> _Run:
    made = _Run(recorded("v1"), "we\nb", operation)
    made.config = Config({"on_error": on_error})
    return made


@pytest.mark.parametrize(
    ("operation", "on_error", "error", "status"),
    [
        *(
            (operation, "refuse", Error("no room", "make some"), 1)
            for operation in ("prepare", "start")
        ),
        *(
            (operation, "warn", Error("no room", "make some"), 0)
            for operation in ("prepare", "start")
        ),
        *(
            (operation, on_error, Refusal("no room", "make some"), 1)
            for operation in ("prepare", "start")
            for on_error in ("refuse", "warn")
        ),
        *(
            (operation, on_error, error("no room", "make some"), 0)
            for operation in ("started", "stopped", "release", "reconnect")
            for on_error in ("refuse", "warn")
            for error in (Error, Refusal)
        ),
    ],
)
def test_only_prepare_and_start_fail(
    operation: str, on_error: str, error: Error, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    made = run(operation, on_error)
    assert made.failed(error) == status
    starts = "; it starts as it is (on_error)" if operation in ("prepare", "start") else ""
    shown, told = "libvirt-cgroup-hooks: no room: make some\n", [f"no room: make some{starts}"]
    assert (capfd.readouterr(), made.warnings) == (
        (("", shown), []) if status else (("", ""), told)
    )


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('on_error = "warn"\nreserved_host_cpus = 0-1\n', 0),
        ("reserved_host_cpus = '99'\non_error = 'warn'\n", 0),
        ("reserved_host_cpu = '0'\non_error = 'warn' # comment\n", 0),
        ("reserved_host_cpus = 0-1\n", 1),
        ("reserved_host_cpus = 0-1\n#on_error = 'warn'\n", 1),
        ("reserved_host_cpus = 0-1\non_error = 'refuse'\non_error = 'warn'\n", 1),
        ("reserved_host_cpus = '0'\non_error = 'wrong'\n", 1),
    ],
)
def test_on_error_counts_for_a_file_with_a_mistake(
    tmp_path: Path, text: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    made = _Run(Kernel(tmp_path, "v1", text), "web", "prepare")
    with pytest.raises(Error) as error:
        made.configuration()
    assert made.failed(error.value) == status
    assert bool(capfd.readouterr().err) == bool(status)


def test_what_is_shown_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    run("prepare").failed(Error("a\nb\x1b[31m💩\udcff", "c\td"))
    assert capfd.readouterr().err == "libvirt-cgroup-hooks: a\\nb\\x1b[31m💩\\udcff: c\\td\n"


def test_before_the_configuration_is_known_an_error_refuses() -> None:
    assert _Run(recorded("v1"), "vm", "prepare").failed(Error("bad file")) == 1


def test_a_run_by_its_name() -> None:
    assert str(run("started")) == r"VM we\nb, started"


@pytest.fixture
def clock() -> Iterator[None]:
    old = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


@pytest.fixture
def stdin(clock: None) -> Iterator[int]:
    """Where a test writes what the hook reads from standard input."""
    saved = os.dup(0)
    read, write = os.pipe()
    os.dup2(read, 0)
    os.close(read)
    yield write
    os.dup2(saved, 0)
    os.close(saved)


def feed(stdin: int, xml: bytes) -> None:
    os.write(stdin, xml)
    os.close(stdin)


@pytest.mark.parametrize("operation", hook.OPERATIONS)
def test_the_configured_deadline_is_that_of_every_operation(
    tmp_path: Path, stdin: int, operation: str
) -> None:
    host = Kernel(tmp_path, "v1", f"{CONF}hook_timeout = 60\n")
    state.prepare_directory(host)
    snapshot.load(host, [], save=True)
    made = _Run(host, "vm", operation)
    feed(stdin, domain_xml("plain"))
    if operation in ("prepare", "start", "stopped", "release"):
        made.enforce()
    else:
        with pytest.raises(Error, match="has no process"):
            made.enforce()
    assert made.config.hook_timeout == 60
    assert 44 < signal.getitimer(signal.ITIMER_REAL)[0] <= 45


def test_the_deadline(clock: None) -> None:
    made = run("started")
    made.config = Config({"hook_timeout": "20"})
    made.set_deadline()
    first, again = signal.getitimer(signal.ITIMER_REAL)
    assert 14 < first <= 15  # the rest is for putting back what was there
    assert again == 5
    with pytest.raises(
        Error, match=r"^timed out after 20 seconds \(hook_timeout\): find out what keeps the host"
    ):
        made.alarm()


def test_what_takes_too_long_to_tell_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, told = run("prepare"), []

    def slow(error: Error) -> int:
        told.append(error)
        made.alarm()
        return 0

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(made, "failed", slow)
    monkeypatch.setattr(posix, "_exit", end)
    with pytest.raises(Error, match="timed out"):
        made.alarm()
    with pytest.raises(SystemExit) as ended:
        made.alarm()
    assert (ended.value.code, len(told)) == (1, 1)


def test_the_hook_makes_the_steps_that_the_command_shows(
    tmp_path: Path, stdin: int, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, done = (Kernel(tmp_path / name, "v2", CONF) for name in ("shown", "done"))
    xml = domain_xml("plain")
    assert (
        cli.main(
            [
                "--root",
                shown.root,
                "plan",
                "prepare",
                str(Path(__file__).parents[1] / "data/domains/plain.xml"),
            ]
        )
        == 0
    )
    plan = operations.plan(shown, shown.config(), "prepare", parse(xml))
    assert capsys.readouterr().out.rstrip("\n") == str(plan)
    feed(stdin, xml)
    assert _Run(done, "plain", "prepare").guarded() == 0
    assert done.cgroups() == ["/sys/fs/cgroup/machine", "/sys/fs/cgroup/vms"]
    shown.make_directory("/run/libvirt-cgroup-hooks")
    shown.make_directory("/run/libvirt-cgroup-hooks/vms")
    plan.run(shown)
    assert shown.written == done.written
    own = {f"run/libvirt-cgroup-hooks/{name}" for name in ("config", "lock", "lock.turn")}
    rest = {path: text for path, text in done.snapshot().items() if path not in own}
    assert rest == shown.snapshot()


@pytest.mark.parametrize("operation", hook.OPERATIONS)
@pytest.mark.parametrize("conf", [None, "", "# prose\n", "hook_timeout = 3\n"])
def test_with_nothing_configured_nothing_is_written(
    tmp_path: Path, clock: None, operation: str, conf: str | None
) -> None:
    """Nor is standard input read, which has no end here."""
    host = Kernel(tmp_path, "v1", conf)
    before = host.snapshot()
    assert _Run(host, "vm", operation).guarded() == 0
    assert (host.snapshot(), host.written) == (before, [])


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (b"", "the domain XML is not well-formed"),
        (b"<domain><name>a/b</name></domain>", 'the domain XML has "a/b" as name'),
        (b"<!DOCTYPE a><domain/>", "the domain XML has a document type declaration"),
    ],
)
def test_bad_xml_refuses_the_vm(
    tmp_path: Path, stdin: int, capfd: pytest.CaptureFixture[str], xml: bytes, message: str
) -> None:
    feed(stdin, xml)
    assert _Run(Kernel(tmp_path, "v1", CONF), "vm", "prepare").guarded() == 1
    assert capfd.readouterr().err.startswith(f"libvirt-cgroup-hooks: {message}")


@pytest.mark.parametrize(
    ("operation", "status"), [("prepare", 1), ("start", 1), ("started", 0), ("reconnect", 0)]
)
def test_a_bad_configuration(
    tmp_path: Path, clock: None, capfd: pytest.CaptureFixture[str], operation: str, status: int
) -> None:
    made = _Run(Kernel(tmp_path, "v1", "reserved_host_cpus = '99'\n"), "vm", operation)
    assert made.guarded() == status
    message = (
        '/etc/libvirt/cgroup-hooks.conf:1: reserved_host_cpus = "99": this host has no CPU 99: '
        "its CPUs are 0-1"
    )
    err = capfd.readouterr().err
    assert (err, made.warnings) == (
        (f"libvirt-cgroup-hooks: {message}\n", []) if status else ("", [message])
    )


class Broken(Kernel):
    def fingerprint(self, path: str) -> str:
        raise KeyError("cpu")


def test_a_fault_of_ours_is_one_sentence(
    tmp_path: Path, clock: None, capfd: pytest.CaptureFixture[str]
) -> None:
    host = Broken(tmp_path, "v1", CONF)
    assert _Run(host, "vm", "prepare").guarded() == 1
    assert (
        capfd.readouterr().err
        == "libvirt-cgroup-hooks: internal error: KeyError: 'cpu': please report it\n"
    )
    assert _Run(host, "vm", "started").guarded() == 0


def test_a_bad_configuration_does_not_keep_a_vm_that_has_ended(tmp_path: Path, stdin: int) -> None:
    host = Kernel(tmp_path, "v1", CONF)
    xml = domain_xml("plain")
    prepared = operations.plan(host, host.config(), "prepare", parse(xml))
    host.make_directory("/run/libvirt-cgroup-hooks")
    host.make_directory("/run/libvirt-cgroup-hooks/vms")
    prepared.run(host)
    host.configure("reserved_host_cpus = '99'\n")
    feed(stdin, xml)
    assert _Run(host, "plain", "release").guarded() == 0
    assert host.cgroups() == []
    assert host.names("/run/libvirt-cgroup-hooks/vms") == []


@pytest.mark.parametrize("right", [True, False])
def test_the_room_of_hugepages_is_taken_back(tmp_path: Path, stdin: int, right: bool) -> None:
    """By the configuration, unless that has a mistake by then."""
    host = Kernel(tmp_path, "v2", CONF + "reserved_host_mem = '1 GiB'\n")
    mounts = host.get("/proc/mounts")
    host.put("/proc/mounts", mounts.replace(" rw,", " rw,memory_hugetlb_accounting,"))
    state.prepare_directory(host)
    xml = domain_xml("hugepages")
    for subject in (parse(domain_xml("plain")), parse(xml)):
        before = host.get("/sys/fs/cgroup/vms/memory.max") if host.cgroups() else ""
        operations.plan(host, host.config(), "prepare", subject).run(host)
    if not right:
        host.configure("reserved_host_cpus = '99'\n")
    feed(stdin, xml)
    assert _Run(host, subject.name, "release").guarded() == 0
    assert (host.get("/sys/fs/cgroup/vms/memory.max") == before) == right
    assert len(host.names(state.VMS)) == 1


def test_a_settled_vm_is_seen_at_reconnect_without_the_lock(tmp_path: Path, stdin: int) -> None:
    """All VMs are connected again at once when the daemon has restarted."""
    host = Kernel(tmp_path, "v1", CONF)
    xml = tmp_path / "xml"
    xml.write_text(f"<domain type='qemu' id='3'><name>vm</name><uuid>{UUID}</uuid></domain>")
    host.start_vm(domain())
    for operation, writes, locks in (("started", True, True), ("reconnect", False, False)):
        (tmp_path / "run/libvirt-cgroup-hooks/lock").unlink(missing_ok=True)
        host.written.clear()
        with xml.open("rb") as file:
            os.dup2(file.fileno(), 0)
        made = _Run(host, "vm", operation)
        assert (made.guarded(), made.warnings) == (0, [])
        assert (bool(host.written), host.exists("/run/libvirt-cgroup-hooks/lock")) == (
            writes,
            locks,
        )


# the entrypoint


def entrypoint(*arguments: str, script: Path = SCRIPT) -> tuple[int, str, str]:
    done = subprocess.run(
        ["sh", str(script), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.runs_programs
@pytest.mark.parametrize(
    "arguments", [["vm", "migrate", "begin", "-"], ["vm", "restore"], ["vm", "attach"], ["vm"], []]
)
def test_the_entrypoint_exits_at_once(arguments: list[str]) -> None:
    assert entrypoint(*arguments) == (0, "", "")


@pytest.mark.runs_programs
@pytest.mark.parametrize("name", ["a b", "$(exit 3)", "-x", "'", '"', "`exit 3`", "*"])
def test_the_entrypoint_takes_any_name(name: str) -> None:
    assert entrypoint(name, "migrate", "begin", "-") == (0, "", "")


@pytest.mark.runs_programs
@pytest.mark.parametrize("python", ["lacks the package", "is gone"])
def test_the_entrypoint_without_the_package(tmp_path: Path, python: str) -> None:
    """As after a removal that left the hook and its configuration behind."""
    (tmp_path / "conf").write_text(CONF)
    if python == "lacks the package":
        (tmp_path / "python3").write_text('#!/bin/sh\nexec /usr/bin/env python3 -S "$@"\n')
        (tmp_path / "python3").chmod(0o755)
    text = SCRIPT.read_text()
    for path, stand_in in (
        ("/etc/libvirt/cgroup-hooks.conf", "conf"),
        ("/usr/bin/python3", "python3"),
    ):
        assert path in text
        text = text.replace(path, str(tmp_path / stand_in))
    (tmp_path / "qemu").write_text(text)
    assert entrypoint("vm", "prepare", "begin", "-", script=tmp_path / "qemu") == (0, "", "")


@pytest.mark.runs_programs
@pytest.mark.parametrize(
    ("end", "refused"),
    [("exit 0", 0), ("exit 1", 1), ("exit 3", 3), ("kill -KILL $$", 137), ("kill -SEGV $$", 139)],
)
def test_whatever_becomes_of_the_hook_no_vm_that_runs_is_killed(
    tmp_path: Path, end: str, refused: int
) -> None:
    """libvirt ends a VM whose `started` or `reconnect` fails: also one whose hook the kernel killed
    for want of memory.
    """
    (tmp_path / "conf").write_text(CONF)
    (tmp_path / "python3").write_text(f"#!/bin/sh\n{end}\n")
    (tmp_path / "python3").chmod(0o755)
    text = SCRIPT.read_text().replace("/etc/libvirt/cgroup-hooks.conf", str(tmp_path / "conf"))
    (tmp_path / "qemu").write_text(text.replace("/usr/bin/python3", str(tmp_path / "python3")))
    statuses = {
        one: entrypoint("vm", one, "begin", "-", script=tmp_path / "qemu")[0]
        for one in hook.OPERATIONS
    }
    assert statuses == {
        one: refused if one in ("prepare", "start") else 0 for one in hook.OPERATIONS
    }


@pytest.mark.runs_programs
def test_the_entrypoint_and_the_hook_know_the_same_operations(tmp_path: Path) -> None:
    """A stand-in for Python notes which calls come through."""
    (tmp_path / "conf").write_text(CONF)
    (tmp_path / "python3").write_text(f'#!/bin/sh\necho "$5" >>{tmp_path}/notes\n')
    (tmp_path / "python3").chmod(0o755)
    text = SCRIPT.read_text().replace("/etc/libvirt/cgroup-hooks.conf", str(tmp_path / "conf"))
    (tmp_path / "qemu").write_text(text.replace("/usr/bin/python3", str(tmp_path / "python3")))
    for operation in [*hook.OPERATIONS, *FOREIGN]:
        entrypoint("vm", operation, "begin", "-", script=tmp_path / "qemu")
    assert (tmp_path / "notes").read_text().split() == list(hook.OPERATIONS)


def test_the_timeout_is_known_before_the_configuration_is() -> None:
    assert Config({}).hook_timeout == int(
        next(setting.default for setting in TABLE if setting.key == "hook_timeout")
    )
