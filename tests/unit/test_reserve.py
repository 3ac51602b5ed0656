"""Changing the reservation at run time, on every kind of host: what is checked, and what has
changed afterwards.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from libvirt_cgroup_hooks import configfile, settings, snapshot
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.reserve import Change, canonical, literal

from .support import reserving
from .support.hosts import CONF as PATH
from .support.hosts import PID, Kernel
from .support.operations import MIB, do
from .support.reserving import CONF, GIB, INNER, KINDS, file, says, start, states, use

if TYPE_CHECKING:
    from libvirt_cgroup_hooks.virconf import Value

TOTAL = {"v1": 2040212 * 1024, "v2": 8135396 * 1024}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def host(tmp_path: Path, kind: str) -> Kernel:
    return reserving.running(tmp_path, kind)


def total(kind: str) -> int:
    return TOTAL[kind[-2:]]


def change(host: Kernel, how: str, /, force: bool = False, **wanted: Value | None) -> Change:
    """HOW: "live", "config" or both; WANTED: cpus and memory."""
    keys = {f"reserved_host_{name}": value for name, value in wanted.items()}
    return Change(host, keys, "live" in how, "config" in how, force)


def conf(host: Kernel) -> str:
    return host.read(PATH)


# what is changed


@pytest.mark.parametrize("how", ["live", "config", "live config"])
def test_a_change_of_both(host: Kernel, kind: str, how: str) -> None:
    change(host, how, cpus="0-1", mem="1 GiB").run()
    live, kept = "live" in how, "config" in how
    assert says(host, "cpuset.cpus") == ("2-3" if live else "1-3")
    assert says(host, "limit") == str(total(kind) - (GIB if live else 512 * MIB))
    assert reserving.cpus(host) == ("2-3" if live else "1-3")
    edited = CONF.replace('"0" #', '"0-1" #').replace('"512 MiB"', '"1 GiB"')
    assert conf(host) == (edited if kept else CONF)
    changes = {"reserved_host_cpus": ("0", "0-1"), "reserved_host_mem": (str(512 * MIB), str(GIB))}
    assert snapshot.Live(host).changes == (changes if how == "live" else {})
    in_force = snapshot.load(host, [])
    assert (str(in_force.reserved_host_cpus), in_force.reserved_host_mem) == ("0-1", str(GIB))


@pytest.mark.parametrize("how", ["live", "config", "live config"])
def test_what_is_so_already_changes_nothing(host: Kernel, how: str) -> None:
    before = states(host)
    plan = change(host, how, cpus="0", mem="512 MiB").run()
    assert (str(plan), states(host)) == ("", before)


def test_none_opens_the_fence_until_the_next_boot(host: Kernel, kind: str) -> None:
    change(host, "live", cpus=None, mem=None).run()
    assert reserving.cpus(host) == "0-3"
    assert not says(host, "limit").isdigit() or int(says(host, "limit")) > 2**60
    assert conf(host) == CONF
    before = states(host)
    do(host, "reconnect", reserving.vm(host))
    assert states(host) == before  # the hook knows of it
    change(host, "live", cpus="0", mem="512 MiB").run()
    assert (reserving.cpus(host), says(host, "limit")) == ("1-3", str(total(kind) - 512 * MIB))
    assert not host.exists(snapshot.LIVE)


def test_none_in_the_file_is_a_comment(host: Kernel) -> None:
    change(host, "live config", cpus=None, mem=None).run()
    assert conf(host) == CONF.replace("reserved", "#reserved")
    assert reserving.cpus(host) == "0-3"


def test_one_change_after_another(host: Kernel, kind: str) -> None:
    change(host, "live", cpus="0-1").run()
    change(host, "live", mem="1 GiB").run()
    assert set(snapshot.Live(host).changes) == {"reserved_host_cpus", "reserved_host_mem"}
    # the file and what is in force agree on CPUs again
    change(host, "live config", cpus="0-2").run()
    assert set(snapshot.Live(host).changes) == {"reserved_host_mem"}
    assert (reserving.cpus(host), says(host, "limit")) == ("3", str(total(kind) - GIB))
    host.configure(conf(host).replace("512 MiB", "600 MiB"))  # the edit counts
    change(host, "live", cpus="0").run()
    assert says(host, "limit") == str(total(kind) - 600 * MIB)
    assert set(snapshot.Live(host).changes) == {"reserved_host_cpus"}


@pytest.mark.parametrize(
    ("kept", "left"),
    [
        ("0,2", "1,3"),
        ("0-2", "3"),
        ("3", "0-2"),
        ("2-3", "0-1"),
        ("1", "0,2-3"),
        (2, "2-3"),
        ("auto", "1-3"),
        (None, "0-3"),
    ],
)
@pytest.mark.parametrize("layout", ["/vms/$NAME", "native", "root"])
def test_cpus_in_every_layout(
    tmp_path: Path, kind: str, layout: str, kept: Value | None, left: str
) -> None:
    """Within one plan each cpuset lies within its parent after every write: else the kernel refuses
    it.
    """
    text = f"reserved_host_cpus = '0-1'\ncgroup_layout = '{layout}'\n"
    host = reserving.made(tmp_path, kind, text)
    start(host, layout=layout)
    assert {reserving.cpus(host, tid) for tid in (PID, PID + 10, PID + 21)} == {"2-3"}
    change(host, "live", cpus=kept).run()
    assert {reserving.cpus(host, tid) for tid in (PID, PID + 10, PID + 21)} == {left}
    change(host, "live", cpus="0-1").run()
    assert {reserving.cpus(host, tid) for tid in (PID, PID + 10, PID + 21)} == {"2-3"}


def test_without_a_vm_the_parent_is_made(tmp_path: Path, kind: str) -> None:
    host = reserving.made(tmp_path, kind, None)
    change(host, "live", cpus="0-1").run()
    start(host, layout="native")
    assert reserving.cpus(host) == "2-3"


# what is refused


def test_memory_that_is_in_use(host: Kernel, kind: str) -> None:
    limit = 800 * MIB
    use(host, 900 * MIB)
    before = states(host)
    with pytest.raises(Error) as error:
        change(host, "live config", mem=f"{(total(kind) - limit) // 1024} KiB").run()
    assert str(error.value) == (
        "cannot lower the VMs' memory limit to 800 MiB: 900 MiB is in use: vm has 900 MiB: "
        "stop or shrink VMs, reserve less, or use --wait to reclaim memory first"
    )
    assert states(host) == before


def test_more_memory_may_be_in_use_when_the_limit_grows(host: Kernel, kind: str) -> None:
    use(host, total(kind) - 512 * MIB)
    change(host, "live", mem="256 MiB").run()
    assert says(host, "limit") == str(total(kind) - 256 * MIB)


def test_what_vms_may_come_to_use_is_told(tmp_path: Path, kind: str) -> None:
    host = reserving.running(tmp_path, kind, inner="<memory unit='GiB'>1</memory>")
    made = change(host, "live", mem=f"{(total(kind) - 512 * MIB) // 1024} KiB")
    made.run()
    assert made.warnings == [
        "running VMs may come to use 1.1 GiB, more than their limit of 512 MiB; "
        "the kernel would then kill one of them"
    ]
    quiet = change(host, "live", mem="256 MiB")
    quiet.run()
    assert quiet.warnings == []


PINNED = f"{INNER}<cputune><vcpupin vcpu='1' cpuset='1'/></cputune>"


def test_pins_outside(tmp_path: Path, kind: str) -> None:
    host = reserving.running(tmp_path, kind, inner=PINNED)
    before = states(host)
    with pytest.raises(Error) as error:
        change(host, "live config", cpus="0-1").run()
    assert str(error.value) == (
        "cannot take CPUs from VMs that are pinned to them: vm (vcpu1 to 1 (reserved: 1)): "
        "pin them within 2-3 (virsh vcpupin vm 1 2-3 --live), stop them, or use --force"
    )
    assert states(host) == before


def test_pins_outside_that_only_the_file_will_ask_for(tmp_path: Path, kind: str) -> None:
    """Nothing happens to the VM before somebody applies the file, so it is told and not refused."""
    host = reserving.running(tmp_path, kind, inner=PINNED)
    made = change(host, "config", cpus="0-1")
    made.run()
    assert made.warnings == [
        "running VMs are pinned to CPUs that this takes: vm (vcpu1 to 1 (reserved: 1)); they "
        "cannot start again until you pin them within 2-3 (virsh vcpupin vm 1 2-3 --live)"
    ]
    assert 'reserved_host_cpus = "0-1"' in conf(host)


def test_a_mistake_in_the_file_is_told_with_its_line(host: Kernel) -> None:
    """That of the file as it is, not as it would be with the change."""
    text = settings.sample() + "vm_swap_maximum = 0\n"
    host.configure(text)
    line = len(text.splitlines())
    with pytest.raises(Error, match=rf"^/etc/libvirt/cgroup-hooks\.conf:{line}: vm_swap_maximum"):
        change(host, "config", cpus="0-1", mem="1 GiB").run()


def test_what_was_taken_by_force_is_not_asked_for_again(tmp_path: Path, kind: str) -> None:
    host = reserving.running(tmp_path, kind, inner=PINNED)
    Change(host, {"reserved_host_cpus": "0-1"}, live=True, config=False, force=True).run()
    change(host, "live", mem="1 GiB").run()
    change(host, "live", cpus="0-2").run()
    change(host, "live", cpus="0").run()
    with pytest.raises(Error, match="cannot take CPUs from VMs that are pinned to them"):
        change(host, "live", cpus="0-1").run()


def test_pins_outside_by_force(tmp_path: Path, kind: str) -> None:
    """What has nothing left gets its parent's; and its pin again when that is possible."""
    host = reserving.running(tmp_path, kind, inner=PINNED)
    assert reserving.cpus(host, PID + 11) == "1"
    change(host, "live", force=True, cpus="0-1").run()
    if kind.endswith("v1"):
        assert reserving.cpus(host, PID + 11) == "2-3"
    assert reserving.cpus(host, PID + 10) == "2-3"
    change(host, "live", cpus="0").run()
    assert (reserving.cpus(host, PID + 10), reserving.cpus(host, PID + 11)) == ("1-3", "1")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"cpus": "0-9"}, 'reserved_host_cpus = "0-9": this host has no CPUs 4-9'),
        ({"cpus": "0-3"}, 'reserved_host_cpus = "0-3": reserving CPUs 0-3 leaves none for VMs'),
        ({"cpus": 5}, "reserved_host_cpus = "),
        ({"mem": "900 GiB"}, "reserved_host_mem "),
    ],
)
@pytest.mark.parametrize("how", ["live", "config", "live config"])
def test_what_cannot_be_is_not_written(
    host: Kernel, wanted: dict[str, Value], message: str, how: str
) -> None:
    before = states(host)
    with pytest.raises(Error) as error:
        change(host, how, False, **wanted).run()
    assert message in str(error.value)
    assert states(host) == before


