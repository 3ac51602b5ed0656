"""Whatever the input is: a value or one line that says why not, and nothing outside of where it
belongs.

The same functions (inputs.py) are fed by `tools/fuzz`, for as long as one likes; here the budget is
bounded, and every run tries the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libvirt_cgroup_hooks import cgroups, domainxml, state
from libvirt_cgroup_hooks.cpuset import LIMIT, CpuSet
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.settings import TABLE

from .support import inputs
from .support.hosts import DATA, UUID

FINDINGS = DATA / "findings"
# no time limit and no memory of earlier runs: a test that depends on neither
BOUNDED = settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

NASTY = [
    "..",
    ".",
    "/",
    "//",
    "../../etc/passwd",
    "\\",
    "\n",
    "\r",
    "\x0b",
    "\x85",
    "\u2028",
    "\u2029",
    "\t",
    " ",
    '"',
    "'",
]
NASTY += [
    "%n",
    "%s",
    "$(id)",
    "`id`",
    "$NAME",
    "$UUID",
    "$ID",
    "-",
    "--",
    "_",
    "\x1b[2J",
    "\u202e",
    "\N{PILE OF POO}",
    "\xa0",
]
NASTY += [
    "[Service]",
    "ExecStart=/bin/sh",
    ";",
    "#",
    "0::/machine",
    "limit 0 /sys",
    "group /etc",
    "tasks",
    "cpu.max",
    "x" * 260,
]
NUMBERS = [
    "0",
    "1",
    "-1",
    "65536",
    "65537",
    "9" * 19,
    "9" * 5000,
    "\u0663",
    "\xb2",
    "1e3",
    "0x10",
    "",
    " 1 ",
    "1_0",
    "+1",
]
LISTS = [
    "0",
    "0-1",
    "^1",
    "0-8191",
    "0-8192",
    "1-0",
    "0,,1",
    "0-",
    "-",
    ",",
    "^",
    "0-3,^2,8",
    "\u0660-\u0661",
    "0\x1c-1",
]

piece = st.one_of(
    st.sampled_from(NASTY), st.sampled_from(NUMBERS), st.sampled_from(LISTS), st.text(max_size=8)
)
words = st.lists(piece, max_size=5).map("".join)


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def damaged(whole: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """WHOLE, sometimes cut short, or with some bytes of it replaced."""

    def damage(drawn: tuple[bytes, int, bytes, int]) -> bytes:
        data, at, inserted, kind = drawn
        at %= len(data) + 1
        return (data, data, data[:at], data[:at] + inserted + data[at + len(inserted) :])[kind]

    return st.tuples(
        whole, st.integers(0, 5000), st.binary(min_size=1, max_size=4), st.integers(0, 3)
    ).map(damage)


KEYS = [setting.key for setting in TABLE] + ["default", "__many__", "include", "_"]
value = st.one_of(
    st.sampled_from([setting.example for setting in TABLE]),
    st.tuples(st.sampled_from(['"', "'", '"""', ""]), words).map(
        lambda pair: pair[0] + pair[1] + pair[0]
    ),
    st.sampled_from(NUMBERS),
    st.lists(st.sampled_from(['"a"', "1", "[", "]", ",", "\n", "'", "#"]), max_size=8).map(
        lambda parts: "[" + "".join(parts)
    ),
)
statement = st.tuples(
    st.sampled_from(KEYS), st.sampled_from([" = ", "=", " ", "\t=\n"]), value
).map("".join)
configuration = st.lists(
    st.tuples(st.one_of(statement, words), st.sampled_from(["\n", "\r\n", ";", " # ", ""])),
    max_size=6,
).map(lambda parts: utf8("".join(text + end for text, end in parts)))

ATTRIBUTES = (
    "id pid current placement cpuset vcpu iothread unit enabled type vram heads mode nodeset"
).split()
LEAVES = [
    "name",
    "uuid",
    "memory",
    "currentMemory",
    "maxMemory",
    "vcpu",
    "iothreads",
    "vcpus/vcpu",
    "iothreadids/iothread",
]
LEAVES += [
    f"cputune/{one}"
    for one in ("vcpupin", "iothreadpin", "emulatorpin", "shares", "period", "quota")
]
LEAVES += [
    "numatune/memory",
    "memtune/hard_limit",
    "memoryBacking/hugepages",
    "devices/video/model",
    "resource/partition",
]
LEAVES += ["metadata/x", "devices/graphics"]
attribute = st.tuples(st.sampled_from(ATTRIBUTES), piece).map(
    lambda pair: f" {pair[0]}={quoteattr(pair[1])}"
)


