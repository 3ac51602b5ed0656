"""CPUs that running VMs are pinned to, or have in a thread set of their own, and that are taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import changes, managers, operations
from libvirt_cgroup_hooks.domainxml import SETTINGS_URI
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.plan import Plan
from libvirt_cgroup_hooks.reserve import Change

from .support import reserving
from .support.hosts import PID, Kernel, domain, run
from .support.reserving import INNER, KINDS

LAYOUT = "cgroup_layout = '/vms/$NAME'\n"
ONE, TWO = (f"reserved_host_cpus = '{cpus}'\n{LAYOUT}" for cpus in ("0", "0-1"))
PINNED = f"{INNER}<cputune><vcpupin vcpu='1' cpuset='1-2'/></cputune>"
OWN = (
    f"{INNER}<metadata><s:settings xmlns:s='{SETTINGS_URI}'><vcpu_cpus>1</vcpu_cpus></s:settings>"
    "</metadata>"
)
LOSES_PIN = (
    "VM vm loses CPUs that it is pinned to: vcpu1 to 1-2 (reserved: 1); "
    "pin it within 2-3 (virsh vcpupin vm 1 2-3 --live)"
)
LOSES_SET = (
    "VM vm loses CPUs that it is pinned to: vcpu_cpus to 1 (reserved: 1); "
    "pin it within 2-3 (virt-cgroup domain vm --set vcpu_cpus=2-3 --live)"
)
KEEPS_GROUPS = [kind for kind in KINDS if kind.endswith("v2")]  # v1 has no empty cpusets


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def running(root: Path, kind: str, inner: str = PINNED, conf: str = ONE) -> Kernel:
    host = reserving.running(root, kind, conf, inner)
    show_cpus(host)
    return host


def show_cpus(host: Kernel) -> None:
    """/proc tells where each thread may run: what is left of its cpuset, or that above it."""
    above = reserving.says(host, "cpuset.cpus")
    for tid in host.names(f"/proc/{PID}/task"):
        cpus = reserving.cpus(host, int(tid)) or above
        host.put(f"/proc/{PID}/task/{tid}/status", f"Cpus_allowed_list:\t{cpus}")


def applied(host: Kernel) -> list[str]:
    """The warnings of what `apply --parent` does."""
    plan = Plan("apply")
    changes.parent(plan, managers.choose(host, host.config(), managers.daemon(host)), {"vm"})
    run(host, plan)
    show_cpus(host)
    return plan.warnings


def test_apply_tells_once_what_pinned_vms_lose(tmp_path: Path, kind: str) -> None:
    host = running(tmp_path, kind)
    assert applied(host) == []
    host.configure(TWO)
    assert applied(host) == [LOSES_PIN]
    assert reserving.cpus(host, PID + 11) == "2"
    assert applied(host) == []
    host.configure(ONE)
    assert applied(host) == []


def test_the_remedy_is_also_for_the_next_start(tmp_path: Path, kind: str) -> None:
    host = running(tmp_path, kind)
    host.put("/etc/libvirt/qemu/vm.xml", "<domain/>")
    host.configure(TWO)
    assert applied(host) == [LOSES_PIN.replace("--live", "--live --config")]


@pytest.mark.parametrize("inner", [INNER, PINNED.replace("1-2", "2")])
def test_vms_that_ask_for_none_of_them_are_not_named(tmp_path: Path, kind: str, inner: str) -> None:
    host = running(tmp_path, kind, inner)
    host.configure(TWO)
    assert applied(host) == []


def test_the_hook_of_the_next_vm_tells_it_too(tmp_path: Path, kind: str) -> None:
    host = running(tmp_path, kind)
    host.configure(TWO)
    late = domain("late", uuid="1" * 36, id=4)
    assert operations.plan(host, host.config(), "prepare", late).warnings == [LOSES_PIN]


def test_a_vm_that_carries_the_limit_itself(tmp_path: Path, kind: str) -> None:
    lent = "host_cpus_for = ['emulator']\n"
    host = running(tmp_path, kind, conf=f"{ONE}{lent}")
    host.configure(f"{TWO}{lent}")
    vm = reserving.vm(host)
    plan = operations.plan(host, host.config(), "reconnect", vm)
    assert plan.warnings == [LOSES_PIN]
    run(host, plan)
    show_cpus(host)
    assert operations.plan(host, host.config(), "reconnect", vm).warnings == []


# thread sets of a VM's own


def reserve(host: Kernel, live: bool, force: bool = False) -> list[str]:
    change = Change(host, {"reserved_host_cpus": "0-1"}, live, not live, force)
    change.run()
    return change.warnings


def test_own_sets_are_not_taken_at_run_time(tmp_path: Path, kind: str) -> None:
    host = running(tmp_path, kind, OWN)
    before = reserving.states(host)
    with pytest.raises(Error) as error:
        reserve(host, live=True)
    assert str(error.value) == (
        "cannot take CPUs from VMs that are pinned to them: vm (vcpu_cpus to 1 (reserved: 1)): "
        "pin them within 2-3 (virt-cgroup domain vm --set vcpu_cpus=2-3 --live), stop them, "
        "or use --force"
    )
    assert reserving.states(host) == before


def test_own_sets_that_the_file_will_take_are_told(tmp_path: Path, kind: str) -> None:
    host = running(tmp_path, kind, OWN)
    assert reserve(host, live=False) == [
        "running VMs are pinned to CPUs that this takes: vm (vcpu_cpus to 1 (reserved: 1)); they "
        "cannot start again until you pin them within 2-3 "
        "(virt-cgroup domain vm --set vcpu_cpus=2-3 --live)"
    ]


def test_own_sets_by_force(tmp_path: Path, kind: str) -> None:
    host = running(tmp_path, kind, OWN)
    told = reserve(host, live=True, force=True)
    assert told[0] == (
        'VM vm has vcpu_cpus = "1" in its metadata: all of these CPUs are reserved '
        "(reserved_host_cpus 0-1); until that is changed, it runs within CPUs 2-3, without its own "
        "settings: change it, or remove it: virt-cgroup domain vm --unset vcpu_cpus --live"
    )
    assert told[1:] == [LOSES_SET]
    assert reserving.says(host, "cpuset.cpus") == "2-3"
    show_cpus(host)
    host.configure(ONE)
    reserve(host, live=True)  # taken before, and not asked for again


@pytest.mark.parametrize("name", KEEPS_GROUPS)
def test_apply_tells_once_what_own_sets_lose(tmp_path: Path, name: str) -> None:
    host = running(tmp_path, name, OWN)
    host.configure(TWO)
    assert applied(host) == [LOSES_SET]
    assert applied(host) == []


def test_own_sets_of_which_something_is_left(tmp_path: Path, kind: str) -> None:
    host = running(tmp_path, kind, OWN.replace("cpus>1<", "cpus>1-2<"))
    assert reserve(host, live=True) == []
    assert reserving.cpus(host, PID + 10) == "2"
