"""virt-cgroup domain: what can be told without libvirt. The rest is in tests/live."""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import settings
from libvirt_cgroup_hooks.cli import main, metadata, partition
from libvirt_cgroup_hooks.cli.commands.domain import changed, check, refusal
from libvirt_cgroup_hooks.domainxml import SETTINGS_URI, parse
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.layout import PRESETS

from ..support import reserving
from ..support.hosts import domain, domain_xml

KEYS = "emulator_cpus, vcpu_cpus, iothread_cpus, layout, confine_host, dedicated"
ALL = {
    "emulator_cpus": "0-1",
    "vcpu_cpus": "2-3,8",
    "iothread_cpus": "9",
    "layout": "/vms/$DRIVER-$NAME",
}


def test_a_copy_of_a_host_has_no_libvirt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", "/nowhere", "domain", "vm"]) == 1
    assert capsys.readouterr().err.startswith("error: domain cannot be used with --root: ")
    with pytest.raises(SystemExit):
        main(["domain", "vm", "--root", "/nowhere"])
    with pytest.raises(SystemExit):
        main(["domain", "--help"])
    assert "--root" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--current --live", "Options --current and --live are mutually exclusive"),
        ("--config --current", "Options --current and --config are mutually exclusive"),
        # nothing is changed: which to show?
        ("--live --config", "Options --live and --config are mutually exclusive"),
        (
            "--set vcpu_cpus=1 --live --config --current",
            "Options --current and --live are mutually exclusive",
        ),
        ("--partition /machine/a --live", "Options --partition and --live are mutually exclusive"),
        (
            "--partition /machine/a --current",
            "Options --partition and --current are mutually exclusive",
        ),
        (
            "--partition /machine/a --set vcpu_cpus=1",
            "Options --partition and --set are mutually exclusive",
        ),
        (
            "--no-partition --unset vcpu_cpus",
            "Options --no-partition and --unset are mutually exclusive",
        ),
        ("--set vcpu_cpus", '--set "vcpu_cpus" has no value: write KEY=VALUE, as in vcpu_cpus=4-7'),
        (
            "--set vcpu_cpus=",
            "--set vcpu_cpus= has no value: --unset vcpu_cpus removes the setting",
        ),
        (
            "--set vcpu_cpus=x",
            'cannot set vcpu_cpus to "x": "x" is not a CPU list: write numbers and ranges',
        ),
        (
            "--set vcpu_cpus=3-1",
            'cannot set vcpu_cpus to "3-1": "3-1" is not a CPU list: 3-1 runs backwards; write 1-3',
        ),
        ("--set vcpu_cpus=1,^1", 'cannot set vcpu_cpus to "1,^1": the CPU list is empty'),
        (
            "--set layout=nest",
            'cannot set layout to "nest": layout "nest" is neither a preset nor a path',
        ),
        (
            "--set layout=/vms/$VM",
            'cannot set layout to "/vms/$VM": layout "/vms/$VM" has an unknown variable',
        ),
        (
            "--set vcpus=1",
            'cannot set vcpus to "1": there is no such setting: did you mean vcpu_cpus?',
        ),
        (
            "--set cgroup_layout=flat",
            'cannot set cgroup_layout to "flat": there is no such setting',
        ),
        (
            "--set reserved_host_cpus=0",
            'cannot set reserved_host_cpus to "0": there is no such setting',
        ),
        ("--set =1", 'cannot set  to "1": there is no such setting'),
        ("--set layout=flat --set layout=root", "layout is changed twice: give each key once"),
        ("--set layout=flat --unset layout", "layout is changed twice"),
        ("--unset x --unset x", "x is changed twice"),
        (
            "--partition machine",
            'partition "machine" is not an absolute path: '
            "begin it with /, as in /machine/production",
        ),
        ("--partition=", 'partition "" is not an absolute path'),
    ],
)
def test_what_is_refused_before_libvirt_is_asked(
    capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    assert main(["domain", "web", *arguments.split()]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "//",
        "/machine/",
        "/machine//a",
        "/machine/../a",
        "/..",
        "/machine/.",
        "/a\n",
        "/a\0",
        "/a\udcff",
        "/\x1b[2J",
        "a/b",
    ],
)
def test_bad_partitions(path: str) -> None:
    with pytest.raises(Error, match=r"^partition "):
        partition.check(path)


