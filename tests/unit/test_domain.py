"""What is read from a VM's XML, and what no XML can make the reader do."""

from __future__ import annotations

import tracemalloc

import pytest

from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.domain import Domain
from libvirt_cgroup_hooks.domainxml import LIMIT, MOST_SETTINGS, NIL_UUID, SETTINGS_URI, parse
from libvirt_cgroup_hooks.errors import Error

from .support.hosts import UUID, domain, domain_xml

GIB = 2**30


def fields(made: Domain) -> dict[str, object]:
    """The fields that are not as in a VM without any XML, CPU sets as text."""
    shown = {
        key: str(value) if isinstance(value, CpuSet) else value for key, value in vars(made).items()
    }
    plain = vars(Domain())
    return {key: value for key, value in shown.items() if value != plain[key]}


def texts(pins: dict[str, CpuSet]) -> dict[str, str]:
    return {group: str(cpus) for group, cpus in pins.items()}


def test_plain() -> None:
    assert fields(parse(domain_xml("plain"))) == {
        "name": "plain",
        "uuid": "c7a5fdbd-edaf-9455-926a-d65c16db1809",
        "memory": 219136 * 1024,
        "current_memory": 219136 * 1024,
    }


def test_pinned() -> None:
    made = parse(domain_xml("pinned"))
    pins, made.vcpupin = texts({str(k): v for k, v in made.vcpupin.items()}), {}
    io, made.iothreadpin = texts({str(k): v for k, v in made.iothreadpin.items()}), {}
    assert pins == {"0": "2", "1": "3,6-7"}
    assert io == {"2": "6"}
    assert fields(made) == {
        "name": "pinned",
        "uuid": "c7a5fdbd-edaf-9455-926a-d65c16db1809",
        "id": 7,
        "vcpus": 2,
        "max_vcpus": 4,
        "vcpu_cpus": "2-4,6-7",
        "emulatorpin": "4",
        "iothreads": 3,
        "iothread_ids": [2],
        "tuned": {"cputune", "numatune", "memtune"},
        "memory": 4 * GIB,
        "current_memory": 2 * GIB,
        "partition": "/machine/production",
    }


def test_hugepages_and_individual_vcpus() -> None:
    made = parse(domain_xml("hugepages"))
    assert fields(made) == {
        "name": "hugepages",
        "uuid": "0d3aef2c-1a2b-4c3d-8e4f-5a6b7c8d9e0f",
        "vcpus": 4,
        "max_vcpus": 4,
        "auto_placement": True,  # so numad's answer counts, not cpuset='0-3'
        "individual_vcpus": {0: True, 1: False, 2: True, 3: False},
        "tuned": {"numatune"},
        "memory": 4 * GIB,
        "hugepages": True,
        "pages": [(2 << 20, CpuSet([0]))],
    }
    assert made.group_names() == ["emulator", "vcpu0", "vcpu2"]
    assert made.pins() == {}


def test_status() -> None:
    made = parse(domain_xml("status"))
    assert (made.name, made.id, made.pid, made.vcpu_threads) == (
        "web",
        3,
        4200100,
        {0: 4200102, 1: 4200103},
    )
    assert (made.vcpus, made.max_vcpus, made.iothread_ids, made.partition) == (
        2,
        4,
        [1],
        "/machine",
    )
    assert texts(made.pins()) == {"vcpu1": "1"}
    assert made.group_names() == ["emulator", "vcpu0", "vcpu1", "iothread1"]


