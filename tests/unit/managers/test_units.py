"""Names of systemd's units; the pairs of scopes and machines are those that libvirt's own tests
have.
"""

from __future__ import annotations

import pytest

from libvirt_cgroup_hooks.managers.units import (
    machine_name,
    scope_unit,
    slice_of,
    slice_path,
    slice_unit,
)

LONG = "kstest-network-device-default-httpks_(c9eed63e-981e-48e"


@pytest.mark.parametrize(
    ("name", "number", "machine"),
    [
        ("demo", 1, "qemu-1-demo"),
        ("demo-name", 2, "qemu-2-demo-name"),
        ("demo!name", 3, "qemu-3-demoname"),
        (".demo", 4, "qemu-4-demo"),
        ("bull\U0001f4a9", 5, "qemu-5-bull"),
        ("demo..name", 6, "qemu-6-demo.name"),
        ("1234567890" * 6, 7, "qemu-7-" + ("1234567890" * 6)[:57]),
        (
            f"{LONG}c-acdc-56b3f8c5f678)",
            100,
            "qemu-100-kstest-network-device-default-httpksc9eed63e-981e-48ec",
        ),
        (
            f"{LONG}c--cdc-56b3f8c5f678)",
            10,
            "qemu-10-kstest-network-device-default-httpksc9eed63e-981e-48ec-c",
        ),
        ("demo.-.test.", 11, "qemu-11-demo.test"),
        ("|.-m", 1, "qemu-1-m"),
        (
            'Auto-esx7.0-rhel7.9-special-characters~!@#$%^&*_=+,?><:;|."[]()`\\-m',
            1,
            "qemu-1-Auto-esx7.0-rhel7.9-special-characters.m",
        ),
    ],
)
def test_machine_name(name: str, number: int, machine: str) -> None:
    assert machine_name(name, number) == machine


@pytest.mark.parametrize(
    ("name", "number", "scope"),
    [
        ("demo", 3, r"machine-qemu\x2d3\x2ddemo.scope"),
        ("demo-name", 3, r"machine-qemu\x2d3\x2ddemo\x2dname.scope"),
        ("a.b", 12, r"machine-qemu\x2d12\x2da.b.scope"),
        ("\U0001f4a9", 3, r"machine-qemu\x2d3.scope"),
    ],
)
def test_scope(name: str, number: int, scope: str) -> None:
    assert scope_unit(name, number) == scope


@pytest.mark.parametrize(
    ("components", "below", "unit", "path"),
    [
        ([], "-.slice", "-.slice", "/"),
        (["vms"], "-.slice", "vms.slice", "/vms.slice"),
        (["vms", "prod"], "-.slice", "vms-prod.slice", "/vms.slice/vms-prod.slice"),
        (["qemu"], "system.slice", "system-qemu.slice", "/system.slice/system-qemu.slice"),
        ([], "system.slice", "system.slice", "/system.slice"),
        (["a-b c"], "-.slice", r"a\x2db\x20c.slice", r"/a\x2db\x20c.slice"),
        ([".a.b"], "-.slice", r"\x2ea.b.slice", r"/\x2ea.b.slice"),
        (["ü"], "-.slice", r"\xc3\xbc.slice", r"/\xc3\xbc.slice"),
    ],
)
def test_slice(components: list[str], below: str, unit: str, path: str) -> None:
    assert slice_unit(components, below) == unit
    assert slice_path(unit) == path


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/libvirtd.service", "system.slice"),
        ("/a.slice/a-b.slice/x.service", "a-b.slice"),
        ("/init.scope", "-.slice"),
        ("/", "-.slice"),
    ],
)
def test_the_slice_of_a_cgroup(path: str, unit: str) -> None:
    assert slice_of(path) == unit
