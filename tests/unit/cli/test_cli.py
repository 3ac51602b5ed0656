"""virt-cgroup on recorded hosts: what it prints, as text and as JSON, and how it tells errors."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from libvirt_cgroup_hooks import __version__, settings
from libvirt_cgroup_hooks.cli import COMMANDS, commands, main
from libvirt_cgroup_hooks.domainxml import LIMIT

from ..conftest import Command
from ..support.hosts import DATA, Kernel, recorded
from ..support.machined import Machined
from ..support.operations import NAMED as CONF
from ..support.operations import UNIFIED_LIMIT

PACKAGING = Path(__file__).parents[3] / "packaging"
PLAIN = str(DATA / "domains/plain.xml")


def shown(command: Command, *arguments: str) -> Any:
    status, out, err = command(*arguments, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


@pytest.fixture
def host(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path, "v2", CONF)


@pytest.fixture
def machined(tmp_path: Path) -> Machined:
    return Machined(tmp_path, "v2", CONF)


# the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["nothing"], "invalid choice: 'nothing'"),
        (["host", "more"], "unrecognized arguments: more"),
        (
            ["reserve", "--memory", "4", "GiB"],
            "unrecognized arguments: GiB; put a size with a space in quotes: '4 GiB'",
        ),
        (["--root"], "expected one argument"),
        (["plan", "prepare"], "the following arguments are required: DOMAIN-XML-FILE"),
        (["plan", "boot", PLAIN], "invalid choice: 'boot'"),
        (["apply"], "one of the arguments --parent --all DOMAIN is required"),
        (["apply", "--parent", "--all"], "not allowed with argument"),
        (["apply", "--all", "web"], "not allowed with argument"),
    ],
)
def test_a_wrong_command_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], *([name, "--help"] for name in ("host", "plan", "status", "apply"))]
)
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert not end.value.code
    out = capsys.readouterr().out
    assert "--root DIR" in out
    assert "example: " in out or arguments == ["--help"]


@pytest.mark.runs_programs
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_waits_for_no_other(name: str) -> None:
    """Together they import for three times as long as `apply`, which is run at each change."""
    text = (
        "import sys\nfrom libvirt_cgroup_hooks.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(*sys.modules)\n"
    )
    command = [sys.executable, "-c", text, name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    _, *loaded = (one for one in done.stdout.split() if one.startswith(commands.__name__))
    needed = {name, "reserve"} if name == "recommend" else {name}
    assert {one.rpartition(".")[2] for one in loaded} == needed


def test_every_command_is_there() -> None:
    files = Path(commands.__file__).parent.glob("*.py")
    assert sorted(COMMANDS) == sorted(file.stem for file in files if file.stem != "__init__")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"virt-cgroup {__version__}\n"


@pytest.mark.parametrize("arguments", [["--root", "{}", "host"], ["host", "--root", "{}"]])
def test_the_root_goes_before_or_after_the_command(command: Command, arguments: list[str]) -> None:
    assert command(*(word.format(recorded("v1").root) for word in arguments))[0] == 0


# host


@pytest.mark.parametrize(
    ("name", "cpus", "memory", "unified", "cores", "nodes"),
    [
        ("v1", "0-1", 2040212 * 1024, None, 2, 1),
        (
            "v2",
            "0-3",
            8135396 * 1024,
            {"mount": "/sys/fs/cgroup", "placement": "/"},
            None,
            None,
        ),
        ("smt", "0-7", 32787480 * 1024, {"mount": "/sys/fs/cgroup", "placement": "/"}, 4, 1),
        ("numa", "0-7", 65842104 * 1024, {"mount": "/sys/fs/cgroup", "placement": "/"}, None, 2),
    ],
)
def test_host_as_json(
    command: Command,
    name: str,
    cpus: str,
    memory: int,
    unified: dict[str, str] | None,
    cores: int | None,
    nodes: int | None,
) -> None:
    found = shown(command, "--root", recorded(name).root, "host")
    assert set(found) == {
        "manager",
        "controllers",
        "unified",
        "cpus",
        "memory",
        "memory_left_out",
        "cores",
        "nodes",
        "hugepages",
    }
    assert (found["manager"], found["cpus"], found["memory"]) == ("cgroupfs", cpus, memory)
    assert found["unified"] == unified
    assert all(
        set(place) == {"version", "mount", "placement"} for place in found["controllers"].values()
    )
    assert cores is None or len(found["cores"]) == cores
    assert nodes is None or len(found["nodes"]) == nodes


def test_controllers_v1(command: Command) -> None:
    found = shown(command, "--root", recorded("v1").root, "host")["controllers"]
    assert found == {
        name: {"version": 1, "mount": f"/sys/fs/cgroup/{name}", "placement": "/"}
        for name in ("cpu", "cpuset", "memory", "devices")
    }


def test_controllers_v2(command: Command, machined: Machined) -> None:
    machined.put("/sys/fs/cgroup/system.slice/cgroup.controllers", "cpuset cpu io memory pids")
    found = shown(command, "--root", machined.root, "host")
    assert found["manager"] == "systemd"
    assert set(found["controllers"]) == {"cpu", "cpuacct", "cpuset", "devices", "io", "memory"}
    # cut at /libvirt, as libvirt does
    place = {"mount": "/sys/fs/cgroup", "placement": "/system.slice"}
    assert found["unified"] == place
    assert all(value == {"version": 2, **place} for value in found["controllers"].values())


NOT_COUNTED = "1.4 GiB of NUMA nodes without CPUs (1)"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("host", f"Memory:         1.5 GiB, and {NOT_COUNTED}"),
        ("status", f"Not counted:    {NOT_COUNTED}"),
        ("reserve", f"Not counted: {NOT_COUNTED}"),
    ],
)
def test_memory_of_a_node_without_cpus_is_told(command: Command, name: str, line: str) -> None:
    root = recorded("memory-node").root
    assert line in command("--root", root, name)[1].splitlines()
    assert shown(command, "--root", root, name)["memory_left_out"] == {"1": 1510080 * 1024}


def test_what_is_not_counted_is_told_where_nothing_is_left(
    command: Command, tmp_path: Path
) -> None:
    host = Kernel(tmp_path, "memory-node", "reserved_host_mem = '2 GiB'\n")
    _, _, err = command("--root", host.root, "status")
    assert f"(1.5 GiB in all; not counted: {NOT_COUNTED})" in err


def test_host_as_text(command: Command) -> None:
    status, out, err = command("--root", recorded("v1").root, "host")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "Manager:        cgroupfs",
        "CPUs:           0-1",
        "Cores:          2 (0 1)",
        "NUMA node 0:    CPUs 0-1",
        "Memory:         1.9 GiB",
        "Hugepages:      none",
        "",
        " Controller   Version   Mount point              Placement of the daemon",
        "-" * 74,
        " cpu          v1        /sys/fs/cgroup/cpu       /",
        " cpuset       v1        /sys/fs/cgroup/cpuset    /",
        " devices      v1        /sys/fs/cgroup/devices   /",
        " memory       v1        /sys/fs/cgroup/memory    /",
    ]


def test_a_copy_that_has_cgroup_files_only(command: Command, tmp_path: Path) -> None:
    for path, text in (
        ("proc/mounts", "none /g cgroup2 rw 0 0"),
        ("proc/self/cgroup", "0::/"),
        ("g/cgroup.controllers", "cpu"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{text}\n", encoding="utf-8")
    found = shown(command, "--root", str(tmp_path), "host")
    assert [found[key] for key in ("cpus", "memory", "cores", "nodes", "hugepages")] == [None] * 5
    assert command("--root", str(tmp_path), "host")[1].startswith(
        "Manager:        cgroupfs\n\n Controller "
    )


# plan


@pytest.mark.parametrize("name", ["v1", "v2", "smt", "numa"])
@pytest.mark.parametrize(
    "operation", ["prepare", "start", "started", "stopped", "release", "reconnect", "migrate"]
)
def test_nothing_configured_needs_no_step(command: Command, name: str, operation: str) -> None:
    assert command("--root", recorded(name).root, "plan", operation, PLAIN) == (
        0,
        "Nothing to do.\n",
        "",
    )
    assert shown(command, "--root", recorded(name).root, "plan", operation, PLAIN) == {
        "operation": operation,
        "domain": "plain",
        "steps": [],
    }


def test_plan_prints_the_steps_and_runs_none(command: Command, host: Kernel) -> None:
    before = host.snapshot()
    status, out, err = command("--root", host.root, "plan", "prepare", PLAIN)
    assert (status, err) == (0, "")
    assert f'write "{UNIFIED_LIMIT}" to /sys/fs/cgroup/vms/memory.max' in out.splitlines()
    assert (
        shown(command, "--root", host.root, "plan", "prepare", PLAIN)["steps"] == out.splitlines()
    )
    assert host.snapshot() == before


def test_plan_where_systemd_owns_cgroups(command: Command, machined: Machined) -> None:
    status, out, err = command("--root", machined.root, "plan", "prepare", PLAIN)
    assert status == 0
    assert out.splitlines()[-1] == (
        f"systemctl set-property --runtime vms.slice MemoryMax={UNIFIED_LIMIT} AllowedCPUs=1-3"
    )
    assert err == (
        "warning: VM plain has no id here, so the drop-in for its scope is left out: to see it, "
        "use what the running VM says (virsh dumpxml plain)\n"
    )
    status, out, err = command("--root", machined.root, "plan", "start", PLAIN)
    assert (status, out) == (1, "")
    assert err == (
        "error: VM plain has no id here, and its scope's name needs one: "
        "use what the running VM says: virsh dumpxml plain\n"
    )


@pytest.mark.parametrize("operation", ["started", "reconnect"])
def test_plan_for_a_vm_that_does_not_run(command: Command, tmp_path: Path, operation: str) -> None:
    host = Kernel(tmp_path, "v2", CONF)
    status, out, err = command("--root", host.root, "plan", operation, PLAIN)
    assert (status, err) == (
        0,
        "warning: VM plain is not running, so there is no process to place\n",
    )
    assert "make /sys/fs/cgroup/vms/plain" in out.splitlines()
    assert "move" not in out


def test_also_where_systemd_owns_cgroups(command: Command, machined: Machined) -> None:
    status, out, err = command("--root", machined.root, "plan", "started", PLAIN)
    assert (status, out.splitlines()[1:]) == (
        0,
        [f"systemctl set-property --runtime vms.slice MemoryMax={UNIFIED_LIMIT} AllowedCPUs=1-3"],
    )
    assert err == "warning: VM plain is not running, so there is no process to place\n"


def test_plan_reads_standard_input(
    command: Command, host: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    xml = Path(PLAIN).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(xml)))
    assert shown(command, "--root", host.root, "plan", "prepare", "-")["domain"] == "plain"


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (
            b"",
            "the domain XML is not well-formed (no element found: line 1, column 0): "
            "check it with virt-xml-validate",
        ),
        (
            b"<domain>",
            "the domain XML is not well-formed (no element found: line 1, column 8): check it with",
        ),
        (b"\xff\xfe<", "the domain XML is not well-formed ("),
        (b"\x00" * 9, "the domain XML is not well-formed ("),
        (b"<domain/>", "the domain XML has no name: give the XML that `virsh dumpxml` prints"),
        (
            b"<domain><name>a/b</name></domain>",
            'the domain XML has "a/b" as name: libvirt allows no / and no newline in it',
        ),
        (
            b"<!DOCTYPE d [<!ENTITY a 'b'>]><domain/>",
            "the domain XML has a document type declaration: libvirt writes none",
        ),
        (b"<domain>" + b" " * LIMIT, "the domain XML is larger than 4 MiB ("),
        (
            b"<domain><name>\xc2\x9b1m</name><uuid>\xc2\x9b</uuid></domain>",
            r'the domain XML has "\x9b" as uuid: ',
        ),
    ],
)
def test_a_broken_domain(
    command: Command, host: Kernel, tmp_path: Path, xml: bytes, message: str
) -> None:
    (tmp_path / "vm.xml").write_bytes(xml)
    status, out, err = command("--root", host.root, "plan", "prepare", str(tmp_path / "vm.xml"))
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.xml", "No such file or directory"),
        ("", "Is a directory"),
        ("a\nb", "No such file or directory"),
    ],
)
def test_a_domain_that_cannot_be_read(
    command: Command, host: Kernel, tmp_path: Path, path: str, message: str
) -> None:
    file = str(tmp_path / path)
    status, out, err = command("--root", host.root, "plan", "prepare", file)
    assert (status, out) == (1, "")
    assert (
        err
        == "error: cannot read "
        + file.replace("\n", "\\n")
        + f": {message}: give a file with the VM's XML (virsh dumpxml)\n"
    )


@pytest.mark.parametrize("arguments", [["plan", "prepare", PLAIN], ["status"]])
@pytest.mark.parametrize(
    ("conf", "message"),
    [
        (
            "colour = 1\n",
            "1: colour = 1: there is no such setting: the settings are reserved_host_cpus, ",
        ),
        (
            "\nreserved_host_cpus = '0-3'",
            '2: reserved_host_cpus = "0-3": reserving CPUs 0-3 leaves none for VMs',
        ),
        (
            "reserved_host_cpus = '99'",
            '1: reserved_host_cpus = "99": this host has no CPU 99: its CPUs are 0-3',
        ),
        ("reserved_host_mem = 4", "1: reserved_host_mem = 4: "),
        ("reserved_host_mem = '99 TiB'", '1: reserved_host_mem = "99 TiB": '),
        (
            "cgroup_layout = '/vms/$VM'",
            '1: cgroup_layout = "/vms/$VM": layout "/vms/$VM" has an unknown variable: ',
        ),
        (
            "reserved_host_mem = '1 GiB'\ncgroup_layout = 'root'",
            '1: reserved_host_mem = "1 GiB": cgroup_layout = "root" ',
        ),
        ("on_error refuse", "1: "),
        ("on_error = 'refuse", "1: "),
    ],
)
def test_a_bad_configuration(
    command: Command, host: Kernel, arguments: list[str], conf: str, message: str
) -> None:
    host.configure(conf)
    status, out, err = command("--root", host.root, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: /etc/libvirt/cgroup-hooks.conf:{message}")
    assert err.count("\n") == 1


def test_a_warning_is_told(command: Command, host: Kernel) -> None:
    host.configure("on_error = 'warn'\non_error = 'refuse'\n")
    text = "/etc/libvirt/cgroup-hooks.conf:2: on_error is already set in line 1; that value is used"
    for arguments in (["status"], ["plan", "prepare", PLAIN]):
        status, _, err = command("--root", host.root, *arguments)
        assert (status, err) == (0, f"warning: {text}\n")


def test_what_cannot_be_enforced(command: Command, host: Kernel) -> None:
    host.put("/sys/fs/cgroup/cgroup.controllers", "cpu memory")
    status, out, err = command("--root", host.root, "plan", "prepare", PLAIN)
    assert (status, out) == (1, "")
    assert err == (
        "error: cannot keep CPUs for the host: there is no cpuset controller: mount or enable it\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["host"], "no cgroup controllers are mounted: mount cgroup2 on /sys/fs/cgroup"),
        (["status"], ""),
        (
            ["plan", "prepare", "/"],
            "cannot read /: Is a directory: give a file with the VM's XML (virsh dumpxml)",
        ),
    ],
)
def test_a_root_with_nothing_in_it(
    command: Command, tmp_path: Path, arguments: list[str], message: str
) -> None:
    for root in (str(tmp_path), str(tmp_path / "none")):
        status, out, err = command("--root", root, *arguments)
        assert (status, out) == (1, "")
        assert err.startswith(f"error: {message}")
        assert err.count("\n") == 1


# apply


@pytest.mark.parametrize("arguments", [["--parent"], ["--all"], ["web"], ["web", "mail", "--json"]])
def test_nothing_is_applied_below_a_root(
    command: Command, host: Kernel, arguments: list[str]
) -> None:
    before = host.snapshot()
    status, out, err = command("--root", host.root, "apply", *arguments)
    assert (status, out) == (1, "")
    assert (
        err
        == "error: apply cannot be used with --root: virt-cgroup plan shows what would be done\n"
    )
    assert host.snapshot() == before


# the sample


def test_the_sample_is_that_of_the_table(command: Command, host: Kernel) -> None:
    text = (PACKAGING / "cgroup-hooks.conf").read_text(encoding="utf-8")
    assert text == settings.sample()
    host.configure(text)
    assert command("--root", host.root, "plan", "prepare", PLAIN) == (
        0,
        "Nothing to do.\n",
        "",
    )
