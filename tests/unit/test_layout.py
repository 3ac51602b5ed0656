"""Presets and templates: which VM parent and which VM cgroup they name."""

from __future__ import annotations

import pytest

from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.layout import PRESETS, Layout, apart, escaped

from .support.hosts import UUID, domain

# layout, daemon at "/": parent and VM cgroup; daemon at "/a/b": parent and VM cgroup
PATHS = [
    ("legacy", "/libvirt/qemu", "/libvirt/qemu/vm", "/a/b/libvirt/qemu", "/a/b/libvirt/qemu/vm"),
    ("nested", "/qemu", "/qemu/vm", "/a/b/qemu", "/a/b/qemu/vm"),
    ("flat", None, "/qemu-vm", None, "/a/b/qemu-vm"),
    ("root", None, "/qemu-vm", None, "/qemu-vm"),
    ("uuid", None, f"/qemu-{UUID}", None, f"/qemu-{UUID}"),
    ("/vms/$DRIVER-$UUID", "/vms", f"/vms/qemu-{UUID}", "/vms", f"/vms/qemu-{UUID}"),
    ("/vms/$NAME", "/vms", "/vms/vm", "/vms", "/vms/vm"),
    ("/$DRIVER/prod/$ID-$NAME", "/qemu/prod", "/qemu/prod/3-vm", "/qemu/prod", "/qemu/prod/3-vm"),
    ("/vms/$UUID/$NAME", "/vms", f"/vms/{UUID}/vm", "/vms", f"/vms/{UUID}/vm"),
    ("/$NAME/vm", None, "/vm/vm", None, "/vm/vm"),
    (
        "$LIBVIRTD/vms.slice/$NAME$ID",
        "/vms.slice",
        "/vms.slice/vm3",
        "/a/b/vms.slice",
        "/a/b/vms.slice/vm3",
    ),
    ("/my vms/$NAME", "/my vms", "/my vms/vm", "/my vms", "/my vms/vm"),
]


@pytest.mark.parametrize(("text", "parent", "path", "deep_parent", "deep_path"), PATHS)
def test_paths(
    text: str, parent: str | None, path: str, deep_parent: str | None, deep_path: str
) -> None:
    layout, vm = Layout(text), domain(id=3)
    assert not layout.native
    assert (layout.parent_path("/"), layout.vm_path(vm, "/")) == (parent, path)
    assert (layout.parent_path(""), layout.vm_path(vm, "")) == (parent, path)  # how libvirt says it
    assert (layout.parent_path("/a/b"), layout.vm_path(vm, "/a/b")) == (deep_parent, deep_path)


def test_native_is_libvirts_own() -> None:
    layout = Layout("native")
    assert layout.native
    assert (layout.parent, layout.parent_path("/")) == (None, None)


def test_the_presets() -> None:
    assert list(PRESETS) == ["native", "legacy", "nested", "flat", "root", "uuid"]
    for name, template in PRESETS.items():
        assert Layout(name).components == Layout(template).components
        assert Layout(name).preset == name


@pytest.mark.parametrize(
    ("text", "parent"),
    [
        ("legacy", "$LIBVIRTD/libvirt/qemu"),
        ("nested", "$LIBVIRTD/qemu"),
        ("/vms/$DRIVER/$NAME", "/vms/qemu"),
        ("root", None),
        ("flat", None),
    ],
)
def test_the_parent_as_a_template(text: str, parent: str | None) -> None:
    assert Layout(text).parent == parent


