"""VMs whose emulator and I/O threads run on the host's CPUs (host_cpus_for), and what holds the
others.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import conformance, managers, threads
from libvirt_cgroup_hooks.cli.checks import vm as checks
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.cli.commands import apply, status
from libvirt_cgroup_hooks.cli.map import model
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.errors import Error, Refusal
from libvirt_cgroup_hooks.leave import leave
from libvirt_cgroup_hooks.reserve import Change

from .support.hosts import PID, Kernel, domain
from .support.machined import DROP_IN, Machined
from .support.operations import OTHER, do, lines, plan, started
from .support.reserving import KINDS, cpus, made, start

RESERVED = "reserved_host_cpus = '0'\n"
LENDS = f"{RESERVED}host_cpus_for = ['emulator', 'iothread']\n"
VCPUS = "<vcpupin vcpu='0' cpuset='1'/><vcpupin vcpu='1' cpuset='2'/>"
ON_HOST = "<emulatorpin cpuset='0'/><iothreadpin iothread='1' cpuset='0'/>"
SIZE = "<vcpu>2</vcpu><iothreads>1</iothreads><memory unit='MiB'>256</memory>"
DESKTOP = f"{SIZE}<cputune>{VCPUS}{ON_HOST}</cputune>"
PINNED = f"{SIZE}<cputune>{VCPUS}</cputune>"
LAYOUTS = ("native", "/vms/$NAME", "root")
EMULATOR, VCPU0, IOTHREAD = PID, PID + 10, PID + 21


def layout(text: str, name: str) -> str:
    return f"{text}cgroup_layout = '{name}'\n"


def running(root: Path, kind: str, name: str, inner: str, text: str = LENDS) -> Kernel:
    host = made(root, kind, layout(text, name))
    start(host, inner, name)
    return host


def now(host: Kernel) -> list[str]:
    return [cpus(host, thread) for thread in (EMULATOR, VCPU0, IOTHREAD)]


every_host = pytest.mark.parametrize("kind", KINDS)
every_layout = pytest.mark.parametrize("name", LAYOUTS)


@every_host
@every_layout
def test_threads_on_the_hosts_cpus(tmp_path: Path, kind: str, name: str) -> None:
    host = running(tmp_path, kind, name, DESKTOP)
    assert now(host) == ["0", "1", "0"]
    manager = managers.choose(host, host.config())
    (vm,) = threads.running(host, {})
    assert [
        one.text
        for thread in threads.threads(host, vm)
        for one in conformance.differences(
            manager, vm, thread, CpuSet.parse(cpus(host, thread.tid))
        )
    ] == []


@every_host
@every_layout
@pytest.mark.parametrize("inner", [SIZE, PINNED])
def test_others_keep_to_the_fence(tmp_path: Path, kind: str, name: str, inner: str) -> None:
    host = made(tmp_path, kind, layout(LENDS, name))
    subject = domain(inner=inner, id=3)
    started(host, subject)
    if isinstance(host, Machined):
        host.starts(
            subject, {"native": "/machine.slice", "root": ""}.get(name, "/vms.slice"), inner
        )
    else:
        host.start_vm(subject, inner)
    assert cpus(host) == "1-3"  # from QEMU's first moment on, before there is a thread group
    do(host, "started", subject)
    assert cpus(host) == "1-3"
    assert cpus(host, VCPU0) == ("1" if inner is PINNED else "1-3")


@every_host
@every_layout
def test_by_thread_sets(tmp_path: Path, kind: str, name: str) -> None:
    sets = f"{LENDS}emulator_cpus = '0'\niothread_cpus = '0-1'\n"
    host = running(tmp_path, kind, name, PINNED, sets)
    assert now(host) == ["0", "1", "0-1"]


@every_host
def test_sets_of_a_vm_whose_vcpus_are_not_pinned(tmp_path: Path, kind: str) -> None:
    host = made(tmp_path, kind, f"{LENDS}emulator_cpus = '0'\n")
    subject = start(host, SIZE, "native")
    assert cpus(host) == "1-3"
    assert plan(host, "prepare", subject).warnings[0] == (
        "VM vm does not get the reserved CPUs of emulator_cpus: that needs all its vCPUs pinned in "
        "its XML (host_cpus_for), and vcpu0 is not"
    )


def test_of_its_own_settings(tmp_path: Path) -> None:
    host = made(tmp_path, "systemd-v2", LENDS)
    subject = domain(inner=PINNED, settings={"emulator_cpus": "0"})
    own = managers.choose(host, host.config()).for_domain(subject)
    assert str(own.allowed(subject, ["emulator"])["emulator"]) == "0"


def refusal(host: Kernel, inner: str) -> str:
    with pytest.raises(Refusal) as error:
        lines(host, "prepare", domain(inner=inner))
    return str(error.value)


def test_refused_without_the_setting_which_is_named(tmp_path: Path) -> None:
    assert refusal(made(tmp_path, "systemd-v2", RESERVED), DESKTOP) == (
        "VM vm is pinned to reserved CPUs: emulator to 0 (reserved: 0), iothread1 to 0 (reserved: "
        "0): pin it within 1-3 (virsh emulatorpin vm 1-3 --config, or in its XML), or reserve "
        'other CPUs, or allow it with host_cpus_for = ["emulator", "iothread"]'
    )


def test_the_setting_is_not_named_where_it_does_not_help(tmp_path: Path) -> None:
    host = made(tmp_path, "systemd-v2", RESERVED)
    assert "host_cpus_for" not in refusal(host, DESKTOP.replace("cpuset='1'", "cpuset='0'"))
    assert "host_cpus_for" not in refusal(host, f"{SIZE}<cputune>{ON_HOST}</cputune>")


@pytest.mark.parametrize(
    ("inner", "told"),
    [
        (
            f"{SIZE}<cputune>{ON_HOST}<vcpupin vcpu='0' cpuset='1'/></cputune>",
            "VM vm has emulator pinned to reserved CPUs, which needs all its vCPUs pinned to "
            "others (host_cpus_for), and vcpu1 is not pinned: pin it within 1-3 (virsh vcpupin "
            "vm 1 1-3 --config, or in its XML)",
        ),
        (
            DESKTOP.replace("<vcpu>2", "<vcpu current='2'>3"),
            "VM vm has emulator pinned to reserved CPUs, which needs all its vCPUs pinned to "
            "others (host_cpus_for), and vcpu2 is not pinned: pin it within 1-3 (virsh vcpupin "
            "vm 2 1-3 --config, or in its XML)",
        ),
        (
            DESKTOP.replace("vcpu='1' cpuset='2'", "vcpu='1' cpuset='0,2'"),
            "VM vm is pinned to reserved CPUs: vcpu1 to 0,2 (reserved: 0): pin it within 1-3 "
            "(virsh vcpupin vm 1 1-3 --config, or in its XML), or reserve other CPUs",
        ),
    ],
)
def test_vcpus_never(tmp_path: Path, inner: str, told: str) -> None:
    assert refusal(made(tmp_path, "systemd-v2", LENDS), inner) == told


def test_only_the_classes_that_are_named(tmp_path: Path) -> None:
    host = made(tmp_path, "systemd-v2", f"{RESERVED}host_cpus_for = ['iothread']\n")
    assert refusal(host, DESKTOP).startswith(
        "VM vm is pinned to reserved CPUs: emulator to 0 (reserved: 0): "
    )
    inner = DESKTOP.replace("<emulatorpin cpuset='0'/>", "")
    assert "emulator is not pinned" in refusal(host, inner)
    lines(
        host,
        "prepare",
        domain(inner=DESKTOP.replace("<emulatorpin cpuset='0'", "<emulatorpin cpuset='3'")),
    )


# changes while VMs run


@every_host
@every_layout
@pytest.mark.parametrize("command", ["apply", "reserve"])
def test_configured_while_a_vm_runs(tmp_path: Path, kind: str, name: str, command: str) -> None:
    host = running(tmp_path, kind, name, SIZE, RESERVED)
    assert now(host) == ["1-3"] * 3
    host.configure(layout(LENDS, name))
    if name != "root":  # there each VM has its limit in any case
        desktop = domain("other", DESKTOP, uuid=OTHER)
        with pytest.raises(Refusal, match=r"closed to all VMs together: run virt-cgroup apply --a"):
            lines(host, "prepare", desktop)
        do(host, "prepare", domain("other", SIZE, uuid=OTHER))
        assert now(host) == ["1-3"] * 3
    if command == "apply":
        parent = apply._parent(host, {"vm"}, threads.running(host, {}))
        apply._made(host, host.config(), parent, [])
    else:
        Change(host, {}, live=True, config=False).run()
    assert now(host) == ["1-3"] * 3
    lines(host, "prepare", domain("other", DESKTOP, uuid=OTHER))


@every_host
@every_layout
@pytest.mark.parametrize("inner", [SIZE, DESKTOP])
def test_taken_back_while_a_vm_runs(tmp_path: Path, kind: str, name: str, inner: str) -> None:
    host = running(tmp_path, kind, name, inner)
    host.configure(layout(RESERVED, name))
    Change(host, {}, live=True, config=False, force=True).run()
    assert not CpuSet.parse("0") & CpuSet.parse(cpus(host, VCPU0))
    assert "0" not in cpus(host)
    if inner is SIZE:
        Change(host, {"reserved_host_cpus": None}, live=True, config=False).run()
        assert now(host) == ["0-3"] * 3


@every_host
@every_layout
def test_nothing_is_configured_any_more_while_a_vm_runs(
    tmp_path: Path, kind: str, name: str
) -> None:
    """The layout, too, is libvirt's again, and the VM is still where the earlier one has it."""
    host = running(tmp_path, kind, name, SIZE)
    host.configure("")
    Change(host, {}, live=True, config=False).run()
    assert now(host) == ["0-3"] * 3


