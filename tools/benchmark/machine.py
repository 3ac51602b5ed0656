"""What a result was measured on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

LOAD = "load at the beginning"


def describe() -> dict[str, str]:
    # Not every architecture's kernel tells the model of its CPUs.
    model = _first_value("/proc/cpuinfo", "model name", ":") or platform.machine()
    memory_kib = int(_first_value("/proc/meminfo", "MemTotal", ":").split()[0])
    qemu = _first_line("qemu-system-x86_64", "--version")
    return {
        "CPU": f"{os.cpu_count()} x {model}",
        "memory": f"{memory_kib / 2**20:.1f} GiB",
        "kernel": platform.release(),
        "distribution": _first_value("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "Python": _first_line("/usr/bin/python3", "--version").removeprefix("Python "),
        "libvirt": _first_line("libvirtd", "--version").rpartition(" ")[2],
        "QEMU": qemu.partition(" version ")[2].partition(" ")[0],
        "cgroups": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "virtualised by": _first_line("systemd-detect-virt"),
        LOAD: " ".join(f"{one:.1f}" for one in os.getloadavg()),
    }


def _first_value(file: str, key: str, separator: str) -> str:
    for line in Path(file).read_text().splitlines():
        name, _, value = line.partition(separator)
        if name.strip() == key:
            return value.strip()
    return ""


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0].strip()
