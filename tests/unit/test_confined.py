"""The host units that are kept to the host's CPUs, and get back what they had."""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import operations, state
from libvirt_cgroup_hooks.cli.checks import host as checks
from libvirt_cgroup_hooks.cli.checks import others
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.cli.commands import status
from libvirt_cgroup_hooks.cli.map import model
from libvirt_cgroup_hooks.config import Config
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.leave import leave
from libvirt_cgroup_hooks.reserve import Change

from .support.hosts import Kernel, domain
from .support.machined import Machined
from .support.operations import CG, OTHER, do, lines

UNITS = ("system.slice", "user.slice", "init.scope")
CONTROL, TRANSIENT = "/run/systemd/system.control", "/run/systemd/transient"
HOST = Machined
CONF = "reserved_host_cpus = '0'\ncgroup_layout = '/vms/$NAME'\n"


def confined(how: str, more: str = "") -> str:
    return f"{CONF}confine_host = '{how}'\n{more}"


@pytest.fixture
def host(tmp_path: Path) -> Machined:
    made = Machined(tmp_path, "v2", confined("running"))
    for unit in UNITS:
        made.slice(unit)
    return made


def cpus(host: Kernel) -> list[str]:
    return [host.get(f"{CG}/{unit}/cpuset.cpus").strip() for unit in UNITS]


def written_down(host: Machined) -> list[str]:
    """The files of systemctl set-property for the host's units."""
    directories = [f"{top}/{unit}.d" for top in (CONTROL, TRANSIENT) for unit in UNITS]
    return [file for directory in directories for file in host.names(directory)]


def asking(subject: Domain) -> Domain:
    subject.settings = {"confine_host": "yes"}
    return subject


def other() -> Domain:
    return domain("other", uuid=OTHER)


def running(host: Machined) -> None:
    """A VM that was started, by libvirt and the hook."""
    do(host, "prepare", domain())
    do(host, "started", host.starts(domain(), "/vms.slice"))


OPEN, OWN = ["", "", ""], ["0", "0", "0"]


def test_from_the_first_vm_to_the_last(host: Machined) -> None:
    do(host, "prepare", domain())
    assert cpus(host) == OWN
    assert lines(host, "prepare", other()) == [f"save {state.VMS}/{OTHER}"]
    do(host, "prepare", other())
    do(host, "release", domain())
    assert cpus(host) == OWN
    do(host, "release", other())
    assert cpus(host) == OPEN
    assert written_down(host) == []


def test_the_host_shrinks_last_and_grows_first(host: Machined) -> None:
    steps = [line for line in lines(host, "prepare", domain()) if line.startswith("systemctl")]
    assert [line.split()[3] for line in steps] == ["vms.slice", *sorted(UNITS)]
    do(host, "prepare", domain())
    host.configure(confined("running").replace("'0'", "'0-1'"))
    steps = [line for line in lines(host, "prepare", other()) if "set" in line]
    assert [line.split()[3] for line in steps] == [*sorted(UNITS), "vms.slice"]


def test_what_was_set_before_comes_back(host: Machined) -> None:
    host.set_properties("system.slice", {"AllowedCPUs": "0-2"})
    host.set_properties("user.slice", {"AllowedCPUs": "0-1"})
    host.remove(f"{CONTROL}/user.slice.d/50-AllowedCPUs.conf")
    drop_in = "/etc/systemd/system/user.slice.d/10-ours.conf"
    host.put(drop_in, "[Slice]\nAllowedCPUs=0-1\n")
    do(host, "prepare", domain())
    assert cpus(host) == OWN
    do(host, "release", domain())
    assert cpus(host) == ["0-2", "0-1", ""]
    assert written_down(host) == ["50-AllowedCPUs.conf"]
    assert "AllowedCPUs=0-2" in host.get(f"{CONTROL}/system.slice.d/50-AllowedCPUs.conf")


def test_a_narrower_value_of_the_administrators_stays(host: Machined) -> None:
    host.configure(confined("running").replace("'0'", "'0-1'"))
    host.set_properties("system.slice", {"AllowedCPUs": "1"})
    do(host, "prepare", domain())
    assert cpus(host) == ["1", "0-1", "0-1"]
    do(host, "release", domain())
    assert cpus(host) == ["1", "", ""]


