"""Which hierarchies a host has and where the daemon is, by libvirt's own rules."""

from __future__ import annotations

import pytest

from libvirt_cgroup_hooks.cgroups import Cgroups, detect, placements
from libvirt_cgroup_hooks.errors import Error

from .support.hosts import recorded

OPTIONS = "rw,nosuid,nodev,noexec,relatime"
TMPFS = "tmpfs /sys/fs/cgroup tmpfs ro,nosuid,nodev,noexec,mode=755 0 0"
SYSTEMD = (
    "cgroup /sys/fs/cgroup/systemd cgroup "
    f"{OPTIONS},xattr,release_agent=/lib/systemd/agent,name=systemd 0 0"
)
CONTROLLERS = {"/proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\n"}


def mount(names: str, at: str = "/sys/fs/cgroup", directory: str = "") -> str:
    return f"cgroup {at}/{directory or names} cgroup {OPTIONS},{names} 0 0"


def mount2(at: str = "/sys/fs/cgroup") -> str:
    return f"cgroup2 {at} cgroup2 {OPTIONS},nsdelegate 0 0"


def host(mounts: list[str], own: list[str], files: dict[str, str] | None = None) -> Cgroups:
    texts = {"/proc/mounts": "\n".join([*mounts, ""]), "/proc/self/cgroup": "\n".join([*own, ""])}
    return detect({**CONTROLLERS, **texts, **(files or {})}.get)


def shown(cgroups: Cgroups) -> dict[str, str]:
    """For each controller: version, mount point, placement."""
    return {
        name: f"v{h.version} {h.mount} {h.placement}"
        for name, h in sorted(cgroups.controllers.items())
    }


def own_mount_each(names: str, placement: str = "/") -> dict[str, str]:
    return {name: f"v1 /sys/fs/cgroup/{name} {placement}" for name in sorted(names.split())}


V2_FILES = {"/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n"}

OPENRC = "cpuset cpu cpuacct blkio memory devices freezer net_cls pids".split()

