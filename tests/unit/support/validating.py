"""Hosts for `virt-cgroup validate`, where all is well until a test breaks one thing, and what it
then finds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from libvirt_cgroup_hooks.cli.checks import TABLE, results
from libvirt_cgroup_hooks.cli.checks.codes import PASS
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.cli.hookfile import HOOK

from .hosts import Kernel, domain
from .operations import CG, NAMED, do

TEXT = (Path(__file__).parents[3] / "hooks/qemu").read_text(encoding="utf-8")
RUNNING = "<vcpu>1</vcpu>"
DAEMON = 4000000
BOOT, START = 1_000_000, 100  # seconds: of the host, and of the daemon after it
STARTED = BOOT + START
TITLES = {check.find.__name__: check.title for check in TABLE}
Break = Callable[[Kernel], object]
Problems = dict[str, list[tuple[str, str, str]]]


def install(
    host: Kernel,
    path: str = HOOK,
    text: str = TEXT,
    mode: int = 0o755,
    changed: float = STARTED - 50,
) -> None:
    host.put(path, text)
    os.chmod(host.root + path, mode)
    os.utime(host.root + path, (changed, changed))


def start_daemon(
    host: Kernel, comm: str = "libvirtd", pid: int = DAEMON, cgroup: str = "/"
) -> None:
    keys = [hierarchy.key for hierarchy in host.hierarchies]
    host.put("/run/libvirtd.pid", str(pid))
    host.put("/proc/stat", f"cpu  1 2 3\nbtime {BOOT}")
    host.put(f"/proc/{pid}/comm", comm)
    host.put(
        f"/proc/{pid}/cgroup",
        "\n".join(f"{number}:{key}:{cgroup}" for number, key in enumerate(keys)),
    )
    ticks = START * os.sysconf("SC_CLK_TCK")
    host.put(
        f"/proc/{pid}/stat",
        f"{pid} (a) b) " + " ".join(["S", *("0" for _ in range(18)), str(ticks), "0"]),
    )


def fenced(host: Kernel) -> None:
    """The hook has run for a VM, which is in its place."""
    vm = domain("vm", RUNNING)
    do(host, "prepare", vm)
    effective(host, "1-3")
    do(host, "started", host.start_vm(vm, RUNNING))


def effective(host: Kernel, cpus: str) -> None:
    if host.hierarchies[0].version == 2:
        host.put(f"{CG}/vms/cpuset.cpus.effective", cpus)


def partition(host: Kernel, cpus: str) -> None:
    """Somebody else has CPUS for itself alone."""
    host.put(f"{CG}/mine/cpuset.cpus.partition", "root")
    host.put(f"{CG}/mine/cpuset.cpus.exclusive.effective", cpus)


def well(root: Path, name: str = "v2", conf: str = NAMED) -> Kernel:
    host = Kernel(root, name, conf)
    install(host)
    start_daemon(host)
    fenced(host)
    return host


def found(host: Kernel) -> Problems:
    problems: Problems = {}
    for check, problem in results(Subject(host)):
        problems.setdefault(check.title, []).append(
            (problem.result, problem.message, problem.remedy)
        )
    return problems


def not_passed(host: Kernel) -> Problems:
    return {
        title: problems for title, problems in found(host).items() if problems != [(PASS, "", "")]
    }


def no_hook(host: Kernel) -> None:
    host.remove(HOOK)


def process(
    host: Kernel, place: str = "/user.slice", comm: str = "qemu-system-x86", pid: int = 4300000
) -> None:
    host.put(f"/proc/{pid}/comm", comm)
    host.put(f"/proc/{pid}/status", "Name:\tx\nUid:\t1000\t1000\t1000\t1000")
    host.put(f"/proc/{pid}/cgroup", f"0::{place}")
