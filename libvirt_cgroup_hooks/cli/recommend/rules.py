# SPDX-License-Identifier: LGPL-2.1-or-later
"""What others would keep for a host of this size: known rules, each with its formula and source."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import MIB
from ...memory import GIB

# GKE's ranges: up to how much, and the share of that which is kept
MEMORY_RANGES = ((4, 0.25), (8, 0.20), (16, 0.10), (128, 0.06), (None, 0.02))  # GiB
CPU_RANGES = ((1, 0.06), (2, 0.01), (4, 0.005), (None, 0.0025))  # CPUs
PODS = 110  # the kubelet's max-pods, if nothing else is said
ADMIN_GUIDE = "https://pve.proxmox.com/pve-docs/pve-admin-guide.html"
GKE = "https://cloud.google.com/kubernetes-engine/docs/concepts/plan-node-sizes"
EKS = (
    "https://github.com/awslabs/amazon-eks-ami/blob/"
    "0158a1ea2c5de86e99048de507eaa75f9e181110/files/bootstrap.sh"
)
NOVA = "https://docs.openstack.org/nova/latest/configuration/config.html"
OPENSHIFT = (
    "https://github.com/openshift/openshift-docs/blob/main/"
    "modules/virt-cluster-resource-requirements.adoc"
)


@dataclass(frozen=True)
class Rule:
    """CPUs and bytes that are kept; None where the rule says nothing of them. `formula` is in
    lines.
    """

    name: str
    cpus: float | None
    memory: int | None
    formula: tuple[str, ...]
    source: str


def rules(cpus: int, memory: int, zfs: bool) -> list[Rule]:
    """For a host with CPUS and MEMORY bytes, and with ZFS or not."""
    cpu = _of_ranges(cpus, CPU_RANGES)
    found = [
        Rule(
            "GKE node",
            cpu,
            _gke_memory(memory),
            (
                "6 % of a CPU, 1 % of the 2nd, 0.5 % of 3 and 4,",
                "0.25 % of each other",
                "25 % to 4 GiB, 20 % to 8, 10 % to 16, 6 % to 128,",
                "2 % above, and 100 MiB",
            ),
            f"{GKE}#memory_and_cpu_reservations",
        ),
        Rule(
            "EKS node",
            cpu,
            (255 + 11 * PODS) * MIB,
            (f"255 MiB, 11 MiB for each of {PODS} pods; CPUs as GKE",),
            EKS,
        ),
        Rule(
            "OpenStack",
            0,
            512 * MIB,
            ("nova: reserved_host_memory_mb, reserved_host_cpus",),
            NOVA,
        ),
        Rule(
            "KubeVirt node",
            2,
            360 * MIB,
            ("OpenShift Virtualization, besides the kubelet's",),
            OPENSHIFT,
        ),
        Rule(
            "Proxmox VE",
            None,
            2 * GIB,
            ("2 GB for the system and its services",),
            f"{ADMIN_GUIDE}#install_recommended_requirements",
        ),
    ]
    if zfs:
        found.append(
            Rule(
                "Proxmox VE, ZFS",
                None,
                min(memory // 10, 16 * GIB),
                ("besides: 10 % of memory, at most 16 GiB, for the ARC",),
                f"{ADMIN_GUIDE}#sysadmin_zfs_limit_memory_usage",
            )
        )
    return found


def kubevirt_overhead(memory: int, vcpus: int, graphics: int) -> int:
    """Bytes that KubeVirt adds for a VM with MEMORY bytes (source: OPENSHIFT)."""
    return memory // 500 + (218 + 8 * vcpus + 16 * graphics) * MIB


def _gke_memory(memory: int) -> int:
    """With the 100 MiB below which the kubelet evicts pods."""
    if memory < GIB:
        return (255 + 100) * MIB
    return int(_of_ranges(memory / GIB, MEMORY_RANGES) * GIB) + 100 * MIB


def _of_ranges(amount: float, ranges: tuple[tuple[int | None, float], ...]) -> float:
    kept, start = 0.0, 0.0
    for end, share in ranges:
        reached = amount if end is None else min(amount, end)
        kept += max(0.0, reached - start) * share
        start = reached
    return kept