@pytest.mark.parametrize(
    ("inner", "pins"),
    [
        ("", {}),
        ("<vcpu cpuset='0-1'>2</vcpu>", {"emulator": "0-1", "vcpu0": "0-1", "vcpu1": "0-1"}),
        ("<vcpu cpuset='0-1' current='1'>2</vcpu>", {"emulator": "0-1", "vcpu0": "0-1"}),
        ("<vcpu cpuset='0-1' placement='auto'>2</vcpu>", {}),
        (
            "<vcpu cpuset='0-1'>1</vcpu><iothreads>2</iothreads>",
            {"emulator": "0-1", "vcpu0": "0-1", "iothread1": "0-1", "iothread2": "0-1"},
        ),
        (
            "<vcpu cpuset='0-1'>2</vcpu><cputune><vcpupin vcpu='1' cpuset='3'/>"
            "<emulatorpin cpuset='2'/></cputune>",
            {"emulator": "2", "vcpu0": "0-1", "vcpu1": "3"},
        ),
        ("<vcpu>1</vcpu><cputune><vcpupin vcpu='5' cpuset='3'/></cputune>", {"vcpu5": "3"}),
        ("<cputune><iothreadpin iothread='1' cpuset='3,^3'/></cputune>", {"iothread1": ""}),
        ("<cputune><emulatorpin/></cputune>", {"emulator": ""}),
        ("<metadata><cputune><emulatorpin cpuset='3'/></cputune></metadata>", {}),
    ],
)
def test_pins(inner: str, pins: dict[str, str]) -> None:
    assert texts(domain(inner=inner).pins()) == pins


@pytest.mark.parametrize(
    ("inner", "numbers"),
    [
        ("", []),
        ("<iothreads>0</iothreads>", []),
        ("<iothreads>3</iothreads>", [1, 2, 3]),
        (
            "<iothreads>2</iothreads><iothreadids><iothread id='5'/><iothread id='9'/>"
            "</iothreadids>",
            [5, 9],
        ),
        ("<iothreads>3</iothreads><iothreadids><iothread id='2'/></iothreadids>", [1, 2, 3]),
        ("<iothreads>3</iothreads><iothreadids><iothread id='7'/></iothreadids>", [1, 2, 7]),
        (
            "<iothreadids><iothread id='1'/><iothread id='4'/></iothreadids>"
            "<iothreads>4</iothreads>",
            [1, 2, 3, 4],
        ),
        ("<iothreadids><iothread id='4'/></iothreadids>", [4]),
    ],
)
def test_iothread_numbers(inner: str, numbers: list[int]) -> None:
    assert domain(inner=inner).iothread_numbers() == numbers


@pytest.mark.parametrize(
    ("inner", "memory"),
    [
        ("<memory>1024</memory>", 2**20),  # KiB is the default
        ("<memory unit='KiB'> 1024\n</memory>", 2**20),
        ("<memory unit='k'>1</memory>", 1024),
        ("<memory unit='KB'>1</memory>", 1000),
        ("<memory unit='b'>1</memory>", 1),
        ("<memory unit='bytes'>1</memory>", 1),
        ("<memory unit='M'>1</memory>", 2**20),
        ("<memory unit='MB'>1</memory>", 10**6),
        ("<memory unit='G'>1</memory>", 2**30),
        ("<memory unit='TiB'>1</memory>", 2**40),
        ("<memory dumpCore='off' unit='GiB'>1</memory>", 2**30),
        ("<currentMemory>5</currentMemory>", 0),
        ("<devices><memory unit='GiB'>9</memory></devices>", 0),
    ],
)
def test_memory(inner: str, memory: int) -> None:
    assert domain(inner=inner).memory == memory


def test_the_least_of_a_domain() -> None:
    made = parse(b"<domain><name>a</name></domain>")
    assert fields(made) == {"name": "a", "uuid": NIL_UUID}
    assert (made.vcpus, made.max_vcpus, made.id) == (1, 1, None)
    assert made.group_names() == ["emulator", "vcpu0"]


def test_an_id_may_be_missing_or_empty() -> None:
    assert parse(b"<domain id=''><name>a</name></domain>").id is None
    assert parse(b"<domain id='0'><name>a</name></domain>").id == 0


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        " a ",
        "..",
        ".",
        "-x",
        "--help",
        "a'b\"c\\d",
        "💩",
        "x" * 200,
        "ü" * 100,
        "$NAME",
        "a\tb",
        "a&b<c>",
        "%s",
        "é\u202e",
    ],
)
def test_names(name: str) -> None:
    quoted = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert parse(f"<domain><name>{quoted}</name></domain>".encode()).name == name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1"])
