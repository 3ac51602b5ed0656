"""CPUs that belong to one VM alone while it runs, on recorded hosts of every kind."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers, state
from libvirt_cgroup_hooks.cli.checks import vm as checks
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.cli.map import model
from libvirt_cgroup_hooks.errors import Error, Refusal
from libvirt_cgroup_hooks.idle import idle, never
from libvirt_cgroup_hooks.leave import leave
from libvirt_cgroup_hooks.reserve import Change

from .support.hosts import Kernel
from .support.machined import Machined
from .support.operations import do, lines, plan
from .support.reserving import KINDS, made, states
from .support.several import PLAIN, One, pinned, settings

LAYOUTS = ("native", "/vms/$NAME", "root")
RESERVED = "reserved_host_cpus = '0'\n"
YES = settings(dedicated="yes")
every_host = pytest.mark.parametrize("kind", KINDS)
every_layout = pytest.mark.parametrize("name", LAYOUTS)
every_fence = pytest.mark.parametrize("conf", ["", RESERVED], ids=["nothing reserved", "fence"])


def host_of(root: Path, kind: str, conf: str = "", name: str = "native") -> Kernel:
    return made(root, kind, f"{conf}cgroup_layout = '{name}'\n# configured\n")


def three(host: Kernel, name: str = "native") -> tuple[One, One, One]:
    """One that has CPU 3 for itself, and two others."""
    return (
        One(host, "web", YES + pinned(3), 4, name),
        One(host, "db", PLAIN, 5, name),
        One(host, "mail", pinned(1), 6, name),
    )


def rows(host: Kernel) -> list[str]:
    return [row for row in host.get(state.SHARED).splitlines() if "vm-cpus" in row]


@every_host
@every_layout
@every_fence
def test_in_every_order(tmp_path: Path, kind: str, name: str, conf: str) -> None:
    all_of_it = "1-3" if conf else "0-3"
    others = "1-2" if conf else "0-2"
    orders = list(itertools.permutations(range(3)))
    for number, order in enumerate(orders if name == "native" else orders[::4]):
        host = host_of(tmp_path / str(number), kind, conf, name)
        vms = three(host, name)
        web, db, mail = vms
        for which in order:
            vms[which].start()
        assert db.all == {others}
        assert (mail.emulator, mail.vcpu(), mail.iothread) == (others, "1", others)
        assert (web.emulator, web.vcpu(), web.iothread) == (others, "3", others)
        for which in order[::-1]:
            vms[which].end()
            left = [vms[one] for one in order[: order.index(which)]]
            free = all_of_it if web not in left else others
            assert all(one.emulator == free for one in left if one is not web)
            assert all(one.all == {free} for one in left if one is db)
            assert not mail.host.exists(f"/proc/{mail.pid}") or mail.vcpu() == "1"
        assert rows(host) == []
        assert not host.exists(state.SHARED) or "dedicated" not in host.get(state.SHARED)


def refusal(host: Kernel, inner: str, name: str = "web", number: int = 9) -> str:
    """Nothing has changed then."""
    before = states(host)
    with pytest.raises(Refusal) as error:
        lines(host, "prepare", One(host, name, inner, number).subject)
    assert states(host) == before
    return str(error.value)


@every_host
def test_what_an_earlier_run_has_left_is_in_nobodys_way(tmp_path: Path, kind: str) -> None:
    """The hook was killed at the VM's release, and then the setting was taken back."""
    host = host_of(tmp_path, kind)
    One(host, "web", YES + pinned(3), 4).start()
    again = One(host, "web", PLAIN, 4)
    assert plan(host, "prepare", again.subject).warnings == []


@every_host
def test_two_owners(tmp_path: Path, kind: str) -> None:
    """Each keeps off the other's, emulator and all; both come back one after the other."""
    host = host_of(tmp_path, kind)
    db = One(host, "db", PLAIN, 4).start()
    web = One(host, "web", YES + pinned(3), 5).start()
    mail = One(host, "mail", YES + pinned(2), 6).start()
    assert (db.all, web.emulator, mail.emulator) == ({"0-1"}, "0-1", "0-1")
    assert (web.vcpu(), mail.vcpu()) == ("3", "2")
    late = One(host, "late", PLAIN, 7).start()
    assert late.all == {"0-1"}
    web.end()
    assert (db.all, late.all) == ({"0-1,3"}, {"0-1,3"})
    assert (mail.emulator, mail.iothread, mail.vcpu()) == ("0-1,3", "0-1,3", "2")
    mail.end()
    assert (db.all, late.all) == ({"0-3"}, {"0-3"})


