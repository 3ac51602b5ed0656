# SPDX-License-Identifier: LGPL-2.1-or-later
"""All metrics. Alert rules and dashboards name them, so a name stays once it is released."""

from __future__ import annotations

from .exposition import Metric

PREFIX = "virt_cgroup_"


def _gauge(name: str, help_text: str) -> Metric:
    return Metric(PREFIX + name, "gauge", help_text)


def _counter(name: str, help_text: str) -> Metric:
    return Metric(PREFIX + name, "counter", help_text)


INFO = _gauge("info", "Version of libvirt-cgroup-hooks, and who owns the cgroups of VMs.")
CHANGED = _gauge(
    "configuration_last_change_timestamp_seconds",
    "When the configuration in force was last changed, in its file or by virt-cgroup reserve "
    "--live.",
)
RESERVED_CPUS = _gauge("reserved_cpus", "CPUs that are reserved for the host.")
RESERVED_MEMORY = _gauge("reserved_memory_bytes", "Memory that is reserved for the host.")
FENCE_CPUS = _gauge("fence_cpus", "CPUs that VMs are to have; absent without a reservation.")
FENCE_MEMORY = _gauge(
    "fence_memory_bytes",
    "Memory that all VMs together are to have at most; absent without a reservation.",
)
FENCE_SWAP = _gauge(
    "fence_swap_bytes",
    "Swap that all VMs together are to have at most; absent without vm_swap_max.",
)
VMS_CPUS = _gauge("vms_cpus", "CPUs that the kernel lets the VM parent use.")
VMS_MEMORY_LIMIT = _gauge(
    "vms_memory_limit_bytes", "Memory limit of the VM parent in the kernel; absent without one."
)
VMS_MEMORY_USED = _gauge(
    "vms_memory_used_bytes", "Memory that is charged to the VM parent, page cache included."
)
VMS_MEMORY_HEADROOM = _gauge(
    "vms_memory_headroom_bytes",
    "What the VM parent can still be charged below its limit; inactive page cache counts as free.",
)
VMS_SWAP_LIMIT = _gauge(
    "vms_swap_limit_bytes", "Swap limit of the VM parent in the kernel; absent without one."
)
VMS_SWAP_USED = _gauge("vms_swap_used_bytes", "Swap that is charged to the VM parent.")
ADMISSION = _gauge(
    "memory_admission_enabled", "Whether a VM whose memory does not fit is refused (1) or not (0)."
)
ADMITTED = _gauge(
    "memory_admitted_bytes",
    "Memory that running VMs were admitted with, QEMU's overhead included, hugepages not.",
)
RUNNING = _gauge("running_vms", "VMs that run.")
CONFORMING = _gauge("conforming_vms", "VMs that run as configured.")
NOT_CONFORMING = _gauge(
    "nonconforming_vms",
    "VMs that do not run as configured, by reason. A VM may have several reasons.",
)
VM_CONFORMS = _gauge("vm_conforms", "Whether the VM runs as configured (1) or not (0).")
VM_MEMORY = _gauge("vm_memory_used_bytes", "Memory that is charged to the VM's cgroup.")
VM_DEDICATED = _gauge("vm_dedicated_cpus", "CPUs that the VM has for itself alone (dedicated).")
WAITING = _counter(
    "pressure_waiting_seconds_total",
    "Time in which some task of the cgroup waited for the resource (PSI, some).",
)
STALLED = _counter(
    "pressure_stalled_seconds_total",
    "Time in which all tasks of the cgroup waited for the resource (PSI, full).",
)
LIMIT_WANTED = _gauge(
    "limit_wanted", "Whether a limit of this kind is wanted on some cgroup (1) or not (0)."
)
LIMIT_IN_EFFECT = _gauge(
    "limit_in_effect",
    "Whether a limit of this kind is wanted, and is in the kernel wherever it is wanted (1).",
)
UNWANTED = _gauge(
    "unwanted_limits", "Limits that are still in the kernel and are no longer wanted."
)
CONFINEMENT_WANTED = _gauge(
    "host_confinement_wanted", "Whether the host is to keep to its own CPUs now (1) or not (0)."
)
CONFINED = _gauge("host_confined", "Whether the host keeps to its own CPUs (1) or not (0).")
CONFINED_SINCE = _gauge(
    "host_confined_since_timestamp_seconds",
    "Since when the host keeps to its own CPUs; absent where it does not.",
)

METRICS = [value for value in list(globals().values()) if isinstance(value, Metric)]