def test_encodings(encoding: str) -> None:
    text = f"<?xml version='1.0' encoding='{encoding}'?><domain><name>größe</name></domain>"
    assert parse(text.encode(encoding)).name == "größe"


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ("<name>a/b</name>", 'has "a/b" as name: libvirt allows no / and no newline in it'),
        ("<name>a&#10;b</name>", r'has "a\nb" as name'),
        ("<name></name>", "has no name: give the XML that `virsh dumpxml` prints"),
        ("<uuid>1234</uuid>", 'has "1234" as uuid: it has to be 8-4-4-4-12 hexadecimal digits'),
        (f"<uuid>../{UUID[3:]}</uuid>", f'has "../{UUID[3:]}" as uuid'),
        (f"<uuid>{UUID}\n{UUID}</uuid>", 'has "4f1e2d3c'),
        ("<vcpu>two</vcpu>", 'has "two" as vcpu: it has to be a number'),
        ("<vcpu/>", 'has "" as vcpu'),
        ("<vcpu>-1</vcpu>", 'has "-1" as vcpu'),
        ("<vcpu>²</vcpu>", 'has "²" as vcpu'),
        ("<vcpu>99999999999999999999</vcpu>", 'has "99999999999999999999" as vcpu'),
        (
            "<vcpu>65537</vcpu>",
            "asks for more than 65536 vCPUs or I/O threads: libvirt itself accepts no more",
        ),
        ("<iothreads>65537</iothreads>", "asks for more than 65536 vCPUs or I/O threads"),
        (
            "<vcpu current='9999999999999999999'>4</vcpu>",
            "asks for more than 65536 vCPUs or I/O threads",
        ),
        (
            "<iothreadids><iothread id='65537'/></iothreadids>",
            "asks for more than 65536 vCPUs or I/O threads",
        ),
        ("<vcpu current='x'>2</vcpu>", 'has "x" as vcpu current'),
        ("<iothreads>x</iothreads>", 'has "x" as iothreads'),
        ("<iothreadids><iothread/></iothreadids>", 'has "" as iothread id'),
        ("<vcpus><vcpu enabled='yes'/></vcpus>", 'has "" as vcpu id'),
        ("<cputune><vcpupin cpuset='1'/></cputune>", 'has "" as vcpupin'),
        ("<cputune><iothreadpin iothread='x' cpuset='1'/></cputune>", 'has "x" as iothreadpin'),
        ("<memory>x</memory>", 'has "x" as memory'),
        (
            "<memory unit='PiB'>1</memory>",
            'has an unknown unit of memory "PiB": use KiB, MiB or GiB',
        ),
        ("<memory unit='\x7f'>1</memory>", r'has an unknown unit of memory "\x7f"'),
    ],
)
def test_bad_values(inner: str, message: str) -> None:
    with pytest.raises(Error) as error:
        parse(f"<domain><name>vm</name>{inner}</domain>".encode())
    assert str(error.value).startswith(f"the domain XML {message}")


@pytest.mark.parametrize(
    "inner",
    [
        "<vcpu cpuset='x'>1</vcpu>",
        "<cputune><emulatorpin cpuset='x'/></cputune>",
        "<cputune><vcpupin vcpu='0' cpuset='x'/></cputune>",
    ],
)
def test_bad_cpus(inner: str) -> None:
    with pytest.raises(Error, match='"x" is not a CPU list'):
        domain(inner=inner)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (
            b"",
            "is not well-formed (no element found: line 1, column 0): "
            "check it with virt-xml-validate",
        ),
        (b"qemu", "is not well-formed (syntax error: line 1, column 0)"),
        (b"<domain>", "is not well-formed (no element found"),
        (b"<domain><name>a</name></domein>", "is not well-formed (mismatched tag"),
        (
            b"<domain><name>a</name></domain><domain/>",
            "is not well-formed (junk after document element",
        ),
        (b"<domain><name>a&b;</name></domain>", "is not well-formed (undefined entity"),
        (
            b"<domain><name>\x00</name></domain>",
            "is not well-formed (not well-formed (invalid token)",
        ),
        (
            b"<domain><name>\xff</name></domain>",
            "is not well-formed (not well-formed (invalid token)",
        ),
        (
            b"<domain><name>&#0;</name></domain>",
            "is not well-formed (reference to invalid character number",
        ),
        (
            b"<network><name>a</name></network>",
            "has no name: give the XML that `virsh dumpxml` prints",
        ),
        (b"<domains><domain><name>a</name></domain></domains>", "has no name"),
        (b"<domstatus/>", "has no name"),
        (
            b"<domstatus pid='x'><domain><name>a</name></domain></domstatus>",
            'has "x" as domstatus pid: it has to be a number',
        ),
    ],
)
def test_broken_xml(xml: bytes, message: str) -> None:
    with pytest.raises(Error) as error:
        parse(xml)
    assert str(error.value).startswith(f"the domain XML {message}")