@every_host
def test_configured_sets_are_cut_and_come_back(tmp_path: Path, kind: str) -> None:
    """Of VMs that were there before, and of those that started meanwhile."""
    host = host_of(tmp_path, kind, "emulator_cpus = '1-3'\n")
    before = One(host, "db", PLAIN, 4).start()
    web = One(host, "web", YES + pinned(3), 5).start()
    after = One(host, "mail", PLAIN, 6).start()
    assert {one.emulator for one in (before, web, after)} == {"1-2"}
    web.end()
    assert {one.emulator for one in (before, after)} == {"1-3"}
    assert {one.vcpu() for one in (before, after)} == {"0-3"}


@every_host
def test_threads_on_the_hosts_cpus(tmp_path: Path, kind: str) -> None:
    """Those of the owner that nothing pins; another VM keeps to what is left of the fence."""
    conf = RESERVED + "host_cpus_for = ['emulator', 'iothread']\n"
    host = host_of(tmp_path, kind, conf)
    db = One(host, "db", PLAIN, 4).start()
    web = One(host, "web", YES + pinned(3), 5).start()
    late = One(host, "mail", PLAIN, 6).start()
    assert (web.emulator, web.iothread, web.vcpu()) == ("0", "0", "3")
    assert db.all == late.all == {"1-2"}
    web.end()
    assert db.all == late.all == {"1-3"}
    assert rows(host) == []


@every_host
def test_where_its_pins_and_settings_say(tmp_path: Path, kind: str) -> None:
    host = host_of(tmp_path, kind)
    extra = "<emulatorpin cpuset='3'/>"
    own = settings(dedicated="yes", vcpu_cpus="3", iothread_cpus="0")
    web = One(host, "web", own + PLAIN.replace("</vcpu>", f"</vcpu><cputune>{extra}</cputune>"), 4)
    web.start()
    assert (web.emulator, web.vcpu(), web.iothread) == ("3", "3", "0")


@every_host
def test_refused_beside_others(tmp_path: Path, kind: str) -> None:
    host = host_of(tmp_path, kind, RESERVED)
    One(host, "db", PLAIN, 4).start()
    mail = One(host, "mail", pinned(2), 5).start()
    assert refusal(host, YES + pinned(2)) == (
        "VM web cannot have CPUs 2 for itself (dedicated): VM mail is pinned there: vcpu0 to 2: "
        "pin mail elsewhere, or stop it first"
    )
    mail.end()
    emulator = "<emulatorpin cpuset='1'/><iothreadpin iothread='1' cpuset='1'/>"
    assert refusal(host, YES + pinned(1, 2, 3, extra=emulator)) == (
        "VM web cannot have CPUs 1-3 for itself (dedicated): nothing would be left of the VMs' "
        "CPUs of VM db: pin its vCPUs to others, or stop db first"
    )
    One(host, "rt", YES + pinned(3), 6).start()
    assert refusal(host, YES + pinned(3)) == (
        "VM web cannot have CPUs 3 for itself (dedicated): VM rt has 3 for itself: pin its vCPUs "
        "to others, or stop rt first"
    )
    assert refusal(host, pinned("2-3"), "late") == (
        "VM late is pinned to CPUs that VM rt has for itself (dedicated): vcpu0 to 2-3: pin it "
        "within 1-2, or stop rt first"
    )


