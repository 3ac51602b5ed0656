"""The .deb on lab hosts, with apt and the distribution's Python, and no source tree: VMs run
throughout.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labhost.image import build, recipe

from .packaged import CONF, CPUS, FENCED, HOOKS, TREE, Packaged, package, packed

FOREIGN = '#!/bin/sh\necho "$1 $2" >>/run/foreign\n'


@pytest.fixture(scope="module")
def debs() -> bytes:
    """Two revisions, 1.deb and 2.deb."""
    return packed({revision: package(TREE, revision) for revision in ("1", "2")})


@pytest.fixture(params=["13", pytest.param("12", marks=pytest.mark.thorough)])
def host(request: pytest.FixtureRequest, debs: bytes) -> Iterator[Packaged]:
    found = Packaged(build(recipe(request.param, "")))
    with found:
        found.push(debs, "/root/packages")
        yield found


def test_the_life_of_the_package(host: Packaged) -> None:
    daemon = host.daemon()

    said = host.install("1")
    assert f"installed {HOOKS}/qemu" in said
    assert "reloaded libvirtd" in said
    assert host.hooks() == ["./qemu"]
    assert host.check("virt-cgroup hook status").splitlines()[0].split()[1] == f"{HOOKS}/qemu"
    assert host.check("systemctl is-enabled libvirt-cgroup-hooks").strip() == "enabled"

    host.configure("/vms/$NAME")
    edited = host.check(f"cat {CONF}")
    host.start("web")
    web = (host.pid("web"), host.place("web"))
    assert "/vms.slice/" in web[1]
    assert host.cpus("web") == FENCED

    # but for what the shell goes by, which belongs to one version
    files = "find /run/systemd /run/libvirt-cgroup-hooks -type f ! -name idle | sort"
    before = host.check(f"stat -c '%i %Y' {HOOKS}/qemu; {files}")
    said = host.install("2")
    assert f"{HOOKS}/qemu is in place" in said
    assert host.check("dpkg-query -W -f '${Version}' libvirt-cgroup-hooks").endswith("-2")
    assert host.check(f"cat {CONF}") == edited
    after = host.check(f"stat -c '%i %Y' {HOOKS}/qemu; {files}")
    assert after == before
    assert (host.pid("web"), host.place("web"), host.cpus("web")) == (*web, FENCED)
    host.start("db")
    assert (host.cpus("db"), "/vms.slice/" in host.place("db")) == (FENCED, True)

    host.check("echo 0 >/sys/devices/system/cpu/cpu7/online")
    said = host.apt("remove", "libvirt-cgroup-hooks")
    assert host.cpus("web") == "0-6"
    host.check("echo 1 >/sys/devices/system/cpu/cpu7/online")  # and then VMs may use it
    assert f"removed {HOOKS}/qemu" in said
    assert "lifted the limits" in said
    check_nothing_is_left(host)
    assert host.check(f"cat {CONF}") == edited
    assert (host.pid("web"), host.place("web"), host.cpus("web")) == (*web, CPUS)
    assert host.property("MemoryMax") == "infinity"
    assert host.check("cat /sys/fs/cgroup/vms.slice/cpuset.cpus.effective").strip() == CPUS
    assert host.check("cat /sys/fs/cgroup/vms.slice/memory.max").strip() == "max"
    host.check("virsh schedinfo web --set cpu_shares=200 --live")
    host.start("later")
    assert ("/machine.slice/" in host.place("later"), host.cpus("later")) == (True, CPUS)

    host.install("2")
    assert host.check(f"cat {CONF}") == edited
    host.start("again")
    assert (host.cpus("again"), "/vms.slice/" in host.place("again")) == (FENCED, True)

    host.apt("purge", "libvirt-cgroup-hooks")
    check_nothing_is_left(host)
    assert host.check(f"ls {CONF} 2>&1 || :").endswith("No such file or directory\n")
    assert (host.pid("web"), host.place("web"), host.cpus("web")) == (*web, CPUS)
    host.check("virsh destroy web")

    host.install("1")
    assert host.hooks() == ["./qemu"]
    host.start("web")
    assert "/machine.slice/" in host.place("web")  # nothing is configured
    assert (host.daemon(), host.log()) == (daemon, "")


def check_nothing_is_left(host: Packaged) -> None:
    assert host.hooks() == []
    assert host.ours() == []
    assert host.check("systemctl is-enabled libvirt-cgroup-hooks 2>&1 || :").strip() != "enabled"


@pytest.mark.thorough
def test_where_each_vm_carries_the_fence(host: Packaged) -> None:
    """A layout without a parent: the drop-in of each scope has the CPUs, and the place."""
    host.install("1")
    host.check(f"""printf 'reserved_host_cpus = "0-1"\ncgroup_layout = "uuid"\n' >>{CONF}""")
    host.start("web")
    web = (host.pid("web"), host.place("web"))
    assert "/machine.slice/" not in web[1]
    assert host.cpus("web") == FENCED
    host.apt("remove", "libvirt-cgroup-hooks")
    assert host.ours() == []
    assert (host.pid("web"), host.place("web"), host.cpus("web")) == (*web, CPUS)
    host.check("virsh destroy web")


@pytest.mark.thorough
def test_beside_another_hook(host: Packaged) -> None:
    host.check(f"mkdir -p {HOOKS} && cat >{HOOKS}/qemu <<'END'\n{FOREIGN}END")
    host.check(f"chmod 755 {HOOKS}/qemu && systemctl reload libvirtd")
    said = host.install("1")
    assert f"{HOOKS}/qemu belongs to another program and is left alone" in said
    assert host.hooks() == ["./qemu", "./qemu.d/50-cgroup-hooks"]
    host.configure("/vms/$NAME")
    host.start("web")
    assert host.cpus("web") == FENCED
    assert "web prepare\nweb start\nweb started\n" in host.check("cat /run/foreign")
    host.install("2")
    assert host.hooks() == ["./qemu", "./qemu.d/50-cgroup-hooks"]
    host.apt("purge", "libvirt-cgroup-hooks")
    assert host.hooks() == ["./qemu"]
    assert host.ours() == []
    assert host.check(f"cat {HOOKS}/qemu") == FOREIGN
    assert host.cpus("web") == CPUS
    host.start("later")
    assert "later started\n" in host.check("cat /run/foreign")


def test_what_apparmor_lets_libvirtd_run(host: Packaged) -> None:
    """The rules of libvirt's own profile that the hook needs: a regular file below hooks, and the
    programs it runs.

    A link from there to another folder would be denied.
    """
    host.install("1")
    assert host.check(f"stat -c %F {HOOKS}/qemu").strip() == "regular file"
    rules = [
        line.strip() for line in host.check("cat /etc/apparmor.d/usr.sbin.libvirtd").splitlines()
    ]
    assert f"{HOOKS}/** rmix," in rules  # ix: in libvirtd's own profile, with which it may start
    assert "/usr/bin/* PUx," in rules  # sh, python3 and systemctl, in none
    assert "/bin/* PUx," in rules
