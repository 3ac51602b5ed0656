"""Whatever virt-cgroup validate finds beside a real libvirtd, its remedy is carried out as it is
printed, and helps.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.domainxml import SETTINGS_URI

from .dedicating import dedicated
from .harness import (
    ALL_CPUS,
    FENCED,
    HAS_V1,
    LAST_CPU,
    LAYOUT,
    VM_CPUS,
    Configure,
    Daemon,
    cgroup_directory,
    configure,
    domain_xml,
    running_vm,
    start_vm,
    virsh,
)
from .remedies import Case, assert_the_remedy_helps, runs, shell
from .reserving import leaving, virt_cgroup

pytestmark = pytest.mark.skipif(not HAS_V1, reason="tests/lab/test_remedies.py has cgroup v2")

HOOK = Path("/etc/libvirt/hooks/qemu")
DIRECTORY = HOOK.with_name("qemu.d")
ELSEWHERE = Path("/var/lib/libvirt/hooks/qemu")
PYTHON = "/usr/bin/python3"
ISOLATED = Path("/sys/devices/system/cpu/isolated")
LEFTOVER, RECIPE = DIRECTORY / "a b.rpmsave", DIRECTORY / "isolate"
STAND_IN = Path("/run/stand-in")
NOTHING = "#!/bin/sh\nexit 0\n"
NATIVE = FENCED.replace(LAYOUT, "")
MIB = 1 << 20
CPUS = cgroup_directory("cpuset", "/vms") / "cpuset.cpus"
HIERARCHY = cgroup_directory("memory")
MEMORY = HIERARCHY / "vms/memory.limit_in_bytes"
UNLIMIT = runs(f"echo -1 >{MEMORY}")
ISOLATES = f"""\
#!/bin/sh
if [ "$2" = started ]; then
    echo {ALL_CPUS} >{CPUS}
fi
"""
LINES = ISOLATES.splitlines(keepends=True)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    path.chmod(mode)


def without_vms(*faults: Callable[[], object]) -> Callable[[], object]:
    def fault() -> None:
        virsh("destroy", "web")
        for one in faults:
            one()

    return fault


def container(path: str) -> Callable[[], object]:
    """Something that is no VM is in the cgroup PATH."""

    def fault() -> None:
        group = cgroup_directory("memory", path)
        group.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(["sleep", "infinity"])
        (group / "cgroup.procs").write_text(str(process.pid))

    return fault


def end_container(path: str) -> Callable[[], object]:
    def by_hand() -> None:
        group = cgroup_directory("memory", path)
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
            os.waitpid(int(pid), 0)
        group.rmdir()

    return by_hand


def isolates(cpus: str) -> Callable[[], object]:
    """As isolcpus= does, for all who read the kernel's file here."""

    def fault() -> None:
        write(STAND_IN, f"{cpus}\n")
        shell(f"mount --bind {STAND_IN} {ISOLATED}")

    return fault


def one_escapes() -> None:
    (cgroup_directory("cpuset") / "tasks").write_text(str(running_vm("web").vcpus[0]))


def takes_a_pin() -> None:
    configure(FENCED)
    virt_cgroup("apply", "--all")


def sets(key: str, value: str) -> Callable[[], object]:
    """A setting of the VM's own, while it runs."""
    xml = f"<settings><{key}>{value}</{key}></settings>"
    options = ("--uri", SETTINGS_URI, "--key", "s", "--set", xml, "--live")
    return lambda: virsh("metadata", "web", *options)