CASES = [
    pytest.param(
        [TMPFS, "cgroup /cg cgroup rw,relatime,blkio,devices,memory,cpuacct,cpu,cpuset 0 0"],
        ["2:blkio,devices,memory,cpuacct,cpu,cpuset:/"],
        {},
        dict.fromkeys("blkio cpu cpuacct cpuset devices memory".split(), "v1 /cg /"),
        id="one mount with all controllers",
    ),
    pytest.param(
        [
            "cgroup_root /sys/fs/cgroup tmpfs rw,mode=755 0 0",
            "openrc /sys/fs/cgroup/openrc cgroup "
            f"{OPTIONS},release_agent=/lib/rc/sh/agent.sh,name=openrc 0 0",
            *(mount(name) for name in OPENRC),
        ],
        [
            *(
                f"{n}:{name}:/"
                for n, name in enumerate(
                    "cpuset cpu cpuacct blkio memory devices freezer net_cls pids".split(), 2
                )
            ),
            "1:name=openrc:/libvirtd",
        ],
        {},
        own_mount_each("cpuset cpu cpuacct blkio memory devices freezer net_cls"),
        id="OpenRC, v1: one mount for each controller",
    ),
    pytest.param(
        [
            TMPFS,
            SYSTEMD,
            mount("cpuacct,cpu", directory="cpu,cpuacct"),
            mount("net_cls,net_prio"),
            mount("cpuset"),
        ],
        [
            "4:net_prio,net_cls:/",
            "3:cpu,cpuacct:/system",
            "2:cpuset:/",
            "1:name=systemd:/system.slice/libvirtd.service",
        ],
        {},
        {
            "cpu": "v1 /sys/fs/cgroup/cpu,cpuacct /system",
            "cpuacct": "v1 /sys/fs/cgroup/cpu,cpuacct /system",
            "cpuset": "v1 /sys/fs/cgroup/cpuset /",
            "net_cls": "v1 /sys/fs/cgroup/net_cls,net_prio /",
        },
        id="co-mounted, with the options in another order",
    ),
    pytest.param(
        [
            mount("cpuset", at="/some/where"),
            mount("cpuset"),
            mount("memory"),
            mount("cpuset", at="/some/other"),
            mount("memory", at="/m"),
        ],
        ["3:memory:/", "2:cpuset:/pod"],
        {},
        {"cpuset": "v1 /some/other/cpuset /pod", "memory": "v1 /m/memory /"},
        id="bind mounts: the last of each counts",
    ),
    pytest.param(
        [
            TMPFS,
            mount2("/sys/fs/cgroup/unified"),
            *(mount(name) for name in "cpuset devices freezer memory".split()),
        ],
        ["5:freezer:/", "4:memory:/", "3:devices:/x", "2:cpuset:/", "1:name=openrc:/y", "0::/z"],
        {
            "/sys/fs/cgroup/unified/cgroup.controllers": "cpu io\n",
            "/sys/fs/cgroup/unified/z/cgroup.controllers": "cpu io\n",
        },
        {
            "cpu": "v2 /sys/fs/cgroup/unified /z",
            "cpuacct": "v2 /sys/fs/cgroup/unified /z",
            "cpuset": "v1 /sys/fs/cgroup/cpuset /",
            "devices": "v2 /sys/fs/cgroup/unified /z",
            "freezer": "v1 /sys/fs/cgroup/freezer /",
            "io": "v2 /sys/fs/cgroup/unified /z",
            "memory": "v1 /sys/fs/cgroup/memory /",
        },
        id="hybrid: v2 has the first choice, and devices and cpuacct always",
    ),
    pytest.param(
        [TMPFS, mount2("/sys/fs/cgroup/unified"), SYSTEMD, mount("cpuset"), mount("devices")],
        ["3:devices:/d", "2:cpuset:/c", "1:name=systemd:/init.scope", "0::/init.scope"],
        {"/sys/fs/cgroup/unified/cgroup.controllers": "\n"},
        {"cpuset": "v1 /sys/fs/cgroup/cpuset /c", "devices": "v1 /sys/fs/cgroup/devices /d"},
        id="a cgroup2 without controllers, as systemd keeps one beside v1, is none",
    ),
    pytest.param(
        [mount2()],
        ["0::/system.slice/libvirtd.service"],
        {
            **V2_FILES,
            "/sys/fs/cgroup/system.slice/libvirtd.service/cgroup.controllers": "cpu memory pids\n",
        },
        dict.fromkeys(("cpuacct", "devices"), "v2 /sys/fs/cgroup /system.slice"),
        id="v2: a service named libvirtd is cut away",
    ),
    pytest.param(
        [mount2()],
        ["0::/"],
        V2_FILES,
        dict.fromkeys("cpu cpuacct cpuset devices io memory".split(), "v2 /sys/fs/cgroup /"),
        id="v2",
    ),
    pytest.param(
        [mount2("/first"), mount2(), mount2("/last")],
        ["0::/"],
        {
            "/first/cgroup.controllers": "cpu memory\n",
            "/last/cgroup.controllers": "cpu\n",
            **V2_FILES,
        },
        dict.fromkeys(("cpu", "cpuacct", "devices"), "v2 /last /"),
        id="v2 mounted more than once: the last counts",
    ),
    pytest.param(
        ["cgroup /my\\040cgroup\\134s/cpuset cgroup rw,cpuset 0 0"],
        ["2:cpuset:/"],
        {},
        {"cpuset": "v1 /my cgroup\\s/cpuset /"},
        id="a mount point with a space and a backslash",
    ),
    pytest.param(
        [
            "x /cpuset cgroup rw,cpusets,xcpuset,name=cpuset 0 0",
            mount("cpuset"),
            "x /cpu fuse rw,cpuset 0 0",
            "short",
        ],
        ["2:cpuset:/"],
        {},
        own_mount_each("cpuset"),
        id="options are whole words, and only of cgroup mounts",
    ),
]


@pytest.mark.parametrize(("mounts", "own", "files", "expected"), CASES)
def test_detect(
    mounts: list[str], own: list[str], files: dict[str, str], expected: dict[str, str]
) -> None:
    assert shown(host(mounts, own, files)) == expected