def test_memory_in_a_layout_without_a_parent(tmp_path: Path, kind: str) -> None:
    host = reserving.made(tmp_path, kind, "cgroup_layout = 'root'\n")
    before = states(host)
    for how in ("live", "config"):
        with pytest.raises(Error, match='cgroup_layout = "root" has no cgroup that holds only VMs'):
            change(host, how, mem="1 GiB").run()
    assert states(host) == before


@pytest.mark.parametrize("how", ["live", "config"])
def test_a_file_that_is_not_understood_is_left_alone(host: Kernel, how: str) -> None:
    host.configure(CONF + "emulator_cpus 1\n")
    before = states(host)
    with pytest.raises(Error, match=f'^{PATH}:5: "emulator_cpus" is not followed by "="'):
        change(host, how, cpus="0-1").run()
    assert states(host) == before


# the file


def test_a_file_that_is_not_there_is_the_sample(tmp_path: Path, kind: str) -> None:
    host = reserving.made(tmp_path, kind, None)
    change(host, "config", cpus=1, mem="10%").run()
    assert '\n#reserved_host_cpus = "0-1"\nreserved_host_cpus = 1\n' in conf(host)
    assert configfile.parse(conf(host)).values == {
        "reserved_host_cpus": "count 1",
        "reserved_host_mem": "10%",
    }
    lines = [line for line in conf(host).splitlines() if not line.startswith("reserved")]
    assert lines == settings.sample().splitlines()
    assert os.stat(host.root + PATH).st_mode & 0o777 == 0o644


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_mode_and_link_are_kept(host: Kernel, mode: int) -> None:
    target = Path(host.root, "etc/managed.conf")
    target.write_text(CONF)
    target.chmod(mode)
    Path(host.root + PATH).unlink()
    Path(host.root + PATH).symlink_to("../managed.conf")
    change(host, "config", cpus="0-1").run()
    assert Path(host.root + PATH).is_symlink()
    assert target.read_text() == CONF.replace('"0" #', '"0-1" #')
    assert target.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(("value", "text"), [(2, "2"), ("0-1", '"0-1"'), ("4 GiB", '"4 GiB"')])
