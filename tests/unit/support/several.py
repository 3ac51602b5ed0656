"""Several VMs on one recorded host, each with a process, a name and a UUID of its own."""

from __future__ import annotations

import itertools
import shutil

from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.domainxml import SETTINGS_URI
from libvirt_cgroup_hooks.managers.units import machine_name, scope_unit
from libvirt_cgroup_hooks.steps import RemoveCgroup

from .hosts import PID, UUID, Kernel, domain
from .machined import Machined
from .operations import do
from .reserving import SLICES, cpus


def settings(**values: str) -> str:
    """The metadata of a VM with these settings of its own."""
    elements = "".join(f"<s:{key}>{value}</s:{key}>" for key, value in values.items())
    return f"<metadata><s:settings xmlns:s='{SETTINGS_URI}'>{elements}</s:settings></metadata>"


def pinned(*vcpus: int | str, extra: str = "", iothreads: int = 1) -> str:
    """The XML of a VM with as many vCPUs, each pinned to what is given for it, and EXTRA pins."""
    pins = [f"<vcpupin vcpu='{n}' cpuset='{cpu}'/>" for n, cpu in enumerate(vcpus)]
    return (
        f"<vcpu>{len(vcpus)}</vcpu><iothreads>{iothreads}</iothreads>"
        f"<memory unit='MiB'>64</memory><cputune>{''.join(pins)}{extra}</cputune>"
    )


PLAIN = "<vcpu>1</vcpu><iothreads>1</iothreads><memory unit='MiB'>64</memory>"


class One:
    """The VM NAME with the id NUMBER, as libvirt brings it to the hook of HOST."""

    def __init__(
        self, host: Kernel, name: str, inner: str, number: int, layout: str = "native"
    ) -> None:
        self.host = host
        self.inner = inner
        self.layout = layout
        self.pid = PID + 1000 * number
        self.subject = domain(name, inner, id=number, uuid=f"{number:08d}{UUID[8:]}")

    def prepare(self) -> One:
        do(self.host, "prepare", self.subject)
        do(self.host, "start", self.subject)
        return self

    def qemu(self) -> Domain:
        """QEMU runs, and `started` has not come yet."""
        if isinstance(self.host, Machined):
            return self.host.starts(self.subject, SLICES[self.layout], self.inner, pid=self.pid)
        return self.host.start_vm(self.subject, self.inner, pid=self.pid)

    def start(self) -> One:
        self.prepare()
        self.qemu()
        do(self.host, "started", self.subject)
        return self

    def crash(self) -> None:
        """QEMU has gone, and nobody has told the hook."""
        self.host.end_vm(self.subject, libvirt=False, pid=self.pid)

    def clean(self) -> None:
        """libvirt and systemd have removed what was theirs."""
        if not isinstance(self.host, Machined):
            name = machine_name(self.subject.name, self.subject.id or 0)
            places = [f"/machine/{name}.libvirt-qemu"]
        else:
            unit = scope_unit(self.subject.name, self.subject.id or 0)
            places = [self.host.scopes.pop(unit)]
            kept = f"{self.host.root}/run/systemd/transient/{unit}.d"
            shutil.rmtree(kept, ignore_errors=True)
        for hierarchy, place in itertools.product(self.host.hierarchies, places):
            RemoveCgroup(hierarchy.directory(place)).run(self.host)

    def end(self) -> None:
        self.crash()
        do(self.host, "stopped", self.subject)
        self.clean()
        do(self.host, "release", self.subject)

    @property
    def emulator(self) -> str:
        return cpus(self.host, self.pid, self.pid)

    def vcpu(self, number: int = 0) -> str:
        return cpus(self.host, self.pid + 10 + number, self.pid)

    @property
    def iothread(self) -> str:
        return cpus(self.host, self.pid + 21, self.pid)

    @property
    def all(self) -> set[str]:
        return {self.emulator, self.vcpu(), self.iothread}
