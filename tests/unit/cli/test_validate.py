"""virt-cgroup validate: whole hosts, well and otherwise, and the form of its answer."""

from __future__ import annotations

import ast
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from libvirt_cgroup_hooks import snapshot, state
from libvirt_cgroup_hooks.cli import checks, main
from libvirt_cgroup_hooks.cli.checks import TABLE, confining, dedicating, proposed, protecting
from libvirt_cgroup_hooks.cli.checks.codes import CODES, FAIL, NOTE, PASS, WARN, explained
from libvirt_cgroup_hooks.cli.hookfile import DIRECTORY, HOOK, HOOK_D
from libvirt_cgroup_hooks.errors import Error

from ..conftest import Command
from ..support import reserving
from ..support.hosts import Kernel, domain
from ..support.machined import Machined
from ..support.operations import CG, SMALL_LIMIT, UNIFIED_LIMIT
from ..support.operations import NAMED as CONF
from ..support.validating import (
    DAEMON,
    RUNNING,
    TITLES,
    Break,
    effective,
    found,
    install,
    no_hook,
    not_passed,
    process,
    start_daemon,
    well,
)

RIGHT = TITLES["rights"]
CONFIGURATION = TITLES["configuration"]
MANAGER = TITLES["manager"]
START_VM = TITLES["first_start"]
FENCE = TITLES["fence_in_effect"]
MEMORY = TITLES["memory"]
THE_HOOK = TITLES["installed"]
PROGRAM = TITLES["program"]
SEEN = TITLES["seen"]
SELINUX = TITLES["selinux"]
CONFORM = TITLES["conforming"]
CORES = TITLES["whole_cores"]
SWAP = TITLES["swap"]
LIVE = (RIGHT, PROGRAM)


@pytest.fixture
def host(tmp_path: Path) -> Kernel:
    return well(tmp_path)


# all is well


@pytest.mark.parametrize("name", ["v1", "v2", "smt", "numa"])
def test_where_all_is_well_every_check_passes(tmp_path: Path, name: str) -> None:
    host = well(tmp_path, name)
    effective(host, host.get("/sys/devices/system/cpu/online").replace("0-", "1-"))
    problems = found(host)
    wrong = {title: problem[0][0] for title, problem in not_passed(host).items()}
    assert wrong == {"numa": {MEMORY: NOTE}, "smt": {CORES: NOTE, SWAP: NOTE}}.get(name, {})
    assert list(problems) == [
        check.title
        for check in TABLE
        if check.title not in LIVE
        and check.when not in (confining, dedicating, protecting, proposed)
    ]


@pytest.mark.parametrize("name", ["v1", "v2", "smt", "numa"])
def test_nothing_configured_and_nothing_installed(tmp_path: Path, name: str) -> None:
    problems = not_passed(Kernel(tmp_path, name))
    assert {title: problem[0][0] for title, problem in problems.items()} == {
        CONFIGURATION: NOTE,
        THE_HOOK: FAIL,
    }


def test_a_mistake_in_the_file_makes_no_limit_unwanted(tmp_path: Path) -> None:
    host = well(tmp_path)
    state.prepare_directory(host)
    host.put(state.SHARED, f"{state.LIMITS_FORMAT}\nlimit memory - /vms\n")
    host.configure("")
    assert TITLES["unwanted_limits"] in not_passed(host)
    host.configure("reserved_host_cpus = 0-0\n")
    assert TITLES["unwanted_limits"] not in found(host)


def test_what_reserve_has_changed_live_is_what_is_checked(tmp_path: Path) -> None:
    host = well(tmp_path)
    host.configure(CONF.replace("'0'", "'0-1'"))
    assert FENCE in not_passed(host)
    live = snapshot.Live(host)
    live.changes = {"reserved_host_cpus": ("0-1", "0")}
    state.prepare_directory(host)
    for step in live.save():
        step.run(host)
    assert FENCE not in not_passed(host)


def test_before_the_first_vm_the_parent_is_not_there(tmp_path: Path) -> None:
    host = Kernel(tmp_path, "v2", CONF)
    install(host)
    start_daemon(host)
    note = (
        NOTE,
        f"{CG}/vms does not exist yet",
        "the first VM that starts makes it, or virt-cgroup apply --parent",
    )
    assert not_passed(host) == {FENCE: [note]}


