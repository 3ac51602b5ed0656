"""Layouts as systemd's slices: their names and their cgroups."""

from __future__ import annotations

import pytest

from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.leave import leave
from libvirt_cgroup_hooks.managers.units import scope_unit

from ..support.machined import SERVICE, Machined, U, layout, systemd
from ..support.operations import CPUS, OTHER, do, lines, plan, vm

HOST = Machined
STATUS = "/run/libvirt/qemu/vm.xml"


@pytest.mark.parametrize(
    ("template", "name", "parent", "unit", "directory"),
    [
        ("native", "vm", "machine.slice", None, "/machine.slice"),
        (
            "legacy",
            "vm",
            "system-libvirt-qemu.slice",
            "system-libvirt-qemu.slice",
            "/system.slice/system-libvirt.slice/system-libvirt-qemu.slice",
        ),
        (
            "nested",
            "vm",
            "system-qemu.slice",
            "system-qemu.slice",
            "/system.slice/system-qemu.slice",
        ),
        ("flat", "vm", None, "system.slice", "/system.slice"),
        ("root", "vm", None, "-.slice", ""),
        ("uuid", "vm", None, rf"qemu\x2d{U}.slice", rf"/qemu\x2d{U}.slice"),
        ("/vms/prod/$NAME", "vm", "vms-prod.slice", "vms-prod.slice", "/vms.slice/vms-prod.slice"),
        (
            "/vms/$DRIVER-$UUID",
            "vm",
            "vms.slice",
            rf"vms-qemu\x2d{U}.slice",
            rf"/vms.slice/vms-qemu\x2d{U}.slice",
        ),
        (
            "/vms/$NAME/$UUID",
            "a-b ü",
            "vms.slice",
            rf"vms-a\x2db\x20\xc3\xbc-{U}.slice",
            rf"/vms.slice/vms-a\x2db\x20\xc3\xbc.slice/vms-a\x2db\x20\xc3\xbc-{U}.slice",
        ),
        (
            "/vms/$NAME-$UUID",
            "💩",
            "vms.slice",
            rf"vms-\xf0\x9f\x92\xa9\x2d{U}.slice",
            rf"/vms.slice/vms-\xf0\x9f\x92\xa9\x2d{U}.slice",
        ),
        (
            "/vms/$UUID%i",
            "vm",
            "vms.slice",
            rf"vms-{U}\x25i.slice",
            rf"/vms.slice/vms-{U}\x25i.slice",
        ),
        ("/my-vms/x.$ID", "vm", r"my\x2dvms.slice", r"my\x2dvms.slice", r"/my\x2dvms.slice"),
        (r"/a\b/$NAME", "vm", r"a\x5cb.slice", r"a\x5cb.slice", r"/a\x5cb.slice"),
        (
            "/.vms/_x/$NAME",
            "vm",
            r"\x2evms-_x.slice",
            r"\x2evms-_x.slice",
            r"/\x2evms.slice/\x2evms-_x.slice",
        ),
        ("/vms.slice/$NAME", "vm", "vms.slice.slice", "vms.slice.slice", "/vms.slice.slice"),
        (
            "/vms/$NAME/a",
            "..",
            "vms.slice",
            r"vms-\x2e.-a.slice",
            r"/vms.slice/vms-\x2e..slice/vms-\x2e.-a.slice",
        ),
        (
            "/vms/$NAME/a",
            "$ID",
            "vms.slice",
            r"vms-\x24ID-a.slice",
            r"/vms.slice/vms-\x24ID.slice/vms-\x24ID-a.slice",
        ),
        (
            "/vms/libvirt/$NAME",
            "vm",
            "vms-libvirt.slice",
            "vms-libvirt.slice",
            "/vms.slice/vms-libvirt.slice",
        ),
    ],
)
def test_slices(
    host: Machined, template: str, name: str, parent: str | None, unit: str | None, directory: str
) -> None:
    layout(host, template)
    subject = vm(name, number=3)
    manager = systemd(host)
    assert manager.parent_slice() == parent
    assert manager.vm_slice(subject) == unit
    assert manager.scope_path(subject) == f"{directory}/{scope_unit(name, 3)}"


@pytest.mark.parametrize(
    ("at", "template", "unit"),
    [
        ("/system.slice/libvirtd.service", "nested", "system-qemu.slice"),
        ("/a.slice/a-b.slice/x.service", "nested", "a-b-qemu.slice"),
        ("/user.slice/user-0.slice/session-1.scope", "flat", "user-0.slice"),
        ("/init.scope", "nested", "qemu.slice"),
        ("/", "flat", "-.slice"),
    ],
)
def test_the_daemons_slice(host: Machined, at: str, template: str, unit: str) -> None:
    host.daemon(at)
    layout(host, template)
    assert systemd(host).vm_slice(vm()) == unit