@pytest.mark.parametrize(
    "path", ["/machine", "/machine/production", "/a b/ü", "/a&b", "/..a", "/machine/a.b"]
)
def test_good_partitions(path: str) -> None:
    assert partition.check(path) == path


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["domain", "--help"])
    assert end.value.code == 0
    assert "example: virt-cgroup domain web --set vcpu_cpus=4-7" in capsys.readouterr().out


# the element


def element(inner: str) -> str:
    """What a VM's XML has for what libvirt's API answers as INNER in <settings>."""
    return f"<metadata><p:settings xmlns:p='{SETTINGS_URI}'>{inner}</p:settings></metadata>"


@pytest.mark.parametrize(
    ("inner", "found"),
    [
        ("", {}),
        ("<vcpu_cpus>4-7</vcpu_cpus>", {"vcpu_cpus": "4-7"}),
        (
            "\n  <vcpu_cpus> 4-7\n</vcpu_cpus>\n  <layout>flat</layout>\n",
            {"vcpu_cpus": "4-7", "layout": "flat"},
        ),
        ("<vcpu_cpus/>", {"vcpu_cpus": ""}),
        ("<vcpu_cpus><!-- all --> 4<!-- to -->-7</vcpu_cpus><!-- end -->", {"vcpu_cpus": "4-7"}),
        ("<vcpu_cpus>4</vcpu_cpus><vcpu_cpus>5</vcpu_cpus>", {"vcpu_cpus": "4\n5"}),
        ("<vcpu_cpus>4<b>5</b></vcpu_cpus>", {"vcpu_cpus": ""}),
        ("<layout>a<b>c</b>d</layout>", {"layout": "d"}),
        ("<a:vcpu_cpus xmlns:a='urn:other'>4</a:vcpu_cpus>", {"a:vcpu_cpus": "4"}),
        (f"<a:vcpu_cpus xmlns:a='{SETTINGS_URI}'>4</a:vcpu_cpus>", {"vcpu_cpus": "4"}),
        ("<layout>&lt;&amp;&#47;</layout>", {"layout": "<&/"}),
        ("loose text", {}),
    ],
)
def test_the_hook_and_the_command_read_the_same(inner: str, found: dict[str, str]) -> None:
    assert metadata.read(f"<settings>{inner}</settings>") == found
    assert metadata.read(f"<settings xmlns='{SETTINGS_URI}'>{inner}</settings>") == found
    assert domain(inner=element(inner)).settings == found


def test_metadata_that_cannot_be_read() -> None:
    with pytest.raises(
        Error, match=r"cannot read the settings in the VM's metadata: .*: fix it with virsh edit"
    ):
        metadata.read("<settings><a:b/></settings>")


def test_no_entity_is_read() -> None:
    xml = "<!DOCTYPE settings [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><settings><layout>&x;</layout></settings>"
    assert metadata.read(xml) == {"layout": ""}


def test_what_is_written() -> None:
    assert metadata.write({"vcpu_cpus": "4-7"}) == "<settings><vcpu_cpus>4-7</vcpu_cpus></settings>"
    assert metadata.read(metadata.write(ALL)) == ALL
    assert (
        domain(inner=element(metadata.write(ALL)[len("<settings>") : -len("</settings>")])).settings
        == ALL
    )


@pytest.mark.parametrize(
    "layout", [*PRESETS, "/vms/$NAME", "/vms/a b-ü/$DRIVER-$UUID", "$LIBVIRTD/$ID", "/$NAME/x"]
)
def test_the_schema_takes_what_the_settings_take(layout: str) -> None:
    assert settings.read_of_vm("layout", layout) == ("cgroup_layout", layout)
    assert metadata.write({"layout": layout})


@pytest.mark.parametrize("cpus", ["0", "0-3", "0,2-3", "0-3,^1", "8191", " 1"])
def test_the_schema_takes_cpus(cpus: str) -> None:
    assert metadata.write({"vcpu_cpus": cpus})


