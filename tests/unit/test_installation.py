"""How libvirt was built, where its files are, and which process is its daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import installation
from libvirt_cgroup_hooks.host import Host

UNITS = "/etc/systemd/system"
LIB = "/usr/lib/systemd/system"


def host(folder: Path, files: dict[str, str]) -> Host:
    for path, text in files.items():
        file = folder / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return Host(str(folder))


def runs(name: str, path: str = "/run/libvirtd.pid", pid: str = "77") -> dict[str, str]:
    return {path: f"{pid}\n", f"/proc/{pid}/comm": f"{name}\n"}


# the daemon


@pytest.mark.parametrize(
    ("comm", "name"),
    [
        ("libvirtd", "libvirtd"),
        ("virtqemud", "virtqemud"),
        (".libvirtd-wrapp", "libvirtd"),  # NixOS, 15 characters
        (".virtqemud-wrap", "virtqemud"),
        (".libvirtd-real", "libvirtd"),  # Guix
        ("virtlogd", None),
        ("sshd", None),
        ("", None),
    ],
)
def test_the_name_of_the_daemon(tmp_path: Path, comm: str, name: str | None) -> None:
    assert installation.daemon_name(host(tmp_path, runs(comm)), "77") == name


@pytest.mark.parametrize(
    ("files", "pid"),
    [
        ({}, None),
        ({"/run/libvirtd.pid": "77"}, None),  # it has ended
        (runs("libvirtd"), "77"),
        (runs("virtqemud", "/run/virtqemud.pid", "78"), "78"),
        ({"/run/libvirtd.pid": "x", **runs("libvirtd", "/run/libvirt/libvirtd.pid", "9")}, "9"),
        (runs("cupsd"), None),  # another process has got the number
        ({**runs("cupsd"), **runs("virtqemud", "/run/libvirt/virtqemud.pid", "9")}, "9"),
        ({"/run/libvirtd.pid": "../77", "/proc/77/comm": "libvirtd"}, None),
    ],
)
def test_the_process_of_the_daemon(tmp_path: Path, files: dict[str, str], pid: str | None) -> None:
    assert installation.daemon_pid(host(tmp_path, files)) == pid


def unit(text: str) -> str:
    return f"[Unit]\nSlice=no.slice\n[Service]\n{text}\n[Install]\nSlice=nor.slice\n"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, ("libvirtd.service", "system.slice")),
        ({f"{LIB}/virtqemud.service": unit("")}, ("virtqemud.service", "system.slice")),
        # both are there: that which is enabled
        (
            {f"{LIB}/virtqemud.service": "", f"{LIB}/libvirtd.service": unit("Slice=a.slice")},
            ("virtqemud.service", "system.slice"),
        ),
        (
            {
                f"{LIB}/virtqemud.service": "",
                f"{LIB}/libvirtd.service": unit("Slice = a.slice"),
                f"{UNITS}/sockets.target.wants/libvirtd.socket": "",
            },
            ("libvirtd.service", "a.slice"),
        ),
        (
            {
                f"{LIB}/libvirtd.service": "",
                f"{LIB}/virtqemud.service": "",
                f"{UNITS}/multi-user.target.wants/libvirtd.service": "",
            },
            ("libvirtd.service", "system.slice"),
        ),
        # the first file of the search path
        (
            {
                f"{UNITS}/libvirtd.service": unit(""),
                f"{LIB}/libvirtd.service": unit("Slice=a.slice"),
            },
            ("libvirtd.service", "system.slice"),
        ),
        # drop-ins, by name, wherever they are
        (
            {
                f"{LIB}/libvirtd.service": unit("Slice=a.slice"),
                f"{LIB}/libvirtd.service.d/20-b.conf": unit("Slice=b.slice"),
                f"{UNITS}/libvirtd.service.d/10-c.conf": unit("Slice=c.slice"),
            },
            ("libvirtd.service", "b.slice"),
        ),
        (
            {
                "/lib/systemd/system/libvirtd.service": unit("Slice=a.slice"),
                f"{LIB}/libvirtd.service.d/20-b.conf": unit("Slice=b.slice"),
                f"{UNITS}/libvirtd.service.d/20-b.conf": unit("Nice=5"),
                "/run/systemd/system/libvirtd.service.d/README": unit("Slice=d.slice"),
            },
            ("libvirtd.service", "a.slice"),
        ),
        (
            {f"{UNITS}/service.d/10-all.conf": unit("Slice=all.slice\nSlice=")},
            ("libvirtd.service", "all.slice"),
        ),
        (
            {"/usr/local/lib/systemd/system/libvirtd.service": unit("Slice=own-vms.slice")},
            ("libvirtd.service", "own-vms.slice"),
        ),
    ],
)
def test_the_service_and_its_slice(
    tmp_path: Path, files: dict[str, str], found: tuple[str, str]
) -> None:
    assert installation.service(host(tmp_path, files)) == found


# hooks

LIBRARY = "/usr/lib/x86_64-linux-gnu/libvirt.so.0.9000.0"
MAPS = (
    "7f0000000000-7f0000001000 r--p 00000000 fd:00 11   /usr/lib/x86_64-linux-gnu/libc.so.6\n"
    "7f0000001000-7f0000002000 rw-p 00000000 00:00 0 \n"
    "7f0000002000-7f0000003000 r--p 00000000 fd:00 12   {}\n"
)


def built(sysconfdir: str) -> str:
    return f"\x7fELF\0Invalid hook\0{sysconfdir}/libvirt/hooks\0No hook script %s\0"


@pytest.mark.parametrize(
    ("files", "folder"),
    [
        ({}, "/etc/libvirt/hooks"),
        ({"/etc/libvirt/qemu.conf": ""}, "/etc/libvirt/hooks"),
        ({"/var/lib/libvirt/qemu.conf": ""}, "/var/lib/libvirt/hooks"),
        ({"/usr/local/etc/libvirt/qemu.conf": ""}, "/usr/local/etc/libvirt/hooks"),
        (
            {"/etc/libvirt/qemu.conf": "", "/var/lib/libvirt/qemu.conf": ""},
            "/etc/libvirt/hooks",
        ),
        # the library of the daemon that runs
        (
            {
                **runs("libvirtd"),
                "/proc/77/maps": MAPS.format(LIBRARY),
                LIBRARY: built("/opt/virt/etc"),
                "/etc/libvirt/qemu.conf": "",
            },
            "/opt/virt/etc/libvirt/hooks",
        ),
        (
            {
                **runs(".virtqemud-wrap", "/run/virtqemud.pid"),
                "/proc/77/maps": MAPS.format("/nix/store/abc-libvirt/lib/libvirt.so.0.11007.0"),
                "/nix/store/abc-libvirt/lib/libvirt.so.0.11007.0": built("/var/lib"),
                "/etc/libvirt/qemu.conf": "",
            },
            "/var/lib/libvirt/hooks",
        ),
        # an update has replaced the library
        (
            {
                **runs("libvirtd"),
                "/proc/77/maps": MAPS.format(f"{LIBRARY} (deleted)"),
                "/usr/lib/x86_64-linux-gnu/libvirt.so.0": built("/srv"),
            },
            "/srv/libvirt/hooks",
        ),
        # a library that says nothing, and one that cannot be read
        (
            {**runs("libvirtd"), "/proc/77/maps": MAPS.format(LIBRARY), LIBRARY: "\x7fELF"},
            "/etc/libvirt/hooks",
        ),
        (
            {
                **runs("libvirtd"),
                "/proc/77/maps": MAPS.format(LIBRARY),
                "/var/lib/libvirt/qemu.conf": "",
            },
            "/var/lib/libvirt/hooks",
        ),
        # a library beside it
        (
            {
                **runs("libvirtd"),
                "/proc/77/maps": MAPS.format("/usr/lib/libvirt-qemu.so.0"),
                "/usr/lib/libvirt-qemu.so.0": built("/wrong"),
            },
            "/etc/libvirt/hooks",
        ),
    ],
)
def test_where_the_daemon_looks_for_hooks(
    tmp_path: Path, files: dict[str, str], folder: str
) -> None:
    assert installation.hooks(host(tmp_path, files)) == folder