@pytest.mark.parametrize(
    ("text", "top"),
    [
        ("/vms/$NAME", "/vms/vm"),
        ("/vms/$UUID/a/$NAME", f"/vms/{UUID}"),
        ("/vms/x-$UUID/b", f"/vms/x-{UUID}"),
        ("flat", "/a/qemu-vm"),
        ("nested", "/a/qemu/vm"),
    ],
)
def test_the_first_directory_of_the_vms_own(text: str, top: str) -> None:
    assert Layout(text).vm_top(domain(), "/a") == top


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            'layout "" is neither a preset nor a path: '
            "use one of native, legacy, nested, flat, root, uuid, or begin with /",
        ),
        ("Native", 'layout "Native" is neither a preset nor a path'),
        ("vms/$NAME", 'layout "vms/$NAME" is neither a preset nor a path'),
        ("$LIBVIRTD", 'layout "$LIBVIRTD" is neither a preset nor a path'),
        ("$LIBVIRTDx/$NAME", 'layout "$LIBVIRTDx/$NAME" is neither a preset nor a path'),
        ("$NAME", 'layout "$NAME" is neither a preset nor a path'),
        (
            "/vms/$VM",
            'layout "/vms/$VM" has an unknown variable: '
            "the variables are $LIBVIRTD, $DRIVER, $NAME, $UUID, $ID",
        ),
        ("/vms/$NAMEX", 'layout "/vms/$NAMEX" has an unknown variable'),
        ("/vms/$NA$DRIVERME-$UUID", 'layout "/vms/$NA$DRIVERME-$UUID" has an unknown variable'),
        ("/vms/$name", 'layout "/vms/$name" has an unknown variable'),
        ("/vms/${NAME}", 'layout "/vms/${NAME}" has an unknown variable'),
        ("/vms/$$NAME", 'layout "/vms/$$NAME" has an unknown variable'),
        ("/vms/$NAME$", 'layout "/vms/$NAME$" has an unknown variable'),
        (
            "/vms",
            'layout "/vms" contains no $NAME, $UUID or $ID, '
            "so all VMs would share one cgroup: add one of them",
        ),
        ("/vms/$DRIVER", 'layout "/vms/$DRIVER" contains no $NAME, $UUID or $ID, so all VMs'),
        (
            "/vms/$LIBVIRTD/$NAME",
            'layout "/vms/$LIBVIRTD/$NAME" has $LIBVIRTD inside: '
            "$LIBVIRTD can only be the beginning",
        ),
        ("$LIBVIRTD/$LIBVIRTD/$NAME", 'layout "$LIBVIRTD/$LIBVIRTD/$NAME" has $LIBVIRTD inside'),
        (
            "/vms//$NAME",
            'layout "/vms//$NAME" has an empty or impossible component: '
            'write it without "//", "." and ".."',
        ),
        ("/vms/$NAME/", 'layout "/vms/$NAME/" has an empty or impossible component'),
        ("//$NAME", 'layout "//$NAME" has an empty or impossible component'),
        ("/../$NAME", 'layout "/../$NAME" has an empty or impossible component'),
        ("/./$NAME", 'layout "/./$NAME" has an empty or impossible component'),
        ("/vms\n/$NAME", r'layout "/vms\n/$NAME" has an empty or impossible component'),
        ("/\x1b[1m/$NAME", r'layout "/\x1b[1m/$NAME" has an empty or impossible component'),
        ("/a" * 2047 + "/$NAME", f'layout "{"/a" * 100}..." has more than 4096 characters'),
    ],
)
def test_bad_templates(text: str, message: str) -> None:
    with pytest.raises(Error) as error:
        Layout(text)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("a b", "a b"),
        ("..", "_.."),
        (".", "_."),
        ("-x", "-x"),
        ("a'b\"c\\d", "a'b\"c\\d"),
        ("💩", "💩"),
        ("x" * 200, "x" * 200),
        ("$ID", "$ID"),
        ("$UUID$DRIVER", "$UUID$DRIVER"),
        ("_x", "__x"),
        ("tasks", "_tasks"),
        ("cgroup.procs", "_cgroup.procs"),
        ("cpu.max", "_cpu.max"),
        ("memory.evil", "_memory.evil"),
        ("net_cls.x", "_net_cls.x"),
        ("cpu", "cpu"),
        ("web.example.org", "web.example.org"),
    ],
)
def test_names_become_one_component(name: str, component: str) -> None:
    assert Layout("/vms/$NAME").vm_path(domain(name, id=1), "/") == f"/vms/{component}"
    assert Layout("/vms/x-$NAME").vm_path(domain(name, id=1), "/") == f"/vms/x-{name}"


@pytest.mark.parametrize(
    ("component", "text"),
    [
        # libvirt's own table (virCgroupPartitionEscape)
        ("cgroup.evil", "_cgroup.evil"),
        ("_evil.evil", "__evil.evil"),
        ("cpu.foo", "_cpu.foo"),
        ("devices.x", "_devices.x"),
        ("notify_on_release", "_notify_on_release"),
        ("release_agent", "_release_agent"),
        ("machine", "machine"),
        ("cpuset", "cpuset"),
        ("cpux.y", "cpux.y"),
        ("", ""),
    ],
)
def test_escaping(component: str, text: str) -> None:
    assert escaped(component) == text


@pytest.mark.parametrize(
    ("text", "name", "fits"),
    [
        ("/vms/$NAME", "x" * 255, True),
        ("/vms/$NAME", "x" * 256, False),
        ("/vms/$NAME", "." + "x" * 254, False),  # with the _ before it
        ("/vms/$NAME", "ü" * 127, True),
        ("/vms/$NAME", "ü" * 128, False),  # bytes count
        ("/vms/$DRIVER-$NAME", "x" * 250, True),
        ("/vms/$DRIVER-$NAME", "x" * 251, False),
        ("/vms/$UUID", "x" * 1000, True),
    ],
)
def test_a_component_has_at_most_255_bytes(text: str, name: str, fits: bool) -> None:
    if fits:
        Layout(text).vm_path(domain(name), "/")
        return
    with pytest.raises(Error, match=r"would have a name over 255 bytes: use \$UUID in the layout"):
        Layout(text).vm_path(domain(name), "/")


def test_an_id_that_is_not_known_yet() -> None:
    with pytest.raises(
        Error,
        match=r"^VM a\\nb has no id yet, and its cgroup's name needs one: use \$UUID or \$NAME",
    ):
        Layout("/vms/$ID").vm_path(domain("a\nb"), "/")


@pytest.mark.parametrize("component", ["_vms", ".vms", "cpu.vms", "tasks"])
def test_the_vm_is_below_its_parent_whatever_that_is_called(component: str) -> None:
    layout = Layout(f"/{component}/$NAME")
    assert layout.vm_path(domain(), "/").startswith(f"{layout.parent_path('/')}/")


@pytest.mark.parametrize(
    ("path", "suggests"),
    [
        ("/machine.slice", True),
        ("/vmsx.slice", True),
        ("/machine", True),
        ("/vms", False),
        ("/vms.slice", False),
        ("/vms.slice/vms-prod.slice", False),
    ],
)
def test_no_layout_is_suggested_where_vms_have_it(path: str, suggests: bool) -> None:
    assert ("/vms/$NAME" in apart(path)) == suggests