@every_host
@every_layout
@pytest.mark.parametrize("inner", [SIZE, DESKTOP])
def test_another_reservation(tmp_path: Path, kind: str, name: str, inner: str) -> None:
    host = running(tmp_path, kind, name, inner)
    if inner is DESKTOP:
        with pytest.raises(Error, match=r"cannot take CPUs from VMs .* vm \(vcpu0 to 1"):
            Change(host, {"reserved_host_cpus": "0-1"}, live=True, config=False).run()
        assert now(host) == ["0", "1", "0"]
        Change(host, {"reserved_host_cpus": "0,3"}, live=True, config=False).run()
        assert now(host) == ["0", "1", "0"]
    else:
        Change(host, {"reserved_host_cpus": "0-1"}, live=True, config=False).run()
        assert now(host) == ["2-3"] * 3
        Change(host, {"reserved_host_cpus": "3"}, live=True, config=False).run()
        assert now(host) == ["0-2"] * 3


@every_host
@every_layout
def test_nothing_is_left(tmp_path: Path, kind: str, name: str) -> None:
    host = made(tmp_path, kind, layout(LENDS, name))
    before = host.cgroups()
    subject = start(host, SIZE, name)
    host.end_vm(subject)
    do(host, "stopped", subject)
    do(host, "release", subject)
    new = [path for path in host.cgroups() if path not in before]
    # scopes go with systemd, which keeps no v1 cpusets
    new = [path for path in new if not path.endswith(".scope") or "/cpuset/" in path]
    assert not [path for path in new if "vm" in path.rpartition("/")[2].removeprefix("vms")]
    assert not [path for path in host.snapshot() if path.endswith(DROP_IN)]


