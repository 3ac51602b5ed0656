"""What a result was measured on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

LOAD = "load at the beginning"


def describe() -> dict[str, str]:
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    return {
        "CPU": f"{os.cpu_count()} x {_cpu()}",
        "memory": f"{int(memory.split()[1]) / 2**20:.1f} GiB",
        "kernel": platform.release(),
        "distribution": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "Python": _first("/usr/bin/python3", "--version").removeprefix("Python "),
        "libvirt": _first("libvirtd", "--version").rpartition(" ")[2],
        "QEMU": _first("qemu-system-x86_64", "--version").partition(" version ")[2].partition(" ")[0],
        "cgroups": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "virtualised by": _first("systemd-detect-virt"),
        LOAD: " ".join(f"{one:.1f}" for one in os.getloadavg()),
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _first(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [""])[0].strip()