@pytest.mark.parametrize(
    "wrong",
    [
        {"vcpu_cpus": ""},
        {"vcpu_cpus": "x"},
        {"vcpu_cpus": "4\n5"},
        {"layout": ""},
        {"layout": "nest"},
        {"layout": "/vms"},
        {"cgroup_layout": "flat"},
        {"other": "1"},
    ],
)
def test_the_schema_refuses(wrong: dict[str, str]) -> None:
    with pytest.raises(Error, match=r"the settings do not conform to domain-settings.rng: "):
        metadata.write(wrong)


# changes


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        ({}, {"layout": "flat"}, {"layout": "flat"}),
        ({"layout": "flat"}, {"layout": None}, {}),
        ({}, {"layout": None}, {}),
        (
            {"layout": "flat"},
            {"layout": "root", "vcpu_cpus": "1"},
            {"layout": "root", "vcpu_cpus": "1"},
        ),
        ({"vcpu_cpus": "1, 2,^1"}, {"layout": "root"}, {"layout": "root", "vcpu_cpus": "2"}),
        ({"foo": "1", "layout": "flat"}, {"foo": None}, {"layout": "flat"}),
        ({"vcpu_cpus": "1\n2"}, {"vcpu_cpus": "1-2"}, {"vcpu_cpus": "1-2"}),
    ],
)
def test_changes(
    before: dict[str, str], changes: dict[str, str | None], after: dict[str, str]
) -> None:
    assert changed(domain(), before, changes, "live") == after


@pytest.mark.parametrize(
    ("before", "changes", "message"),
    [
        ({}, {"foo": None}, f"VM vm has no setting foo: the settings of a VM are {KEYS}"),
        (
            {"foo": "1", "layout": "nest"},
            {"vcpu_cpus": "1"},
            'VM vm has foo = "1" in its metadata: there is no such setting: '
            "change it, or remove it: virt-cgroup domain vm --unset foo --unset layout --config",
        ),
    ],
)
def test_changes_that_cannot_be(
    before: dict[str, str], changes: dict[str, str | None], message: str
) -> None:
    with pytest.raises(Error) as error:
        changed(domain(), before, changes, "config")
    assert str(error.value) == message


@pytest.mark.parametrize("area", ["live", "config"])
def test_the_remedy_is_for_the_xml_that_is_wrong(area: str) -> None:
    with pytest.raises(Error, match=f"virt-cgroup domain vm --unset foo --{area}$"):
        changed(domain(), {"foo": "1"}, {"vcpu_cpus": "1"}, area)


RESERVED = "reserved_host_cpus = '0'\nreserved_host_mem = '1 GiB'\n"


@pytest.mark.parametrize(
    ("conf", "changes", "message"),
    [
        (
            None,
            {"vcpu_cpus": "44"},
            'cannot set vcpu_cpus to "44": this host has no CPU 44 (its CPUs are 0-3): '
            "--force sets it anyway, but the VM will not start on this host",
        ),
        (RESERVED, {"emulator_cpus": "0"}, 'cannot set emulator_cpus to "0": all of these CPUs'),
        (RESERVED, {"layout": "root"}, 'cannot set layout to "root": the VM would be outside'),
        (RESERVED, {"vcpu_cpus": "0-1", "layout": "native"}, ""),
        (None, {"vcpu_cpus": None}, ""),
        ("reserved_host_cpus = 0-1\n", {"vcpu_cpus": "44"}, ""),  # what the mistake hides
    ],
)
def test_what_would_keep_the_vm_from_starting(
    tmp_path: Path, conf: str | None, changes: dict[str, str | None], message: str
) -> None:
    host = reserving.made(tmp_path, "cgroupfs-v2", conf)
    if not message:
        check(host, changes)
        return
    with pytest.raises(Error) as error:
        check(host, changes)
    assert str(error.value).startswith(message)


LAYOUT = "cgroup_layout = '/vms/$NAME'\n"
XML = "<domain type='qemu'><name>vm</name><vcpu>2</vcpu>{}</domain>"
PINS = "<cputune><vcpupin vcpu='0' cpuset='{}'/><vcpupin vcpu='1' cpuset='2'/></cputune>"
DEDICATED = {"dedicated": "threads"}
OUTSIDE = {"layout": "/other/$NAME"}
UNPINNED = "VM vm is to have its CPUs for itself (dedicated), and vcpu0 is not pinned to any: "