def test_one_that_has_no_common_cpu_is_an_error(host: Machined) -> None:
    host.set_properties("system.slice", {"AllowedCPUs": "2"})
    with pytest.raises(Error, match=r"cannot limit /system.slice to CPUs 0: it was limited to 2"):
        lines(host, "prepare", domain())


def test_all_cpus_in_the_kernels_file_are_no_limit(host: Machined) -> None:
    """systemd 257 leaves them there when a limit is taken away."""
    host.put(f"{CG}/system.slice/cpuset.cpus", "0-3")
    do(host, "prepare", domain())
    do(host, "release", domain())
    assert written_down(host) == []


def test_while_one_asks(host: Machined) -> None:
    host.configure(confined("asked"))
    do(host, "prepare", other())
    assert cpus(host) == OPEN
    do(host, "prepare", asking(domain()))
    assert cpus(host) == OWN
    third = "11111111-2222-4333-8444-555555555555"
    do(host, "prepare", domain("third", uuid=third))
    do(host, "release", domain("third", uuid=third))
    assert cpus(host) == OWN
    do(host, "release", asking(domain()))
    assert cpus(host) == OPEN


def test_one_that_asks_no_more(host: Machined) -> None:
    """As `virt-cgroup domain --unset confine_host --live`, and `apply`."""
    host.configure(confined("asked"))
    do(host, "prepare", asking(domain()))
    subject = host.starts(domain(), "/vms.slice")
    do(host, "reconnect", asking(subject))
    assert cpus(host) == OWN
    subject.settings = {}
    do(host, "reconnect", subject)
    assert cpus(host) == OPEN


def test_always(host: Machined) -> None:
    host.configure(confined("always"))
    do(host, "prepare", domain())
    do(host, "release", domain())
    assert cpus(host) == OWN


def test_a_failed_start_leaves_nothing(host: Machined) -> None:
    """libvirt runs `release` after a `prepare` without `started`, too."""
    do(host, "prepare", domain())
    do(host, "stopped", domain())
    do(host, "release", domain())
    assert (cpus(host), written_down(host)) == (OPEN, [])


def test_with_a_mistake_in_the_file_the_last_vm_opens_the_host(host: Machined) -> None:
    do(host, "prepare", domain())
    assert operations.asks_configuration(host, "release", domain())
    operations.plan(host, Config({}), "release", domain()).run(host)
    assert cpus(host) == OPEN


def test_one_that_ran_before_is_counted(host: Machined) -> None:
    host.configure(CONF)
    host.starts(domain(), "/vms.slice")
    state.prepare_directory(host)
    Change(host, {"confine_host": "running"}, live=True, config=False).run()
    assert cpus(host) == OWN
    assert host.names(state.VMS) == [domain().uuid]
    do(host, "release", domain())
    assert cpus(host) == OPEN


def test_a_change_at_run_time(host: Machined) -> None:
    do(host, "prepare", domain())
    do(host, "started", host.starts(domain(), "/vms.slice", inner=""))
    Change(host, {"reserved_host_cpus": "0-1"}, live=True, config=False).run()
    assert cpus(host) == ["0-1"] * 3
    Change(host, {"confine_host": None}, live=True, config=False).run()
    assert cpus(host) == OPEN


def test_leaving(host: Machined) -> None:
    running(host)
    assert cpus(host) == OWN
    leave(host)
    assert (cpus(host), written_down(host)) == (OPEN, [])


def test_units_without_a_cgroup_are_told_to_systemd(host: Machined) -> None:
    host.configure(confined("running", "host_units = ['system.slice', 'batch.slice']\n"))
    do(host, "prepare", domain())
    assert "AllowedCPUs=0" in host.get(f"{CONTROL}/batch.slice.d/50-AllowedCPUs.conf")
    assert "systemctl" not in "".join(lines(host, "prepare", other()))
    do(host, "release", domain())
    assert not host.exists(f"{CONTROL}/batch.slice.d")


@pytest.mark.parametrize("layout", ["legacy", "nested", "flat", "/system/guests/$NAME"])
def test_layouts_within_the_hosts_units(host: Machined, layout: str) -> None:
    host.configure(
        f"reserved_host_cpus = '0'\ncgroup_layout = '{layout}'\nconfine_host='running'\n"
    )
    with pytest.raises(Error, match=r"cannot keep /system.slice .*host_units.*: VMs are in "):
        lines(host, "prepare", domain())


