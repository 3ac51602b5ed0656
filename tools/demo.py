"""What `tools/demo` runs on the private host."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

CONFIG = Path("/etc/libvirt/cgroup-hooks.conf")
SETTINGS = """\
reserved_host_cpus = "0"
reserved_host_mem = "512 MiB"
cgroup_layout = "/vms/$DRIVER-$NAME"
"""
VM = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>32</memory>
  <vcpu>2</vcpu>
  <iothreads>1</iothreads>
  {pins}
  <os><type arch='x86_64'>hvm</type></os>
  <devices><controller type='usb' model='none'/><memballoon model='none'/></devices>
</domain>
"""
PINNED = "<cputune><vcpupin vcpu='0' cpuset='0'/></cputune>"


def title(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def run(*command: str, shown: str = "", text: str = "", fails: bool = False) -> None:
    """Shows the command and its output, and ends the demo where it does not do what it should."""
    print(f"# {shown or ' '.join(command)}", flush=True)
    result = subprocess.run(command, input=text, text=True, check=False, stderr=subprocess.STDOUT)
    if (result.returncode != 0) != fails:
        sys.exit(
            f"demo: this should {'have been refused' if fails else 'work'}; "
            f"exit status {result.returncode}"
        )


def virsh(*arguments: str, text: str = "", fails: bool = False) -> None:
    shown = "virsh " + " ".join(argument.replace("/dev/stdin", "VM.xml") for argument in arguments)
    run("virsh", "--quiet", *arguments, shown=shown, text=text, fails=fails)


def virt_cgroup(*arguments: str, fails: bool = False) -> None:
    module = ("/usr/bin/python3", "-I", "-m", "libvirt_cgroup_hooks")
    run(*module, *arguments, shown=shlex.join(["virt-cgroup", *arguments]), fails=fails)


def start_two() -> None:
    for name in ("web", "db"):
        virsh("create", "/dev/stdin", text=VM.format(name=name, pins=""))


def stop_two() -> None:
    for name in ("web", "db"):
        virsh("destroy", name)


def start_libvirtd() -> subprocess.Popen[bytes]:
    with Path("/var/log/libvirt/libvirtd.log").open("wb") as log:
        daemon = subprocess.Popen(
            ["libvirtd", "--pid-file", "/run/libvirtd.pid"], cwd="/", stdout=log, stderr=log
        )
    for _ in range(300):
        if (
            subprocess.run(
                ["virsh", "--quiet", "list"], capture_output=True, check=False
            ).returncode
            == 0
        ):
            return daemon
        time.sleep(0.1)
    sys.exit(
        "demo: libvirtd did not answer within 30 seconds; its log is\n"
        + Path("/var/log/libvirt/libvirtd.log").read_text()
    )


def main() -> None:
    os.environ.setdefault("LIBVIRT_DEFAULT_URI", "qemu:///system")
    if os.cpu_count() == 1:
        sys.exit("demo: this machine has one CPU; keeping it for the host would leave none for VMs")
    title(
        "A private host with a libvirtd of its own, "
        "and the hook installed as /etc/libvirt/hooks/qemu"
    )
    daemon = start_libvirtd()
    title(
        "Before: nothing configured, so the hook changes nothing; "
        "VMs run on every CPU, below /machine"
    )
    start_two()
    virt_cgroup("status")
    stop_two()
    title(f"{CONFIG}")
    CONFIG.write_text(SETTINGS)
    print(SETTINGS, end="")
    title("After: CPU 0 and 512 MiB stay with the host, and every VM is where the layout says")
    start_two()
    virt_cgroup("status")
    virt_cgroup("status", "web")
    title("A VM that is pinned to the host's CPU is refused, with the reason")
    virsh("create", "/dev/stdin", text=VM.format(name="greedy", pins=PINNED), fails=True)
    title("The reservation is changed while both VMs run: all of it or nothing")
    virt_cgroup("reserve", "--memory", "1 GiB", "--live", "--config", "--verbose")
    title("CPUs that a running VM is pinned to are not taken from it")
    virsh("vcpupin", "web", "0", "1", "--live")
    virt_cgroup("reserve", "--cpus", "1-1", fails=True)
    title("Where everything runs, and whether all is in place")
    virt_cgroup("map")
    virt_cgroup("validate")
    title("All VMs stopped: their cgroups are gone")
    stop_two()
    virt_cgroup("status")
    daemon.terminate()
    daemon.wait(30)


main()
