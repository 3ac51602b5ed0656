"""What the kernel and others do to cpusets behind our back; the real thing is in tests/lab."""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import conformance, managers, operations, state, threads
from libvirt_cgroup_hooks.cli.describe import describe
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.errors import Error, Refusal
from libvirt_cgroup_hooks.kinds import CPUS

from ..support import reserving
from ..support.hosts import PID, Kernel, domain
from ..support.operations import CG, INNER, do
from ..support.reserving import CONF, made, running, start, vm

VCPU1 = PID + 11  # pinned to CPU 1
V1_KINDS = [kind for kind in reserving.KINDS if kind.endswith("v1")]
V2_KINDS = [kind for kind in reserving.KINDS if kind.endswith("v2")]
ONLINE = "/sys/devices/system/cpu/online"


def unplug(host: Kernel, number: int) -> None:
    """As cgroup v1 does: the CPU goes from every cpuset, and what is in an empty one moves to that
    above.
    """
    gone = CpuSet([number])
    host.put(ONLINE, str(CpuSet.parse(host.get(ONLINE)) - gone))
    tree = next(one for one in host.hierarchies if one.key == "cpuset")
    for directory in sorted(
        (one for one in [*host.cgroups(), tree.mount] if f"{one}/".startswith(f"{tree.mount}/")),
        reverse=True,
    ):
        left = CpuSet.parse(host.get(f"{directory}/cpuset.cpus")) - gone
        host.put(f"{directory}/cpuset.cpus", str(left))
        if left:
            continue
        for pid, tid in host.tasks(tree, directory):
            host.place(pid, tid, {"cpuset": directory.rpartition("/")[0][len(tree.mount) :]})


def plug(host: Kernel) -> None:
    for file in (ONLINE, f"{CG}/cpuset/cpuset.cpus"):
        host.put(file, "0-3")


def problems(host: Kernel, subject: Domain) -> list[str]:
    found: list[str] = describe(host, managers.choose(host, host.config()), subject)["problems"]
    return found


@pytest.mark.parametrize("layout", ["native", "/vms/$NAME", "/vms/prod/$NAME"])
@pytest.mark.parametrize("kind", V1_KINDS)
def test_v1_gives_a_cpu_back_only_to_who_asks(tmp_path: Path, kind: str, layout: str) -> None:
    host = made(tmp_path, kind, CONF.replace("/vms/$NAME", layout))
    reserving.SLICES.setdefault("/vms/prod/$NAME", "/vms.slice/vms-prod.slice")
    start(host, INNER, layout)
    home = host.where(PID, VCPU1)["cpuset"]
    assert home.endswith("/vcpu1")
    unplug(host, 1)
    assert host.where(PID, VCPU1)["cpuset"] == home.rpartition("/")[0]
    assert (
        f"thread {VCPU1} (vcpu1): it is in cpuset {home[: -len('/vcpu1')]}, not in {home}"
        in problems(host, vm(host))
    )
    do(host, "reconnect", vm(host))
    assert host.where(PID, VCPU1)["cpuset"] == home
    assert reserving.cpus(host, VCPU1) == "2-3"
    assert problems(host, vm(host)) == []
    plug(host)
    do(host, "reconnect", vm(host))
    assert (reserving.cpus(host, VCPU1), reserving.cpus(host)) == ("1", "1-3")
    assert problems(host, vm(host)) == []
    assert do(host, "reconnect", vm(host)) == []


@pytest.mark.parametrize(
    "layouts", [("/vms/prod/$NAME", "/vms/$NAME"), ("/vms/$NAME", "/vms/prod/$NAME")]
)
@pytest.mark.parametrize("kind", V1_KINDS)
def test_a_vm_parent_above_another(tmp_path: Path, kind: str, layouts: tuple[str, str]) -> None:
    """That of an earlier layout is fenced still, for VMs may run there; a CPU that comes back goes
    to it first.
    """
    first, second = (CONF.replace("/vms/$NAME", layout) for layout in layouts)
    host = made(tmp_path, kind, first)
    do(host, "prepare", domain())
    host.configure(second)
    do(host, "prepare", domain())
    rows = state.Remembered(host).before
    paths = [path for kind, path in rows if kind is CPUS and path.startswith("/vms")]
    files = [f"{CG}/cpuset{path}/cpuset.cpus" for path in paths]
    assert len(files) == 2
    for online, wanted in ((None, "1-3"), (3, "1-2"), (None, "1-3")):
        plug(host)
        if online:
            unplug(host, online)
        do(host, "prepare", domain())
        assert [host.get(file) for file in files] == [wanted, wanted]
        assert not [line for line in do(host, "prepare", domain()) if "cpuset" in line]