def element(drawn: tuple[str, list[str], str]) -> str:
    path, attributes, text = drawn
    *outer, name = path.split("/")
    inner = f"<{name}{''.join(dict.fromkeys(attributes))}>{escape(text)}</{name}>"
    return (
        "".join(f"<{one}>" for one in outer)
        + inner
        + "".join(f"</{one}>" for one in reversed(outer))
    )


leaf = st.tuples(st.sampled_from(LEAVES), st.lists(attribute, max_size=2), piece).map(element)
named = st.tuples(words, st.sampled_from([UUID, UUID.upper(), "../../" + UUID, ""])).map(
    lambda pair: f"<name>{escape(pair[0])}</name><uuid>{pair[1]}</uuid>"
)
plain_domain = st.tuples(
    named, st.lists(leaf, max_size=6), st.sampled_from(["", " id='3'", " id='x'"])
).map(lambda drawn: f"<domain type='qemu'{drawn[2]}>{drawn[0]}{''.join(drawn[1])}</domain>")
HEADS = [
    "",
    "<?xml version='1.0' encoding='latin-1'?>",
    "<?xml version='1.0' encoding='idna'?>",
    "<!DOCTYPE x>",
]
domain_xml = st.tuples(st.sampled_from(["", "", "", *HEADS]), plain_domain).map(
    lambda pair: utf8("".join(pair))
)
status_xml = st.tuples(
    st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), plain_domain
).map(
    lambda drawn: utf8(
        f"<domstatus pid='{drawn[0]}'><vcpus><vcpu id='{drawn[1]}' pid='{drawn[2]}'/></vcpus>"
        f"{drawn[3]}</domstatus>"
    )
)

FSTYPES = ["cgroup", "cgroup2", "tmpfs"]
OPTIONS = ["rw", "cpuset", "cpu,cpuacct", "memory", "devices", "name=systemd", ""]
mount = st.tuples(
    piece,
    st.sampled_from(["/sys/fs/cgroup", "/a\\040b", "/x\\012y", "", "/.."]),
    st.sampled_from(FSTYPES),
)
mount_line = st.tuples(mount, st.lists(st.sampled_from(OPTIONS), max_size=3)).map(
    lambda d: " ".join([*d[0], ",".join(d[1]), "0 0"])
)
placed = st.tuples(
    st.sampled_from(NUMBERS), st.sampled_from(["", "cpuset", "cpu,cpuacct", "name=systemd"]), words
).map(":".join)
mounts = st.tuples(st.lists(mount_line, max_size=4), st.lists(placed, max_size=4)).map(
    lambda pair: utf8("\n".join(pair[0]) + "\0" + "\n".join(pair[1]))
)

STATE_KEYS = [
    "total",
    "uuid",
    "before",
    "after",
    "reserved_host_cpus\t\t0",
    "hook_timeout\t10\t",
    "name",
    "memory",
    "group",
    "file",
    "slice",
    "made",
    "limit",
    "limit 0-1",
    "reserved_host_cpus",
    "hook_timeout",
    "",
]
PLACES = [
    f"{inputs.CGROUP}/a",
    f"{inputs.CGROUP}/cpuset/a/cpuset.cpus",
    "vms.slice AllowedCPUs",
    "/run/systemd/system/x.scope.d",
]
state_line = st.tuples(
    st.sampled_from(STATE_KEYS),
    st.sampled_from([" ", ""]),
    st.one_of(words, st.sampled_from(PLACES)),
).map("".join)
state_file = st.tuples(
    st.sampled_from([state.FORMAT, state.FORMAT, ""]), st.lists(state_line, max_size=6)
).map(lambda pair: utf8("\n".join([pair[0], *pair[1], ""])))

SCRIPT = [
    "systemctl set-property ",
    "user.slice ",
    "vms-prod.slice",
    "AllowedCPUs=",
    "echo 0 >",
    "/cpuset.cpus",
    "tee ",
    "cset shield",
    "\\\n",
    "$U ",
    "#",
    "\n",
]
hook_script = st.lists(st.one_of(st.sampled_from(SCRIPT), piece), max_size=16).map(
    lambda parts: utf8("".join(parts))
)
UNIT = ["[Slice]", "[", "AllowedCPUs", "MemoryMax", "CPUWeight", "MemoryLow", "=", "1T", "%", "50%"]
UNIT += ["infinity", "\\", ";", "0-1 3"]
unit_file = st.lists(
    st.one_of(st.sampled_from(UNIT), st.sampled_from(["\n", "="]), piece), max_size=16
).map(lambda parts: utf8("[Slice]\n" + "".join(parts)))