# cgroup v1


@pytest.mark.parametrize(
    ("file", "value", "result", "message"),
    [
        (
            "cpuset/vms/cpuset.cpus",
            "0-1",
            FAIL,
            f"{CG}/cpuset/vms may use CPUs 0-1, including reserved CPUs 0",
        ),
        (
            "memory/vms/memory.limit_in_bytes",
            "9223372036854771712",
            FAIL,
            f"{CG}/memory/vms has no memory limit",
        ),
        ("memory/vms/memory.limit_in_bytes", "2000000000", FAIL, f"and should be {SMALL_LIMIT}"),
        ("memory/vms/memory.limit_in_bytes", "4096", WARN, f"and could be {SMALL_LIMIT}"),
    ],
)
def test_drift_on_v1(tmp_path: Path, file: str, value: str, result: str, message: str) -> None:
    host = well(tmp_path, "v1")
    host.put(f"{CG}/{file}", value)
    problems = not_passed(host)
    assert list(problems) == [FENCE]
    assert problems[FENCE][0][0] == result
    assert message in problems[FENCE][0][1]


@pytest.mark.parametrize("before", ["0,2", "2"])
def test_a_cpuset_that_has_lost_a_cpu_is_nobodys_limit(tmp_path: Path, before: str) -> None:
    """Of cgroup v1, where a CPU that was offline is in no cpuset until somebody puts it there."""
    host = well(tmp_path, "v1")
    for file in ("/sys/devices/system/cpu/online", "/sys/devices/system/cpu/present"):
        host.put(file, "0-3")
    host.put(f"{CG}/cpuset/cpuset.cpus", "0-3")
    host.put(f"{CG}/cpuset/vms/cpuset.cpus", "2")
    host.put(state.SHARED, f"{state.LIMITS_FORMAT}\nlimit cpus {before} /vms\n")
    result, message, _ = not_passed(host)[FENCE][0]
    assert (result, message) == (WARN, f"{CG}/cpuset/vms may use CPUs 2 only, and not 1,3")


# systemd


def machined(root: Path, conf: str = CONF) -> Machined:
    host = Machined(root, "v2", conf)
    install(host)
    start_daemon(host, cgroup="/system.slice/libvirtd.service")
    host.slice("vms.slice", "1-3", str(UNIFIED_LIMIT), "4096")
    host.promise("vms.slice", AllowedCPUs="1-3", MemoryMax=str(UNIFIED_LIMIT))
    host.put(f"{CG}/vms.slice/cpuset.cpus.effective", "1-3")
    return host


@pytest.mark.parametrize(("place", "conforms"), [("/vms.slice", True), ("/machine.slice", False)])
def test_a_vm_on_a_host_with_machined(tmp_path: Path, place: str, conforms: bool) -> None:
    host = machined(tmp_path)
    host.starts(domain("vm", RUNNING), place, RUNNING)
    problems = not_passed(host)
    assert (problems == {}) == conforms
    if not conforms:
        assert list(problems) == [CONFORM]
        result, message, remedy = problems[CONFORM][0]
        assert result == FAIL
        assert message.endswith(", and 3 more")
        assert (
            remedy
            == "run virt-cgroup apply --all, and stop and start a VM that is in another slice"
        )


def test_a_limit_that_a_reload_lifts(tmp_path: Path) -> None:
    host = machined(tmp_path)
    host.remove("/run/systemd/system.control/vms.slice.d/50-AllowedCPUs.conf")
    assert not_passed(host)[FENCE] == [
        (
            FAIL,
            "systemd has no record of the limit CPUs 1-3 of /vms.slice, and lifts it at the next "
            "daemon-reload",
            "run virt-cgroup apply --parent",
        )
    ]


def test_a_layout_that_libvirt_loses(tmp_path: Path) -> None:
    host = machined(tmp_path, CONF.replace("/vms", "/libvirt-vms"))
    assert not_passed(host)[START_VM][0][:2] == (
        FAIL,
        'cgroup_layout "/libvirt-vms/$NAME" makes the slice libvirt\\x2dvms.slice',
    )


# what only the host itself can tell


