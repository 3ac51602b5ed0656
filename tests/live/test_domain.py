"""virt-cgroup domain with a real libvirtd: what it writes is what virsh shows, and nothing else
changes.
"""

from __future__ import annotations

import difflib
import json
import subprocess
from typing import Any

import pytest

from libvirt_cgroup_hooks.domainxml import SETTINGS_URI, parse

from .harness import Configure, Daemon, domain_xml, start_vm, virsh
from .pace import patient

OTHERS = "<metadata><a:b xmlns:a='urn:other'><foo:c/><layout>mine</layout></a:b></metadata>"
NAMES = ["web", "-x", "a b", "7", "a'b\"c\\d", "💩", "a&<b", "$NAME", "x" * 190]


def command(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/usr/bin/python3", "-I", "-m", "libvirt_cgroup_hooks", "domain", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=patient(),
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", **(environment or {})},
    )


def done(*arguments: str) -> str:
    result = command(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused(*arguments: str, environment: dict[str, str] | None = None) -> str:
    result = command(*arguments, environment=environment)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr[len("error: ") : -1]


def settings(*arguments: str) -> Any:
    return json.loads(done(*arguments, "--json"))["settings"]


def define(name: str = "web", extra: str = "") -> None:
    virsh("define", "/dev/stdin", stdin=domain_xml(name, extra=extra))


def inactive(name: str = "web") -> str:
    return virsh("dumpxml", "--inactive", "--security-info", "--domain", name).stdout


def metadata(area: str, name: str = "web") -> str:
    """As virsh shows it, on one line."""
    shown = virsh("metadata", name, SETTINGS_URI, f"--{area}", check=False)
    return (
        "".join(line.strip() for line in shown.stdout.splitlines()) if shown.returncode == 0 else ""
    )


def lines_changed(before: str, after: str) -> list[str]:
    found = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in found if not line.startswith(("---", "+++", "@@"))]


def test_settings_of_a_vm_that_is_off() -> None:
    define()
    assert settings("web") == {"config": {}}
    assert (
        done("web", "--set", "vcpu_cpus=1,0", "--set", "layout=/vms/$NAME") == "Metadata modified\n"
    )
    assert (
        metadata("config")
        == "<settings><vcpu_cpus>0-1</vcpu_cpus><layout>/vms/$NAME</layout></settings>"
    )
    assert parse(inactive().encode()).settings == {"vcpu_cpus": "0-1", "layout": "/vms/$NAME"}
    assert settings("web", "--config") == {"config": {"vcpu_cpus": "0-1", "layout": "/vms/$NAME"}}
    done("web", "--unset", "vcpu_cpus", "--set", "iothread_cpus=0")
    assert (
        metadata("config")
        == "<settings><layout>/vms/$NAME</layout><iothread_cpus>0</iothread_cpus></settings>"
    )
    done("web", "--unset", "layout", "--unset", "iothread_cpus", "--unset", "vcpu_cpus")
    assert metadata("config") == ""


def test_what_is_shown() -> None:
    define()
    done("web", "--set", "emulator_cpus=0")
    shown = command("web")
    assert shown.stderr == ""
    assert shown.stdout.splitlines() == [
        "emulator_cpus:  0",
        "vcpu_cpus:      -",
        "iothread_cpus:  -",
        "layout:         -",
        "confine_host:   -",
        "dedicated:      -",
    ]


def test_live_and_config() -> None:
    define()
    virsh("start", "web")
    result = command("web", "--set", "vcpu_cpus=0")  # "current" is the running VM
    assert (result.stdout, result.returncode) == ("Metadata modified\n", 0)
    assert result.stderr == (
        "note: only the metadata has changed, until the VM ends; to apply it now: "
        "virt-cgroup apply web\n"
    )
    assert (metadata("live"), metadata("config")) == (
        "<settings><vcpu_cpus>0</vcpu_cpus></settings>",
        "",
    )
    done("web", "--set", "layout=native", "--live", "--config")  # each keeps what it has
    assert (
        metadata("live") == "<settings><vcpu_cpus>0</vcpu_cpus><layout>native</layout></settings>"
    )
    assert metadata("config") == "<settings><layout>native</layout></settings>"
    assert settings("web", "--set", "vcpu_cpus=1", "--config", "--live") == {
        "live": {"vcpu_cpus": "1", "layout": "native"},
        "config": {"layout": "native", "vcpu_cpus": "1"},
    }
    done("web", "--unset", "vcpu_cpus", "--unset", "layout", "--live", "--config")
    assert (metadata("live"), metadata("config")) == ("", "")


def test_the_running_vm_keeps_them_over_a_restart_of_the_daemon(daemon: Daemon) -> None:
    start_vm("web")
    done("web", "--set", "vcpu_cpus=0", "--live")
    daemon.restart()
    assert settings("web", "--live") == {"live": {"vcpu_cpus": "0"}}