def test_a_vm_of_its_own_within_them(host: Machined) -> None:
    subject = domain()
    subject.settings = {"layout": "legacy"}
    with pytest.raises(Error, match="host_units"):
        lines(host, "prepare", subject)


def test_v1_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"cgroup-hooks.conf:3: confine_host = .*cgroup v1"):
        Machined(tmp_path, "v1", confined("running")).config()


def test_it_needs_cpus(host: Machined) -> None:
    host.configure("confine_host = 'always'\n")
    with pytest.raises(Error, match="it needs reserved_host_cpus"):
        host.config()


def test_cgroups_that_nobody_owns(tmp_path: Path) -> None:
    """The units are top cgroups, those that are there."""
    host = Kernel(tmp_path, "v2", confined("running", "host_units = ['openrc.sshd', 'user']\n"))
    host.enable(CG, "+cpu +cpuset +memory +io +pids")
    host.make_directory(f"{CG}/openrc.sshd")
    do(host, "prepare", domain())
    file = f"{CG}/openrc.sshd/cpuset.cpus"
    assert host.get(file).strip() == "0"
    assert not host.exists(f"{CG}/user")
    do(host, "release", domain())
    assert host.get(file).strip() in ("", "0-3")
    assert host.exists(f"{CG}/openrc.sshd")


def process(host: Kernel, pid: int, unit: str, allowed: str) -> None:
    host.start_thread(pid, pid, "ovs-vswitchd", {"": f"/{unit}"})
    host.put(f"/proc/{pid}/status", f"Name:\tovs\nCpus_allowed_list:\t{allowed}\n")
    host.put(f"/proc/{pid}/comm", "ovs-vswitchd\n")
    host.put(f"/proc/{pid}/cmdline", "ovs-vswitchd\0")


def problems(host: Kernel) -> list[str]:
    subject = Subject(host)
    found = [*checks.confined(subject), *others.not_confined(subject)]
    return [f"{problem.result} {problem.message}" for problem in found]


@pytest.mark.parametrize("release", ["6.1.0-13-amd64", "6.2.0", "6.12.63+deb13"])
@pytest.mark.parametrize(("allowed", "told"), [("2-3", True), ("0-3", False), ("0,3", False)])
def test_processes_that_have_chosen_cpus_of_vms_are_told(
    host: Machined, allowed: str, told: bool, release: str
) -> None:
    host.put("/proc/sys/kernel/osrelease", f"{release}\n")
    host.configure(confined("always"))
    process(host, 4300, "system.slice", allowed)
    change = Change(host, {"confine_host": "running"}, live=True, config=False)
    host.starts(domain(), "/vms.slice", inner="")
    change.run()
    expected = "are pinned to CPUs of VMs, and would run on the host's instead"
    if release.startswith("6.1."):
        expected += ", afterwards too, since this kernel forgets such a pin (Linux 6.2 does not)"
    expected += ": "
    assert any(expected + f"ovs-vswitchd (4300) to {allowed}" in w for w in change.warnings) == told
    assert any(expected in problem for problem in problems(host)) == told


class Nested(Machined):
    """A user, and a container, have nested cgroups of their own as deep as the kernel lets them."""

    def directories(self, path: str) -> list[str]:
        if path.startswith((f"{CG}/user.slice", f"{CG}/machine.slice")):
            return ["a"] if path.count("/") < 2000 else []
        return super().directories(path)


def test_cgroups_may_be_nested_deeply(tmp_path: Path) -> None:
    host = Nested(tmp_path, "v2", confined("always"))
    for name in ("system.slice", "user.slice", "machine.slice"):
        host.slice(name)
    process(host, 4300, "system.slice", "2-3")
    assert any("ovs-vswitchd (4300) to 2-3" in problem for problem in problems(host))
    assert list(checks.beside_vms(Subject(host))) == []