@pytest.mark.parametrize(
    ("at", "template", "name", "unit"),
    [
        (SERVICE, "/libvirt/$NAME", "vm", "libvirt.slice"),
        (SERVICE, "/libvirtish/x/$NAME", "vm", "libvirtish-x.slice"),
        (SERVICE, "/libvirt-$UUID", "vm", rf"libvirt\x2d{U}.slice"),
        (SERVICE, "/$NAME/x", "libvirt", "libvirt-x.slice"),
        ("/init.scope", "legacy", "vm", "libvirt-qemu.slice"),
    ],
)
def test_a_slice_that_libvirt_would_misread_is_refused(
    host: Machined, at: str, template: str, name: str, unit: str
) -> None:
    host.daemon(at)
    layout(host, template, CPUS)
    before = host.snapshot("run/libvirt-")
    with pytest.raises(Error) as error:
        do(host, "prepare", vm(name))
    assert str(error.value) == (
        f'cgroup_layout "{template}" makes the slice {unit}: '
        "libvirt loses VMs in a cgroup whose name begins with libvirt; choose another name"
    )
    assert host.snapshot("run/libvirt-") == before


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("x" * 196, True),
        ("x" * 197, False),
        ("-" * 49, True),
        ("-" * 50, False),
        ("💩" * 12, True),
        ("💩" * 13, False),
    ],
)
def test_a_slice_has_a_name_of_at_most_255_bytes(host: Machined, name: str, fits: bool) -> None:
    layout(host, "/vms/$NAME/$UUID")
    if fits:
        assert lines(host, "prepare", vm(name))
        return
    with pytest.raises(Error) as error:
        plan(host, "prepare", vm(name))
    assert (
        str(error.value)
        == f"the slice of VM {name} would have a name over 255 bytes: use $UUID in the layout"
    )


# what is left of a layout


def lived(host: Machined, template: str, more: str = CPUS) -> None:
    """A VM has run in the layout TEMPLATE, and has ended."""
    layout(host, template, more)
    subject = vm(number=3)
    for operation in ("prepare", "start"):
        do(host, operation, subject)
    path = systemd(host).scope_path(subject).rpartition("/")[0]
    subject = host.starts(subject, path)
    do(host, "started", subject)
    host.end_vm(subject, libvirt=False)
    host.written.clear()


def stopped(host: Machined) -> list[str]:
    verb = "stop --no-block "
    return [line[len(verb) :] for line in host.written if line.startswith(verb)]


@pytest.mark.parametrize("more", ["", CPUS])
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("native", []),
        ("flat", []),
        ("root", []),
        ("legacy", ["system-libvirt-qemu.slice", "system-libvirt.slice"]),
        ("/vms/$NAME", ["vms.slice"]),
        ("/vms/prod/$NAME", ["vms-prod.slice", "vms.slice"]),
    ],
)
def test_slices_that_nobody_uses_go_when_the_host_is_left(
    host: Machined, template: str, expected: list[str], more: str
) -> None:
    lived(host, template, more)
    do(host, "release", vm(number=3))
    leave(host)
    assert stopped(host) == expected


def test_those_of_others_and_those_in_use_stay(host: Machined) -> None:
    lived(host, "/vms/prod/$NAME")
    do(host, "release", vm(number=3))
    host.slice("vms.slice/vms-test.slice")
    leave(host)
    assert stopped(host) == ["vms-prod.slice"]
    host.written.clear()
    lived(host, "/vms/prod/$NAME")
    do(host, "release", vm(number=3))
    host.put("/etc/systemd/system/vms-prod.slice", "[Slice]\n")
    leave(host)
    assert stopped(host) == []


def test_not_while_a_vm_runs_or_starts_in_them(host: Machined) -> None:
    layout(host, "/vms/$NAME", CPUS)
    do(host, "prepare", vm(number=3))
    host.slice("vms.slice")
    leave(host)
    assert stopped(host) == []
    do(host, "prepare", vm(number=3))
    host.starts(vm(number=3), "/vms.slice")
    leave(host)
    assert stopped(host) == []


def test_not_while_one_starts_beside_vms_without_records(host: Machined) -> None:
    layout(host, "/vms/$NAME", CPUS)
    host.starts(vm("other", number=4, uuid=OTHER), "/machine.slice", pid=9000)
    do(host, "prepare", vm(number=3))
    host.slice("vms.slice")
    leave(host)
    assert stopped(host) == []


def test_not_before_qemu_is_in_its_scope(host: Machined) -> None:
    """libvirt writes the status XML first."""
    layout(host, "/vms/$NAME", CPUS)
    do(host, "prepare", vm(number=3))
    host.starts(vm(number=3), "/machine.slice")
    host.slice("vms.slice")
    status = host.get(STATUS)
    host.put(STATUS, status.replace("<domstatus ", "<domstatus reason='starting up' ", 1))
    leave(host)
    assert stopped(host) == []


def test_that_of_an_earlier_layout_goes_with_its_limit(host: Machined) -> None:
    both = f"{CPUS}reserved_host_mem = '512 MiB'\n"
    lived(host, "/vms/$NAME", both)
    do(host, "release", vm(number=3))
    layout(host, "native", both)
    host.written.clear()
    do(host, "prepare", vm("other", number=4, uuid=OTHER))
    assert stopped(host) == ["vms.slice"]