def test_refused_by_itself(tmp_path: Path) -> None:
    host = host_of(tmp_path, "systemd-v2", RESERVED)
    assert refusal(host, YES + pinned(2).replace("<vcpu>1", "<vcpu current='1'>2")) == (
        "VM web is to have its CPUs for itself (dedicated), and vcpu1 is not pinned to any: pin "
        "each vCPU (virsh vcpupin web 1 CPUS --config), or all at once: virt-cgroup domain web "
        "--set vcpu_cpus=CPUS --config"
    )
    assert refusal(host, YES + pinned(1, 2, 3)) == (
        "VM web has all CPUs of VMs for itself (dedicated), and none is left for its emulator "
        "thread: pin it, to one of the VM's own perhaps (virsh emulatorpin web CPUS --config)"
    )
    warns = host_of(tmp_path / "warns", "systemd-v2", RESERVED + "pin_conflict = 'warn'\n")
    assert refusal(warns, YES + pinned(0)) == (
        "VM web cannot have CPUs 0 for itself (dedicated): VMs may not use 0: pin its vCPUs within "
        "1-3, or reserve other CPUs"
    )


def test_half_a_core(tmp_path: Path) -> None:
    host = host_of(tmp_path, "systemd-v2")
    for cpu, siblings in enumerate(("0-1", "0-1", "2-3", "2-3")):
        host.put(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings)
    assert refusal(host, YES + pinned(3)) == (
        "VM web is to have CPUs 3 for itself (dedicated), and 2 shares a core with 3: pin its "
        "vCPUs to whole cores, or take threads of cores: virt-cgroup domain web --set "
        "dedicated=threads --config"
    )
    assert lines(host, "prepare", One(host, "web", YES + pinned(2, 3), 4).subject)
    one = One(host, "web", settings(dedicated="threads") + pinned(3), 4)
    assert lines(host, "prepare", one.subject)


def test_a_later_vm_that_would_have_nothing(tmp_path: Path) -> None:
    host = host_of(tmp_path, "systemd-v2", RESERVED)
    emulator = "<emulatorpin cpuset='1'/><iothreadpin iothread='1' cpuset='1'/>"
    One(host, "rt", YES + pinned(1, 2, 3, extra=emulator), 4).start()
    assert refusal(host, PLAIN, "late") == (
        "nothing is left of the VMs' CPUs for VM late: other VMs have CPUs for themselves "
        "(dedicated): rt 1-3: stop one of them first, or pin it to fewer"
    )


@every_host
def test_a_change_of_the_reservation(tmp_path: Path, kind: str) -> None:
    """It goes around the CPUs; one that would take them is refused by name, with force as well."""
    host = host_of(tmp_path, kind, RESERVED)
    db = One(host, "db", PLAIN, 4).start()
    web = One(host, "web", YES + pinned(3), 5).start()
    Change(host, {"reserved_host_cpus": "0-1"}, live=True, config=False).run()
    assert (db.all, web.emulator, web.vcpu()) == ({"2"}, "2", "3")
    before = states(host)
    for wanted, told in (
        ("0,3", "cannot take CPUs 3 from VM web, which has 3 for itself (dedicated)"),
        ("0-2", "reserving CPUs 0-2 leaves none for VM db"),
    ):
        with pytest.raises(Error) as error:
            Change(host, {"reserved_host_cpus": wanted}, True, False, force=True).run()
        assert str(error.value).startswith(told)
        assert states(host) == before
    Change(host, {"reserved_host_cpus": None}, live=True, config=False).run()
    assert (db.all, web.emulator, web.vcpu()) == ({"0-2"}, "0-2", "3")
    web.end()
    assert db.all == {"0-3"}


@every_host
def test_asked_for_while_it_runs(tmp_path: Path, kind: str) -> None:
    host = host_of(tmp_path, kind)
    db = One(host, "db", PLAIN, 4).start()
    web = One(host, "web", pinned(3), 5).start()
    asking = One(host, "web", YES + pinned(3), 5)
    for subject, left in ((asking, "0-2"), (web, "0-3")):
        file = f"/run/libvirt/qemu/{subject.subject.name}.xml"
        status = host.get(file).replace(YES, "")
        settled = status.replace("<vcpu>", f"{YES}<vcpu>") if subject is asking else status
        host.put(file, settled)
        do(host, "reconnect", subject.subject)
        assert db.all == {left}
        assert subject.emulator == left
    blocker = One(host, "mail", pinned(3), 6).start()
    host.put(file, host.get(file).replace("<vcpu>", f"{YES}<vcpu>"))
    warnings = plan(host, "reconnect", asking.subject).warnings
    assert "its CPUs stay as they are: VM web cannot have CPUs 3" in warnings[0]
    assert blocker.vcpu() == "3"