@pytest.mark.parametrize(
    "banned", ['IRQBALANCE_BANNED_CPULIST="2"\n', "#\nIRQBALANCE_BANNED_CPUS=0,00000004\n"]
)
def test_validate_says_what_is_not_confined(host: Machined, banned: str) -> None:
    host.configure(confined("always"))
    host.slice("kubepods.slice")
    process(host, 4400, "kubepods.slice", "0-3")
    process(host, 4300, "", "0-3")
    host.put("/proc/irq/24/effective_affinity_list", "2\n")
    host.put("/proc/irq/25/effective_affinity_list", "0\n")
    host.put("/sys/devices/virtual/workqueue/cpumask", "f\n")
    host.put("/etc/default/irqbalance", banned)
    for pid, name, allowed in ((90, "kswapd0", "0-3"), (91, "migration/1", "1"), (92, "rcu", "0")):
        host.put(f"/proc/{pid}/comm", f"{name}\n")
        host.put(f"/proc/{pid}/cmdline", "")
        host.put(f"/proc/{pid}/status", f"Cpus_allowed_list:\t{allowed}\n")
    host.put("/proc/4500/comm", "irqbalance\n")
    host.put("/proc/4500/cmdline", "irqbalance\0")
    for unit in UNITS[1:]:
        host.put(f"{CG}/{unit}/cpuset.cpus.effective", "0\n")
    found = problems(host)
    assert found[1:] == [
        "NOTE confine_host does not reach /kubepods.slice",
        "NOTE processes 4300 are in the root cgroup, and cannot be kept to the host's CPUs",
        "NOTE interrupts 24 are handled by CPUs of VMs",
        "NOTE irqbalance may move interrupts to CPUs of VMs (1,3)",
        "NOTE the kernel's unbound workqueues may run on CPUs of VMs (1-3)",
        "NOTE kernel threads kswapd0 may run on CPUs of VMs",
    ]
    assert found[0].startswith("FAIL /system.slice may use CPUs 0-3, including those of VMs")


def forgotten(host: Kernel) -> list[str]:
    found = checks.confined(Subject(host))
    return [problem.message for problem in found if problem.code == "limit-forgotten"]


@pytest.mark.parametrize("how", ["running", "always"])
def test_all_cpus_are_nothing_that_systemd_could_forget(host: Machined, how: str) -> None:
    """What the kernel keeps once the hook was removed, and the package is installed again."""
    running(host)
    leave(host)
    for unit in UNITS:
        host.put(f"{CG}/{unit}/cpuset.cpus", "0-3")
    host.configure(confined(how))
    assert forgotten(host) == []


def test_what_others_wrote_is_not_told_while_nothing_is_confined(host: Machined) -> None:
    """No file of systemd's says so, and none has to."""
    host.put(f"{CG}/system.slice/cpuset.cpus", "0-2")
    assert forgotten(host) == []
    do(host, "prepare", domain())
    host.remove(f"{CONTROL}/system.slice.d/50-AllowedCPUs.conf")
    assert forgotten(host) == [
        "systemd has no record of the limit CPUs 0 of /system.slice, and lifts it at the next "
        "daemon-reload"
    ]


def test_status_shows_it(host: Machined, capsys: pytest.CaptureFixture[str]) -> None:
    def shown() -> str:
        status.run(argparse.Namespace(domains=[], json=False), host)
        return next(line for line in capsys.readouterr().out.splitlines() if "Host CPUs" in line)

    assert "not confined now, confine_host running" in shown()
    running(host)
    for unit in UNITS:
        host.put(f"{CG}/{unit}/cpuset.cpus.effective", "0\n")
    since = datetime.now() - timedelta(seconds=host.age(state.CONFINED))
    assert (
        f"0 (system.slice, user.slice, init.scope) (required 0 since {since:%Y-%m-%d %H:%M}"
    ) in shown()


def test_the_picture_says_what_the_host_may_use(host: Machined) -> None:
    assert ("Host may use", "0-3") in model.facts(model.read(host, host.config(), {}))
    for unit in UNITS:
        host.put(f"{CG}/{unit}/cpuset.cpus.effective", "0\n")
    assert ("Host may use", "0") in model.facts(model.read(host, host.config(), {}))
    host.configure(CONF)
    assert "Host may use" not in dict(model.facts(model.read(host, host.config(), {})))


@pytest.mark.parametrize(
    ("cpus", "mask"),
    [("0-1", "3"), ("31", "80000000"), ("32", "1,00000000"), ("0,68", "10,00000000,00000001")],
)
def test_a_mask_of_cpus_is_one_that_the_kernel_takes(cpus: str, mask: str) -> None:
    assert others.as_mask(CpuSet.parse(cpus)) == mask