class Running(Machined):
    """This host as far as the checks can know. `timestamp` is what systemd says of the daemon's
    unit.
    """

    real = True
    timestamp = "0"
    python = ""

    def run(self, command: list[str]) -> str:
        self.written.append(" ".join(command[:2]))
        if command[0] == "/usr/bin/python3" and self.python:
            raise Error("cannot run /usr/bin/python3: exit status 1", self.python)
        return self.timestamp if command[0] == "systemctl" else ""


@pytest.fixture
def running(tmp_path: Path) -> Running:
    host = Running(tmp_path, "v2", CONF)
    start_daemon(host, cgroup="/system.slice/libvirtd.service")
    install(host)  # after the daemon started, which was soon after boot
    return host


@pytest.mark.parametrize(("timestamp", "result"), [("0", WARN), ("", WARN), (str(10**18), PASS)])
def test_a_reload_by_systemd_counts(running: Running, timestamp: str, result: str) -> None:
    running.timestamp = timestamp
    assert found(running)[SEEN][0][0] == result
    assert "systemctl show" in running.written


def test_a_package_that_the_hook_does_not_find(running: Running) -> None:
    assert found(running)[PROGRAM] == [(PASS, "", "")]
    running.python = "No module named 'configobj'"
    result, message, remedy = found(running)[PROGRAM][0]
    assert result == FAIL
    assert remedy == (
        "run virt-cgroup hook install, or install the package and configobj for that Python"
    )
    assert message == (
        "/usr/bin/python3 runs the hook and lacks what it needs (No module named 'configobj')"
    )


