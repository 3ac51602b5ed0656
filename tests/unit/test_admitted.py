"""The memory of all VMs that have a record, kept as one number, so that a start costs the same
however many VMs run.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import managers, operations, state
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.errors import Refusal
from libvirt_cgroup_hooks.plan import Plan
from libvirt_cgroup_hooks.state import ADMITTED, FORMAT, Admitted, Record, forget
from libvirt_cgroup_hooks.steps import Step

from .support import reserving
from .support.hosts import UUID, Kernel, domain, run
from .support.machined import Machined
from .support.operations import plan
from .test_plan import planned

MIB = 2**20
CONF = "reserved_host_mem = '512 MiB'\nmemory_admission = 1\n"
A, B, C = (f"{letter * 8}-0000-0000-0000-000000000000" for letter in "abc")


@pytest.fixture
def host(tmp_path: Path) -> Kernel:
    made = Kernel(tmp_path, "v2", CONF)
    state.prepare_directory(made)
    return made


def saved(uuid: str, memory: int, old: int | None = None) -> list[Step]:
    return Record(uuid, "vm", memory).save(None if old is None else Record(uuid, "vm", old))


def change(host: Kernel, uuid: str, before: int, after: int, begin: bool = True) -> list[Step]:
    """The steps of a plan that changes the one record."""
    steps = Admitted(host).change(uuid, before, after, begin)
    return [
        *steps,
        *(saved(uuid, after, before or None) if after else [forget(host, uuid)]),
    ]


def total(host: Kernel) -> int:
    return Admitted(host).total


# one number


def test_it_begins_with_what_the_records_say(host: Kernel) -> None:
    run(host, planned(*saved(A, 5), *saved(B, 7)))
    assert total(host) == 12
    run(host, planned(*change(host, C, 0, 100)))
    assert host.get(ADMITTED).splitlines() == [
        FORMAT,
        "total 112",
        f"uuid {C}",
        "before 0",
        "after 100",
    ]
    run(host, planned(*change(host, A, 5, 6)))
    run(host, planned(*change(host, C, 100, 0)))
    assert total(host) == 13


def test_it_begins_only_with_memory_admission(host: Kernel) -> None:
    run(host, planned(*change(host, A, 0, 5, begin=False)))
    assert not host.exists(ADMITTED)
    run(host, planned(*change(host, B, 0, 7)))
    run(host, planned(*change(host, A, 5, 0, begin=False)))  # once it is kept, all is told to it
    assert total(host) == 7


def test_nothing_is_written_where_nothing_changes(host: Kernel) -> None:
    run(host, planned(*change(host, A, 0, 5)))
    assert Admitted(host).change(A, 5, 5, begin=True) == []


def test_two_vms_in_one_plan(host: Kernel) -> None:
    admitted = Admitted(host)
    # the plan's own word counts
    for uuid, before, after in ((A, 0, 5), (B, 0, 7), (A, 0, 6), (C, 0, 1), (C, 1, 0)):
        steps = admitted.change(uuid, before, after, begin=True)
        run(host, planned(*steps, *saved(uuid, after)))
    assert total(host) == 13


def test_a_plan_that_fails_puts_it_back(host: Kernel) -> None:
    run(host, planned(*change(host, A, 0, 5)))
    before = host.snapshot()
    made = planned(*change(host, B, 0, 7))
    for step in made.steps:
        step.run(host)
    for step in reversed(made.steps):
        undo = step.undo()
        assert undo
        undo.run(host)
    assert host.snapshot() == before


# a run that is killed


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize(("uuid", "before", "after"), [(B, 0, 7), (A, 5, 0), (A, 5, 9)])
def test_killed_between_the_two_writes(
    host: Kernel, uuid: str, before: int, after: int, count: int
) -> None:
    """What the record says decides, and so it does for the next change."""
    run(host, planned(*change(host, A, 0, 5)))
    for step in change(host, uuid, before, after)[:count]:
        step.run(host)
    expected = 5 + after - before if count == 2 else 5
    assert total(host) == expected
    run(host, planned(*change(host, C, 0, 100)))
    assert total(host) == expected + 100


@pytest.mark.parametrize("count", [0, 1, 2])
def test_killed_while_it_was_put_back(host: Kernel, count: int) -> None:
    run(host, planned(*change(host, A, 0, 5)))
    steps = change(host, B, 0, 7)
    run(host, planned(*steps))
    for step in list(reversed(steps))[:count]:
        undo = step.undo()
        assert undo
        undo.run(host)
    assert total(host) == (5 if count else 12)


@pytest.mark.parametrize("count", range(5))
def test_killed_within_a_plan_of_two_vms(host: Kernel, count: int) -> None:
    admitted = Admitted(host)
    steps = [
        step
        for uuid in (A, B)
        for step in (*admitted.change(uuid, 0, 5, begin=True), *saved(uuid, 5))
    ]
    assert len(steps) == 4
    for step in steps[:count]:
        step.run(host)
    assert total(host) == 5 * (count // 2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "libvirt-cgroup-hooks 2\ntotal 99\nuuid x\nbefore 0\nafter 0\n",
        f"{FORMAT}\n",
        f"{FORMAT}\ntotal\n",
        f"{FORMAT}\ntotal 99\nuuid x\nbefore 0\n",
        f"{FORMAT}\ntotal x\nuuid x\nbefore 0\nafter 0\n",
        f"{FORMAT}\ntotal 99\nuuid x\nbefore 0\naf",
        "\0\udc80",
    ],
)
def test_a_damaged_file_is_counted_anew(host: Kernel, text: str) -> None:
    run(host, planned(*saved(A, 5), *saved(B, 7)))
    host.replace(ADMITTED, text)
    assert total(host) == 12
    run(host, planned(*change(host, C, 0, 1)))
    assert host.get(ADMITTED).splitlines()[1] == "total 13"


# what managers do


class Counting(Kernel):
    """Counts what is read, and what is written."""

    count = 0

    def read_bytes(self, path: str) -> bytes:
        self.count += 1
        return super().read_bytes(path)

    def replace(self, path: str, text: str, mode: int = 0o600) -> None:
        self.count += 1
        super().replace(path, text, mode)


class CountingMachined(Counting, Machined):
    pass


HOSTS = [(kind, name) for kind in (Counting, CountingMachined) for name in ("v1", "v2")]


@pytest.fixture(params=HOSTS, ids=["cgroupfs-v1", "cgroupfs-v2", "systemd-v1", "systemd-v2"])
def counting(tmp_path: Path, request: pytest.FixtureRequest) -> Counting:
    kind, name = request.param
    host: Counting = kind(tmp_path, name, CONF)
    state.prepare_directory(host)
    return host


def numbered(number: int, memory: int = 1) -> Domain:
    return domain(
        f"vm{number}",
        f"<memory unit='MiB'>{memory}</memory>",
        uuid=f"{number:08}{UUID[8:]}",
        id=number,
    )


def do(host: Kernel, operation: str, subject: Domain) -> Plan:
    made = operations.plan(host, host.config(), operation, subject)
    run(host, made)
    return made


def test_a_start_costs_the_same_however_many_vms_run(counting: Counting) -> None:
    costs = []
    for number in range(1, 13):
        counting.count = 0
        do(counting, "prepare", numbered(number))
        do(counting, "start", numbered(number))
        costs.append(counting.count)
    assert len(set(costs[2:])) == 1


def test_admission(counting: Counting) -> None:
    limit = managers.choose(counting, counting.config()).fence.memory
    assert limit
    half, small = numbered(1, limit // 2 // MIB), numbered(3, 1)
    do(counting, "prepare", half)
    again = numbered(2, limit // 2 // MIB)
    with pytest.raises(Refusal, match=r"^VM vm2 needs .* running VMs already account for "):
        do(counting, "prepare", again)
    do(counting, "prepare", small)
    assert total(counting) == half.host_memory(4096) + small.host_memory(4096)
    do(counting, "prepare", half)  # its own earlier record does not count against it
    assert total(counting) == half.host_memory(4096) + small.host_memory(4096)
    do(counting, "release", half)
    do(counting, "release", half)
    do(counting, "prepare", again)
    assert total(counting) == again.host_memory(4096) + small.host_memory(4096)


def test_without_admission_nothing_is_kept(counting: Counting) -> None:
    counting.configure("reserved_host_mem = '512 MiB'\n")
    do(counting, "prepare", numbered(1))
    assert not counting.exists(ADMITTED)
    counting.start_vm(numbered(1), "<memory unit='MiB'>1</memory>")
    counting.configure(CONF)
    do(counting, "prepare", numbered(2))
    assert total(counting) == numbered(1).host_memory(4096) + numbered(2).host_memory(4096)
    counting.configure("")
    do(counting, "release", numbered(1))
    assert total(counting) == numbered(2).host_memory(4096)


def test_a_vm_that_ran_before_there_was_a_hook_counts_from_reconnect(tmp_path: Path) -> None:
    host = Kernel(tmp_path, "v2", CONF)
    state.prepare_directory(host)
    subject = host.start_vm(
        domain(inner="<memory unit='GiB'>1</memory>"), "<memory unit='GiB'>1</memory>"
    )
    do(host, "reconnect", subject)
    assert total(host) == subject.host_memory(4096)
    do(host, "reconnect", subject)
    assert total(host) == subject.host_memory(4096)


@pytest.mark.parametrize(("used", "told"), [(0, False), (600 * MIB, False), (900 * MIB, True)])
@pytest.mark.parametrize("kind", reserving.KINDS)
def test_without_it_what_a_start_may_do_is_told(
    tmp_path: Path, kind: str, used: int, told: bool
) -> None:
    made = reserving.made(tmp_path, kind)
    left = (reserving.total(made) >> 20) - 1024  # MiB for the host, so 1 GiB for VMs
    made.configure(reserving.CONF.replace("512 MiB", f"{left} MiB"))
    reserving.start(made)
    reserving.use(made, used)
    late = domain("late", "<memory unit='MiB'>256</memory>", uuid=A, id=4)
    warnings = plan(made, "prepare", late).warnings
    assert [text.split(",")[0] for text in warnings] == (
        ["VM late may come to use 328.5 MiB"] if told else []
    )
