"""What the hook does on a recorded host, by the reservation that most tests have."""

from __future__ import annotations

from libvirt_cgroup_hooks import operations
from libvirt_cgroup_hooks.config import Config
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.kernel.devices import CarryDevices
from libvirt_cgroup_hooks.plan import Plan

from .hosts import UUID, Kernel, domain, run

CG = "/sys/fs/cgroup"
MIB = 2**20
CONF = """
reserved_host_cpus = "0"
reserved_host_mem = "512 MiB"
cgroup_layout = "/vms/$DRIVER-$NAME"
"""
NAMED = "reserved_host_cpus = '0'\nreserved_host_mem = '512 MiB'\ncgroup_layout = '/vms/$NAME'\n"
CPUS = "reserved_host_cpus = '0'\n"
SMALL_LIMIT = 2040212 * 1024 - 512 * MIB
UNIFIED_LIMIT = 8135396 * 1024 - 512 * MIB
RECORD = f"/run/libvirt-cgroup-hooks/vms/{UUID}"
OTHER = "0" * 8 + UUID[8:]
INNER = (
    "<vcpu>2</vcpu><iothreads>1</iothreads><memory unit='MiB'>128</memory>"
    "<cputune><shares>512</shares><vcpupin vcpu='1' cpuset='1'/></cputune>"
)


def vm(name: str = "vm", inner: str = INNER, number: int | None = None, uuid: str = UUID) -> Domain:
    return domain(name, inner, id=number, uuid=uuid)


def plan(host: Kernel, operation: str, subject: Domain) -> Plan:
    """As the hook makes it, but for the device program, which needs a real kernel."""
    asks = operations.asks_configuration(host, operation, subject)
    config = host.config() if asks else Config({})
    made = operations.plan(host, config, operation, subject)
    made.steps = [step for step in made.steps if not isinstance(step, CarryDevices)]
    return made


def lines(host: Kernel, operation: str, subject: Domain) -> list[str]:
    return str(plan(host, operation, subject)).splitlines()


def do(host: Kernel, operation: str, subject: Domain) -> list[str]:
    return run(host, plan(host, operation, subject))


def started(host: Kernel, subject: Domain) -> list[str]:
    """What `start` has done, after `prepare`."""
    do(host, "prepare", subject)
    return do(host, "start", subject)