BILLION_LAUGHS = (
    "<!DOCTYPE domain [<!ENTITY a0 'ha'>"
    + "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 10))
    + "]><domain><name>&a9;</name></domain>"
)


@pytest.mark.parametrize(
    "xml",
    [
        "<!DOCTYPE domain><domain><name>a</name></domain>",
        "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain><name>a</name></domain>",
        "<!DOCTYPE domain SYSTEM 'http://192.0.2.1/a.dtd'><domain><name>a</name></domain>",
        "<!DOCTYPE domain [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><domain><name>&x;</name></domain>",
        (
            "<!DOCTYPE domain [<!ENTITY % x SYSTEM 'file:///etc/passwd'> %x;]>"
            "<domain><name>a</name></domain>"
        ),
        (
            f"<!DOCTYPE domain [<!ENTITY x '{'x' * 100_000}'>]>"
            f"<domain><name>{'&x;' * 10_000}</name></domain>"
        ),
        BILLION_LAUGHS,
    ],
)
def test_no_document_type_and_so_no_entities(xml: str) -> None:
    with pytest.raises(Error) as error:
        parse(xml.encode())
    assert str(error.value) == (
        "the domain XML has a document type declaration: libvirt writes none; entities are not read"
    )


def test_five_megabytes() -> None:
    xml = b"<domain><name>a</name><description>" + b"x" * 5 * 2**20 + b"</description></domain>"
    with pytest.raises(Error) as error:
        parse(xml)
    assert (
        str(error.value)
        == f"the domain XML is larger than 4 MiB ({len(xml)} bytes): libvirt itself accepts no more"
    )


def test_as_much_as_is_allowed() -> None:
    head, tail = b"<domain><name>a</name><description>", b"</description></domain>"
    assert parse(head + b"x" * (LIMIT - len(head) - len(tail)) + tail).name == "a"


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("nonsense", "is not well-formed (unknown encoding: nonsense)"),
        ("utf-7", "is not well-formed (multi-byte encodings are not supported)"),
        ("utf-16", "is not well-formed (encoding specified in XML declaration is incorrect"),
    ],
)
def test_encodings_that_are_not_read(encoding: str, message: str) -> None:
    with pytest.raises(Error) as error:
        parse(
            f"<?xml version='1.0' encoding='{encoding}'?><domain><name>a</name></domain>".encode()
        )
    assert str(error.value).startswith(f"the domain XML {message}")


@pytest.mark.parametrize(("levels", "read"), [(255, True), (256, False), (1_000_000, False)])
def test_elements_in_one_another(levels: int, read: bool) -> None:
    """As many as libxml2 reads; more would take time that grows with their square."""
    xml = (
        b"<domain><name>a</name>"
        + b"<a>" * levels
        + (b"</a>" * levels + b"</domain>" if read else b"")
    )
    if read:
        assert parse(xml).name == "a"
        return
    with pytest.raises(Error) as error:
        parse(xml)
    assert (
        str(error.value)
        == "the domain XML has elements nested more than 256 deep: libvirt itself accepts no more"
    )


def test_elements_in_one_with_a_long_name() -> None:
    """The path of each would hold that name once more."""
    name = "a" * 2**20
    inner = "<b>" * 200 + "</b>" * 200
    xml = f"<domain><name>a</name><{name}>{inner}</{name}><vcpu>3</vcpu></domain>".encode()
    tracemalloc.start()
    made = parse(xml)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.vcpus == 3
    assert peak < 10 * len(xml)


OURS = f"xmlns:p='{SETTINGS_URI}'"
OWN = "<p:settings><p:layout>flat</p:layout></p:settings>"


