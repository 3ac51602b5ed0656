"""`virt-cgroup reserve` as tests use it, on any host: what is run, what the kernel says, and steps
that fail on purpose.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.host import Host
from libvirt_cgroup_hooks.reserve import Change

from .guests import disk
from .harness import (
    CONFIG,
    LAST_CPU,
    LIVE,
    STATE,
    Vm,
    all_cgroups,
    cgroup_directory,
    domain_xml,
    qemu_processes,
    start_vm,
    threads,
    virsh,
)
from .pace import patient, wait_for

if TYPE_CHECKING:
    from libvirt_cgroup_hooks.virconf import Value

    Wanted = dict[str, Value | None]

MIB = 1 << 20
COMMAND = ["/usr/bin/python3", "-I", "-m", "libvirt_cgroup_hooks"]
SHOWN_FILES = (
    *("cpuset.cpus", "cpuset.mems", "memory.limit_in_bytes", "memory.max", "memory.high"),
    *("memory.memsw.limit_in_bytes", "memory.swap.max", "memory.low", "memory.min"),
    *("cpu.shares", "cpu.weight", "cgroup.subtree_control", "cgroup.type"),
)
WITHOUT_LAST = "0" if LAST_CPU == "1" else f"0-{int(LAST_CPU) - 1}"
RESERVE_LAST = f"{LAST_CPU}-{LAST_CPU}"
OURS = (CONFIG, LIVE, STATE / "shared", STATE / "admitted")


def virt_cgroup(
    *arguments: str, check: bool = True, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        check=False,
        capture_output=True,
        text=True,
        timeout=patient(),
    )
    assert "Traceback" not in result.stderr
    assert not check or result.returncode == 0, (
        f"virt-cgroup {' '.join(arguments)}: {result.stderr}"
    )
    return result


def reserve(*arguments: str) -> dict[str, Any]:
    """What is reserved after the change."""
    found: dict[str, Any] = json.loads(virt_cgroup("reserve", "--json", *arguments).stdout)
    return found


def refused(*arguments: str) -> str:
    """The message of a change that is not made; nothing is on standard output, and nothing has
    changed.
    """
    before = everything()
    result = virt_cgroup("reserve", *arguments, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert_same(everything(), before)
    return result.stderr


def domains() -> dict[str, dict[str, Any]]:
    found = json.loads(virt_cgroup("status", "--json").stdout)["domains"]
    return {vm["name"]: vm for vm in found}


def allowed(name: str) -> set[str]:
    """The different sets of CPUs that the VM's threads may use."""
    return {row["cpus"] for row in domains()[name]["threads"]}


def assert_conform(*names: str) -> None:
    """The VMs that run are NAMES, each as configured, and so `apply` has nothing to do."""
    found = domains()
    assert sorted(found) == sorted(names)
    problems = [f"{name}: {text}" for name, vm in found.items() for text in vm["problems"]]
    assert not problems, "\n".join(problems)
    applied = json.loads(virt_cgroup("apply", "--all", "--json").stdout)
    assert set(applied) <= {"parent", *names}  # those for which nothing is configured are left out
    assert not any(applied.values()), applied


# memory