@every_host
def test_leaving_opens_them(tmp_path: Path, kind: str) -> None:
    host = running(tmp_path, kind, "native", SIZE)
    leave(host)
    assert now(host) == ["0-3"] * 3


# told


def test_what_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = running(tmp_path, "systemd-v2", "native", DESKTOP)
    report = status._report(host, managers.choose(host, host.config()), threads.running(host, {}))
    assert report["fence"]["lent"] == {"cpus": "0", "to": ["emulator", "iothread"]}
    status._print(report, with_threads=False)
    assert "(required 1-3 for each VM, and 0 for emulator and iothread threads)" in (
        capsys.readouterr().out
    )
    found = model.read(host, host.config(), {})
    marks = {row.label: model.mark(found, row, 0) for row in model.rows(found.vms[0])}
    assert marks["vcpu0"] is model.Mark.OURS
    assert model.Mark.TRESPASS not in marks.values()
    assert list(checks.conforming(Subject(host))) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("host_cpus_for = ['emulator']\n", r"host_cpus_for = .*: it needs reserved_host_cpus"),
        (f"{RESERVED}host_cpus_for = ['vcpu']\n", r'a list of "emulator" and "iothread"'),
        (f"{RESERVED}host_cpus_for = 'emulator'\n", r'a list of "emulator" and "iothread"'),
        (f"{RESERVED}host_cpus_for = []\n", r'a list of "emulator" and "iothread"'),
        (f"{RESERVED}emulator_cpus = '0'\n", r'or allow it with host_cpus_for = \["emulator"\]'),
        (f"{LENDS}vcpu_cpus = '0'\n", r"all of these CPUs are reserved: VMs may use 1-3"),
    ],
)
def test_what_cannot_be(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(Error, match=told):
        made(tmp_path, "systemd-v2", text).config()


def test_domain_names_what_is_not_pinned() -> None:
    assert Domain.unpinned(domain(inner="<vcpu current='1'>2</vcpu>")) == [
        "emulator",
        "vcpu0",
        "vcpu1",
    ]
    assert domain(inner="<vcpu cpuset='1'>2</vcpu>").unpinned() == []
    assert domain(inner=DESKTOP).unpinned() == []