def test_other_metadata_stays() -> None:
    define(extra=OTHERS)
    before = inactive()
    done("web", "--set", "layout=flat")
    assert lines_changed(before, inactive()) == [
        f'+    <cgroup-hooks:settings xmlns:cgroup-hooks="{SETTINGS_URI}">',
        "+      <cgroup-hooks:layout>flat</cgroup-hooks:layout>",
        "+    </cgroup-hooks:settings>",
    ]
    assert parse(inactive().encode()).settings == {"layout": "flat"}
    done("web", "--unset", "layout")
    assert inactive() == before


@pytest.mark.parametrize(
    "xml",
    [
        f"<metadata><s:any xmlns:s='{SETTINGS_URI}'><s:layout>flat</s:layout></s:any></metadata>",
        (
            f"<metadata xmlns:s='{SETTINGS_URI}'><s:settings><layout> flat </layout></s:settings>"
            "</metadata>"
        ),
        (
            f"<metadata><settings xmlns='{SETTINGS_URI}'><!-- mine --><layout>flat</layout>"
            "</settings></metadata>"
        ),
    ],
)
def test_settings_written_by_hand(xml: str) -> None:
    define(extra=xml)
    assert settings("web") == {"config": {"layout": "flat"}}
    assert parse(inactive().encode()).settings == {"layout": "flat"}
    done("web", "--set", "vcpu_cpus=0")
    assert (
        metadata("config") == "<settings><layout>flat</layout><vcpu_cpus>0</vcpu_cpus></settings>"
    )
    assert parse(inactive().encode()).settings == {"layout": "flat", "vcpu_cpus": "0"}


def test_what_is_wrong_in_the_metadata() -> None:
    define()
    wrong = "<settings><vcpu_cpus>3</vcpu_cpus><foo>2</foo><vcpu_cpus>4</vcpu_cpus></settings>"
    virsh("metadata", "web", SETTINGS_URI, "--key", "q", "--config", "--set", wrong)
    shown = command("web")
    message = (
        r'VM web has vcpu_cpus = "3\n4" in its metadata: "3\n4" is not a CPU list: '
        "change it, or remove it: virt-cgroup domain web --unset vcpu_cpus --unset foo --config"
    )
    assert (shown.returncode, shown.stderr) == (0, f"warning: {message}\n")
    assert "vcpu_cpus:      3\\n4\n" in shown.stdout and "foo:            2\n" in shown.stdout
    assert refused("web", "--set", "layout=flat") == message
    assert "<foo>2</foo>" in metadata("config")
    done("web", "--unset", "foo", "--set", "vcpu_cpus=0")
    assert metadata("config") == "<settings><vcpu_cpus>0</vcpu_cpus></settings>"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("vcpu_cpus=8000", "this host has no CPU 8000 (its CPUs are "),
        ("emulator_cpus=0", "all of these CPUs are reserved (reserved_host_cpus 0)"),
        (
            "layout=root",
            "the VM would be outside the limit that reserved_host_mem sets",
        ),
    ],
)
def test_what_would_keep_the_vm_from_starting_is_set_by_force_only(
    configure: Configure, setting: str, message: str
) -> None:
    define()
    configure(
        'reserved_host_cpus = "0"\nreserved_host_mem = "1 GiB"\ncgroup_layout = "/vms/$NAME"\n'
    )
    key, _, value = setting.partition("=")
    assert refused("web", "--set", setting).startswith(f'cannot set {key} to "{value}": {message}')
    assert metadata("config") == ""
    result = command("web", "--set", setting, "--force")
    assert (result.returncode, result.stdout) == (0, "Metadata modified\n")
    assert result.stderr.startswith("warning: VM web has ") and message in result.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "layout=/other/$NAME",
            'VM web has layout = "/other/$NAME" in its metadata, but reserved_host_mem only limits '
            "VMs below /vms: ",
        ),
        (
            "dedicated=yes",
            "VM web is to have its CPUs for itself (dedicated), and vcpu0 is not pinned to any: ",
        ),
    ],
)
def test_what_the_hook_would_refuse_is_refused(
    configure: Configure, setting: str, message: str
) -> None:
    """With the words of the hook, which says so where somebody has set it by force."""
    define()
    configure('reserved_host_mem = "1 GiB"\ncgroup_layout = "/vms/$NAME"\n')
    told = refused("web", "--set", setting)
    assert told.startswith(f"VM web could not start with this: {message}")
    assert told.endswith("; --force sets it anyway")
    assert metadata("config") == ""
    result = command("web", "--set", setting, "--force")
    assert (result.returncode, result.stdout) == (0, "Metadata modified\n")
    assert result.stderr.startswith(f"warning: {message}")
    assert message in virsh("start", "web", check=False).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "nothing",
            "cannot find VM 'nothing': Domain not found: no domain with matching name 'nothing'",
        ),
        ("nothing --partition /machine/a", "cannot find VM 'nothing': Domain not found"),
        ("99999999999999999999", "cannot find VM '99999999999999999999': Domain not found"),
        (
            "4f1e2d3c-5b6a-4798-8a9b-0c1d2e3f4a5b",
            "cannot find VM '4f1e2d3c-5b6a-4798-8a9b-0c1d2e3f4a5b': Domain not found",
        ),
        (
            "web --live",
            "cannot use --live for VM web: domain is not running: "
            "use --config, which is for its next start",
        ),
        (
            "web --set vcpu_cpus=1 --live --config",
            "cannot use --live for VM web: domain is not running: ",
        ),
        ("web -c qemu:///nonsense", "cannot connect to libvirt at qemu:///nonsense: "),
        ("web --connect nonsense:///", "cannot connect to libvirt at nonsense:///: "),
    ],
)
def test_what_libvirt_refuses(arguments: str, message: str) -> None:
    define()
    assert refused(*arguments.split()).startswith(message)
    assert metadata("config") == ""