@pytest.mark.parametrize(
    ("inner", "before", "after", "message"),
    [
        ("", {}, OUTSIDE, 'VM vm has layout = "/other/$NAME" in its metadata, but reserved_host'),
        ("", {}, {"layout": "/vms/prod/$NAME"}, ""),
        ("", OUTSIDE, {**OUTSIDE, "vcpu_cpus": "1"}, ""),  # no fault of this change
        ("", {}, DEDICATED, UNPINNED),
        ("", {**DEDICATED, "vcpu_cpus": "1-2"}, DEDICATED, UNPINNED),
        ("", DEDICATED, {**DEDICATED, "vcpu_cpus": "1-2"}, ""),
        ("", {}, {**DEDICATED, "vcpu_cpus": "0-1"}, "VM vm cannot have CPUs 0-1 for itself"),
        (PINS.format(1), {}, DEDICATED, ""),
        (PINS.format(0), {}, {"emulator_cpus": "2"}, ""),  # its pins are not
        (PINS.format(0), {}, OUTSIDE, 'VM vm has layout = "/other/$NAME"'),
    ],
)
def test_what_the_hook_would_refuse(
    tmp_path: Path, inner: str, before: dict[str, str], after: dict[str, str], message: str
) -> None:
    host = reserving.made(tmp_path, "cgroupfs-v2", RESERVED + LAYOUT)
    written = list(host.written)
    error, is_new = refusal(host, XML.format(inner), before, after)
    assert is_new == bool(message)
    if is_new:
        assert str(error).startswith(message)
    assert host.written == written


def test_what_was_refused_before_is_told(tmp_path: Path) -> None:
    host = reserving.made(tmp_path, "cgroupfs-v2", RESERVED + LAYOUT)
    error, is_new = refusal(host, XML.format(""), OUTSIDE, {**OUTSIDE, "vcpu_cpus": "1"})
    assert str(error).startswith('VM vm has layout = "/other/$NAME" in its metadata')
    assert not is_new


# the partition

HEAD = "<domain type='kvm'>\n  <name>ü</name>\n  <!-- <partition>/no</partition> -->\n"
OTHERS = "  <os>\n    <type>hvm</type>\n  </os>\n"
OTHERS += (
    "  <metadata>\n    <a:resource xmlns:a='x'><partition>/no</partition></a:resource>\n"
    "  </metadata>\n"
)
TAIL = "</domain>\n"
APPID = "    <fibrechannel appid='x>y'/>\n"


def with_resource(inner: str) -> str:
    return f"{HEAD}{OTHERS}  <resource>\n{inner}  </resource>\n{TAIL}"


PLAIN = HEAD + OTHERS + TAIL
PLACED = with_resource("    <partition>/machine/a</partition>\n")


@pytest.mark.parametrize(
    ("before", "path", "after"),
    [
        (PLAIN, "/machine/a", PLACED),
        (PLAIN, None, PLAIN),
        (PLACED, "/machine/a", PLACED),
        (PLACED, "/b&<c", with_resource("    <partition>/b&amp;&lt;c</partition>\n")),
        (PLACED, "/ü", with_resource("    <partition>/ü</partition>\n")),
        (PLACED, None, PLAIN),
        (with_resource("    <partition/>\n"), "/machine/a", PLACED),
        (with_resource(APPID), "/b", with_resource("    <partition>/b</partition>\n" + APPID)),
        (with_resource(APPID), None, with_resource(APPID)),
        (with_resource("    <partition>/b</partition>\n" + APPID), None, with_resource(APPID)),
    ],
)
def test_partition(before: str, path: str | None, after: str) -> None:
    assert partition.edit(before, path) == after


@pytest.mark.parametrize("name", ["pinned", "plain", "hugepages"])
def test_the_partition_of_recorded_domains(name: str) -> None:
    """Lines that differ: those of the partition."""
    before = domain_xml(name).decode()
    after = partition.edit(before, "/machine/other")
    assert parse(after.encode()).partition == "/machine/other"
    new = set(after.splitlines()) - set(before.splitlines())
    assert new <= {"    <partition>/machine/other</partition>", "  <resource>", "  </resource>"}
    assert partition.edit(after, "/machine/production" if name == "pinned" else None) == before
