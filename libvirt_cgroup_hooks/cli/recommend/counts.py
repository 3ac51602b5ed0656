# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel counts, as values: of a cgroup, and of the whole host at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Use:
    """What a cgroup, with all below it, has used. Memory in bytes: in all, at most, of it page
    cache that is not in active use, of the kernel's own, and of processes (anonymous and shared
    memory). CPU time and, by resource, the time in which a task waited in seconds.

    None: the kernel does not count it. `files`: where the memory was read.
    """

    memory: int = 0
    peak: int | None = None
    cache: int = 0
    kernel: int = 0
    processes: int = 0
    cpu: float | None = None
    waited: dict[str, float] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def without(self, inner: Use) -> Use:
        """Of what is not in INNER, a cgroup below. Nothing tells the peak of the rest."""
        return Use(
            max(0, self.memory - inner.memory),
            None,
            max(0, self.cache - inner.cache),
            max(0, self.kernel - inner.kernel),
            max(0, self.processes - inner.processes),
            None if self.cpu is None else max(0.0, self.cpu - (inner.cpu or 0)),
            files=self.files,
        )

    def joined(self, other: Use) -> Use:
        if Use() in (self, other):
            return other if self == Use() else self
        cpus = [one.cpu for one in (self, other) if one.cpu is not None]
        return Use(
            self.memory + other.memory,
            None,
            self.cache + other.cache,
            self.kernel + other.kernel,
            self.processes + other.processes,
            sum(cpus) if cpus else None,
        )


@dataclass(frozen=True)
class Sample:
    """At `uptime` seconds after boot. `units` are the cgroups at the top without the VMs in them,
    by name; `vms` is all VMs and the VM parent; `kernel` and `processes` as in `Use`, of all of
    them.
    """

    uptime: float
    units: dict[str, Use]
    vms: Use
    kernel: int
    processes: int
    counts_memory: bool
    meminfo: dict[str, int]
    arc: dict[str, int]
    arc_max: int
    busy: float
    waited: dict[str, float]
    interrupts: dict[int, int]