def test_a_transient_vm() -> None:
    start_vm("web")
    for change in (["--set", "vcpu_cpus=0", "--config"], ["--partition", "/machine/a"]):
        assert refused("web", *change) == (
            "VM web is transient and has no persistent XML: define it first: virsh define"
        )


def test_which_libvirt_is_asked() -> None:
    define()
    environment = {"LIBVIRT_DEFAULT_URI": "qemu:///nonsense"}
    assert refused("web", environment=environment).startswith(
        "cannot connect to libvirt at qemu:///nonsense: "
    )
    assert command("web", "-c", "qemu:///system", environment=environment).returncode == 0
    assert command("web", environment={"LIBVIRT_DEFAULT_URI": ""}).returncode == 0


def test_no_daemon(daemon: Daemon) -> None:
    define()
    daemon.stop()
    for arguments in (
        ["web"],
        ["web", "--set", "vcpu_cpus=0"],
        ["web", "--partition", "/machine/a"],
    ):
        message = refused(*arguments)
        assert message.startswith(
            "cannot connect to libvirt at qemu:///system: Failed to connect socket to "
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_vm_by_name_id_and_uuid(name: str) -> None:
    define(name)
    uuid = virsh("domuuid", "--domain", name).stdout.strip()
    virsh("start", "--domain", name)
    number = virsh("domid", "--domain", name).stdout.strip()
    for handle, cpus in ((name, "0"), (uuid, "1"), (number, "0-1")):
        shown = json.loads(done("--set", f"vcpu_cpus={cpus}", "--json", "--", handle))
        assert shown == {"name": name, "uuid": uuid, "settings": {"live": {"vcpu_cpus": cpus}}}
    done("--partition", "/machine/a", "--", name)
    assert parse(inactive(name).encode()).partition == "/machine/a"


# the partition


def test_the_partition_and_not_one_other_byte() -> None:
    graphics = "<graphics type='vnc' passwd='s&amp;cret' port='-1' autoport='yes'/>"
    virsh(
        "define",
        "/dev/stdin",
        stdin=domain_xml("web", extra=OTHERS, vcpupin={0: "0"}, devices=graphics),
    )
    plain = inactive()
    assert "passwd='s&amp;cret'" in plain
    assert done("web", "--partition", "/machine/a") == "Domain 'web' XML configuration edited.\n"
    added = ["+  <resource>", "+    <partition>/machine/a</partition>", "+  </resource>"]
    assert lines_changed(plain, inactive()) == added
    placed = inactive()
    shown = json.loads(done("web", "--partition", "/machine/b&<c", "--config", "--json"))
    assert shown == {
        "name": "web",
        "uuid": parse(plain.encode()).uuid,
        "partition": "/machine/b&<c",
        "changed": True,
    }
    assert lines_changed(placed, inactive()) == [
        "-    <partition>/machine/a</partition>",
        "+    <partition>/machine/b&amp;&lt;c</partition>",
    ]
    assert (
        done("web", "--partition", "/machine/b&<c")
        == "Domain 'web' XML configuration not changed.\n"
    )
    done("web", "--no-partition")
    assert inactive() == plain


def test_the_partition_beside_fibrechannel() -> None:
    define(extra="<resource><fibrechannel appid='a'/></resource>")
    plain = inactive()
    done("web", "--partition", "/machine/a")
    assert lines_changed(plain, inactive()) == ["+    <partition>/machine/a</partition>"]
    done("web", "--no-partition")
    assert inactive() == plain


def test_the_partition_of_a_running_vm_is_for_its_next_start() -> None:
    define()
    virsh("start", "web")
    live = virsh("dumpxml", "web").stdout
    done("web", "--partition", "/machine/a")
    assert virsh("dumpxml", "web").stdout == live
    assert parse(inactive().encode()).partition == "/machine/a"