@pytest.mark.parametrize(("user", "result"), [(0, PASS), (1000, WARN)])
def test_rights(running: Running, monkeypatch: pytest.MonkeyPatch, user: int, result: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert found(running)[RIGHT][0][0] == result


# checks that cannot be made


@pytest.mark.parametrize(
    ("broken", "title", "message"),
    [
        (
            lambda h: h.put(f"{CG}/vms/cpuset.cpus.effective", "none"),
            FENCE,
            '"none" is not a CPU list',
        ),
        (lambda h: h.put(f"{CG}/vms/memory.max", "none"), FENCE, "invalid literal for int()"),
        (lambda h: h.put(f"/proc/{DAEMON}/stat", "1 (x) S"), SEEN, "list index out of range"),
        (lambda h: h.put("/proc/stat", "cpu"), SEEN, "/proc/stat has no btime"),
        (
            lambda h: h.remove(f"/proc/{DAEMON}/stat"),
            SEEN,
            f"cannot read /proc/{DAEMON}/stat: No such file",
        ),
        (
            lambda h: Path(f"{h.root}/sys/fs/selinux/enforce").mkdir(parents=True),
            SELINUX,
            "Is a directory",
        ),
    ],
)
def test_what_cannot_be_checked_is_told(
    host: Kernel, broken: Break, title: str, message: str
) -> None:
    broken(host)
    result, text, _ = not_passed(host)[title][0]
    assert result == WARN
    assert text.startswith("cannot be checked: ")
    assert message in text


def test_a_vm_that_is_not_understood_is_one(host: Kernel) -> None:
    effective(host, "0-3")
    host.put("/run/libvirt/qemu/vm.xml", "<domstatus")
    found = not_passed(host)
    assert found[FENCE][0][0] == FAIL
    assert found[CONFORM][0][:1] == (FAIL,)
    assert found[CONFORM][0][1].startswith("VM vm: the domain XML is not well-formed")


def test_a_kernel_that_says_what_none_does(host: Kernel) -> None:
    host.put("/proc/meminfo", "MemTotal: x kB")
    result, message, _ = not_passed(host)[CONFIGURATION][0]
    assert result == FAIL
    assert message == "/proc/meminfo has no MemTotal"


# the command


def answer(command: Command, host: Kernel, *arguments: str) -> tuple[int, list[str]]:
    status, out, err = command("--root", host.root, "validate", *arguments)
    assert err == ""
    return status, out.splitlines()


def test_the_form(command: Command, host: Kernel) -> None:
    install(host, mode=0o644)
    status, lines = answer(command, host)
    assert status == 1
    assert (
        "  HOST: Checking for the manager of cgroups                                  : PASS"
        in lines
    )
    assert (
        "  HOOK: Checking if the hook is executable                                   : FAIL "
        f"({HOOK} is not executable, so libvirt ignores it: chmod 755 {HOOK}) "
        "[hook-not-executable]"
    ) in lines
    assert len({line.index(": ", 10) for line in lines}) == 1
    assert answer(command, host, "-q") == (1, [line for line in lines if "PASS" not in line])


def test_only_failures_have_an_exit_status(command: Command, host: Kernel) -> None:
    assert answer(command, host, "--quiet") == (0, [])
    process(host)
    status, lines = answer(command, host, "--quiet")
    assert (status, len(lines)) == (0, 1)
    assert "WARN" in lines[0]
    no_hook(host)
    assert answer(command, host, "--quiet")[0] == 1


def test_json(command: Command, host: Kernel) -> None:
    no_hook(host)
    status, lines = answer(command, host, "--json")
    rows: list[dict[str, Any]] = json.loads("\n".join(lines))
    assert status == 1
    assert {
        "area": "HOST",
        "check": MANAGER,
        "result": PASS,
        "code": None,
        "message": None,
        "remedy": None,
    } in rows
    assert {
        "area": "HOOK",
        "check": THE_HOOK,
        "result": FAIL,
        "code": "hook-missing",
        "message": f"neither {HOOK} nor {HOOK_D} is this package's hook",
        "remedy": "run virt-cgroup hook install",
    } in rows
    quiet = json.loads("\n".join(answer(command, host, "--json", "-q")[1]))
    assert [row["check"] for row in quiet] == [THE_HOOK]


# a file that is not in place yet


def proposal(command: Command, host: Kernel, text: str) -> tuple[int, list[str]]:
    """The exit status, and what does not pass."""
    file = Path(host.root, "proposed.conf")
    file.write_text(text, encoding="utf-8")
    before = host.snapshot()
    answered = answer(command, host, "--quiet", "--config", str(file))
    assert host.snapshot() == before
    return answered


def test_a_file_before_it_is_in_place(command: Command, host: Kernel) -> None:
    no_hook(host)  # which is not the file's fault
    assert proposal(command, host, CONF.replace("'0'", "'0-1'")) == (0, [])
    _, lines = answer(command, host, "--config", "/dev/null")
    assert f"{CONFIGURATION} " in "".join(lines)
    assert THE_HOOK not in "".join(lines)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("reserved_host_cpus = '9'", 'reserved_host_cpus = "9": this host has no CPU 9'),
        ("reserved_host_cpus = '0-3'", "reserving CPUs 0-3 leaves none for VMs"),
        ("reserved_host_mem = '4'", 'reserved_host_mem = "4": an amount of memory needs a unit'),
        ("reserved_cpus = '0'", 'reserved_cpus = "0": there is no such setting'),
    ],
)
def test_a_file_that_is_wrong(command: Command, host: Kernel, line: str, message: str) -> None:
    status, (told,) = proposal(command, host, f"# mine\n{line}\n")
    assert status == 1
    assert f"proposed.conf:2: {line.split()[0]}" in told
    assert message in told
    assert told.endswith("[configuration-invalid]")


def test_a_file_on_standard_input(
    command: Command, host: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"on_error = 'x'\n")))
    status, (told,) = answer(command, host, "-q", "--config", "-")
    assert status == 1
    assert 'standard input:1: on_error = "x": the value has to be' in told


def test_a_file_that_is_not_there(command: Command, host: Kernel) -> None:
    status, _, err = command("--root", host.root, "validate", "--config", "/no/such")
    assert status == 1
    assert err.startswith("error: cannot read /no/such: No such file or directory: give a file")


@pytest.mark.parametrize("kind", reserving.KINDS)
def test_a_file_that_running_vms_contradict(command: Command, tmp_path: Path, kind: str) -> None:
    pinned = f"{RUNNING}<cputune><vcpupin vcpu='0' cpuset='1'/></cputune>"
    host = reserving.running(tmp_path, kind, CONF, pinned)
    assert proposal(command, host, CONF)[0] == 0
    status, lines = proposal(command, host, CONF.replace("'0'", "'0-1'"))
    told = lines[-1]  # on cgroup v1 the next start would be refused, too
    assert status == 1
    assert "it takes CPUs from VMs that are pinned to them: vm (vcpu0 to 1 (reserved: 1))" in told
    assert told.endswith("(virsh vcpupin vm 0 2-3 --live), or stop them) [pins-in-the-way]")