@every_host
@pytest.mark.parametrize("name", ["native", "/vms/$NAME"])
def test_a_vm_that_was_starting_meanwhile(tmp_path: Path, kind: str, name: str) -> None:
    """Its limit holds from QEMU's first moment; if the owner ends before it has started, the limit
    is taken back then.
    """
    host = host_of(tmp_path, kind, "", name)
    web = One(host, "web", YES + pinned(3), 4, name).start()
    db = One(host, "db", PLAIN, 5, name).prepare()
    db.qemu()
    assert db.emulator == "0-2"
    web.end()
    do(host, "started", db.subject)
    assert db.all == {"0-3"}
    assert rows(host) == []
    # and one that began before the owner was there
    mail = One(host, "mail", PLAIN, 6, name).prepare()
    again = One(host, "web", YES + pinned(3), 7, name).start()
    mail.qemu()
    do(host, "started", mail.subject)
    assert mail.all == {"0-2"}
    again.end()
    assert mail.all == {"0-3"}


@every_host
def test_an_owner_that_nobody_was_told_has_ended(tmp_path: Path, kind: str) -> None:
    """Its hook, or the daemon, was killed: the next VM that starts, or an `apply`, finds out."""
    host = host_of(tmp_path, kind)
    db = One(host, "db", PLAIN, 4).start()
    web = One(host, "web", YES + pinned(3), 5).start()
    web.crash()
    web.clean()
    assert db.all == {"0-2"}
    age(host)
    late = One(host, "late", PLAIN, 6).start()
    assert db.all == late.all == {"0-3"}


def age(host: Kernel) -> None:
    for uuid in state.recorded(host):
        host.touch(f"{state.VMS}/{uuid}", 0)


@every_host
@pytest.mark.parametrize("operation", ["prepare", "release"])
def test_killed_anywhere(tmp_path: Path, kind: str, operation: str) -> None:
    """After each number of steps; then the next VM finds all as it should be."""
    number = 0
    while True:
        number += 1
        host = host_of(tmp_path / str(number), kind)
        db = One(host, "db", PLAIN, 4).start()
        web = One(host, "web", YES + pinned(3), 5)
        if operation == "release":
            web.start()
            web.crash()
            web.clean()
        made_plan = plan(host, operation, web.subject)
        if number > len(made_plan.steps):
            break
        for step in made_plan.steps[:number]:
            step.run(host)
        age(host)
        late = One(host, "late", PLAIN, 6).start()
        assert db.all == late.all == {"0-3"}, number
        assert rows(host) == []
    assert number > 3


@every_host
def test_whole_or_nothing(tmp_path: Path, kind: str) -> None:
    """Each step of the owner's start fails in turn: all is as before."""
    host = host_of(tmp_path, kind)
    for number, name in enumerate(("db", "mail"), 4):
        One(host, name, PLAIN, number).start()
    subject = One(host, "web", YES + pinned(3), 7).subject
    steps = len(plan(host, "prepare", subject).steps)
    assert steps >= 4
    for failing in range(steps):
        before = states(host)
        one = plan(host, "prepare", subject)
        one.steps[failing].run = _fails  # type: ignore[method-assign, assignment]
        with pytest.raises(Error, match="it fails"):
            one.run(host)
        assert states(host) == before


def _fails(_: object) -> None:
    raise Error("it fails")


def test_one_change_for_each_other_and_none_where_nothing_changes(tmp_path: Path) -> None:
    host = host_of(tmp_path, "systemd-v2")
    for number in range(4, 12):
        One(host, f"vm{number}", PLAIN, number).start()
    web = One(host, "web", YES + pinned(3), 20)
    made_plan = lines(host, "prepare", web.subject)
    assert len([line for line in made_plan if "AllowedCPUs=0-2" in line]) == 8
    web.start()
    for operation in ("start", "started", "reconnect"):
        assert "AllowedCPUs" not in str(plan(host, operation, web.subject))
    late = One(host, "late", PLAIN, 21)
    assert "set-property" not in "\n".join(lines(host, "prepare", late.subject))


