"""virt-cgroup metrics on recorded hosts: the values, the text, and the file."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libvirt_cgroup_hooks import __version__, conformance, state
from libvirt_cgroup_hooks.cli import main
from libvirt_cgroup_hooks.cli.metrics import exposition, table
from libvirt_cgroup_hooks.cli.metrics.readings import REASONS
from libvirt_cgroup_hooks.cli.pressure import waited
from libvirt_cgroup_hooks.kinds import KINDS

from ..conftest import Command
from ..support.exposition import parsed, value
from ..support.hosts import CONF, DATA, PID, UUID, Kernel, domain
from ..support.machined import Machined
from ..support.operations import CG, MIB, NAMED, UNIFIED_LIMIT, do
from ..test_properties import BOUNDED, NASTY

GOLDEN = DATA / "metrics.prom"
RUNNING = "<vcpu>1</vcpu><memory unit='MiB'>128</memory>"
WHOLE = f"{NAMED}memory_admission = 1\nvm_swap_max = '64 MiB'\nconfine_host = 'running'\n"
PRESSURE = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 total={}\n"
LAST_CHANGE = 1_700_000_000
SCOPE = "machine-qemu\\x2d3\\x2dvm.scope"


def metrics(command: Command, host: Kernel, *arguments: object) -> str:
    status, out, err = command("--root", host.root, "metrics", *arguments)
    assert (status, err) == (0, "")
    return out


def starts(host: Machined, cpus: str = "1-3") -> None:
    """A VM, as the hook has it start; its vCPU may use CPUS."""
    subject = domain("vm", RUNNING, id=3)
    do(host, "prepare", subject)
    do(host, "start", subject)
    for name in ("system.slice", "user.slice", "init.scope"):
        host.make_directory(f"{CG}/{name}")
        host.put(f"{CG}/{name}/cpuset.cpus", "0")
        host.put(f"{CG}/{name}/cpuset.cpus.effective", "0")
    host.slice("vms.slice", "1-3", str(UNIFIED_LIMIT), str(200 * MIB))
    host.put(f"{CG}/vms.slice/cpuset.cpus.effective", "1-3")
    host.put(f"{CG}/vms.slice/memory.swap.max", str(64 * MIB))
    host.put(f"{CG}/vms.slice/memory.swap.current", str(MIB))
    host.put(f"{CG}/vms.slice/memory.stat", f"anon {150 * MIB}\ninactive_file {30 * MIB}\n")
    for number, path in enumerate(("vms.slice", "system.slice"), 1):
        for resource in ("cpu", "io", "memory"):
            text = PRESSURE.format(number * 1_500_000, number * 250_000)
            host.put(f"{CG}/{path}/{resource}.pressure", text)
    host.starts(subject, "/vms.slice", RUNNING)
    host.put(f"{CG}/vms.slice/{SCOPE}/memory.current", str(150 * MIB))
    for tid, allowed in ((PID, "1-3"), (PID + 10, cpus)):
        host.put(f"/proc/{PID}/task/{tid}/status", f"Cpus_allowed_list:\t{allowed}")
    for path in (CONF, state.CONFINED):
        os.utime(host.root + path, (LAST_CHANGE, LAST_CHANGE))


@pytest.fixture
def machined(tmp_path: Path) -> Machined:
    host = Machined(tmp_path / "host", "v2", WHOLE)
    starts(host)
    return host


def test_the_whole_text(command: Command, machined: Machined) -> None:
    """Every metric there is."""
    out = metrics(command, machined)
    assert out == GOLDEN.read_text(encoding="utf-8").replace("VERSION", __version__)
    found = parsed(out)
    assert set(found) == {metric.name for metric in table.METRICS}
    assert {one["kind"] for one in found["virt_cgroup_limit_wanted"].labels} == {
        kind.name for kind in KINDS
    }


def test_the_headroom_is_without_cache_that_can_be_dropped(
    command: Command, machined: Machined
) -> None:
    out = metrics(command, machined)
    assert value(out, "vms_memory_used_bytes") == 200 * MIB
    assert value(out, "vms_memory_headroom_bytes") == UNIFIED_LIMIT - 170 * MIB


def test_json_has_the_same(command: Command, machined: Machined) -> None:
    found = json.loads(metrics(command, machined, "--json"))
    told = {
        (one["name"], tuple(sample["labels"].values())): sample["value"]
        for one in found
        for sample in one["samples"]
    }
    families = parsed(metrics(command, machined))
    assert told == {
        (name, labels): number
        for name, family in families.items()
        for labels, number in family.samples.items()
    }
    assert [(one["type"], one["help"]) for one in found] == [
        (family.kind, family.help) for family in families.values()
    ]


@pytest.mark.parametrize("name", [path.name for path in (DATA / "hosts").iterdir()])
def test_recorded_hosts(command: Command, name: str) -> None:
    status, out, err = command("--root", DATA / "hosts" / name, "metrics")
    assert (status, err) == (0, "")
    busy = name == "busy"
    assert value(out, "running_vms") == (4 if busy else 0)
    assert value(out, "conforming_vms") == (3 if busy else 0)
    assert value(out, "nonconforming_vms", "more-cpus") == (1 if busy else 0)
    assert value(out, "reserved_cpus") == (4 if busy else 0)
    assert value(out, "limit_wanted", "cpus") == (1 if busy else 0)


@pytest.mark.parametrize("kind", [Kernel, Machined])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nothing_is_configured(
    tmp_path: Path, command: Command, kind: type[Kernel], version: str
) -> None:
    out = metrics(command, kind(tmp_path / "host", version))
    found = parsed(out)
    assert not {"virt_cgroup_fence_cpus", "virt_cgroup_fence_memory_bytes"} & set(found)
    assert set(found["virt_cgroup_limit_wanted"].samples.values()) == {0}
    assert value(out, "reserved_memory_bytes") == value(out, "running_vms") == 0
    assert set(found["virt_cgroup_nonconforming_vms"].samples) == {(one,) for one in REASONS}


@pytest.mark.parametrize("kind", [Kernel, Machined])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_limits_that_somebody_else_lifts(
    tmp_path: Path, command: Command, kind: type[Kernel], version: str
) -> None:
    host = kind(tmp_path / "host", version, "reserved_host_cpus = '0'\nreserved_host_mem = '9%'\n")
    out = metrics(command, host)
    assert (value(out, "limit_wanted", "memory"), value(out, "limit_in_effect", "memory")) == (1, 0)
    if isinstance(host, Machined):
        host.slice("machine.slice")
    do(host, "prepare", domain("vm", RUNNING, id=3))
    out = metrics(command, host)
    for limit in ("cpus", "memory"):
        assert value(out, "limit_wanted", limit) == value(out, "limit_in_effect", limit) == 1
    at = f"{CG}/memory" if version == "v1" else CG
    parent = "machine.slice" if isinstance(host, Machined) else "machine"
    file = "memory.limit_in_bytes" if version == "v1" else "memory.max"
    ours = int(host.get(f"{at}/{parent}/{file}"))
    for there, held in ((ours + 4096, 0), (ours - 4096, 1)):  # narrower is within the fence
        host.put(f"{at}/{parent}/{file}", str(there))
        out = metrics(command, host)
        assert value(out, "limit_in_effect", "memory") == held
        assert value(out, "limit_in_effect", "cpus") == 1
        assert value(out, "vms_memory_limit_bytes") == there


def test_limits_that_are_no_longer_wanted(tmp_path: Path, command: Command) -> None:
    host = Kernel(tmp_path / "host", "v2", NAMED)
    host.put(state.SHARED, f"{state.LIMITS_FORMAT}\nlimit pressure - /vms\n")
    host.make_directory(f"{CG}/vms")
    host.put(f"{CG}/vms/memory.high", "536870912")
    assert value(metrics(command, host), "unwanted_limits") == 1


# VMs


def test_a_vm_that_may_use_more(tmp_path: Path, command: Command) -> None:
    host = Machined(tmp_path / "host", "v2", WHOLE)
    starts(host, "0-3")
    out = metrics(command, host)
    assert value(out, "vm_conforms", "vm", UUID) == value(out, "conforming_vms") == 0
    reasons = parsed(out)["virt_cgroup_nonconforming_vms"].samples
    assert {reason for (reason,), count in reasons.items() if count} == {conformance.MORE_CPUS}


def test_settings_that_cannot_be(command: Command, machined: Machined) -> None:
    """Of a VM that runs: what can be told of the others is told."""
    machined.configure(WHOLE.replace("running", "asked"))
    file = "/run/libvirt/qemu/vm.xml"
    own = (
        "<metadata><c:settings xmlns:c='urn:libvirt-cgroup-hooks:domain:1'>"
        "<c:vcpu_cpus>0-99</c:vcpu_cpus></c:settings></metadata>"
    )
    machined.put(file, machined.get(file).replace("<vcpu>", f"{own}<vcpu>"))
    out = metrics(command, machined)
    assert value(out, "nonconforming_vms", "settings") == 1
    assert value(out, "limit_in_effect", "memory") == 1


def test_a_vm_that_is_not_understood(command: Command, machined: Machined) -> None:
    machined.put("/run/libvirt/qemu/other.xml", "<domstatus")
    status, out, err = command("--root", machined.root, "metrics")
    assert status == 0
    assert err.startswith("warning: VM other: the domain XML ")
    assert value(out, "running_vms") == 2
    assert value(out, "conforming_vms") == value(out, "nonconforming_vms", "unreadable") == 1


def told(command: Command, host: Machined, name: str) -> dict[str, str]:
    """The labels of the VM, whose name is NAME."""
    host.remove("/run/libvirt/qemu/vm.xml")
    host.starts(domain(name, RUNNING), "/vms.slice", RUNNING)
    return parsed(metrics(command, host))["virt_cgroup_vm_conforms"].labels[0]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ('a"b', 'a"b'),
        ("a\\", "a\\"),
        ("a\\n", "a\\n"),
        ('"} 1', '"} 1'),
        ("# HELP x", "# HELP x"),
        ("a\u009b1m", "a\\x9b1m"),
        ("\u202egnp", "\\u202egnp"),
        ("💩", "💩"),
    ],
)
def test_names_of_vms(command: Command, machined: Machined, name: str, label: str) -> None:
    assert told(command, machined, name) == {"name": label, "uuid": UUID}


@BOUNDED
@given(st.one_of(st.text(), st.sampled_from(NASTY), st.text('\\"n\n{}, =#')))
def test_any_label_can_be_parsed(text: str) -> None:
    samples = exposition.Samples()
    samples.add(table.VM_CONFORMS, True, name=text, uuid=UUID)
    samples.add(table.VM_MEMORY, 0.25, name=text, uuid=UUID)
    found = parsed(exposition.text(samples))
    for metric, number in ((table.VM_CONFORMS, 1), (table.VM_MEMORY, 0.25)):
        assert found[metric.name].samples == {(text, UUID): number}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (PRESSURE.format(1_500_000, 1), {"some": 1.5, "full": 0.000001}),
        ("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n", {"some": 0.000007}),  # cpu before 5.13
        ("", {}),
        ("some", {}),
    ],
)
def test_pressure(text: str, seconds: dict[str, float]) -> None:
    assert waited(text) == seconds


def test_names_are_those_that_prometheus_asks_for() -> None:
    for metric in table.METRICS:
        assert metric.name.startswith("virt_cgroup_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".") and "\\" not in metric.help and "\n" not in metric.help


# the file


def test_the_file(command: Command, machined: Machined, tmp_path: Path) -> None:
    file = tmp_path / "folder/metrics.prom"
    file.parent.mkdir()
    file.write_text("old\n")
    file.chmod(0o600)
    umask = os.umask(0o077)
    try:
        assert metrics(command, machined, "--output", file) == ""
    finally:
        os.umask(umask)
    assert file.read_text() == metrics(command, machined)
    assert file.stat().st_mode & 0o7777 == 0o644
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_what_a_killed_run_has_left_is_no_obstacle(
    command: Command, machined: Machined, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    (tmp_path / f".metrics.prom.{os.getpid()}").symlink_to(victim)
    metrics(command, machined, "--output", tmp_path / "metrics.prom")
    assert victim.read_text() == "mine\n"
    assert parsed((tmp_path / "metrics.prom").read_text())


def test_an_error_leaves_the_old_file(command: Command, machined: Machined, tmp_path: Path) -> None:
    file = tmp_path / "metrics.prom"
    metrics(command, machined, "--output", file)
    before = file.read_text(), file.stat().st_mtime_ns, file.stat().st_ino
    machined.configure("reserved_host_cpus = 'x'\n")
    status, out, err = command("--root", machined.root, "metrics", "--output", file)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {CONF}:1: reserved_host_cpus")
    assert (file.read_text(), file.stat().st_mtime_ns, file.stat().st_ino) == before


def test_a_full_disk_leaves_the_old_file(
    command: Command, machined: Machined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "metrics.prom"
    file.write_text("old\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    status, _, err = command("--root", machined.root, "metrics", "--output", file)
    assert (status, err.splitlines()) == (
        1,
        [
            f"error: cannot write {file}: No space left on device: "
            "name a file in a directory that is there and that you may write to"
        ],
    )
    assert file.read_text() == "old\n"
    assert [path.name for path in tmp_path.iterdir() if "metrics" in path.name] == [file.name]


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_file_that_cannot_be(
    command: Command, machined: Machined, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "metrics.prom"
    if kind == "folder":
        file.mkdir()
    else:
        (tmp_path / "victim").write_text("mine\n")
        file.symlink_to(tmp_path / "victim")
    status, _, err = command("--root", machined.root, "metrics", "--output", file)
    assert (status, err) == (
        1,
        f"error: cannot write {file}: it is not a regular file: name another\n",
    )
    assert kind == "folder" or (tmp_path / "victim").read_text() == "mine\n"


def test_a_folder_that_is_not_there(command: Command, machined: Machined, tmp_path: Path) -> None:
    file = tmp_path / "none/metrics.prom"
    status, _, err = command("--root", machined.root, "metrics", "--output", file)
    assert status == 1
    assert err.startswith(f"error: cannot write {file}: No such file or directory")


def test_not_both(command: Command, machined: Machined) -> None:
    status, _, err = command("--root", machined.root, "metrics", "--json", "--output", "x")
    assert (status, err) == (1, "error: Options --output and --json are mutually exclusive\n")


def test_standard_output_is_utf_8_whatever_the_terminal_has(
    machined: Machined, monkeypatch: pytest.MonkeyPatch
) -> None:
    machined.remove("/run/libvirt/qemu/vm.xml")
    machined.starts(domain("vé", RUNNING), "/vms.slice", RUNNING)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["--root", machined.root, "metrics"]) == 0
    assert 'name="vé"' in raw.getvalue().decode("utf-8")