def test_a_file_that_leaves_vms_less_than_they_use(command: Command, host: Kernel) -> None:
    host.put(f"{CG}/vms/memory.current", str(1 << 30))
    status, (told,) = proposal(command, host, CONF.replace("512 MiB", "7600 MiB"))
    assert status == 1
    assert "1 GiB is in use" in told
    assert told.endswith("[start-refused]")


def test_a_code_is_explained(command: Command, host: Kernel) -> None:
    no_hook(host)
    assert any(line.endswith(" [hook-missing]") for line in answer(command, host)[1])
    status, lines = answer(command, host, "--explain", "hook-missing")
    assert status == 0
    assert lines == [
        "hook-missing: the hook is not installed (FAIL)",
        "",
        "Why it matters: libvirt does not run it, so no VM is checked or placed when it",
        "starts. Limits that are set stay until somebody changes them.",
        "",
        "What to do: Run virt-cgroup hook install.",
    ]
    rows = json.loads("\n".join(answer(command, host, "--explain", "hook-missing", "--json")[1]))
    assert rows == [{"code": "hook-missing", **CODES["hook-missing"]._asdict()}]


@pytest.mark.parametrize("arguments", [(), ("list",)])
def test_all_codes_are_listed(command: Command, host: Kernel, arguments: tuple[str, ...]) -> None:
    _, lines = answer(command, host, "--explain", *arguments)
    assert [line.split()[:2] for line in lines[2:]] == [
        [name, code.result] for name, code in CODES.items()
    ]


def test_a_code_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["validate", "--explain", "colour"])
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert 'there is no code "colour"; virt-cgroup validate --explain lists them' in told


@pytest.mark.parametrize("name", CODES)
def test_the_prose_of_a_code(name: str) -> None:
    code = CODES[name]
    assert re.fullmatch("[a-z]+(-[a-z]+)*", name)
    assert len(name) <= 24
    assert code.result in (NOTE, WARN, FAIL)
    assert code.meaning[-1] != "."
    assert code.why[-1] == code.remedy[-1] == "."
    assert all(len(line) <= 80 for line in explained(name).splitlines())


def test_every_problem_has_a_code() -> None:
    """Each is in the text of some check, and each check that tells a problem names one."""
    named: set[str] = set()
    for file in Path(checks.__file__).parent.glob("*.py"):
        if file.name == "codes.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in CODES:
                named.add(str(node.value))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Problem":
                words = [
                    one.value for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant)
                ]
                assert set(words) <= {*CODES, ""}, ast.unparse(node)
                assert words or ast.unparse(node.args[0]) == "code", ast.unparse(node)
    assert named == set(CODES)


def test_colour_is_for_terminals(
    command: Command, host: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_hook(host)
    assert "\033" not in "".join(answer(command, host)[1])
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = answer(command, host)[1]
    assert any(line.endswith(": \033[32mPASS\033[0m") for line in lines)
    assert any(": \033[31mFAIL\033[0m (neither " in line for line in lines)


def test_no_control_characters(command: Command, host: Kernel) -> None:
    process(host, "/x\x1b[31m", "qemu:\x1b[0m")
    install(host, f"{DIRECTORY}/\x1b~")
    _, lines = answer(command, host)
    assert r"(qemu:\x1b[0m) of user 1000 is in /x\x1b[31m" in "".join(lines)
    assert all(line.isprintable() for line in lines)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["validate", "--help"])
    assert not end.value.code
    assert "example: virt-cgroup validate -q" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "none"])
def test_a_root_with_nothing_in_it(command: Command, tmp_path: Path, name: str) -> None:
    status, out, err = command("--root", tmp_path / name, "validate")
    assert (status, err) == (1, "")
    assert "FAIL (neither " in out


def test_it_changes_nothing(host: Kernel) -> None:
    before = host.snapshot()
    found(host)
    assert host.snapshot() == before