def test_a_value_as_the_file_has_it(value: Value, text: str) -> None:
    assert literal(value) == text


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("reserved_host_cpus", "1,0", "0-1"),
        ("reserved_host_cpus", 2, "count 2"),
        ("reserved_host_mem", "1 GiB", str(GIB)),
    ],
)
def test_a_value_as_it_is_kept(key: str, value: Value, text: str) -> None:
    assert canonical(key, value) == text


def test_the_largest_vms_are_named(tmp_path: Path) -> None:
    """No more than five of them, the largest first."""
    host = reserving.made(tmp_path, "cgroupfs-v2")
    start(host)
    text = host.get("/run/libvirt/qemu/vm.xml")
    host.make_directory("/sys/fs/cgroup/vms/x")
    for number in range(1, 8):
        pid, path = PID + 1000 * number, f"/vms/vm{number}"
        host.make_directory(f"/sys/fs/cgroup{path}")
        host.put(f"/sys/fs/cgroup{path}/memory.current", str(number * 100 * MIB))
        host.start_thread(pid, pid, "qemu-system-x86", {"": path})
        copy = (
            text.replace("vcpu", "x")
            .replace(f"pid='{PID}'", f"pid='{pid}'")
            .replace(">vm<", f">v\x9b{number}<", 1)
        )
        host.put(f"/run/libvirt/qemu/vm{number}.xml", copy)
    host.put(file(host, "used"), str(3 * GIB))
    with pytest.raises(Error) as error:
        change(host, "live", mem="6 GiB").run()
    names = [f"v\\x9b{number} has {number}00 MiB" for number in range(7, 2, -1)]
    assert f"3 GiB is in use: {', '.join(names)}: stop or shrink VMs" in str(error.value)