STRATEGIES = {
    "configuration": configuration,
    "cpu_list": st.lists(st.one_of(piece, st.sampled_from([",", "-", "^"])), max_size=8).map(
        lambda parts: utf8("".join(parts))
    ),
    "domain_xml": domain_xml,
    "status_xml": status_xml,
    "mounts": mounts,
    "state_file": state_file,
    "hook_script": hook_script,
    "unit_file": unit_file,
}


@pytest.mark.parametrize("target", STRATEGIES)
def test_any_input(target: str, record_property: Callable[[str, object], None]) -> None:
    tried = 0

    @BOUNDED
    @given(st.one_of(damaged(STRATEGIES[target]), st.binary(max_size=64)))
    def check(data: bytes) -> None:
        nonlocal tried
        tried += 1
        inputs.TARGETS[target](data)

    check()
    record_property("inputs tried", tried)


@pytest.mark.parametrize(
    "path", sorted(FINDINGS.glob("*/*")), ids=lambda path: "/".join(path.parts[-2:])
)
def test_what_was_a_fault_once(path: Path) -> None:
    inputs.TARGETS[path.parent.name](path.read_bytes())


@BOUNDED
@given(st.frozensets(st.integers(0, LIMIT - 1), max_size=40))
def test_a_cpu_list_says_what_it_means(cpus: frozenset[int]) -> None:
    assert list(CpuSet.parse(str(CpuSet(cpus)))) == sorted(cpus)


@BOUNDED
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 30)), max_size=6))
def test_cpu_list_items_apply_from_left_to_right(items: list[tuple[bool, int, int]]) -> None:
    expected: set[int] = set()
    for without, low, size in items:
        named = set(range(low, low + size + 1))
        expected = expected - named if without else expected | named
    text = ",".join(f"{'^' if without else ''}{low}-{low + size}" for without, low, size in items)
    assert set(CpuSet.parse(text)) == expected


@BOUNDED
@given(words)
def test_a_secret_is_never_told(text: str) -> None:
    """The XML of migrate and restore has the passwords of graphics; whatever is wrong with it, no
    message has them.
    """
    secret = "hunter2"  # noqa: S105
    xml = (
        f"<domain><name>vm</name><devices><graphics passwd='{secret}'/>{escape(text)}</devices>"
        f"<memory>{secret[:0]}x"
    )
    for data in (
        utf8(xml),
        utf8(xml + "</memory></domain>"),
        utf8(xml.replace("<domain>", f"<domain><!--{secret}-->")),
    ):
        with pytest.raises(Error) as caught:
            domainxml.parse(data)
        assert secret not in str(caught.value)


LINES = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("separator", LINES, ids=ascii)
def test_only_a_newline_ends_a_line_of_the_kernels(separator: str) -> None:
    """A VM may be named with any of these, and its name is in /proc/PID/cgroup as it is."""
    path = f"/machine/qemu-1-a{separator}0::/elsewhere.libvirt-qemu"
    assert cgroups.placements(f"4:cpuset:{path}\n0::/b\n") == {"cpuset": path, "": "/b"}


# What would take very long, or very much memory, were it not told in time


def numbered(tag: str, count: int) -> str:
    return "".join(f"<{tag} id='{number}'/>" for number in range(1, count + 1))


EVERY_OTHER = ",".join(str(cpu) for cpu in range(0, LIMIT, 2))
LARGE = {
    "iothreads": (
        f"<iothreads>65536</iothreads><iothreadids>{numbered('iothread', 60000)}</iothreadids>"
    ),
    "vcpus": f"<vcpus>{numbered('vcpu', 60000)}</vcpus>",
    "pins": f"<vcpu cpuset='{EVERY_OTHER}'>65536</vcpu><iothreads>65536</iothreads>",
    "list": f"<cputune><emulatorpin cpuset='{'0,' * 500000}0'/></cputune>",
    "deep": "".join("<a>" * 200 + "</a>" * 200 for _ in range(2000)),
    "text": "x" * (3 << 20),
}


@pytest.mark.parametrize("inner", LARGE.values(), ids=LARGE)
def test_a_large_vm(inner: str) -> None:
    inputs.domain_xml(f"<domain><name>vm</name><uuid>{UUID}</uuid>{inner}</domain>".encode())


@pytest.mark.parametrize(
    "text",
    ["a=1\n" * 200000, "#\n" * 500000, '"' * 500000, "a=[" * 200000, "a=[" + "1," * 300000],
    ids=range(5),
)
def test_a_large_configuration(text: str) -> None:
    inputs.configuration(text.encode())
