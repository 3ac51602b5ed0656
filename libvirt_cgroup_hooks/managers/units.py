# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names of systemd units, and their cgroups: pure text, by the rules of systemd and libvirt."""

from __future__ import annotations

VALID = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:_.")
HOST_NAME = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
MACHINE_NAME_MAX = 64
UNIT_NAME_MAX = 255
VM_SCOPE = "machine-qemu"  # begins the name of each VM's scope
ROOT = "-.slice"
RUNTIME = "/run/systemd/system.control"  # where set-property --runtime keeps what it was told
TRANSIENT = "/run/systemd/transient"  # and for scopes, init.scope among them
SET = ("set-property", "--runtime")
DROP_INS = "/run/systemd/system"  # where ours are
DROP_IN = "50-libvirt-cgroup-hooks.conf"
CONTROL = ("/etc/systemd/system.control", RUNTIME, TRANSIENT)


def escape(text: str) -> str:
    r"""As systemd-escape: every byte but letters, digits, ":", "_" and an inner "." as \xHH."""
    parts = []
    for position, byte in enumerate(text.encode("utf-8", "surrogateescape")):
        character = chr(byte)
        plain = character in VALID and not (character == "." and position == 0)
        parts.append(character if plain else f"\\x{byte:02x}")
    return "".join(parts)


def slice_unit(components: list[str], below: str = ROOT) -> str:
    """The slice for the path of COMPONENTS below the slice BELOW: vms, prod -> vms-prod.slice."""
    names = [] if below == ROOT else [below.removesuffix(".slice")]
    return "-".join([*names, *map(escape, components)]) + ".slice" if components else below


def slice_path(unit: str) -> str:
    """The cgroup of a slice: that of vms-prod.slice is /vms.slice/vms-prod.slice."""
    if unit == ROOT:
        return "/"
    names = unit.removesuffix(".slice").split("-")
    return "".join("/" + "-".join(names[: length + 1]) + ".slice" for length in range(len(names)))


def unit_of(path: str) -> str:
    """The unit that has the cgroup PATH, as `slice_path` makes it."""
    return path.rpartition("/")[2] or ROOT


def drop_in(unit: str) -> str:
    """Our drop-in for UNIT."""
    return f"{DROP_INS}/{unit}.d/{DROP_IN}"


def slice_of(path: str) -> str:
    """The slice that holds the cgroup PATH: /system.slice/libvirtd.service -> system.slice."""
    slices = [component for component in path.split("/") if component.endswith(".slice")]
    return slices[-1] if slices else ROOT


def machine_name(name: str, number: int) -> str:
    """libvirt's name for machined (virDomainDriverGenerateMachineName): qemu-ID-NAME, with what
    host names can have.
    """
    made = f"qemu-{number}-"
    skip = True
    for character in name:
        if len(made) >= MACHINE_NAME_MAX:
            break
        if character in ".-":
            made += "" if skip else character
            skip = True
        elif character in HOST_NAME:
            made += character
            skip = False
    return made.rstrip("-.")


def scope_unit(name: str, number: int) -> str:
    """The scope that machined makes for the VM."""
    return f"machine-{escape(machine_name(name, number))}.scope"


def within(path: str, top: str) -> bool:
    """Whether the cgroup PATH is TOP, or below it."""
    return path == top or path.startswith(f"{top}/")
