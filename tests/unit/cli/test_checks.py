"""Each check of virt-cgroup validate, on a host where all is well but for one thing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers
from libvirt_cgroup_hooks.cli.checks.codes import FAIL, NOTE, PASS, WARN
from libvirt_cgroup_hooks.cli.checks.hook import LEFTOVERS
from libvirt_cgroup_hooks.cli.hookfile import DIRECTORY, HOOK, HOOK_D, RELOADED, ours
from libvirt_cgroup_hooks.state import LIMITS_FORMAT, SHARED

from ..support.hosts import PID, Kernel
from ..support.operations import CG, UNIFIED_LIMIT
from ..support.operations import NAMED as CONF
from ..support.validating import (
    DAEMON,
    STARTED,
    TEXT,
    TITLES,
    Break,
    effective,
    found,
    install,
    no_hook,
    not_passed,
    partition,
    process,
    start_daemon,
    well,
)

CONFIGURATION = TITLES["configuration"]
MANAGER = TITLES["manager"]
CONTROLLERS = TITLES["controllers"]
DOWN = TITLES["parent_controllers"]
START_VM = TITLES["first_start"]
FENCE = TITLES["fence_in_effect"]
UNWANTED = TITLES["unwanted_limits"]
MEMORY = TITLES["memory"]
CPUS = TITLES["special_cpus"]
THE_HOOK = TITLES["installed"]
EXECUTABLE = TITLES["executable"]
SEEN = TITLES["seen"]
READABLE = TITLES["directory"]
OTHERS = TITLES["others"]
LEFT = TITLES["leftovers"]
SELINUX = TITLES["selinux"]
APPARMOR = TITLES["apparmor"]
OUTSIDE = TITLES["outside"]
CONFORM = TITLES["conforming"]
TEN_GB = "<memory>9999999</memory>"
FOREIGN = "#!/bin/sh\nexit 0\n"
APPLY = "run virt-cgroup apply --parent"


@pytest.fixture
def host(tmp_path: Path) -> Kernel:
    return well(tmp_path)


def each(*breaks: Break) -> Break:
    def run_all(host: Kernel) -> None:
        for one in breaks:
            one(host)

    return run_all


def both(host: Kernel) -> None:
    install(host, HOOK_D)


def built_for(settings: str) -> Break:
    return lambda host: host.put(f"{settings}/qemu.conf", "")


def directory_mode(host: Kernel, mode: int = 0o700) -> None:
    install(host, HOOK_D, FOREIGN, 0o644)
    os.chmod(host.root + DIRECTORY, mode)


def link(host: Kernel, target: str = "/usr/lib/hooks/qemu") -> None:
    install(host, target)
    host.remove(HOOK)
    Path(host.root + HOOK).symlink_to(host.root + target)
    os.utime(host.root + HOOK, (STARTED - 50, STARTED - 50), follow_symlinks=False)


def apparmor(
    host: Kernel,
    profiles: str | None = "unconfined-thing (enforce)\nlibvirtd (enforce)",
    enabled: str = "Y",
) -> None:
    host.put("/sys/module/apparmor/parameters/enabled", enabled)
    if profiles is not None:
        host.put("/sys/kernel/security/apparmor/profiles", profiles)


def selinux(host: Kernel, enforce: str = "1", boolean: str | None = "0 0") -> None:
    host.put("/sys/fs/selinux/enforce", enforce)
    if boolean is not None:
        host.put("/sys/fs/selinux/booleans/virt_hooks_unconfined", boolean)


def allow(host: Kernel, cpus: str, tid: int = PID + 10) -> None:
    host.put(f"/proc/{PID}/task/{tid}/status", f"Name:\tx\nCpus_allowed_list:\t{cpus}")


def no_vm(host: Kernel) -> None:
    host.remove("/run/libvirt/qemu/vm.xml")


def pools(host: Kernel, kib: int) -> None:
    text = "".join(
        line + "\n"
        for line in host.get("/proc/meminfo").splitlines()
        if not line.startswith("Huge")
    )
    host.put("/proc/meminfo", f"{text}Hugetlb: {kib} kB")
    limit = (8135396 - kib - 512 * 1024) * 1024
    host.put(f"{CG}/vms/memory.max", str(limit))
    host.put(f"{CG}/machine/memory.max", str(limit))


CPU = "/sys/devices/system/cpu"
IN_SLICE = "process 4300000 (qemu-system-x86) of user 1000 is in /user.slice, outside the VM parent"
AS_SYSTEM = "run it as a VM of qemu:///system, or treat it as part of the host"


@pytest.mark.parametrize(
    ("broken", "title", "result", "message", "remedy"),
    [
        (
            lambda h: h.configure("colour = 1"),
            CONFIGURATION,
            FAIL,
            "colour = 1: there is no such setting",
            "the settings are",
        ),
        (
            lambda h: h.configure(CONF + "reserved_host_cpus = 1"),
            CONFIGURATION,
            WARN,
            ":4: reserved_host_cpus is already set in line 1",
            "",
        ),
        (
            lambda h: h.configure("\n#x\n"),
            CONFIGURATION,
            NOTE,
            "nothing is configured",
            "run virt-cgroup reserve --cpus auto --memory auto --live --config",
        ),
        (
            lambda h: h.put(f"{managers.BOOTED}/x", ""),
            MANAGER,
            WARN,
            "systemd-machined or the system bus is missing",
            "install systemd-container",
        ),
        (
            lambda h: h.put(f"{CG}/cgroup.controllers", "cpu memory"),
            CONTROLLERS,
            FAIL,
            "cannot keep CPUs for the host: there is no cpuset controller",
            "mount or enable it",
        ),
        (
            lambda h: h.remove("/proc/mounts"),
            CONTROLLERS,
            FAIL,
            "no cgroup controllers are mounted",
            "mount cgroup2 on",
        ),
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
            each(
                lambda h: h.put(f"{CG}/vms/memory.max", "max"),
                lambda h: h.put(f"{CG}/vms/memory.current", "9" * 12),
            ),
            START_VM,
            FAIL,
            f"cannot limit {CG}/vms to ",
            "stop some of it",
        ),
        (
            lambda h: effective(h, "0-3"),
            FENCE,
            FAIL,
            f"{CG}/vms may use CPUs 0-3, including reserved CPUs 0",
            APPLY,
        ),
        (
            lambda h: effective(h, "1"),
            FENCE,
            WARN,
            f"{CG}/vms may use CPUs 1 only, and not 2-3",
            APPLY,
        ),
        (
            lambda h: effective(h, ""),
            FENCE,
            FAIL,
            f"{CG}/vms has no CPU limit; it should be 1-3",
            APPLY,
        ),
        (
            each(
                lambda h: effective(h, "1"), lambda h: h.put(f"{CG}/cpuset.cpus.effective", "0-1")
            ),
            FENCE,
            WARN,
            f"{CG}/vms may use CPUs 1 only, and not 2-3",
            "the cgroup above it has no more",
        ),
        (
            each(lambda h: effective(h, "1"), lambda h: partition(h, "2-3")),
            FENCE,
            WARN,
            f"{CG}/vms may use CPUs 1 only, and not 2-3: {CG}/mine has exclusive use of 2-3",
            f"take them back (echo member >{CG}/mine/cpuset.cpus.partition), or reserve them",
        ),
        (
            each(lambda h: effective(h, "0"), lambda h: partition(h, "1-3")),
            FENCE,
            FAIL,
            f"{CG}/vms may use CPUs 0, which are reserved, and not 1-3: "
            f"{CG}/mine has exclusive use of 1-3",
            f"take them back (echo member >{CG}/mine/cpuset.cpus.partition), or reserve them",
        ),
        (
            each(lambda h: effective(h, "0-3"), lambda h: partition(h, "2-3")),
            FENCE,
            FAIL,
            f"{CG}/vms may use CPUs 0-3, including reserved CPUs 0",
            APPLY,
        ),
        (
            each(lambda h: effective(h, "0-3"), no_vm),
            FENCE,
            NOTE,
            "including reserved CPUs 0",
            "the next VM that starts sets it, or virt-cgroup apply --parent",
        ),
        (
            lambda h: h.put(f"{CG}/vms/memory.max", "max"),
            FENCE,
            FAIL,
            f"{CG}/vms has no memory limit",
            APPLY,
        ),
        (
            lambda h: h.put(f"{CG}/vms/memory.max", "8000000000"),
            FENCE,
            FAIL,
            f"and should be {UNIFIED_LIMIT}",
            APPLY,
        ),
        (
            lambda h: h.put(f"{CG}/vms/memory.max", "4096"),
            FENCE,
            WARN,
            f"and could be {UNIFIED_LIMIT}",
            APPLY,
        ),
        # a CPU that has come back
        (
            each(lambda h: h.put(f"{CPU}/online", "0-4"), lambda h: h.put(f"{CPU}/present", "0-4")),
            FENCE,
            WARN,
            "1-3 only, and not 4",
            "the",
        ),
        (
            lambda h: pools(h, 1 << 20),
            MEMORY,
            NOTE,
            "hugepage pools hold 1 GiB, which leaves 6.3 GiB for VMs' other",
            "",
        ),
        (
            lambda h: pools(h, 7600000),
            MEMORY,
            WARN,
            "; running VMs may come to use 72 MiB, more than their limit of ",
            "make the pools smaller",
        ),
        (
            lambda h: h.put(
                "/run/libvirt/qemu/vm.xml",
                h.get("/run/libvirt/qemu/vm.xml").replace("</name>", f"</name>{TEN_GB}"),
            ),
            MEMORY,
            WARN,
            "running VMs may come to use 9.6 GiB, more than their limit of 7.3 GiB; the kernel",
            "stop or shrink VMs",
        ),
        (
            each(
                lambda h: h.put(SHARED, f"{LIMITS_FORMAT}\nlimit pressure - /vms\n"),
                lambda h: h.put(f"{CG}/vms/memory.high", "536870912"),
            ),
            UNWANTED,
            WARN,
            "/vms still has MemoryHigh=512 MiB: virt-cgroup reserve --wait is at work, or was",
            APPLY,
        ),
        (
            each(
                lambda h: h.put(SHARED, f"{LIMITS_FORMAT}\nlimit cpus - /old\n"),
                lambda h: h.make_directory(f"{CG}/old"),
                lambda h: h.put(f"{CG}/old/cpuset.cpus", "1"),
            ),
            UNWANTED,
            WARN,
            "/old still has AllowedCPUs=1",
            APPLY,
        ),
        (
            each(
                lambda h: h.put(SHARED, f"{LIMITS_FORMAT}\nlimit cpu-weight - /old\n"),
                lambda h: h.make_directory(f"{CG}/old"),
                lambda h: h.put(f"{CG}/old/cpu.weight", "50"),
            ),
            UNWANTED,
            WARN,
            "/old still has CPUWeight=50",
            APPLY,
        ),
        (
            lambda h: h.put(f"{CPU}/isolated", "0"),
            CPUS,
            WARN,
            "CPUs 0 of reserved_host_cpus are isolated",
            "run virt-cgroup reserve --cpus 1 --live --config, to reserve others (1-3)",
        ),
        (
            lambda h: h.put(f"{CPU}/isolated", "3"),
            CPUS,
            NOTE,
            "CPUs 3 are isolated (isolcpus): VMs use them only where",
            "",
        ),
        (
            each(
                lambda h: h.put(f"{CPU}/isolated", "2-3"),
                lambda h: h.configure(CONF + "vcpu_cpus = '1-3'"),
            ),
            CPUS,
            WARN,
            "CPUs 2-3 of vcpu_cpus are isolated (isolcpus): "
            "the kernel does not spread threads over them",
            "pin each thread",
        ),
        (
            each(
                lambda h: h.put(f"{CPU}/present", "0-4"),
                lambda h: h.configure(CONF.replace("'0'", "'0,4'")),
            ),
            CPUS,
            WARN,
            "CPUs 4 of reserved_host_cpus are offline",
            "run virt-cgroup reserve --cpus 2 --live --config, or set them online",
        ),
        (
            no_hook,
            THE_HOOK,
            FAIL,
            f"neither {HOOK} nor {HOOK_D} is this package's hook",
            "run virt-cgroup hook install",
        ),
        (
            lambda h: install(h, HOOK, FOREIGN),
            THE_HOOK,
            FAIL,
            f"neither {HOOK} nor",
            "run virt-cgroup hook install",
        ),
        *(
            (
                each(breaks, built_for(path)),
                THE_HOOK,
                FAIL,
                f"the hook is {HOOK}{more}, and libvirt looks in {path}/hooks/qemu and ",
                "run virt-cgroup hook install",
            )
            for path in ("/var/lib/libvirt", "/usr/local/etc/libvirt")
            for breaks, more in ((each(), ""), (both, f" and {HOOK_D}"))
        ),
        (
            lambda h: install(h, "/var/lib/libvirt/hooks/qemu"),
            THE_HOOK,
            WARN,
            "the hook is /var/lib/libvirt/hooks/qemu, and libvirt looks in /etc/libvirt/hooks/qemu",
            "run virt-cgroup hook install",
        ),
        (both, THE_HOOK, WARN, f"{HOOK_D} is the same hook again", f"rm {HOOK_D}"),
        (
            lambda h: install(h, mode=0o644),
            EXECUTABLE,
            FAIL,
            f"{HOOK} is not executable, so libvirt ignores it",
            f"chmod 755 {HOOK}",
        ),
        (
            lambda h: install(h, changed=STARTED + 1),
            SEEN,
            WARN,
            f"{HOOK} was changed after libvirtd (process {DAEMON}) last looked for hooks",
            "run virt-cgroup hook reload",
        ),
        (
            each(no_hook, lambda h: install(h, HOOK_D, changed=STARTED + 1)),
            SEEN,
            WARN,
            f"{HOOK_D} was changed after",
            "run virt-cgroup hook reload",
        ),
        (
            each(
                lambda h: install(h, changed=STARTED + 1),
                lambda h: start_daemon(h, "virtqemud"),
                lambda h: h.put(f"{managers.BOOTED}/x", ""),
            ),
            SEEN,
            WARN,
            f"{HOOK} was changed after virtqemud",
            "run virt-cgroup hook reload",
        ),
        (
            lambda h: h.remove("/run/libvirtd.pid"),
            SEEN,
            NOTE,
            "neither libvirtd nor virtqemud is running",
            "it looks for hooks when",
        ),
        (
            lambda h: start_daemon(h, "bash"),
            SEEN,
            NOTE,
            "neither libvirtd nor virtqemud is running",
            "it looks for hooks when",
        ),
        (
            directory_mode,
            READABLE,
            WARN,
            f"daemons of other users cannot read {DIRECTORY}",
            f"chmod 755 {DIRECTORY}",
        ),
        (
            lambda h: h.put(DIRECTORY, ""),
            READABLE,
            FAIL,
            f"{DIRECTORY} is not a directory",
            f"rm {DIRECTORY}",
        ),
        (
            lambda h: install(h, f"{DIRECTORY}/10-x", FOREIGN),
            OTHERS,
            NOTE,
            f"{DIRECTORY}/10-x belongs to another program",
            "",
        ),
        (
            each(both, lambda h: install(h, HOOK, FOREIGN)),
            OTHERS,
            NOTE,
            f"{HOOK} belongs to another program",
            "",
        ),
        (
            lambda h: install(h, f"{HOOK_D}.dpkg-dist"),
            LEFT,
            WARN,
            f"libvirt runs {HOOK_D}.dpkg-dist for every VM",
            "rm ",
        ),
        (
            lambda h: install(h, f"{HOOK_D}.rpmnew", mode=0o644),
            LEFT,
            NOTE,
            f"{HOOK_D}.rpmnew is left over",
            "rm ",
        ),
        (
            selinux,
            SELINUX,
            WARN,
            "SELinux is enforcing and may keep the hook",
            "run setsebool -P virt_hooks_unconfined on",
        ),
        (
            lambda h: selinux(h, boolean="0 1"),
            SELINUX,
            WARN,
            "SELinux is enforcing and may keep the hook",
            "run setsebool",
        ),
        (
            lambda h: selinux(h, boolean=None),
            SELINUX,
            NOTE,
            "its policy has no boolean",
            "see ausearch",
        ),
        (
            each(apparmor, link),
            APPARMOR,
            FAIL,
            f"AppArmor does not let libvirt run /usr/lib/hooks/qemu, to which {HOOK} links",
            f"rm {HOOK}, then run virt-cgroup hook install",
        ),
        (
            lambda h: apparmor(h, None),
            APPARMOR,
            NOTE,
            "AppArmor is enabled, but /sys/kernel/",
            "mount securityfs",
        ),
        (process, OUTSIDE, WARN, IN_SLICE, AS_SYSTEM),
        (
            lambda h: process(h, "/vmsx"),
            OUTSIDE,
            WARN,
            "is in /vmsx, outside the VM parent",
            AS_SYSTEM,
        ),
        (
            lambda h: process(h, comm="qemu:web"),
            OUTSIDE,
            WARN,
            "(qemu:web) of user 1000",
            AS_SYSTEM,
        ),
        (
            lambda h: allow(h, "0-3"),
            CONFORM,
            FAIL,
            f"VM vm: thread {PID + 10} (vcpu0): it may use CPUs 0-3, not only 1-3",
            "run virt-cgroup apply --all",
        ),
        (
            lambda h: h.place(PID, PID, {"": "/elsewhere"}),
            CONFORM,
            FAIL,
            "VM vm: it is in /elsewhere, where reserved_host_mem does not limit it, and 1 more",
            "run virt-cgroup apply --all",
        ),
        (
            lambda h: h.place(PID, PID + 10, {"": "/vms/vm/emulator"}),
            CONFORM,
            WARN,
            f"VM vm: thread {PID + 10} (vcpu0): it is in cgroup /vms/vm/emulator, not in /vms/vm/",
            "run virt-cgroup apply --all",
        ),
    ],
)
def test_what_is_wrong_is_told(
    host: Kernel, broken: Break, title: str, result: str, message: str, remedy: str
) -> None:
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
        # libvirt remembers that there is a hook, not which: another's, there before, has ours run
        # too
        (
            SEEN,
            each(
                lambda h: install(h, HOOK, FOREIGN),
                lambda h: install(h, HOOK_D, changed=STARTED + 1),
            ),
        ),
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
        # libvirt is just starting it
        (OUTSIDE, lambda h: process(h, "/machine/qemu-9-new.libvirt-qemu/emulator")),
        (OUTSIDE, lambda h: process(h, "/../other-container/x")),
        (OUTSIDE, lambda h: process(h, comm="qemu-ga")),
        # it has ended meanwhile
        (OUTSIDE, lambda h: h.put("/proc/4300000/comm", "qemu-system-x86")),
        (
            CPUS,
            each(
                lambda h: h.put(f"{CPU}/isolated", "3"),
                lambda h: h.configure(CONF + "vcpu_cpus = '3'"),
            ),
        ),
        (CONFORM, lambda h: allow(h, "1-2")),
        # all CPUs are no limit
        (
            UNWANTED,
            each(
                lambda h: h.put(SHARED, f"{LIMITS_FORMAT}\nlimit cpus - /old\n"),
                lambda h: h.make_directory(f"{CG}/old"),
                lambda h: h.put(f"{CG}/old/cpuset.cpus", h.get(f"{CPU}/present")),
            ),
        ),
    ],
)
def test_what_is_not_wrong(host: Kernel, title: str, harmless: Break) -> None:
    harmless(host)
    assert found(host)[title] == [(PASS, "", "")]


@pytest.mark.parametrize(
    "name", [*(f"qemu{suffix}" for suffix in LEFTOVERS), ".qemu.swp", "#qemu#", ".10-x"]
)
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
    assert problems[-1] == (WARN, "2 more QEMU processes are outside the VM parent", "")


def test_a_process_where_each_vm_carries_the_fence(host: Kernel) -> None:
    host.configure("reserved_host_cpus = '0'\ncgroup_layout = 'uuid'")
    process(host)
    assert not_passed(host)[OUTSIDE] == [(WARN, IN_SLICE, AS_SYSTEM)]


STOP = "stop or shrink VMs, or reserve less memory"
SWITCH = "memory_admission = 1"


@pytest.mark.parametrize(
    ("conf", "remedy"),
    [
        (CONF, f"{STOP}; {SWITCH} refuses further VMs that do not fit"),
        (f"{CONF}{SWITCH}\n", STOP),  # for those that started without it
        (CONF.replace("512 MiB", "16 MiB"), None),
    ],
)
def test_what_helps_where_vms_may_come_to_use_more(
    host: Kernel, conf: str, remedy: str | None
) -> None:
    status = "/run/libvirt/qemu/vm.xml"
    gib = "<memory unit='MiB'>7700</memory>"
    host.put(status, host.get(status).replace("</name>", f"</name>{gib}"))
    host.configure(conf)
    remedies = [told for result, _, told in found(host)[MEMORY] if result == WARN]
    assert remedies == ([] if remedy is None else [remedy])


# a daemon that virt-cgroup has sent SIGHUP


@pytest.mark.parametrize(
    ("pid", "at", "result"), [(DAEMON, 2, PASS), (DAEMON, 0, WARN), (DAEMON + 1, 2, WARN)]
)
def test_a_reload_by_virt_cgroup_counts(tmp_path: Path, pid: int, at: int, result: str) -> None:
    host = well(tmp_path)
    install(host, changed=STARTED + 1)
    host.put(RELOADED, f"{pid}\n")
    os.utime(host.root + RELOADED, (STARTED + at, STARTED + at))
    assert found(host)[SEEN][0][0] == result


def test_a_command_in_a_remedy_is_one_for_a_shell(tmp_path: Path) -> None:
    host = well(tmp_path)
    install(host, f"{DIRECTORY}/a b.rpmsave", mode=0o644)
    assert not_passed(host)[LEFT][0][2] == f"rm '{DIRECTORY}/a b.rpmsave'"