class Counting(Machined):
    """Counts what is read."""

    reads: list[str]

    def read_bytes(self, path: str) -> bytes:
        self.__dict__.setdefault("reads", []).append(path)
        return super().read_bytes(path)


@pytest.mark.parametrize("operation", ["prepare", "start", "started", "release"])
def test_nothing_more_is_read_where_nobody_has_some(tmp_path: Path, operation: str) -> None:
    """What is remembered for all tells, and is read once."""
    counting = Counting(tmp_path, "v2", RESERVED)
    for path in ("online", "present"):
        counting.put(f"/sys/devices/system/cpu/{path}", "0-3")
    counting.reads = []
    state.prepare_directory(counting)
    One(counting, "db", PLAIN, 4).start()
    mail = One(counting, "mail", PLAIN, 5).start()
    counting.reads.clear()
    plan(counting, operation, mail.subject)
    assert counting.reads.count(state.SHARED) <= 2
    assert "/run/libvirt/qemu/db.xml" not in counting.reads


def test_start_has_work_while_one_has_some(tmp_path: Path) -> None:
    host = host_of(tmp_path, "cgroupfs-v2")
    assert never(host, host.config(), "start")
    web = One(host, "web", YES + pinned(3), 4).start()
    assert not never(host, host.config(), "start")
    web.end()
    assert never(host, host.config(), "start")


@pytest.mark.parametrize("kind", ["cgroupfs-v2", "systemd-v2"])
def test_what_the_shell_goes_by(tmp_path: Path, kind: str) -> None:
    """While one has some, it starts Python for every VM that starts or ends."""
    host = host_of(tmp_path, kind, RESERVED)
    assert "start" in idle(managers.choose(host, host.config()))
    web = One(host, "web", YES + pinned(3), 4).start()
    assert not set(idle(managers.choose(host, host.config()))) & {"start", "started", "release"}
    web.end()
    assert "start" in idle(managers.choose(host, host.config()))


@every_host
def test_taken_away_with_the_package(tmp_path: Path, kind: str) -> None:
    host = host_of(tmp_path, kind)
    db = One(host, "db", PLAIN, 4).start()
    One(host, "web", YES + pinned(3), 5).start()
    late = One(host, "late", PLAIN, 6).start()
    leave(host)
    assert db.all == late.all == {"0-3"}


def test_what_is_shown(tmp_path: Path) -> None:
    host = host_of(tmp_path, "systemd-v2")
    db = One(host, "db", PLAIN, 4).start()
    web = One(host, "web", YES + pinned(3), 5).start()
    for one, cpus in ((db, "0-2"), (web, "0-2")):
        for tid in host.directories(f"/proc/{one.pid}/task"):
            own = one is web and tid == str(web.pid + 10)
            text = f"Cpus_allowed_list:\t{'3' if own else cpus}"
            host.put(f"/proc/{one.pid}/task/{tid}/status", text)
    picture = model.read(host, host.config(), {})
    assert model.facts(picture)[2:4] == [("VMs may use", "all CPUs"), ("Dedicated", "3 (web)")]
    row = model.rows(picture.vms[0])[0]
    assert model.mark(picture, row, 3) is model.Mark.DEDICATED
    host.put(f"/proc/{db.pid}/task/{db.pid}/status", "Cpus_allowed_list:\t0-3")
    assert model.Mark.INTRUDER in {
        model.mark(picture, row, 3)
        for row in model.rows(model.read(host, host.config(), {}).vms[0])
    }
    codes = [problem.code for problem in checks.dedicated(Subject(host))]
    assert codes == ["dedicated-with-host"]
    problems = [problem.code for problem in checks.conforming(Subject(host))]
    assert problems == ["vm-escaped"]
    file = "/run/libvirt/qemu/web.xml"
    host.put(file, host.get(file).replace("cpuset='3'", "cpuset='2'"))
    told = [one.message for one in checks.dedicated(Subject(host))]
    assert told[0] == "VM web: it has CPUs 3 for itself, not CPUs 2 (dedicated)"
