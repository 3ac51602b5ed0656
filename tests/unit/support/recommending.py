"""Hosts whose kernel counts, for `virt-cgroup recommend`: the same work on cgroup v1 and v2."""

from __future__ import annotations

from pathlib import Path

from .hosts import Kernel
from .machined import Machined

MIB = 2**20
GIB = 2**30
CG = "/sys/fs/cgroup"
MEMINFO = {
    "MemTotal": 8 * 1024,
    "AnonPages": 2300,
    "Shmem": 14,
    "Slab": 150,
    "KernelStack": 10,
    "PageTables": 20,
    "VmallocUsed": 30,
    "Percpu": 8,
}  # MiB
UPTIME = 1000  # seconds
STAT = "cpu  300 100 200 99000 500 40 60 0 250 0\n"  # 7 seconds of work
INTERRUPTS = """\
           CPU0       CPU1       CPU2       CPU3
  0:         10          0          0          0  IO-APIC    2-edge      timer
 24:          0          0      29000          0  PCI-MSI 1-edge      eth0
 25:        990          0          0          0  PCI-MSI 2-edge      disk
LOC:     900000     900000     900000     900000   Local timer interrupts
ERR:          0
"""
PRESSURE = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 total=1\n"


def work(host: Kernel, version: int, path: str, memory: dict[str, int], seconds: float) -> None:
    """The cgroup PATH has used MEMORY (MiB; now, peak, cache, anon, shmem, slab, stacks, tables,
    percpu) and CPU time.
    """
    now, peak = memory["now"] * MIB, memory.get("peak", 0) * MIB
    cache, anon, shmem = (memory.get(key, 0) * MIB for key in ("cache", "anon", "shmem"))
    slab, stacks, tables, percpu = (
        memory.get(key, 0) * MIB for key in ("slab", "stacks", "tables", "percpu")
    )
    if version == 2:
        directory = f"{CG}{path}"
        host.put(f"{directory}/memory.current", str(now))
        if peak:
            host.put(f"{directory}/memory.peak", str(peak))
        host.put(
            f"{directory}/memory.stat",
            f"anon {anon}\nfile {cache}\nkernel_stack {stacks}\npagetables {tables}\n"
            f"percpu {percpu}\nshmem {shmem}\ninactive_file {cache}\nslab {slab}",
        )
        host.put(f"{directory}/cpu.stat", f"usage_usec {int(seconds * 1e6)}\nuser_usec 1")
        return
    directory = f"{CG}/memory{path}"
    host.put(f"{directory}/memory.usage_in_bytes", str(now))
    if peak:
        host.put(f"{directory}/memory.max_usage_in_bytes", str(peak))
    host.put(f"{directory}/memory.kmem.usage_in_bytes", str(slab + stacks + tables + percpu))
    host.put(
        f"{directory}/memory.stat",
        "rss 1\nshmem 1\ninactive_file 1\n"  # of the cgroup without what is below it
        f"total_rss {anon}\ntotal_shmem {shmem}\ntotal_inactive_file {cache}",
    )
    host.put(f"{CG}/cpuacct{path}/cpuacct.usage", str(int(seconds * 1e9)))


def counting(root: Path, version: str, machined: bool, conf: str | None = None) -> Kernel:
    """A host with 8 GiB and 4 CPUs on v2, 2 on v1, whose VMs have 2000 MiB."""
    host = (Machined if machined else Kernel)(root, version, conf)
    number = int(version[1])
    host.put("/proc/meminfo", "\n".join(f"{key}: {n * 1024} kB" for key, n in MEMINFO.items()))
    host.put("/proc/uptime", f"{UPTIME}.00 4000.00")
    host.put("/proc/stat", STAT)
    host.put("/proc/interrupts", INTERRUPTS)
    for resource in ("cpu", "memory", "io"):
        host.put(f"/proc/pressure/{resource}", PRESSURE.format(1))
    if number == 1:
        own = host.get("/proc/self/cgroup")
        host.put("/proc/self/cgroup", f"{own}\n12:cpuacct:/")
        mount = f"cpuacct {CG}/cpuacct cgroup rw,cpuacct 0 0"
        host.put("/proc/mounts", host.get("/proc/mounts") + f"\n{mount}")
    system = {"now": 600, "peak": 900, "cache": 250, "anon": 280, "shmem": 10}
    kernel = {"slab": 20, "stacks": 2, "tables": 3, "percpu": 1}
    work(host, number, "/system.slice", {**system, **kernel}, 100)
    user = {"now": 100, "peak": 120, "cache": 20, "anon": 60, "slab": 5}
    work(host, number, "/user.slice", user, 20)
    vms = "/machine.slice" if machined else "/machine"
    vm_memory = {"now": 2000, "peak": 2100, "anon": 1900, "slab": 4, "tables": 6}
    work(host, number, vms, vm_memory, 500)
    return host
