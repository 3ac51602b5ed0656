"""Installed on a copy of this machine: the rpm with its scripts, and the wheel in a virtual
environment.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from .conftest import ROOT, run
from .machine import Machine

HOOK = "/etc/libvirt/hooks/qemu"
CONF = "/etc/libvirt/cgroup-hooks.conf"
FOREIGN = "#!/bin/sh\necho vdsm\n"
SPEC = """\
Name: {name}
Version: 1
Release: 1
Summary: {name}
License: LGPL-2.1-or-later
BuildArch: noarch
{lines}
%description
{name}
%install
for file in {files}; do
    install -D -m 755 {source} %{{buildroot}}$file
done
%files
{files}
"""
XML = (
    "<domain type='qemu'><uuid>4f1e2d3c-5b6a-4798-8a9b-0c1d2e3f4a5b</uuid><name>vm</name></domain>"
)


def stub(folder: Path, name: str, lines: Iterable[str] = (), files: str = "") -> Path:
    """A package with no more than what others need of it."""
    spec, source = folder / f"{name}.spec", folder / "hook"
    source.write_text(FOREIGN)
    spec.write_text(SPEC.format(name=name, lines="\n".join(lines), files=files, source=source))
    run("rpmbuild", "-bb", "--define", f"_topdir {folder}", spec)
    return folder / f"RPMS/noarch/{name}-1-1.noarch.rpm"


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory, rpms: dict[str, Path]) -> dict[str, Path]:
    """What ours needs, what it needs its policy for, and a package with a hook of its own, as
    oVirt's vdsm.
    """
    folder = tmp_path_factory.mktemp("stubs")
    needed = set(run("rpm", "-qp", "--requires", rpms["first"]).splitlines())
    provided = sorted(name for name in needed if not name.startswith(("(", "rpmlib(", "config(")))
    return {
        "needed": stub(folder, "needed", [f"Provides: {name}" for name in provided]),
        "policy": stub(folder, "selinux-policy-targeted"),
        "vdsm": stub(folder, "vdsm", files=HOOK),
    }


def rpm(machine: Machine, *arguments: str | Path, check: bool = True) -> str:
    """--dbpath: not this machine's own database, which Debian's rpm keeps in the home folder."""
    return machine.outside(
        "rpm", "--root", machine.root, "--dbpath", "/var/lib/test-rpm", *arguments, check=check
    )


@pytest.fixture
def fedora(machine: Machine, others: dict[str, Path]) -> Machine:
    """Debian's Python does not look where Fedora's does."""
    machine.run("/usr/bin/python3 -c 'import site; print(site.getsitepackages()[0])' >/tmp/site")
    machine.run(
        "d=$(cat /tmp/site); mkdir -p $d; v=$(basename $(dirname $d)); "
        "echo /usr/lib/$v/site-packages >$d/fedora.pth"
    )
    rpm(machine, "-i", others["needed"])
    return machine


def test_the_life_of_the_rpm(fedora: Machine, rpms: dict[str, Path]) -> None:
    said = rpm(fedora, "-i", rpms["first"])
    assert f"installed {HOOK}" in said
    assert "libvirtd is not running" in said
    assert fedora.hooks() == ["qemu"]
    assert fedora.run(f"cat {HOOK}") == (ROOT / "hooks/qemu").read_text()

    before = fedora.run(f"stat -c '%i %Y' {HOOK}")
    fedora.run(f"echo 'hook_timeout = 7' >>{CONF}")
    assert f"{HOOK} is in place" in rpm(fedora, "-U", rpms["next"])
    assert fedora.run(f"stat -c '%i %Y' {HOOK}") == before
    assert "hook_timeout = 7" in fedora.run(f"tail -n 1 {CONF}")

    said = rpm(fedora, "-e", "libvirt-cgroup-hooks")
    assert f"removed {HOOK}" in said
    assert fedora.hooks() == []
    assert "hook_timeout = 7" in fedora.run(f"tail -n 1 {CONF}.rpmsave")

    rpm(fedora, "-i", rpms["first"])
    assert fedora.hooks() == ["qemu"]


def test_the_policy_goes_where_selinux_is(
    fedora: Machine, rpms: dict[str, Path], others: dict[str, Path]
) -> None:
    rpm(fedora, "-i", others["policy"])
    said = rpm(fedora, "-i", rpms["first"], check=False)
    assert "libvirt-cgroup-hooks-selinux = 0.1.0-1 if selinux-policy-targeted) is needed" in said
    rpm(fedora, "-i", rpms["first"], rpms["selinux"])
    assert fedora.hooks() == ["qemu"]
    rpm(fedora, "-e", "libvirt-cgroup-hooks", "libvirt-cgroup-hooks-selinux")
    assert fedora.hooks() == []


def test_the_rpm_beside_another_hook(fedora: Machine, rpms: dict[str, Path]) -> None:
    fedora.put(HOOK, FOREIGN, 0o755)
    said = rpm(fedora, "-i", rpms["first"])
    assert f"{HOOK} belongs to another program and is left alone" in said
    assert fedora.hooks() == ["qemu", "qemu.d/50-cgroup-hooks"]
    rpm(fedora, "-e", "libvirt-cgroup-hooks")
    assert fedora.hooks() == ["qemu"]
    assert fedora.run(f"cat {HOOK}") == FOREIGN


def test_another_package_with_a_hook_comes_and_goes(
    fedora: Machine, rpms: dict[str, Path], others: dict[str, Path]
) -> None:
    rpm(fedora, "-i", rpms["first"])
    rpm(fedora, "-i", others["vdsm"])
    assert fedora.run(f"cat {HOOK}") == FOREIGN
    assert fedora.hooks() == ["qemu", "qemu.d/50-cgroup-hooks"]
    rpm(fedora, "-e", "vdsm")
    assert fedora.hooks() == ["qemu"]
    assert fedora.run(f"cat {HOOK}") == (ROOT / "hooks/qemu").read_text()


def refusal(machine: Machine) -> str:
    """What the hook says of a configuration that cannot be right: it ran, with the package."""
    machine.put(CONF, "hook_timeout = 0\n")
    output = machine.run(f"{HOOK} vm prepare begin - || echo status $?", stdin=XML)
    assert output.endswith("status 1\n") or "status 1\n" in output
    return output


def test_the_rpms_hook_works(fedora: Machine, rpms: dict[str, Path]) -> None:
    rpm(fedora, "-i", rpms["first"])
    assert f"{CONF}:1: hook_timeout" in refusal(fedora)


def test_a_virtual_environment(machine: Machine, wheel: Path) -> None:
    machine.outside("cp", wheel, machine.root / "tmp")
    machine.run("/usr/bin/python3 -m venv --system-site-packages '/opt/my venv'")
    machine.run("'/opt/my venv/bin/python' -m pip install --quiet --no-index --no-deps /tmp/*.whl")
    said = machine.run("'/opt/my venv/bin/virt-cgroup' hook install")
    assert f"installed {HOOK}" in said
    assert "'/opt/my venv/bin/python" in machine.run(f"cat {HOOK}")
    assert "Python:         /opt/my venv/bin/python" in machine.run(
        "'/opt/my venv/bin/virt-cgroup' hook status"
    )
    assert f"{CONF}:1: hook_timeout" in refusal(machine)
    assert f"removed {HOOK}" in machine.run("'/opt/my venv/bin/virt-cgroup' hook remove")
    assert machine.hooks() == []


def test_a_python_that_libvirtd_would_not_find_the_package_with(
    machine: Machine, wheel: Path
) -> None:
    machine.outside("cp", wheel, machine.root / "tmp")
    machine.run(
        "/usr/bin/python3 -m pip install --quiet --no-index --no-deps --target /opt/somewhere "
        "/tmp/*.whl"
    )
    said = machine.run(
        "PYTHONPATH=/opt/somewhere /usr/bin/python3 -m libvirt_cgroup_hooks hook install",
        check=False,
    )
    assert said.startswith(
        "error: /usr/bin/python3 does not find the package when run as libvirtd runs it: "
    )
    assert machine.hooks() == []


# the deb


def test_the_deb_is_installed_and_purged(machine: Machine, deb: Path) -> None:
    """dpkg says nothing of a folder that is not empty, as Debian 13 would of units in /lib."""
    machine.outside("cp", deb, machine.root / "root/package.deb")
    machine.run("dpkg --force-depends -i /root/package.deb")
    unit = "/usr/lib/systemd/system/libvirt-cgroup-hooks.service"
    assert machine.run(f"ls {unit}") == f"{unit}\n"
    assert "not empty" not in machine.run("dpkg --purge libvirt-cgroup-hooks")
    assert "No such file" in machine.run(f"ls {unit}", check=False)
