"""virt-cgroup validate: each check on a host where all is well, and on one where that one thing is not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libvirt_cgroup_hooks import managers
from libvirt_cgroup_hooks.bpf import CarryDevices
from libvirt_cgroup_hooks.cli import main
from libvirt_cgroup_hooks.cli.checks import TABLE, results
from libvirt_cgroup_hooks.cli.checks.hook import LEFTOVERS
from libvirt_cgroup_hooks.cli.checks.subject import FAIL, NOTE, PASS, WARN, Subject
from libvirt_cgroup_hooks.cli.hookfile import DIRECTORY, HOOK, HOOK_D, ours
from libvirt_cgroup_hooks.errors import Error

from .hosts import Kernel, domain, run
from .machined import Machined
from .test_systemd import SMALL_LIMIT, UNIFIED_LIMIT

TEXT = (Path(__file__).parent.parent / "hooks/qemu").read_text(encoding="utf-8")
FOREIGN = "#!/bin/sh\nexit 0\n"
CONF = "reserved_host_cpus = '0'\nreserved_host_mem = '512 MiB'\ncgroup_layout = '/vms/$NAME'\n"
RUNNING = "<vcpu>1</vcpu>"
CG = "/sys/fs/cgroup"
DAEMON = 4000000
BOOT, START = 1_000_000, 100  # seconds: of the host, and of the daemon after it
STARTED = BOOT + START
VM = 4200100
APPLY = "run virt-cgroup apply --parent"
Break = Callable[[Kernel], object]
Problems = dict[str, list[tuple[str, str, str]]]

RIGHT, CONFIGURATION, MANAGER, CONTROLLERS, DOWN, START_VM, FENCE, HUGEPAGES, CPUS = (one.title for one in TABLE[:9])
THE_HOOK, EXECUTABLE, PROGRAM, SEEN, READABLE, OTHERS, LEFT, SELINUX, APPARMOR = (one.title for one in TABLE[9:18])
OUTSIDE, CONFORM = (one.title for one in TABLE[18:])
LIVE = (RIGHT, PROGRAM)


def install(host: Kernel, path: str = HOOK, text: str = TEXT, mode: int = 0o755, changed: float = STARTED - 50) -> None:
    host.put(path, text)
    os.chmod(host.root + path, mode)
    os.utime(host.root + path, (changed, changed))


def start_daemon(host: Kernel, comm: str = "libvirtd", pid: int = DAEMON, cgroup: str = "/") -> None:
    keys = [hierarchy.key for hierarchy in host.hierarchies]
    host.put("/run/libvirtd.pid", str(pid))
    host.put("/proc/stat", f"cpu  1 2 3\nbtime {BOOT}")
    host.put(f"/proc/{pid}/comm", comm)
    host.put(f"/proc/{pid}/cgroup", "\n".join(f"{number}:{key}:{cgroup}" for number, key in enumerate(keys)))
    ticks = START * os.sysconf("SC_CLK_TCK")
    host.put(f"/proc/{pid}/stat", f"{pid} (a) b) " + " ".join(["S", *("0" for _ in range(18)), str(ticks), "0"]))


def fenced(host: Kernel) -> None:
    """The hook has run for a VM, which is in its place."""
    vm = domain("vm", RUNNING)
    run(host, managers.plan(host, host.config(), "prepare", vm))
    effective(host, "1-3")
    started = managers.plan(host, host.config(), "started", host.start_vm(vm, RUNNING))
    started.steps = [step for step in started.steps if not isinstance(step, CarryDevices)]  # a copy has no programs
    run(host, started)


def effective(host: Kernel, cpus: str) -> None:
    if host.hierarchies[0].version == 2:
        host.put(f"{CG}/vms/cpuset.cpus.effective", cpus)


def partition(host: Kernel, cpus: str) -> None:
    """Somebody else has CPUS for itself alone."""
    host.put(f"{CG}/mine/cpuset.cpus.partition", "root")
    host.put(f"{CG}/mine/cpuset.cpus.exclusive.effective", cpus)


def well(root: Path, name: str = "unified", conf: str = CONF) -> Kernel:
    host = Kernel(root, name, conf)
    install(host)
    start_daemon(host)
    fenced(host)
    return host


@pytest.fixture
def host(tmp_path: Path) -> Kernel:
    return well(tmp_path)


def found(host: Kernel) -> Problems:
    problems: Problems = {}
    for check, problem in results(Subject(host)):
        problems.setdefault(check.title, []).append((problem.result, problem.message, problem.remedy))
    return problems


def not_passed(host: Kernel) -> Problems:
    return {title: problems for title, problems in found(host).items() if problems != [(PASS, "", "")]}


def each(*breaks: Break) -> Break:
    def run_all(host: Kernel) -> None:
        for one in breaks:
            one(host)

    return run_all


# all is well


@pytest.mark.parametrize("name", ["small", "unified", "desktop", "twonode"])
def test_where_all_is_well_every_check_passes(tmp_path: Path, name: str) -> None:
    host = well(tmp_path, name)
    effective(host, host.get("/sys/devices/system/cpu/online").replace("0-", "1-"))
    problems = found(host)
    wrong = {title: problem[0][0] for title, problem in not_passed(host).items()}
    assert wrong == ({HUGEPAGES: NOTE} if name == "twonode" else {})
    assert list(problems) == [check.title for check in TABLE if check.title not in LIVE]


@pytest.mark.parametrize("name", ["small", "unified", "desktop", "twonode"])
def test_nothing_configured_and_nothing_installed(tmp_path: Path, name: str) -> None:
    problems = not_passed(Kernel(tmp_path, name))
    assert {title: problem[0][0] for title, problem in problems.items()} == {CONFIGURATION: NOTE, THE_HOOK: FAIL}


def test_before_the_first_vm_the_parent_is_not_there(tmp_path: Path) -> None:
    host = Kernel(tmp_path, "unified", CONF)
    install(host)
    start_daemon(host)
    note = (NOTE, f"{CG}/vms is not there yet", "it is made with its fence when the first VM starts")
    assert not_passed(host) == {FENCE: [note]}


# each check


def no_hook(host: Kernel) -> None:
    host.remove(HOOK)


def both(host: Kernel) -> None:
    install(host, HOOK_D)


def directory_mode(host: Kernel, mode: int = 0o700) -> None:
    install(host, HOOK_D, FOREIGN, 0o644)
    os.chmod(host.root + DIRECTORY, mode)


def link(host: Kernel, target: str = "/usr/lib/hooks/qemu") -> None:
    install(host, target)
    host.remove(HOOK)
    Path(host.root + HOOK).symlink_to(host.root + target)
    os.utime(host.root + HOOK, (STARTED - 50, STARTED - 50), follow_symlinks=False)


def apparmor(
    host: Kernel, profiles: str | None = "unconfined-thing (enforce)\nlibvirtd (enforce)", enabled: str = "Y"
) -> None:
    host.put("/sys/module/apparmor/parameters/enabled", enabled)
    if profiles is not None:
        host.put("/sys/kernel/security/apparmor/profiles", profiles)


def selinux(host: Kernel, enforce: str = "1", boolean: str | None = "0 0") -> None:
    host.put("/sys/fs/selinux/enforce", enforce)
    if boolean is not None:
        host.put("/sys/fs/selinux/booleans/virt_hooks_unconfined", boolean)


def process(host: Kernel, place: str = "/user.slice", comm: str = "qemu-system-x86", pid: int = 4300000) -> None:
    host.put(f"/proc/{pid}/comm", comm)
    host.put(f"/proc/{pid}/status", "Name:\tx\nUid:\t1000\t1000\t1000\t1000")
    host.put(f"/proc/{pid}/cgroup", f"0::{place}")


def allow(host: Kernel, cpus: str, tid: int = VM + 10) -> None:
    host.put(f"/proc/{VM}/task/{tid}/status", f"Name:\tx\nCpus_allowed_list:\t{cpus}")


def no_vm(host: Kernel) -> None:
    host.remove("/run/libvirt/qemu/vm.xml")


def pools(host: Kernel, kib: int) -> None:
    text = "".join(line + "\n" for line in host.get("/proc/meminfo").splitlines() if not line.startswith("Huge"))
    host.put("/proc/meminfo", f"{text}Hugetlb: {kib} kB")
    limit = (8135396 - kib - 512 * 1024) * 1024
    host.put(f"{CG}/vms/memory.max", str(limit))
    host.put(f"{CG}/machine/memory.max", str(limit))


CPU = "/sys/devices/system/cpu"
IN_SLICE = "process 4300000 (qemu-system-x86) of user 1000 is in /user.slice, outside what VMs share"
AS_SYSTEM = "run it as a VM of qemu:///system, or count it to the host"


@pytest.mark.parametrize(
    ("broken", "title", "result", "message", "remedy"),
    [
        (lambda h: h.configure("colour = 1"), CONFIGURATION, FAIL, "colour = 1: there is no such setting", "the settings are"),
        (
            lambda h: h.configure(CONF + "reserved_host_cpus = 1"),
            CONFIGURATION,
            WARN,
            ":4: reserved_host_cpus is set in line 1 already",
            "",
        ),
        (lambda h: h.configure("\n#x\n"), CONFIGURATION, NOTE, "nothing is configured", "set what the host keeps in /etc/"),
        (
            lambda h: h.put(f"{managers.BOOTED}/x", ""),
            MANAGER,
            WARN,
            "no machined or no system bus",
            "install systemd-container",
        ),
        (
            lambda h: h.put(f"{CG}/cgroup.controllers", "cpu memory"),
            CONTROLLERS,
            FAIL,
            "cannot keep CPUs for the host: there is no cpuset controller",
            "mount or enable it",
        ),
        (lambda h: h.remove("/proc/mounts"), CONTROLLERS, FAIL, "no cgroup controllers are mounted", "mount cgroup2 on"),
        (
            lambda h: h.put(f"{CG}/cgroup.subtree_control", "cpu memory"),
            DOWN,
            FAIL,
            f"{CG} does not pass the cpuset controller down to /vms",
            APPLY,
        ),
        (
            lambda h: h.configure(CONF.replace("/vms/", "/" + "x" * 256 + "/$UUID-" + "y" * 250)),
            START_VM,
            FAIL,
            "the cgroup of VM probe would have a name over 255 bytes",
            "use $UUID",
        ),
        (
            each(lambda h: h.put(f"{CG}/vms/memory.max", "max"), lambda h: h.put(f"{CG}/vms/memory.current", "9" * 12)),
            START_VM,
            FAIL,
            f"cannot limit {CG}/vms to ",
            "stop VMs",
        ),
        (lambda h: effective(h, "0-3"), FENCE, FAIL, f"{CG}/vms may use CPUs 0-3, of which the host keeps 0", APPLY),
        (lambda h: effective(h, "1"), FENCE, WARN, f"{CG}/vms may use CPUs 1 only, and not 2-3", APPLY),
        (lambda h: effective(h, ""), FENCE, FAIL, f"{CG}/vms has no CPU limit, which should be 1-3", APPLY),
        (
            each(lambda h: effective(h, "1"), lambda h: h.put(f"{CG}/cpuset.cpus.effective", "0-1")),
            FENCE,
            WARN,
            f"{CG}/vms may use CPUs 1 only, and not 2-3",
            "the cgroup above it has no more",
        ),
        (
            each(lambda h: effective(h, "1"), lambda h: partition(h, "2-3")),
            FENCE,
            WARN,
            f"{CG}/vms may use CPUs 1 only, and not 2-3: {CG}/mine has 2-3 for itself alone",
            "take them back from it, or reserve them",
        ),
        (
            each(lambda h: effective(h, "0"), lambda h: partition(h, "1-3")),
            FENCE,
            FAIL,
            f"{CG}/vms may use CPUs 0, which the host keeps, and not 1-3: {CG}/mine has 1-3 for itself alone",
            "take them back from it, or reserve them",
        ),
        (
            each(lambda h: effective(h, "0-3"), lambda h: partition(h, "2-3")),
            FENCE,
            FAIL,
            f"{CG}/vms may use CPUs 0-3, of which the host keeps 0",
            APPLY,
        ),
        (
            each(lambda h: effective(h, "0-3"), no_vm),
            FENCE,
            NOTE,
            "of which the host keeps 0",
            "the next VM that starts sets it, or virt-cgroup apply --parent",
        ),
        (lambda h: h.put(f"{CG}/vms/memory.max", "max"), FENCE, FAIL, f"{CG}/vms has no memory limit", APPLY),
        (lambda h: h.put(f"{CG}/vms/memory.max", "8000000000"), FENCE, FAIL, f"and should be {UNIFIED_LIMIT}", APPLY),
        (lambda h: h.put(f"{CG}/vms/memory.max", "4096"), FENCE, WARN, f"and could be {UNIFIED_LIMIT}", APPLY),
        # a CPU that has come back
        (
            each(lambda h: h.put(f"{CPU}/online", "0-4"), lambda h: h.put(f"{CPU}/present", "0-4")),
            FENCE,
            WARN,
            "1-3 only, and not 4",
            "the",
        ),
        (lambda h: pools(h, 1 << 20), HUGEPAGES, NOTE, "hugepage pools hold 1 GiB, which leaves 6.3 GiB for VMs' other", ""),
        (lambda h: pools(h, 7600000), HUGEPAGES, WARN, "the VMs that run may take 72 MiB", "make the pools smaller"),
        (lambda h: h.put(f"{CPU}/isolated", "0"), CPUS, WARN, "CPUs 0 of reserved_host_cpus are isolated", "reserve others"),
        (lambda h: h.put(f"{CPU}/isolated", "3"), CPUS, NOTE, "CPUs 3 are isolated (isolcpus): VMs use them only where", ""),
        (
            each(lambda h: h.put(f"{CPU}/isolated", "2-3"), lambda h: h.configure(CONF + "vcpu_cpus = '1-3'")),
            CPUS,
            WARN,
            "CPUs 2-3 of vcpu_cpus are isolated (isolcpus): the kernel does not spread threads over them",
            "pin each thread",
        ),
        (
            each(lambda h: h.put(f"{CPU}/present", "0-4"), lambda h: h.configure(CONF.replace("'0'", "'0,4'"))),
            CPUS,
            WARN,
            "CPUs 4 of reserved_host_cpus are offline",
            "reserve others",
        ),
        (no_hook, THE_HOOK, FAIL, f"neither {HOOK} nor {HOOK_D} is the hook of this package", "run virt-cgroup hook install"),
        (lambda h: install(h, HOOK, FOREIGN), THE_HOOK, FAIL, f"neither {HOOK} nor", "run virt-cgroup hook install"),
        (both, THE_HOOK, WARN, f"{HOOK_D} is the hook once more", f"remove {HOOK_D}"),
        (lambda h: install(h, mode=0o644), EXECUTABLE, FAIL, f"libvirt passes over {HOOK}", f"chmod 755 {HOOK}"),
        (
            lambda h: install(h, changed=STARTED + 1),
            SEEN,
            WARN,
            f"{HOOK} was changed after libvirtd (process {DAEMON}) has last looked for hooks",
            "reload libvirtd",
        ),
        (
            each(no_hook, lambda h: install(h, HOOK_D, changed=STARTED + 1)),
            SEEN,
            WARN,
            f"{HOOK_D} was changed after",
            "reload libvirtd, or send it SIGHUP",
        ),
        (
            each(lambda h: install(h, changed=STARTED + 1), lambda h: start_daemon(h, "virtqemud")),
            SEEN,
            WARN,
            f"{HOOK} was changed after virtqemud",
            "reload virtqemud",
        ),
        (
            lambda h: h.remove("/run/libvirtd.pid"),
            SEEN,
            NOTE,
            "neither libvirtd nor virtqemud runs",
            "it looks for hooks when",
        ),
        (lambda h: start_daemon(h, "bash"), SEEN, NOTE, "neither libvirtd nor virtqemud runs", "it looks for hooks when"),
        (directory_mode, READABLE, WARN, f"daemons of other users cannot read {DIRECTORY}", f"chmod 755 {DIRECTORY}"),
        (lambda h: h.put(DIRECTORY, ""), READABLE, FAIL, f"{DIRECTORY} is no directory", f"remove {DIRECTORY}"),
        (lambda h: install(h, f"{DIRECTORY}/10-x", FOREIGN), OTHERS, NOTE, f"{DIRECTORY}/10-x is another program's", ""),
        (each(both, lambda h: install(h, HOOK, FOREIGN)), OTHERS, NOTE, f"{HOOK} is another program's", ""),
        (
            lambda h: install(h, f"{HOOK_D}.dpkg-dist"),
            LEFT,
            WARN,
            f"libvirt runs {HOOK_D}.dpkg-dist for every VM",
            "remove it",
        ),
        (lambda h: install(h, f"{HOOK_D}.rpmnew", mode=0o644), LEFT, NOTE, f"{HOOK_D}.rpmnew is left over", "it is not exec"),
        (selinux, SELINUX, WARN, "SELinux is enforcing, and may keep the hook", "run setsebool -P virt_hooks_unconfined on"),
        (lambda h: selinux(h, boolean="0 1"), SELINUX, WARN, "SELinux is enforcing, and may keep the hook", "run setsebool"),
        (lambda h: selinux(h, boolean=None), SELINUX, NOTE, "its policy has no boolean", "see ausearch"),
        (
            each(apparmor, link),
            APPARMOR,
            FAIL,
            f"{HOOK} is a link to /usr/lib/hooks/qemu, which AppArmor does not let libvirt run",
            "install the file itself",
        ),
        (lambda h: apparmor(h, None), APPARMOR, NOTE, "AppArmor is enabled, but /sys/kernel/", "mount securityfs"),
        (process, OUTSIDE, WARN, IN_SLICE, AS_SYSTEM),
        (lambda h: process(h, "/vmsx"), OUTSIDE, WARN, "is in /vmsx, outside what VMs share", AS_SYSTEM),
        (lambda h: process(h, comm="qemu:web"), OUTSIDE, WARN, "(qemu:web) of user 1000", AS_SYSTEM),
        (
            lambda h: allow(h, "0-3"),
            CONFORM,
            FAIL,
            f"VM vm: thread {VM + 10} (vcpu0): it may use CPUs 0-3, not only 1-3",
            "run virt-cgroup apply --all",
        ),
        (
            lambda h: h.place(VM, VM, {"": "/elsewhere"}),
            CONFORM,
            WARN,
            f"VM vm: thread {VM} (emulator): it is in cgroup /elsewhere, not in /vms/vm/emulator",
            "run virt-cgroup apply --all",
        ),
    ],
)
def test_what_is_wrong_is_told(host: Kernel, broken: Break, title: str, result: str, message: str, remedy: str) -> None:
    broken(host)
    problems = not_passed(host)[title]
    assert len(problems) == 1
    assert problems[0][0] == result
    assert message in problems[0][1]
    assert problems[0][2].startswith(remedy) and bool(problems[0][2]) == bool(remedy)


@pytest.mark.parametrize(
    ("title", "harmless"),
    [
        (THE_HOOK, each(no_hook, lambda h: install(h, HOOK_D))),
        (THE_HOOK, each(lambda h: install(h, HOOK, FOREIGN), lambda h: install(h, HOOK_D))),
        (SEEN, lambda h: install(h, changed=STARTED)),
        # libvirt remembers that there is a hook, not which: another's, there before, has ours run too
        (SEEN, each(lambda h: install(h, HOOK, FOREIGN), lambda h: install(h, HOOK_D, changed=STARTED + 1))),
        (READABLE, lambda h: directory_mode(h, 0o755)),
        (OTHERS, lambda h: install(h, f"{DIRECTORY}/10-x", FOREIGN, 0o644)),
        (LEFT, lambda h: install(h, f"{DIRECTORY}/10-x", FOREIGN)),
        (LEFT, lambda h: install(h, f"{HOOK}.rpmnew")),  # libvirt knows HOOK by its name alone
        (SELINUX, lambda h: selinux(h, "0")),
        (SELINUX, lambda h: selinux(h, boolean="1 1")),
        (APPARMOR, apparmor),
        (APPARMOR, each(apparmor, lambda h: link(h, "/usr/bin/hook"))),
        (APPARMOR, each(apparmor, lambda h: link(h, "/etc/libvirt/hooks/real"))),
        (APPARMOR, each(lambda h: apparmor(h, "libvirtd (complain)"), link)),
        (APPARMOR, each(lambda h: apparmor(h, enabled="N"), link)),
        (OUTSIDE, lambda h: process(h, "/vms/x")),
        (OUTSIDE, lambda h: process(h, "/vms")),
        (OUTSIDE, lambda h: process(h, "/machine/qemu-9-new.libvirt-qemu/emulator")),  # libvirt is just starting it
        (OUTSIDE, lambda h: process(h, "/../other-container/x")),
        (OUTSIDE, lambda h: process(h, comm="qemu-ga")),
        (OUTSIDE, lambda h: h.put("/proc/4300000/comm", "qemu-system-x86")),  # it has ended meanwhile
        (CPUS, each(lambda h: h.put(f"{CPU}/isolated", "3"), lambda h: h.configure(CONF + "vcpu_cpus = '3'"))),
        (CONFORM, lambda h: allow(h, "1-2")),
    ],
)
def test_what_is_not_wrong(host: Kernel, title: str, harmless: Break) -> None:
    harmless(host)
    assert found(host)[title] == [(PASS, "", "")]


@pytest.mark.parametrize("name", [*(f"qemu{suffix}" for suffix in LEFTOVERS), ".qemu.swp", "#qemu#", ".10-x"])
def test_names_of_leftovers(host: Kernel, name: str) -> None:
    install(host, f"{DIRECTORY}/{name}", FOREIGN)
    problems = not_passed(host)
    assert list(problems) == [LEFT]
    assert problems[LEFT][0][0] == WARN


def test_a_hook_that_is_not_there_is_told_once(host: Kernel) -> None:
    no_hook(host)
    problems = found(host)
    assert problems[THE_HOOK][0][0] == FAIL
    assert not {EXECUTABLE, SEEN} & set(problems)


def test_a_hook_is_known_by_its_text() -> None:
    assert ours(TEXT)
    assert ours("#!/usr/bin/python3\nfrom libvirt_cgroup_hooks.hook import main\n")
    assert not ours(FOREIGN)
    assert not ours("#!/bin/sh\necho about libvirt-cgroup-hooks\n")


def test_many_processes_are_counted(host: Kernel) -> None:
    for pid in range(4300000, 4300012):
        process(host, pid=pid)
    problems = not_passed(host)[OUTSIDE]
    assert len(problems) == 11
    assert problems[-1] == (WARN, "2 more QEMU processes are outside what VMs share", "")


def test_a_process_where_each_vm_carries_the_fence(host: Kernel) -> None:
    host.configure("reserved_host_cpus = '0'\ncgroup_layout = 'uuid'")
    process(host)
    assert not_passed(host)[OUTSIDE] == [(WARN, IN_SLICE, AS_SYSTEM)]


# cgroup v1


@pytest.mark.parametrize(
    ("file", "value", "result", "message"),
    [
        ("cpuset/vms/cpuset.cpus", "0-1", FAIL, f"{CG}/cpuset/vms may use CPUs 0-1, of which the host keeps 0"),
        ("memory/vms/memory.limit_in_bytes", "9223372036854771712", FAIL, f"{CG}/memory/vms has no memory limit"),
        ("memory/vms/memory.limit_in_bytes", "2000000000", FAIL, f"and should be {SMALL_LIMIT}"),
        ("memory/vms/memory.limit_in_bytes", "4096", WARN, f"and could be {SMALL_LIMIT}"),
    ],
)
def test_drift_on_v1(tmp_path: Path, file: str, value: str, result: str, message: str) -> None:
    host = well(tmp_path, "small")
    host.put(f"{CG}/{file}", value)
    problems = not_passed(host)
    assert list(problems) == [FENCE]
    assert problems[FENCE][0][0] == result
    assert message in problems[FENCE][0][1]


# systemd


def machined(root: Path, conf: str = CONF) -> Machined:
    host = Machined(root, "unified", conf)
    install(host)
    start_daemon(host, cgroup="/system.slice/libvirtd.service")
    host.slice("vms.slice", "1-3", str(UNIFIED_LIMIT), "4096")
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
        assert result == WARN
        assert message.endswith(", and 2 more")
        assert remedy == "run virt-cgroup apply --all, and stop and start a VM that is in another slice"


def test_a_layout_that_libvirt_loses(tmp_path: Path) -> None:
    host = machined(tmp_path, CONF.replace("/vms", "/libvirt-vms"))
    assert not_passed(host)[START_VM][0][:2] == (
        FAIL,
        'cgroup_layout "/libvirt-vms/$NAME" makes the slice libvirt\\x2dvms.slice',
    )


# what only the host itself can tell


class Running(Machined):
    """This host as far as the checks can know. `timestamp` is what systemd says of the daemon's unit."""

    real = True
    timestamp = "0"
    python = ""

    def run(self, command: list[str]) -> str:
        self.written.append(" ".join(command[:2]))
        if command[0] == "/usr/bin/python3" and self.python:
            raise Error("cannot run /usr/bin/python3: exit status 1", self.python)
        return self.timestamp if command[0] == "/bin/systemctl" else ""