@pytest.mark.parametrize(
    ("xml", "settings"),
    [
        ("<metadata/>", {}),
        (f"<metadata>{OWN.replace('>', f' {OURS}>', 1)}</metadata>", {"layout": "flat"}),
        (f"<metadata {OURS}>{OWN}</metadata>", {"layout": "flat"}),  # libvirt writes so too
        (
            f"<metadata><settings xmlns='{SETTINGS_URI}'><layout>flat</layout></settings>"
            "</metadata>",
            {"layout": "flat"},
        ),
        (
            f"<metadata xmlns='{SETTINGS_URI}'><settings><layout>flat</layout></settings>"
            "</metadata>",
            {"layout": "flat"},
        ),
        (f"<metadata><p:any {OURS}><layout>flat</layout></p:any></metadata>", {"layout": "flat"}),
        (
            f"<metadata><p:settings {OURS}><q:layout xmlns:q='{SETTINGS_URI}'>flat</q:layout>"
            "</p:settings></metadata>",
            {"layout": "flat"},
        ),
        (
            "<metadata><a:b xmlns:a='x'><foo:c/></a:b>"
            f"{OWN.replace('>', f' {OURS}>', 1)}</metadata>",
            {"layout": "flat"},
        ),
        # Others' elements, whatever they are called.
        ("<metadata><settings><layout>flat</layout></settings></metadata>", {}),
        ("<metadata><p:settings><p:layout>flat</p:layout></p:settings></metadata>", {}),
        (
            "<metadata><p:settings xmlns:p='urn:other'><p:layout>flat</p:layout></p:settings>"
            "</metadata>",
            {},
        ),
        (
            f"<metadata><p:a {OURS}/><p:settings><p:layout>flat</p:layout></p:settings></metadata>",
            {},
        ),
        (
            f"<metadata><p:a {OURS}/><p:settings xmlns:p='x'><p:layout>flat</p:layout></p:settings>"
            "</metadata>",
            {},
        ),
        (
            f"<metadata><settings xmlns='{SETTINGS_URI}'><layout xmlns='x'>flat</layout></settings>"
            "</metadata>",
            {"layout": "flat"},
        ),
        (f"<metadata><a xmlns='x'>{OWN.replace('>', f' {OURS}>', 1)}</a></metadata>", {}),
        (
            f"<metadata><p:settings {OURS}><p:a><p:layout>flat</p:layout></p:a></p:settings>"
            "</metadata>",
            {"a": ""},
        ),
        (f"<devices><p:settings {OURS}><p:layout>flat</p:layout></p:settings></devices>", {}),
        (f"<{SETTINGS_URI}:settings><layout>flat</layout></{SETTINGS_URI}:settings>", {}),
    ],
)
def test_settings_in_the_metadata(xml: str, settings: dict[str, str]) -> None:
    made = domain(inner=xml)
    assert made.settings == settings
    status = (
        f"<domstatus pid='1'><domain {OURS}><name>vm</name><metadata>{OWN}</metadata></domain>"
        "</domstatus>"
    )
    assert parse(status.encode()).settings == {"layout": "flat"}


def test_of_very_many_settings_few_are_kept() -> None:
    """Each hook that looks at all VMs reads them, and tells what is wrong."""
    keys = "".join(f"<p:k{number}/>" for number in range(1000))
    alike = "<p:layout>flat</p:layout>" * 1000
    made = domain(inner=f"<metadata><p:s {OURS}>{alike}{keys}<p:layout/></p:s></metadata>")
    assert made.settings["layout"] == "flat\nflat"
    assert len(made.settings) == MOST_SETTINGS
    made = domain(inner=f"<metadata><p:s {OURS}><p:{'k' * 100_000}/></p:s></metadata>")
    assert [len(key) for key in made.settings] == [100]


@pytest.mark.parametrize(
    ("name", "handle"),
    [
        ("web", "web"),
        ("web-1_a.b", "web-1_a.b"),
        *((name, UUID) for name in ("1", "-x", "a b", "a$b", "ü", "a;b", "a'b", "")),
        (f"a{UUID[1:]}", UUID),  # virsh would find the VM with that UUID
    ],
)
def test_what_a_command_line_calls_it(name: str, handle: str) -> None:
    assert domain(name).handle == handle
