"""VMs of which one has CPUs for itself, on any host: how they are described, and where their
threads have been.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from libvirt_cgroup_hooks.domainxml import SETTINGS_URI

from .guests import SPIN, firmware
from .harness import Vm, cgroup_directory, domain_xml
from .pace import patient

SAMPLE = 0.002  # seconds between two looks at where threads are
PROCESSOR = 36  # of the fields after the name in /proc/PID/stat: where the thread ran last


def settings(**values: str) -> str:
    """The metadata of a VM with these settings of its own."""
    elements = "".join(f"<s:{key}>{value}</s:{key}>" for key, value in values.items())
    return f"<metadata><s:settings xmlns:s='{SETTINGS_URI}'>{elements}</s:settings></metadata>"


def spinning(text: str) -> str:
    """The XML TEXT of a VM whose first vCPU never sleeps."""
    return text.replace(firmware(), firmware(SPIN))


def dedicated(name: str, *cpus: str, how: str = "threads", **options: object) -> str:
    """The XML of a VM that has CPUS for itself, one for each vCPU."""
    pins = dict(enumerate(cpus))
    extra = settings(dedicated=how)
    return domain_xml(name, vcpus=len(cpus), vcpupin=pins, extra=extra, **options)  # type: ignore[arg-type]


def places(vms: Iterable[Vm], seconds: float) -> dict[str, set[int]]:
    """By VM, the CPUs on which threads of it were found that had run since the last look, again and
    again for SECONDS. A thread that sleeps tells where it ran before, and does not count.
    """
    found: dict[str, set[int]] = {vm.name: set() for vm in vms}
    used: dict[Path, str] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for vm in vms:
            for task in Path(f"/proc/{vm.pid}/task").iterdir():
                try:
                    fields = (task / "stat").read_text().rpartition(")")[2].split()
                    now = (task / "schedstat").read_text().split()[0]  # nanoseconds
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if used.setdefault(task, now) != now:
                    found[vm.name].add(int(fields[PROCESSOR]))
                used[task] = now
        time.sleep(SAMPLE)
    return found


def usage(vm: Vm) -> list[int] | None:
    """Nanoseconds that the VM has used of each CPU; None where the kernel does not count so
    (cgroup v2), or libvirt has left the VM in the cgroup of others.
    """
    group = vm.threads()[vm.pid].group("cpuacct").removesuffix("/emulator")
    file = cgroup_directory("cpuacct", group) / "cpuacct.usage_percpu"
    if vm.name not in group or not file.exists():
        return None
    return [int(number) for number in file.read_text().split()]


def groups(vm: Vm) -> dict[str, str]:
    """By thread group, the CPUs that its threads may run on."""
    vcpus = {tid: f"vcpu{number}" for number, tid in vm.vcpus.items()}
    found: dict[str, str] = {}
    for tid, thread in vm.threads().items():
        group = "emulator"
        if thread.comm.startswith("IO iothread"):
            group = thread.comm.removeprefix("IO ")
        found[vcpus.get(tid, group)] = thread.cpus_allowed
    return found


def while_busy() -> float:
    """Seconds for which busy loops are watched."""
    return patient(10)