@pytest.mark.parametrize(
    ("mounts", "own", "files"),
    [
        pytest.param([], ["0::/"], {}, id="nothing is mounted"),
        pytest.param(
            [TMPFS, SYSTEMD], ["1:name=systemd:/user/me/1"], {}, id="only a named hierarchy"
        ),
        pytest.param(
            [mount2()],
            ["0::/"],
            {"/sys/fs/cgroup/cgroup.controllers": "\n"},
            id="only an empty cgroup2",
        ),
        pytest.param([mount2()], [], V2_FILES, id="a process that is in none"),
    ],
)
def test_a_host_without_controllers(
    mounts: list[str], own: list[str], files: dict[str, str]
) -> None:
    with pytest.raises(Error) as error:
        host(mounts, own, files)
    assert str(error.value) == "no cgroup controllers are mounted: mount cgroup2 on /sys/fs/cgroup"


def test_v1_needs_proc_cgroups() -> None:
    texts = {"/proc/mounts": mount("cpuset"), "/proc/self/cgroup": "2:cpuset:/"}
    with pytest.raises(Error, match="no cgroup controllers are mounted"):
        detect(texts.get)
    assert shown(detect({**texts, **CONTROLLERS}.get)) == own_mount_each("cpuset")


@pytest.mark.parametrize(
    ("path", "placement"),
    [
        ("/", "/"),
        ("/system", "/system"),
        ("/libvirt", ""),
        ("/libvirt/emulator", ""),
        ("/system/libvirtd.service", "/system"),
        ("/libvirt/a/libvirt/b", "/libvirt/a"),
        ("/mylibvirt/x", "/mylibvirt/x"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_placement_ends_where_libvirts_own_begins(path: str, placement: str, version: int) -> None:
    found = (
        host([mount("cpuset")], [f"2:cpuset:{path}"])
        if version == 1
        else host([mount2()], [f"0::{path}"], V2_FILES)
    )
    assert [hierarchy.placement for hierarchy in found.hierarchies] == [placement]


@pytest.mark.parametrize(
    ("path", "placement"), [("/emulator", ""), ("/vms/web/emulator", "/vms/web")]
)
def test_placement_on_v2_is_not_inside_a_vm(path: str, placement: str) -> None:
    unified = host([mount2()], [f"0::{path}"], V2_FILES).unified
    assert unified
    assert unified.placement == placement


def test_another_process_than_our_own() -> None:
    texts = {
        "/proc/mounts": mount("cpuset"),
        "/proc/self/cgroup": "2:cpuset:/",
        "/proc/12/cgroup": "2:cpuset:/daemon",
    }
    found = detect({**CONTROLLERS, **texts}.get, placements(texts["/proc/12/cgroup"]))
    assert found.hierarchies[0].placement == "/daemon"


def test_directories() -> None:
    [hierarchy] = host([mount("cpuset")], ["2:cpuset:/"]).hierarchies
    assert [hierarchy.directory(path) for path in ("/", "/a/b", "")] == [
        "/sys/fs/cgroup/cpuset",
        "/sys/fs/cgroup/cpuset/a/b",
        "/sys/fs/cgroup/cpuset",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("0::/a:b\n", {"": "/a:b"}),
        ("0::/gone (deleted)\n", {"": "/gone"}),
        (
            "3:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/\n",
            {"cpu,cpuacct": "/a", "name=systemd": "/b", "": "/"},
        ),
        ("2:cpuset:/first\n3:cpuset:/second\n", {"cpuset": "/first"}),
    ],
)
def test_placements(text: str, expected: dict[str, str]) -> None:
    assert placements(text) == expected


@pytest.mark.parametrize(
    ("name", "versions"),
    [
        ("v1", {"cpu": 1, "cpuset": 1, "devices": 1, "memory": 1}),
        ("v2", {"cpu": 2, "cpuacct": 2, "cpuset": 2, "devices": 2, "io": 2, "memory": 2}),
    ],
)
def test_recorded_hosts(name: str, versions: dict[str, int]) -> None:
    found = detect(recorded(name).read_optional)
    assert {name: at.version for name, at in found.controllers.items()} == versions
    assert bool(found.unified) == (2 in versions.values())
    assert len(found.v1) == (4 if name == "v1" else 0)