@pytest.fixture
def running(tmp_path: Path) -> Running:
    host = Running(tmp_path, "unified", CONF)
    start_daemon(host, cgroup="/system.slice/libvirtd.service")
    install(host)  # after the daemon started, which was soon after boot
    return host


@pytest.mark.parametrize(("timestamp", "result"), [("0", WARN), ("", WARN), (str(10**18), PASS)])
def test_a_reload_by_systemd_counts(running: Running, timestamp: str, result: str) -> None:
    running.timestamp = timestamp
    assert found(running)[SEEN][0][0] == result
    assert "/bin/systemctl show" in running.written


def test_a_package_that_the_hook_does_not_find(running: Running) -> None:
    assert found(running)[PROGRAM] == [(PASS, "", "")]
    running.python = "No module named 'configobj'"
    result, message, remedy = found(running)[PROGRAM][0]
    assert (result, remedy) == (FAIL, "install the package and configobj for that Python")
    assert message == "/usr/bin/python3, which runs the hook, does not have what it needs (No module named 'configobj')"


@pytest.mark.parametrize(("user", "result"), [(0, PASS), (1000, WARN)])
def test_rights(running: Running, monkeypatch: pytest.MonkeyPatch, user: int, result: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert found(running)[RIGHT][0][0] == result


# checks that cannot be made


@pytest.mark.parametrize(
    ("broken", "title", "message"),
    [
        (lambda h: h.put("/run/libvirt/qemu/vm.xml", "<domstatus"), CONFORM, "the domain XML is not well-formed"),
        (lambda h: h.put(f"{CG}/vms/cpuset.cpus.effective", "none"), FENCE, '"none" is not a CPU list'),
        (lambda h: h.put(f"{CG}/vms/memory.max", "none"), FENCE, "invalid literal for int()"),
        (lambda h: h.put(f"/proc/{DAEMON}/stat", "1 (x) S"), SEEN, "list index out of range"),
        (lambda h: h.put("/proc/stat", "cpu"), SEEN, "/proc/stat has no btime"),
        (lambda h: h.remove(f"/proc/{DAEMON}/stat"), SEEN, f"cannot read /proc/{DAEMON}/stat: No such file"),
        (lambda h: Path(f"{h.root}/sys/fs/selinux/enforce").mkdir(parents=True), SELINUX, "Is a directory"),
    ],
)
def test_what_cannot_be_checked_is_told(host: Kernel, broken: Break, title: str, message: str) -> None:
    broken(host)
    result, text, _ = not_passed(host)[title][0]
    assert result == WARN
    assert text.startswith("cannot be checked: ")
    assert message in text


def test_a_vm_that_is_not_understood_is_one(host: Kernel) -> None:
    effective(host, "0-3")
    host.put("/run/libvirt/qemu/vm.xml", "<domstatus")
    assert not_passed(host)[FENCE][0][0] == FAIL


def test_a_kernel_that_says_what_none_does(host: Kernel) -> None:
    host.put("/proc/meminfo", "MemTotal: x kB")
    result, message, _ = not_passed(host)[CONFIGURATION][0]
    assert result == FAIL
    assert message == "/proc/meminfo has no MemTotal"


# the command


def command(capsys: pytest.CaptureFixture[str], host: Kernel, *arguments: str) -> tuple[int, list[str]]:
    status = main(["--root", host.root, "validate", *arguments])
    out, err = capsys.readouterr()
    assert err == ""
    return status, out.splitlines()


def test_the_form(capsys: pytest.CaptureFixture[str], host: Kernel) -> None:
    install(host, mode=0o644)
    status, lines = command(capsys, host)
    assert status == 1
    assert "  HOST: Checking for the manager of cgroups                                  : PASS" in lines
    assert (
        "  HOOK: Checking if the hook is executable                                   : FAIL "
        f"(libvirt passes over {HOOK}: chmod 755 {HOOK})"
    ) in lines
    assert len({line.index(": ", 10) for line in lines}) == 1
    assert command(capsys, host, "-q") == (1, [line for line in lines if "PASS" not in line])


def test_only_failures_have_an_exit_status(capsys: pytest.CaptureFixture[str], host: Kernel) -> None:
    assert command(capsys, host, "--quiet") == (0, [])
    process(host)
    status, lines = command(capsys, host, "--quiet")
    assert (status, len(lines)) == (0, 1)
    assert "WARN" in lines[0]
    no_hook(host)
    assert command(capsys, host, "--quiet")[0] == 1


def test_json(capsys: pytest.CaptureFixture[str], host: Kernel) -> None:
    no_hook(host)
    status, lines = command(capsys, host, "--json")
    rows: list[dict[str, Any]] = json.loads("\n".join(lines))
    assert status == 1
    assert {"area": "HOST", "check": MANAGER, "result": PASS, "message": None, "remedy": None} in rows
    assert {
        "area": "HOOK",
        "check": THE_HOOK,
        "result": FAIL,
        "message": f"neither {HOOK} nor {HOOK_D} is the hook of this package",
        "remedy": "run virt-cgroup hook install",
    } in rows
    assert [row["check"] for row in json.loads("\n".join(command(capsys, host, "--json", "-q")[1]))] == [THE_HOOK]


def test_colour_is_for_terminals(capsys: pytest.CaptureFixture[str], host: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    no_hook(host)
    assert "\033" not in "".join(command(capsys, host)[1])
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = command(capsys, host)[1]
    assert any(line.endswith(": \033[32mPASS\033[0m") for line in lines)
    assert any(": \033[31mFAIL\033[0m (neither " in line for line in lines)


def test_no_control_characters(capsys: pytest.CaptureFixture[str], host: Kernel) -> None:
    process(host, "/x\x1b[31m", "qemu:\x1b[0m")
    install(host, f"{DIRECTORY}/\x1b~")
    _, lines = command(capsys, host)
    assert r"(qemu:\x1b[0m) of user 1000 is in /x\x1b[31m" in "".join(lines)
    assert all(line.isprintable() for line in lines)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["validate", "--help"])
    assert not end.value.code
    assert "example: virt-cgroup validate -q" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "none"])
def test_a_root_with_nothing_in_it(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    assert main(["--root", str(tmp_path / name), "validate"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "FAIL (neither " in out


def test_it_changes_nothing(host: Kernel) -> None:
    before = host.snapshot()
    found(host)
    assert host.snapshot() == before
