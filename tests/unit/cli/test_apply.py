"""virt-cgroup apply, as an administrator and the units run it, while VMs come, go and change."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cli.commands import apply
from libvirt_cgroup_hooks.host import Lock

from ..support.hosts import PID, UUID
from ..support.machined import SCOPE, Machined
from ..support.operations import CG, CPUS, do, vm

SETS = f"{CPUS}vcpu_cpus = '2-3'\n"
SLICE = f"{CG}/machine.slice"
GROUPS = f"{SLICE}/{SCOPE}/libvirt"
STATUS = "/run/libvirt/qemu/vm.xml"


class Busy(Machined):
    """A real host, as far as the command can tell; somebody is at work when the lock is given."""

    real = True
    meanwhile: Callable[[], object] | None = None
    locks = 0

    def locked(self, path: str, shared: bool = False) -> Lock:
        self.locks += 1
        if self.meanwhile:
            self.meanwhile()
        return super().locked(path, shared)


@pytest.fixture
def host(tmp_path: Path) -> Busy:
    """A VM runs, and all is as configured."""
    host = Busy(tmp_path, "v2", SETS)
    do(host, "prepare", vm())
    host.slice("machine.slice", cpus="1-3")
    subject = host.starts(vm(number=3), "/machine.slice")
    do(host, "started", subject)
    host.locks = 0
    host.written.clear()
    return host


def run(host: Busy, *, quiet: bool = True, every: bool = True, dry: bool = False) -> int:
    arguments = Namespace(all=every, parent=not every, domains=[], json=False, quiet=quiet)
    return apply.run(Namespace(dry_run=dry, proposed=None, **vars(arguments)), host)


def cpus(host: Busy, group: str) -> str:
    return host.get(f"{GROUPS}/{group}/cpuset.cpus")


def test_where_all_is_well_nobody_waits(host: Busy, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(host) == 0
    assert (host.locks, host.written) == (0, [])
    assert capsys.readouterr() == ("", "")
    assert run(host, quiet=False) == 0
    assert capsys.readouterr().out == "VM parent: nothing to do\nVM vm: nothing to do\n"


def test_what_is_changed_is_told(host: Busy, capsys: pytest.CaptureFixture[str]) -> None:
    host.put(f"{GROUPS}/vcpu0/cpuset.cpus", "1-3")
    assert run(host) == 0
    assert cpus(host, "vcpu0") == "2-3"
    out = capsys.readouterr().out
    assert out == f'VM vm:\n  write "2-3" to {GROUPS}/vcpu0/cpuset.cpus\n'


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<domain ", "<job type='none' async='start'/><domain "),
        ("<domstatus ", "<domstatus state='paused' reason='starting up' "),
    ],
)
def test_a_vm_that_starts_is_left_to_its_hook(host: Busy, old: str, new: str) -> None:
    host.put(f"{GROUPS}/vcpu0/cpuset.cpus", "1-3")
    text = host.get(STATUS)
    host.put(STATUS, text.replace(old, new))
    assert run(host) == 0
    assert host.written == []
    host.put(STATUS, text)
    assert run(host) == 0
    assert cpus(host, "vcpu0") == "2-3"


def test_where_nothing_is_configured_nothing_is_done(tmp_path: Path) -> None:
    """Somebody else may have given the threads their CPUs."""
    host = Busy(tmp_path, "v2", "# nothing\n")
    host.slice("machine.slice")
    host.starts(vm(number=3), "/machine.slice")
    host.put(f"{GROUPS}/vcpu0/cpuset.cpus", "3")
    host.written.clear()
    assert run(host) == 0
    assert (host.locks, host.written) == (0, [])


def test_a_vm_that_ends_meanwhile_is_no_error(
    host: Busy, capsys: pytest.CaptureFixture[str]
) -> None:
    def end() -> None:
        shutil.rmtree(f"{host.root}/proc/{PID}")
        Path(host.root + STATUS).unlink()

    host.put(f"{GROUPS}/vcpu0/cpuset.cpus", "1-3")
    host.meanwhile = end
    assert run(host) == 0
    assert capsys.readouterr() == ("", "")


def test_what_is_configured_meanwhile_counts(host: Busy) -> None:
    host.put(f"{GROUPS}/vcpu0/cpuset.cpus", "1-3")
    host.meanwhile = lambda: host.configure(f"{CPUS}vcpu_cpus = '3'\n")
    assert run(host) == 0
    assert cpus(host, "vcpu0") == "3"


def test_a_pin_that_comes_meanwhile_stays(host: Busy) -> None:
    def pin() -> None:
        text = host.get(STATUS).replace("<cputune>", "<cputune><vcpupin vcpu='0' cpuset='1'/>")
        host.put(STATUS, text)
        host.put(f"{GROUPS}/vcpu0/cpuset.cpus", "1")

    host.put(f"{GROUPS}/vcpu0/cpuset.cpus", "1-3")
    host.meanwhile = pin
    assert run(host) == 0
    assert cpus(host, "vcpu0") == "1"


def test_a_pin_that_was_overwritten_comes_back(host: Busy) -> None:
    """libvirt had set it, and not yet told of it."""
    assert cpus(host, "vcpu1") == "1"
    host.put(f"{GROUPS}/vcpu1/cpuset.cpus", "2-3")
    assert run(host) == 0
    assert cpus(host, "vcpu1") == "1"


@pytest.mark.parametrize("every", [True, False], ids=["--all", "--parent"])
def test_cpus_that_a_pinned_vm_loses_are_told_once(
    host: Busy, capsys: pytest.CaptureFixture[str], every: bool
) -> None:
    """The same by a dry run, which takes nothing."""
    status = f"/proc/{PID}/task/{PID + 11}/status"
    host.put(status, "Cpus_allowed_list:\t1")
    host.configure(CPUS.replace("'0'", "'0-1'"))
    told = (
        "warning: VM vm loses CPUs that it is pinned to: vcpu1 to 1 (reserved: 1); "
        "pin it within 2-3 (virsh vcpupin vm 1 2-3 --live)\n"
    )
    assert run(host, every=every, dry=True) == 0
    assert capsys.readouterr().err == told
    assert run(host, every=every) == 0
    assert capsys.readouterr().err == told
    host.put(status, "Cpus_allowed_list:\t2-3")
    assert run(host, every=every) == 0
    assert capsys.readouterr().err == ""


def test_a_vm_that_is_called_parent(host: Busy, capsys: pytest.CaptureFixture[str]) -> None:
    text = host.get(STATUS).replace("<name>vm</name>", "<name>parent</name>")
    host.remove(STATUS)
    host.put(STATUS.replace("vm.xml", "parent.xml"), text)
    assert run(host, quiet=False) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if line.startswith("VM parent")] == ["VM parent: nothing to do"]
    assert [line for line in told if line.startswith(f"VM {UUID}:")]