@pytest.mark.parametrize("kind", V1_KINDS)
def test_exclusive_cpus_on_v1(tmp_path: Path, kind: str) -> None:
    host = made(tmp_path, kind)
    for name, text in {"cpuset.cpus": "2-3", "cpuset.cpu_exclusive": "1"}.items():
        host.put(f"{CG}/cpuset/mine/{name}", text)
    with pytest.raises(Error) as error:
        do(host, "prepare", domain())
    assert str(error.value) == (
        f"cannot give CPUs 2-3 to VMs: {CG}/cpuset/mine has exclusive use of them "
        "(cpuset.cpu_exclusive): "
        "take them back from it, or reserve them"
    )
    host.configure(CONF.replace('"0"', '"0,2-3"').replace("'0'", "'0,2-3'"))
    do(host, "prepare", domain())


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        ({"cpuset.cpus.partition": "root", "cpuset.cpus.exclusive.effective": "2-3"}, "2-3"),
        ({"cpuset.cpus.partition": "isolated", "cpuset.cpus": "3"}, "3"),  # before Linux 6.7
        ({"cpuset.cpus.partition": "root", "cpuset.cpus.exclusive.effective": "0,3"}, "3"),
        (
            {
                "cpuset.cpus.partition": "root invalid (Cpu list in cpuset.cpus not exclusive)",
                "cpuset.cpus": "3",
            },
            None,
        ),
        ({"cpuset.cpus.partition": "member", "cpuset.cpus.exclusive.effective": "2-3"}, None),
        ({"cpuset.cpus": "2-3"}, None),
    ],
)
@pytest.mark.parametrize("kind", V2_KINDS)
def test_partitions_of_others(
    tmp_path: Path, kind: str, files: dict[str, str], taken: str | None
) -> None:
    host = running(tmp_path, kind)
    for name, text in files.items():
        host.put(f"{CG}/mine/{name}", text)
    found = conformance.taken(managers.choose(host, host.config()))
    assert {path: str(cpus) for path, cpus in found.items()} == (
        {f"{CG}/mine": taken} if taken else {}
    )


@pytest.mark.parametrize("kind", V2_KINDS)
def test_a_remote_partition(tmp_path: Path, kind: str) -> None:
    """It may be anywhere below a cgroup that holds its CPUs without being a partition."""
    host = running(tmp_path, kind)
    for path, kind_of in (("mine", "member"), ("mine/deep", "root")):
        host.put(f"{CG}/{path}/cpuset.cpus.partition", kind_of)
        host.put(f"{CG}/{path}/cpuset.cpus.exclusive.effective", "3")
    found = conformance.taken(managers.choose(host, host.config()))
    assert {path: str(cpus) for path, cpus in found.items()} == {f"{CG}/mine/deep": "3"}


@pytest.mark.parametrize("kind", V2_KINDS)
def test_pinned_to_a_partition_of_others(tmp_path: Path, kind: str) -> None:
    host = running(tmp_path, kind)
    host.put(f"{CG}/mine/cpuset.cpus.partition", "root")
    host.put(f"{CG}/mine/cpuset.cpus.exclusive.effective", "3")
    host.put(reserving.file(host, "cpuset.cpus.effective"), "1-2")
    half, whole = (
        domain("late", f"<cputune><vcpupin vcpu='0' cpuset='{cpus}'/></cputune>")
        for cpus in ("2-3", "3")
    )
    operations.plan(host, host.config(), "prepare", half)
    with pytest.raises(Refusal) as error:
        operations.plan(host, host.config(), "prepare", whole)
    assert str(error.value) == (
        f"VM late is pinned to CPUs 3 (vcpu0), of which {CG}/mine has exclusive use: "
        "take them back from it, or pin it within 1-2"
    )


def test_nobody_has_anything(tmp_path: Path) -> None:
    host = made(tmp_path, V2_KINDS[0], "")
    assert conformance.taken(managers.choose(host, host.config())) == {}
    assert threads.running(host, {}) == []