CASES = [
    # the configuration
    Case(
        "configuration-invalid",
        lambda: configure(FENCED + 'reserved_cpus = "0"\n'),
        by_hand=lambda: configure(FENCED),
    ),
    Case(
        "configuration-doubtful",
        lambda: configure(FENCED + 'reserved_host_cpus = "0"\n'),
        by_hand=lambda: configure(FENCED),
    ),
    Case("nothing-configured", lambda: configure(""), NATIVE),
    Case(
        "controller-missing",
        runs(f"umount {HIERARCHY}"),
        by_hand=runs(f"mount -t cgroup -o memory none {HIERARCHY}"),
    ),
    Case(
        "start-refused",
        without_vms(container("/vms/other")),
        by_hand=end_container("/vms/other"),
    ),
    # the VM parent
    Case("parent-missing", without_vms()),
    Case("fence-open", runs(f"echo {ALL_CPUS} >{CPUS}"), name="cpus"),
    Case("fence-open", UNLIMIT, name="memory"),
    Case("fence-pending", without_vms(lambda: virt_cgroup("apply", "--parent"), UNLIMIT)),
    Case("fence-narrow", runs(f"echo 512M >{MEMORY}")),
    Case("limit-unwanted", lambda: configure(LAYOUT)),
    Case("others-limited", container("/vms/other"), by_hand=end_container("/vms/other")),
    Case(
        "others-limited",
        container("/machine/other"),
        NATIVE,
        by_hand=lambda: configure(FENCED),
        name="native",
    ),
    Case(
        "memory-overcommitted",
        lambda: start_vm("db", xml=domain_xml("db", memory_mib=1024)),
        f'{LAYOUT}reserved_host_mem = "{leaving(512 * MIB)}"\n',
        by_hand=lambda: virsh("destroy", "db"),
    ),
    # CPUs
    Case("reserved-isolated", isolates("0")),
    Case("vms-unpinned", isolates(VM_CPUS)),
    # the hook
    Case("hook-missing", runs(f"rm {HOOK}")),
    Case("hook-elsewhere", runs(f"install -D {HOOK} {ELSEWHERE}; rm {HOOK}")),
    Case("hook-left-elsewhere", runs(f"install -D {HOOK} {ELSEWHERE}")),
    Case("hook-twice", runs(f"install -D {HOOK} {DIRECTORY}/50-cgroup-hooks")),
    Case("hook-not-executable", runs(f"chmod 644 {HOOK}")),
    Case("hook-broken", runs(f"sed -i s,{PYTHON},/bin/false, {HOOK}")),
    Case("hook-not-seen", runs(f"touch {HOOK}")),
    Case("hooks-no-directory", runs(f"touch {DIRECTORY}")),
    Case("hooks-unreadable", runs(f"mkdir -m 700 {DIRECTORY}")),
    Case("hook-leftover-runs", lambda: write(LEFTOVER, NOTHING, 0o755)),
    Case("hook-leftover", lambda: write(LEFTOVER, NOTHING)),
    Case(
        "hook-recipe",
        lambda: write(RECIPE, ISOLATES, 0o755),
        by_hand=lambda: write(RECIPE, "".join([*LINES[:2], ":\n", *LINES[3:]]), 0o755),
    ),
    # VMs
    Case("vm-settings", sets("vcpu_cpus", "4-")),
    Case(
        "vm-pinned-to-reserved",
        takes_a_pin,
        LAYOUT,
        domain_xml("web", vcpupin={0: ALL_CPUS}),
    ),
    Case("vm-escaped", one_escapes),
    Case("vm-misplaced", lambda: configure(FENCED.replace("$DRIVER-", "other-"))),
    Case(
        "vm-not-dedicated",
        sets("dedicated", "no"),
        LAYOUT,
        dedicated("web", LAST_CPU),
    ),
]


@pytest.fixture(autouse=True)
def host_as_before(daemon: Daemon) -> Iterator[None]:
    text, changed = HOOK.read_text(), HOOK.stat().st_ctime
    yield
    shell(f"umount -q {ISOLATED}", check=False)
    shutil.rmtree(ELSEWHERE.parent, ignore_errors=True)
    shell(f"rm -rf {DIRECTORY}")
    if not HOOK.exists() or HOOK.stat().st_ctime != changed:
        write(HOOK, text, 0o755)
        time.sleep(0.05)  # the daemon's start is known in ticks of 10 ms
        daemon.restart()
    for path in ("/vms/other", "/machine/other"):
        if cgroup_directory("memory", path).exists():
            end_container(path)()


@pytest.mark.parametrize("case", CASES, ids=Case.__str__)
def test_the_remedy_helps(case: Case, configure: Configure, tmp_path: Path) -> None:
    configure(case.config or FENCED)
    vm = start_vm("web", xml=case.xml or None)
    assert_the_remedy_helps(case, vm, tmp_path)
