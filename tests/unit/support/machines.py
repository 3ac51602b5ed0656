"""Hosts of many kinds, each in one text file of tests/data/machines (see its README.md)."""

from __future__ import annotations

from pathlib import Path

from libvirt_cgroup_hooks.errors import MIB

from .hosts import DATA

MACHINES = DATA / "machines"
NAMES = sorted(path.stem for path in MACHINES.glob("*.txt"))


def files(name: str) -> dict[str, str]:
    """The files of the machine NAME, by path."""
    found: dict[str, str] = {}
    path = ""
    for line in (MACHINES / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("/"):
            path, _, value = line.partition(":")
            found[path] = value.strip()
        elif line.startswith("    "):
            found[path] += f"{line[4:]}\n"
    return found


def unpack(name: str, root: Path) -> Path:
    """The machine NAME below ROOT, as `virt-cgroup --root` reads it, with its VMs."""
    for path, text in files(name).items():
        file = root / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    if name == "desktop":
        add_vm(root, 1, "windows", 16 * 1024, vcpus=12, own=316)
    if name == "server":
        for number in range(1, 61):
            add_vm(root, number, f"vm{number:02}", 6 * 1024, vcpus=4, own=24 + number % 4 * 8)
    return root


def add_vm(root: Path, number: int, name: str, memory: int, vcpus: int = 2, own: int = 64) -> None:
    """A VM that runs on the machine below ROOT, where machined registers VMs. Its guest has touched
    all its MEMORY; QEMU has OWN besides (MiB).
    """
    pid = 10_000 * number
    scope = f"machine.slice/machine-qemu\\x2d{number}\\x2d{name}.scope"
    threads = {pid: ("qemu-system-x86", "emulator")}
    threads.update({pid + 1 + n: (f"CPU {n}/KVM", f"vcpu{n}") for n in range(vcpus)})
    for thread, (comm, group) in threads.items():
        task = root / f"proc/{pid}/task/{thread}"
        task.mkdir(parents=True)
        (task / "cgroup").write_text(f"0::/{scope}/libvirt/{group}\n")
        (task / "comm").write_text(f"{comm}\n")
        (task / "status").write_text(f"Name:\t{comm}\nCpus_allowed_list:\t{_online(root)}\n")
    (root / f"proc/{pid}/cgroup").write_text(f"0::/{scope}/libvirt/emulator\n")
    directory = root / "sys/fs/cgroup" / scope
    directory.mkdir(parents=True)
    (directory / "memory.current").write_text(f"{(memory + own) * MIB}\n")
    (directory / "memory.stat").write_text(f"anon {(memory + own) * MIB}\ninactive_file 0\n")
    status = root / "run/libvirt/qemu"
    status.mkdir(parents=True, exist_ok=True)
    vcpu_threads = "".join(f"<vcpu id='{n}' pid='{pid + 1 + n}'/>" for n in range(vcpus))
    (status / f"{name}.xml").write_text(
        f"<domstatus state='running' pid='{pid}'><vcpus>{vcpu_threads}</vcpus>"
        f"<domain type='kvm' id='{number}'><name>{name}</name>"
        f"<uuid>4f1e2d3c-5b6a-4798-8a9b-{number:012x}</uuid>"
        f"<memory unit='MiB'>{memory}</memory><vcpu>{vcpus}</vcpu></domain></domstatus>\n"
    )


def _online(root: Path) -> str:
    return (root / "sys/devices/system/cpu/online").read_text().strip()