def total_memory() -> int:
    """Bytes that there are for VMs and the host, without pools of hugepages."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, pools = (int(lines.get(key, "0").split()[0]) for key in ("MemTotal", "Hugetlb"))
    return (total - pools) * 1024


def leaving(limit: int) -> str:
    """What to reserve so that the VMs have LIMIT bytes (a multiple of a page)."""
    return f"{(total_memory() - limit) // 1024} KiB"


def parent_directory() -> Path:
    """The VM parent, in the hierarchy that counts memory."""
    return cgroup_directory("memory", reserve()["parent"])


def in_use(directory: Path) -> int:
    name = "memory.current" if (directory / "memory.current").exists() else "memory.usage_in_bytes"
    return int((directory / name).read_text())


def limit_of(directory: Path) -> str:
    name = "memory.max" if (directory / "memory.max").exists() else "memory.limit_in_bytes"
    return (directory / name).read_text().strip()


def oom_kills() -> int:
    """Of all cgroups of this host; v1 does not add them up, and v2 counts them at each level."""
    counts = []
    for group in all_cgroups():
        for name in ("memory.events", "memory.oom_control"):
            if (group / name).exists():
                lines = dict(line.split() for line in (group / name).read_text().splitlines())
                counts.append(int(lines.get("oom_kill", "0")))
    return sum(counts)


@contextmanager
def nobody_is_killed(*vms: Vm) -> Iterator[None]:
    before = oom_kills()
    yield
    assert oom_kills() == before
    for vm in vms:
        assert vm.alive()
        assert virsh("domstate", vm.name).stdout.strip() == "running"


def busy_time(vm: Vm) -> int:
    """Ticks that the VM has used in user mode."""
    return int(Path(f"/proc/{vm.pid}/stat").read_text().rpartition(")")[2].split()[11])


def start_guest(name: str, image: Path, sector: bytes, mib: int = 1, **options: Any) -> Vm:
    """A VM that boots SECTOR. It begins only once it has its place, so that all it uses is charged
    there.
    """
    xml = domain_xml(
        name, memory_mib=options.pop("memory_mib", 128), devices=disk(image, sector, mib), **options
    )
    vm = start_vm(name, paused=True, xml=xml)
    virsh("resume", name)
    return vm


def wait_for_use(directory: Path, mib: int) -> int:
    """Waits until DIRECTORY uses MIB MiB or more, and has used no more for a second; bytes.

    A second of this host: on a busy one, a guest may not get to run for a moment.
    """
    most = 0
    since = time.monotonic()

    def settled() -> bool:
        nonlocal most, since
        now = in_use(directory)
        if now - most >= MIB // 8:
            most, since = now, time.monotonic()
        return now >= mib * MIB and time.monotonic() - since >= patient(1)

    wait_for(settled, f"the VMs to use {mib} MiB")
    return in_use(directory)


# all that a change may touch


def everything() -> dict[str, str]:
    """Limits and thread groups of every cgroup, the place and CPUs of every thread of VMs, and our
    own files. A service of systemd's may end at any time, and its cgroup with it.
    """
    found = {}
    for group in sorted(all_cgroups()):
        if ".service" in str(group):
            continue
        found[str(group)] = "a cgroup"
        for name in SHOWN_FILES:
            if (group / name).exists():
                found[f"{group}/{name}"] = (group / name).read_text()
    for path in (*OURS, *(STATE / "vms").glob("*")):
        found[str(path)] = path.read_text() if path.exists() else "absent"
    for pid in qemu_processes():
        for tid, thread in threads(pid).items():
            if not thread.comm.startswith("worker"):  # they come and go
                found[f"thread {tid}"] = f"{thread.groups} {thread.cpus_allowed}"
    return found


def assert_same(after: dict[str, str], before: dict[str, str]) -> None:
    keys = sorted(after.keys() | before.keys())
    changed = [
        f"{key}: {before.get(key)!r}, now {after.get(key)!r}"
        for key in keys
        if before.get(key) != after.get(key)
    ]
    assert not changed, "\n".join(changed)


class FailingHost(Host):
    """This host, where the effect number AT (from 1) fails, before it is made or just after; all
    others work.
    """

    def __init__(self, at: int, half_made: bool, failure: BaseException) -> None:
        super().__init__()
        self.at = at
        self.half_made = half_made
        self.failure = failure
        self.count = 0

    def _effect(self, make: Callable[..., Any], *arguments: Any) -> Any:
        self.count += 1
        fails = self.count == self.at
        result = None if fails and not self.half_made else make(*arguments)
        if fails:
            raise self.failure
        return result

    def write(self, *arguments: Any) -> None:
        self._effect(super().write, *arguments)

    def replace(self, *arguments: Any) -> None:
        self._effect(super().replace, *arguments)

    def remove(self, *arguments: Any) -> None:
        self._effect(super().remove, *arguments)

    def make_directory(self, *arguments: Any) -> None:
        self._effect(super().make_directory, *arguments)

    def remove_directory(self, *arguments: Any) -> None:
        self._effect(super().remove_directory, *arguments)

    def touch(self, *arguments: Any) -> None:
        self._effect(super().touch, *arguments)

    def set_affinity(self, *arguments: Any) -> None:
        self._effect(super().set_affinity, *arguments)

    def run(self, *arguments: Any) -> str:
        result: str = self._effect(super().run, *arguments)
        return result


def make_change(host: Host, wanted: Wanted, force: bool = False, wait: float = 0) -> None:
    """As `reserve --live --config` does; if it fails, each of its steps could be undone."""
    attempt = Change(host, wanted, live=True, config=True, force=force)
    try:
        attempt.run(wait)
    finally:
        assert not [text for text in attempt.warnings if "undo" in text]


FAILURES: dict[str, Callable[[], BaseException]] = {
    "error": lambda: Error("it fails"),
    "ctrl-c": KeyboardInterrupt,
}


def fail_at_each_step(
    make: Callable[[Host], None], kind: str, half_made: bool, again: Callable[[], None]
) -> int:
    """MAKE with a failure at each step in turn, until there is none left; all is as before each
    time. Their number.

    AGAIN is called before each attempt.
    """
    at = 0
    while True:
        at += 1
        again()
        before = everything()
        host = FailingHost(at, half_made, FAILURES[kind]())
        try:
            make(host)
        except BaseException as error:
            if error is not host.failure:
                raise
            assert_same(everything(), before)
        if host.count < at:
            return at - 1


def fail_at_each_step_between(first: Wanted, second: Wanted, kind: str, half_made: bool) -> int:
    """The same for the change to SECOND on a host that has FIRST."""

    def make(host: Host) -> None:
        make_change(host, second, force=True)

    def again() -> None:
        make_change(Host(), first, force=True)

    return fail_at_each_step(make, kind, half_made, again)


def interrupted(arguments: list[str], number: int) -> subprocess.CompletedProcess[str]:
    """virt-cgroup reserve, which gets signal NUMBER once it has told that it waits."""
    command = [*COMMAND, "reserve", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        first = process.stderr.readline()
        for _ in range(3):  # as somebody who cannot wait
            process.send_signal(number)
            time.sleep(0.02)
        out, err = process.communicate(timeout=patient())
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(command, process.returncode, out, first + err)
