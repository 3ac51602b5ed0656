"""VMs that are put elsewhere, or onto CPUs that are not theirs: fenced there, or refused by the
hook with what to do. Where machined makes the cgroups of VMs, tests/lab/test_no_way_out.py.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .dedicating import settings
from .harness import (
    ALL_CPUS,
    FENCED,
    LAST_CPU,
    STATE,
    VM_CPUS,
    Configure,
    all_cgroups,
    cgroup_directory,
    destroy_vm,
    domain_xml,
    start_vm,
    virsh,
)
from .pace import wait_for
from .reserving import allowed, assert_conform, limit_of, virt_cgroup

CPUS_ONLY = 'reserved_host_cpus = "0-0"\ncgroup_layout = "/vms/$NAME"\n'
MISSING = "8000-8001"
UNLIMITED = ("max", str(2**63 - 4096))
HELD = 12  # seconds: more than the default of hook_timeout


def refused(xml: str) -> str:
    result = virsh("create", "/dev/stdin", stdin=xml, check=False)
    assert result.returncode != 0
    return result.stderr


def limited_cpus(path: str) -> str:
    directory = cgroup_directory("cpuset", path)
    return (directory / "cpuset.cpus").read_text().strip()


# layouts


def test_an_own_layout_beside_the_parent_is_fenced_too(configure: Configure) -> None:
    configure(CPUS_ONLY)
    start_vm("db")
    start_vm("web", xml=domain_xml("web", extra=settings(layout="/elsewhere/$NAME")))
    assert (limited_cpus("/vms"), limited_cpus("/elsewhere")) == (VM_CPUS, VM_CPUS)
    assert allowed("web") == {VM_CPUS}
    assert_conform("web", "db")
    destroy_vm("web")
    start_vm("app")
    assert (limited_cpus("/vms"), limited_cpus("/elsewhere")) == (VM_CPUS, ALL_CPUS)


def test_beside_the_memory_limit_it_is_refused_until_the_command_is_run(
    configure: Configure,
) -> None:
    configure(FENCED)
    xml = domain_xml("web", extra=settings(layout="/elsewhere/$NAME"))
    virsh("define", "/dev/stdin", stdin=xml)
    result = virsh("start", "web", check=False)
    assert 'has layout = "/elsewhere/$NAME" in its metadata' in result.stderr
    command = "virt-cgroup domain web --unset layout --config"
    assert command in result.stderr
    virt_cgroup(*command.split()[1:])
    virsh("start", "web")
    assert_conform("web")


@contextmanager
def work_of_the_host(path: str) -> Iterator[None]:
    """A process in the cgroup PATH, of every hierarchy that can limit it."""
    places = {cgroup_directory(controller, path) for controller in ("cpuset", "memory")}
    with subprocess.Popen(["sleep", "10000"]) as process:
        for place in places:
            place.mkdir()
            for name in ("cpuset.cpus", "cpuset.mems"):
                above = place.parent / name
                if above.exists():
                    (place / name).write_text(above.read_text())
            (place / "cgroup.procs").write_text(str(process.pid))
        try:
            yield
        finally:
            process.kill()
            process.wait()
            for place in places:
                place.rmdir()


@pytest.mark.parametrize("own", [False, True], ids=["of all VMs", "of one VM"])
def test_a_cgroup_with_the_hosts_own_work_is_no_parent_of_vms(
    configure: Configure, own: bool
) -> None:
    """The limits would be the host's, too."""
    with work_of_the_host("/services"):
        place = {"layout": "/services/$NAME"} if own else {}
        configure(CPUS_ONLY if own else CPUS_ONLY.replace("/vms", "/services"))
        told = refused(domain_xml("web", extra=settings(**place) if own else ""))
        assert "cannot limit /services as a parent of VMs: it holds the host's own work" in told
        remedy = "--unset layout" if own else 'cgroup_layout = "/vms/$NAME"'
        assert remedy in told
        assert limited_cpus("/services") == ALL_CPUS


def test_the_fence_of_an_earlier_layout_is_opened_after_its_last_vm(configure: Configure) -> None:
    """By the next VM that starts."""
    configure(FENCED)
    start_vm("web")
    top = cgroup_directory("memory", "/vms")
    limit = limit_of(top)
    configure(FENCED.replace("/vms/", "/other/"))
    start_vm("db")
    assert limit_of(top) == limit_of(cgroup_directory("memory", "/other")) == limit
    assert (limited_cpus("/vms"), limited_cpus("/other")) == (VM_CPUS, VM_CPUS)
    destroy_vm("web")
    start_vm("app")
    assert (limited_cpus("/vms"), limited_cpus("/other")) == (ALL_CPUS, VM_CPUS)
    assert limit_of(top) in UNLIMITED
    assert limit_of(cgroup_directory("memory", "/other")) == limit
    assert_conform("app", "db")


# pins


def test_pins_of_a_larger_host(configure: Configure) -> None:
    configure(CPUS_ONLY)
    pins = {0: LAST_CPU, 1: f"{LAST_CPU},{MISSING}"}
    told = refused(domain_xml("web", vcpus=2, vcpupin=pins))
    assert f"CPUs that do not exist: vcpu1 to {pins[1]} (missing: {MISSING})" in told
    command = f"virsh vcpupin web 1 {VM_CPUS} --config"
    assert command in told


def test_a_pin_of_a_vcpu_that_is_not_plugged_in(configure: Configure) -> None:
    """Nothing runs there yet."""
    configure(CPUS_ONLY)
    start_vm("web", xml=domain_xml("web", vcpus=2, current=1, vcpupin={1: MISSING}))
    assert_conform("web")


# ends


@pytest.mark.thorough
def test_an_end_waits_for_the_lock_as_long_as_is_configured(configure: Configure) -> None:
    before = all_cgroups()
    configure(f"hook_timeout = 60\n{FENCED}")
    start_vm("web")
    with subprocess.Popen(["flock", str(STATE / "lock"), "sleep", str(HELD)]):
        wait_for(
            lambda: subprocess.call(["flock", "-n", str(STATE / "lock"), "true"]) == 1, "the lock"
        )
        destroy_vm("web")
    wait_for(lambda: not list((STATE / "vms").iterdir()), "its record to be removed")
    assert {group for group in all_cgroups() - before if group.name != "machine"} == set()
