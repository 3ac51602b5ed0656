"""virt-cgroup status on recorded hosts, as text and as JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import state

from ..conftest import Command
from ..support.hosts import PID, UUID, Kernel, domain, recorded
from ..support.machined import SCOPE, Machined
from ..support.operations import CG, UNIFIED_LIMIT, do
from ..support.operations import NAMED as CONF
from .test_cli import shown

RUNNING = "<vcpu>1</vcpu>"


@pytest.fixture
def host(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path, "v2", CONF)


@pytest.fixture
def machined(tmp_path: Path) -> Machined:
    return Machined(tmp_path, "v2", CONF)


def test_status_with_nothing_configured(command: Command) -> None:
    status, out, err = command("--root", recorded("v2").root, "status")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "Manager:        cgroupfs",
        "Layout:         native",
        "Reserved:       CPUs none, memory none",
        "VM parent:      /machine",
        "VM CPUs:        all (no limit required)",
        "VM memory:      no limit (none required)",
        "",
        "The VM parent is created when the first VM starts.",
        "",
        " Id   Name   Layout   Cgroup   As configured",
        "-" * 46,
    ]


def test_status_as_json(command: Command, host: Kernel) -> None:
    found = shown(command, "--root", host.root, "status")
    assert found == {
        "manager": "cgroupfs",
        "layout": "/vms/$NAME",
        "reservation": {"cpus": "0", "memory": 512 * 2**20},
        "memory_left_out": {},
        "fence": {
            "cpus": "1-3",
            "memory_limit": UNIFIED_LIMIT,
            "swap_limit": None,
            "lent": {"cpus": "", "to": []},
        },
        "cpu_weight": {"configured": None, "in_effect": None},
        "protection": {"configured": "no", "memory": {}},
        "parent": {
            "path": "/vms",
            "cpus": None,
            "memory_limit": None,
            "memory_current": None,
            "first_killed": [],
            "swap_limit": None,
            "swap_current": None,
        },
        "host": {"confine_host": "no", "confined": False, "since": None, "cpus": {}},
        "unwanted": [],
        "dedicated": [],
        "taken": {},
        "domains": [],
    }


def test_status_without_a_parent(command: Command, host: Kernel) -> None:
    host.configure("reserved_host_cpus = '0'\ncgroup_layout = 'uuid'")
    assert shown(command, "--root", host.root, "status")["parent"]["path"] is None
    assert (
        "VM parent:      none: each VM has the CPU limit"
        in command("--root", host.root, "status")[1]
    )


def test_status_of_what_a_killed_command_has_left(command: Command, host: Kernel) -> None:
    host.put(state.SHARED, f"{state.LIMITS_FORMAT}\nlimit pressure - /vms\n")
    host.make_directory(f"{CG}/vms")
    host.put(f"{CG}/vms/memory.high", "536870912")
    found = shown(command, "--root", host.root, "status")
    assert found["unwanted"] == [{"path": "/vms", "limit": "MemoryHigh", "value": "512 MiB"}]
    told = "/vms still has MemoryHigh=512 MiB, which virt-cgroup apply --parent takes back."
    assert told in command("--root", host.root, "status")[1]


def allow(host: Kernel, tid: int, cpus: str) -> None:
    host.put(f"/proc/{PID}/task/{tid}/status", f"Name:\tx\nCpus_allowed_list:\t{cpus}")


@pytest.mark.parametrize("cpus", ["1-3", "0-3"])
def test_status_of_a_vm(command: Command, machined: Machined, cpus: str) -> None:
    machined.slice("vms.slice", "1-3", str(UNIFIED_LIMIT), "4096")
    machined.put("/sys/fs/cgroup/vms.slice/cpuset.cpus.effective", "1-3")
    machined.starts(domain("vm", RUNNING), "/vms.slice", RUNNING)
    allow(machined, PID, "1-3")
    allow(machined, PID + 10, cpus)
    found = shown(command, "--root", machined.root, "status")
    assert found["manager"] == "systemd"
    assert found["parent"] == {
        "path": "/vms.slice",
        "cpus": "1-3",
        "memory_limit": UNIFIED_LIMIT,
        "memory_current": 4096,
        "first_killed": [],
        "swap_limit": None,
        "swap_current": 0,
    }
    text = f"thread {PID + 10} (vcpu0): it may use CPUs 0-3, not only 1-3"
    assert len(found["domains"]) == 1
    vm = found["domains"][0]
    threads = vm.pop("threads")
    assert vm == {
        "name": "vm",
        "uuid": UUID,
        "id": 3,
        "pid": PID,
        "layout": "/vms/$NAME",
        "dedicated": "",
        "cgroup": f"/vms.slice/{SCOPE}",
        "conforms": cpus == "1-3",
        "reasons": [] if cpus == "1-3" else ["more-cpus"],
        "problems": [] if cpus == "1-3" else [text],
        "notes": [],
    }
    base = f"/vms.slice/{SCOPE}/libvirt"
    assert threads[0] == {
        "tid": PID,
        "comm": "qemu-system-x86",
        "group": "emulator",
        "cgroup": f"{base}/emulator",
        "cpus": "1-3",
    }
    assert [(row["group"], row["comm"], row["cpus"]) for row in threads[1:]] == [
        ("emulator", "worker", ""),
        ("vcpu0", "CPU 0/KVM", cpus),
    ]
    status, out, err = command("--root", machined.root, "status", "vm")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert [
        "3",
        "vm",
        "/vms/$NAME",
        SCOPE,
        "yes" if cpus == "1-3" else "no",
    ] in rows
    assert (f"problem: {text}" in out.splitlines()) == (cpus != "1-3")
    assert "VM CPUs:        1-3 (required 1-3)" in out
    _, out, _ = command("--root", machined.root, "status")
    assert "vcpu0" not in out.replace(text, "")
    assert (f"problem: vm: {text}" in out.splitlines()) == (cpus != "1-3")


def scored(host: Kernel, scores: dict[str, str | None], place: str = "/machine/x") -> None:
    """VMs by name, each in a cgroup below the VM parent, with their oom_score; None: it has ended,
    though libvirt does not know yet.
    """
    host.make_directory(f"{CG}/machine")
    host.put(f"{CG}/machine/memory.max", str(UNIFIED_LIMIT))
    for number, (name, score) in enumerate(scores.items(), 100):
        text = f"<domain type='qemu' id='{number}'><name>{name}</name><uuid>{UUID}</uuid></domain>"
        host.put(f"/run/libvirt/qemu/{name}.xml", f"<domstatus pid='{number}'>{text}</domstatus>")
        host.put(f"/proc/{number}/cgroup", f"0::{place}")
        if score is not None:
            host.put(f"/proc/{number}/oom_score", score)


AT_THE_LIMIT = "At the limit:   the kernel reclaims, swaps if it can, then kills a VM"


@pytest.mark.parametrize(
    ("scores", "killed", "told"),
    [
        ({}, [], ""),
        ({"web": "670"}, ["web"], " (now web)"),
        ({"web": "670", "db": "684", "old": "669"}, ["db"], " (now db)"),
        ({"web": "684", "db": "684", "old": "669"}, ["web", "db"], " (now web or db)"),
        (dict.fromkeys("abcde", "1"), list("abcde"), " (now a or b or c or 2 more)"),
        ({"web": "670", "db": None}, ["web"], " (now web)"),  # one ends meanwhile
        ({"web": "0"}, [], ""),  # exempted: oom_score_adj is -1000
    ],
)
def test_what_happens_at_the_limit(
    command: Command,
    tmp_path: Path,
    scores: dict[str, str | None],
    killed: list[str],
    told: str,
) -> None:
    host = Kernel(tmp_path, "v2", "reserved_host_mem = '512 MiB'\n")
    scored(host, scores)
    assert shown(command, "--root", host.root, "status")["parent"]["first_killed"] == killed
    assert AT_THE_LIMIT + told in command("--root", host.root, "status")[1].splitlines()
    if killed:  # whichever VM is asked for
        asked = command("--root", host.root, "status", next(iter(scores)))[1]
        assert AT_THE_LIMIT + told in asked.splitlines()


def test_a_vm_that_is_elsewhere_is_not_killed_for_the_others(
    command: Command, tmp_path: Path
) -> None:
    host = Kernel(tmp_path, "v2", "reserved_host_mem = '512 MiB'\n")
    scored(host, {"web": "670"}, place="/elsewhere/x")
    assert AT_THE_LIMIT in command("--root", host.root, "status")[1].splitlines()


def test_status_of_many_vms_is_a_line_each(command: Command) -> None:
    busy = recorded("busy").root
    _, out, _ = command("--root", busy, "status")
    assert "\nold:\n" not in out and "Thread " not in out
    assert (
        "problem: old: thread 1400 (emulator): it may use CPUs 0-15, not only 1-3,5-7,9-11,13-15 "
        "(and 1 more: virt-cgroup status old)"
    ) in out.splitlines()
    for name in ("web", "1", shown(command, "--root", busy, "status")["domains"][0]["uuid"]):
        _, out, _ = command("--root", busy, "status", name)
        assert "web:" in out.splitlines() and "old" not in out
        found = shown(command, "--root", busy, "status", name)["domains"]
        assert [vm["name"] for vm in found] == ["web"]
    assert command("--root", busy, "status", "none") == (
        1,
        "",
        "error: no VM 'none' is running: give the name, id or UUID that virsh list shows\n",
    )


def test_status_shows_no_control_characters(command: Command, machined: Machined) -> None:
    machined.starts(domain("a\u009bb", RUNNING), "/vms.slice", RUNNING)
    machined.put(f"/proc/{PID}/task/{PID}/comm", "x\x1b[31m")
    status, out, _ = command("--root", machined.root, "status", "3")
    assert status == 0
    assert r"a\x9bb:" in out.splitlines()
    assert r"x\x1b[31m" in out
    assert not [c for c in out if not c.isprintable() and c != "\n"]


def test_a_vm_elsewhere_does_not_conform(command: Command, machined: Machined) -> None:
    machined.starts(domain("vm", RUNNING), "/machine.slice", RUNNING)
    vm = shown(command, "--root", machined.root, "status")["domains"][0]
    assert vm["conforms"] is False
    assert vm["problems"][:2] == [
        f"it is in /machine.slice/{SCOPE}, where reserved_host_mem does not limit it",
        f"thread {PID} (emulator): it is in cgroup /machine.slice/{SCOPE}/libvirt/emulator, "
        f"not in /vms.slice/{SCOPE}",
    ]


def test_status_after_the_hook(command: Command, host: Kernel) -> None:
    subject = domain("vm", RUNNING)
    do(host, "prepare", subject)
    assert "The VM parent is made" not in command("--root", host.root, "status")[1]
    found = shown(command, "--root", host.root, "status")["parent"]
    assert (found["path"], found["memory_limit"]) == ("/vms", UNIFIED_LIMIT)


@pytest.mark.parametrize("text", ["<domstatus", "<domstatus pid='x'><domain/></domstatus>"])
def test_a_status_file_that_is_not_understood(command: Command, host: Kernel, text: str) -> None:
    host.put("/run/libvirt/qemu/vm.xml", text)
    status, out, err = command("--root", host.root, "status")
    assert (status, "VM parent" in out) == (0, True)
    assert err.startswith("warning: VM vm: the domain XML ")
