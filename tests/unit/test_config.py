"""cgroup-hooks.conf held against recorded hosts: what it means there, and what it says where it
cannot be.
"""

from __future__ import annotations

import pytest

from libvirt_cgroup_hooks import configfile
from libvirt_cgroup_hooks.config import PATH, Config
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.errors import Error, Refusal
from libvirt_cgroup_hooks.own_settings import for_domain

from .support.hosts import PAGE, UUID, configured, domain, topology

KEYS = (
    "reserved_host_cpus, reserved_host_mem, cgroup_layout, emulator_cpus, vcpu_cpus, "
    "iothread_cpus, pin_conflict, memory_admission, hook_timeout, on_error"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "reserved_cpus = '0'",
            'reserved_cpus = "0": there is no such setting: did you mean reserved_host_cpus?',
        ),
        (
            "RESERVED_HOST_CPUS = '0'",
            'RESERVED_HOST_CPUS = "0": there is no such setting: did you mean reserved_host_cpus?',
        ),
        (
            "a = [1, 'b']",
            f"a = [1, 'b']: there is no such setting: the settings are {KEYS}",
        ),
        ("default = 1", "default = 1: there is no such setting"),
        (
            "hook_timeout = '10'",
            'hook_timeout = "10": the value has to be a number of seconds from 1 to 600: write it',
        ),
        (
            'memory_admission = "yes"',
            'memory_admission = "yes": the value has to be 0 or 1: write it without quotes',
        ),
        ("emulator_cpus = 3", "emulator_cpus = 3: the value has to be a string: put it in quotes"),
        ("vcpu_cpus = ['1', '2']", "vcpu_cpus = ['1', '2']: the value has to be a string"),
        (
            "reserved_host_cpus = '3-1'",
            'reserved_host_cpus = "3-1": "3-1" is not a CPU list: 3-1 runs backwards; write 1-3',
        ),
        (
            "reserved_host_cpus = ''",
            'reserved_host_cpus = "": the CPU list is empty: name at least one CPU',
        ),
        (
            "reserved_host_mem = 4",
            'reserved_host_mem = 4: an amount of memory needs a unit: write "4 MiB" or "4 GiB"',
        ),
        ("reserved_host_mem = '4'", 'reserved_host_mem = "4": an amount of memory needs a unit'),
        ("on_error = 'stop'", 'on_error = "stop": the value has to be "refuse" or "warn"'),
        (
            "cgroup_layout = '/vms/$VM'",
            'cgroup_layout = "/vms/$VM": layout "/vms/$VM" has an unknown variable: '
            "the variables are $LIBVIRTD, $DRIVER, $NAME, $UUID, $ID",
        ),
        (
            "cgroup_layout = 'nest'",
            'cgroup_layout = "nest": layout "nest" is neither a preset nor a path: '
            "use one of native,",
        ),
        (
            "memory_admission = 1",
            "memory_admission = 1: it needs reserved_host_mem: set that, too",
        ),
        (f"reserved_host_mem = '{'x' * 5000}'", f'reserved_host_mem = "{"x" * 200}": '),
        ("cgroup_layout = '\x1b[2J'", r'cgroup_layout = "\x1b[2J": layout "\x1b[2J" is neither'),
    ],
)
def test_bad_settings(text: str, message: str) -> None:
    with pytest.raises(Error) as error:
        configfile.parse(f"# prose\n\n{text}\n")
    assert str(error.value).startswith(f"{PATH}:3: {message}")


def test_the_grammar_has_the_first_word() -> None:
    with pytest.raises(Error, match='conf:1: "reserved_host_cpus" is not followed by "="'):
        configfile.parse("reserved_host_cpus 0", "conf")


@pytest.mark.parametrize(
    "layout", ["flat", "root", "uuid", "/$NAME", "/$DRIVER-$ID", "$LIBVIRTD/$UUID"]
)
@pytest.mark.parametrize("order", [1, -1])
def test_no_limit_of_memory_without_a_parent(layout: str, order: int) -> None:
    lines = ["reserved_host_mem = '1 GiB'", f"cgroup_layout = '{layout}'"][::order]
    with pytest.raises(Error) as error:
        configfile.parse("\n".join(lines))
    line = lines.index("reserved_host_mem = '1 GiB'") + 1
    assert str(error.value) == (
        f'{PATH}:{line}: reserved_host_mem = "1 GiB": '
        f'cgroup_layout = "{layout}" has no cgroup that holds only VMs: '
        'use a layout with a parent of its own, such as "/vms/$DRIVER-$NAME" or "native"'
    )


@pytest.mark.parametrize(
    "layout", ["native", "legacy", "nested", "/vms/$NAME", "/$DRIVER/$NAME", "$LIBVIRTD/vms/$UUID"]
)
def test_a_limit_of_memory_with_a_parent(layout: str) -> None:
    assert configured(
        f"reserved_host_mem = '1 GiB'\ncgroup_layout = '{layout}'", "smt"
    ).reserved_host_mem == str(2**30)


@pytest.mark.parametrize("layout", ["flat", "root", "uuid"])
def test_cpus_can_be_kept_in_every_layout(layout: str) -> None:
    assert (
        str(
            configured(
                f"reserved_host_cpus = '0'\ncgroup_layout = '{layout}'", "smt"
            ).reserved_host_cpus
        )
        == "0"
    )


def test_duplicates_warn_and_the_first_wins() -> None:
    parsed = configfile.parse(
        "hook_timeout = 5\non_error = 'warn'\nhook_timeout = 'x'\nhook_timeout = 7\n", "conf"
    )
    assert parsed.values == {"hook_timeout": "5", "on_error": "warn"}
    assert parsed.warnings == [
        "conf:3: hook_timeout is already set in line 1; that value is used",
        "conf:4: hook_timeout is already set in line 1; that value is used",
    ]


@pytest.mark.parametrize(
    ("host", "setting", "cpus"),
    [
        ("smt", "'0-1'", "0-1"),
        ("smt", "'0-7,^2-7'", "0-1"),
        ("smt", "1", "0,4"),  # whole cores
        ("smt", "2", "0,4"),
        ("smt", "3", "0-1,4-5"),
        ("smt", "6", "0-2,4-6"),
        ("smt", "'auto'", "0,4"),
        ("numa", "1", "0"),
        ("numa", "2", "0,4"),  # one of each node
        ("numa", "3", "0-1,4"),
        ("numa", "4", "0-1,4-5"),
        ("numa", "7", "0-6"),
        ("numa", "'auto'", "0"),
        ("v1", "1", "0"),
        ("v1", "'auto'", "0"),
        ("v2", "3", "0-2"),
    ],
)
def test_cpus_of_the_host(host: str, setting: str, cpus: str) -> None:
    assert str(configured(f"reserved_host_cpus = {setting}", host).reserved_host_cpus) == cpus


@pytest.mark.parametrize(
    ("host", "text", "message"),
    [
        ("smt", "reserved_host_cpus = '99'", '"99": this host has no CPU 99: its CPUs are 0-7'),
        (
            "smt",
            "reserved_host_cpus = '6-9'",
            '"6-9": this host has no CPUs 8-9: its CPUs are 0-7',
        ),
        ("smt", "emulator_cpus = '8'", '"8": this host has no CPU 8: its CPUs are 0-7'),
        ("smt", "vcpu_cpus = '0,100'", '"0,100": this host has no CPU 100'),
        ("smt", "iothread_cpus = '4000-8000'", '"4000-8000": this host has no CPUs 4000-8000'),
        (
            "smt",
            "reserved_host_cpus = '0-7'",
            '"0-7": reserving CPUs 0-7 leaves none for VMs (online: 0-7): reserve fewer CPUs',
        ),
        ("smt", "reserved_host_cpus = 8", "8: reserving CPUs 0-7 leaves none for VMs"),
        # the cores are whole
        ("smt", "reserved_host_cpus = 7", "7: reserving CPUs 0-7 leaves none for VMs"),
        ("smt", "reserved_host_cpus = 9", "9: the host has only 8 CPUs: reserve fewer CPUs"),
        (
            "v1",
            "reserved_host_cpus = 18446744073709551615",
            "18446744073709551615: the host has only 2 CPUs",
        ),
        (
            "smt",
            "reserved_host_mem = '64 GiB'",
            '"64 GiB": reserving 64 GiB leaves no memory for VMs (31.3 GiB in all): reserve less',
        ),
        (
            "smt",
            "reserved_host_mem = '999999999999999 TiB'",
            '"999999999999999 TiB": reserving ',
        ),
        (
            "numa",
            "reserved_host_mem = '90%'",
            '"90%": reserving 56.5 GiB leaves no memory for VMs '
            "(62.8 GiB in all, 10 GiB in hugepage pools): "
            "reserve less, or make the hugepage pools smaller",
        ),
        (
            "smt",
            "reserved_host_cpus = '0-3'\nemulator_cpus = '1-2'",
            '"1-2": all of these CPUs are reserved: VMs may use 4-7',
        ),
    ],
)
def test_what_the_host_does_not_have(host: str, text: str, message: str) -> None:
    with pytest.raises(Error) as error:
        configured(text, host)
    last = text.splitlines()[-1]
    line = len(text.splitlines())
    assert str(error.value).startswith(f"{PATH}:{line}: {last.split(' ')[0]} = {message}")


@pytest.mark.parametrize(
    ("text", "enforces"),
    [
        ("", False),
        ("hook_timeout = 5", False),
        ("on_error = 'warn'\npin_conflict = 'warn'\nmemory_admission = 0", False),
        ("cgroup_layout = 'native'", False),
        ("cgroup_layout = 'nested'", True),
        ("reserved_host_cpus = '0'", True),
        ("reserved_host_mem = '1 GiB'", True),
        ("emulator_cpus = '0'", True),
        ("vcpu_cpus = '0'", True),
        ("iothread_cpus = '0'", True),
    ],
)
def test_whether_anything_is_enforced(text: str, enforces: bool) -> None:
    assert bool(configured(text, "smt")) == enforces


def test_a_resolved_configuration_survives_its_canonical_text() -> None:
    text = (
        "reserved_host_cpus = 2\nreserved_host_mem = '5 %'\ncgroup_layout = '/vms/$NAME'\n"
        "hook_timeout = 3\nvcpu_cpus='1-7'"
    )
    first = configured(text, "smt")
    assert Config(first.values).values == first.values
    assert first.values["reserved_host_cpus"] == "0,4"


@pytest.mark.parametrize(
    ("group", "cpus"),
    [("emulator", "1"), ("vcpu0", "2"), ("vcpu17", "2"), ("iothread1", "3"), ("iothread99", "3")],
)
def test_the_set_of_a_thread_group(group: str, cpus: str) -> None:
    made = configured("emulator_cpus = '1'\nvcpu_cpus = '2'\niothread_cpus = '3'", "smt")
    assert str(made.set_of(group)) == cpus
    assert made.has_sets


@pytest.mark.parametrize(
    ("text", "inert"),
    [
        ("", True),
        ("\n\n", True),
        ("# a = 1\n  # b", True),
        ("a = 1", False),
        ("# prose\n a", False),
    ],
)
def test_a_file_without_settings(text: str, inert: bool) -> None:
    assert configfile.inert(text) == inert


def test_offline_cpus_may_be_named_but_do_not_count() -> None:
    host = topology("smt")
    host.online = CpuSet.parse("0-6")
    kept = configfile.resolve(configfile.parse("reserved_host_cpus = '0,7'"), host, PAGE)
    assert str(kept.reserved_host_cpus) == "0,7"
    with pytest.raises(Error, match=r"leaves none for VMs \(online: 0-6\)"):
        configfile.resolve(configfile.parse("reserved_host_cpus = '0-6'"), host, PAGE)
    sets = configfile.resolve(
        configfile.parse("reserved_host_cpus = '0'\nvcpu_cpus = '7'"), host, PAGE
    )
    assert str(sets.vcpu_cpus) == "7"


HOST_WIDE = "cgroup_layout = '/vms/$NAME'\nvcpu_cpus = '4-7'\nemulator_cpus = '2'\n"


def test_a_vm_with_no_settings_has_those_of_the_host() -> None:
    made = configured(HOST_WIDE, "smt")
    assert for_domain(made, domain()) is made


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"layout": "/prod/$UUID"}, {"cgroup_layout": "/prod/$UUID"}),
        ({"layout": "native"}, {"cgroup_layout": "native"}),
        ({"vcpu_cpus": "5,4"}, {"vcpu_cpus": "4-5"}),
        (
            {"iothread_cpus": "0-3,^0", "emulator_cpus": "1"},
            {"iothread_cpus": "1-3", "emulator_cpus": "1"},
        ),
    ],
)
def test_settings_of_a_vm(settings: dict[str, str], changed: dict[str, str]) -> None:
    made = configured(HOST_WIDE, "smt")
    before = dict(made.values)
    own = for_domain(made, domain(settings=settings), topology("smt").present)
    assert own.values == {**before, **changed}
    assert own.cgroup_layout.preset == own.values["cgroup_layout"]
    assert made.values == before


def test_settings_of_a_vm_alone_are_something_to_enforce() -> None:
    assert not Config({})
    assert for_domain(Config({}), domain(settings={"vcpu_cpus": "1"}))


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("", {"vcpu_cpus": "x"}, 'vcpu_cpus = "x" in its metadata: "x" is not a CPU list'),
        ("", {"vcpu_cpus": ""}, 'vcpu_cpus = "" in its metadata: the CPU list is empty'),
        (
            "",
            {"vcpu_cpus": "4\n5"},
            r'vcpu_cpus = "4\n5" in its metadata: "4\n5" is not a CPU list',
        ),
        (
            "",
            {"vcpu_cpus": "7-9"},
            'vcpu_cpus = "7-9" in its metadata: this host has no CPUs 8-9 (its CPUs are 0-7)',
        ),
        (
            "",
            {"layout": "nest"},
            'layout = "nest" in its metadata: layout "nest" is neither a preset nor a path',
        ),
        (
            "",
            {"layout": ""},
            'layout = "" in its metadata: layout "" is neither a preset nor a path',
        ),
        (
            "",
            {"layout": "flat\nroot"},
            r'layout = "flat\nroot" in its metadata: '
            r'layout "flat\nroot" is neither a preset nor a path',
        ),
        (
            "",
            {"cgroup_layout": "flat"},
            'cgroup_layout = "flat" in its metadata: there is no such setting',
        ),
        ("", {"on_error": "warn"}, 'on_error = "warn" in its metadata: there is no such setting'),
        ("", {"a:layout": "flat"}, 'a:layout = "flat" in its metadata: there is no such setting'),
        (
            "reserved_host_cpus = '0-1'",
            {"emulator_cpus": "0"},
            'emulator_cpus = "0" in its metadata: '
            "all of these CPUs are reserved (reserved_host_cpus 0-1)",
        ),
        (
            "reserved_host_mem = '1 GiB'",
            {"layout": "root"},
            'layout = "root" in its metadata: '
            "the VM would be outside the limit that "
            "reserved_host_mem sets",
        ),
    ],
)
def test_settings_of_a_vm_that_cannot_be(text: str, settings: dict[str, str], message: str) -> None:
    (key,) = settings
    vm = domain("web", settings=settings)
    with pytest.raises(Refusal) as error:
        for_domain(configured(text, "smt"), vm, topology("smt").present)
    remedy = f"change it, or remove it: virt-cgroup domain web --unset {key} --config"
    assert str(error.value) == f"VM web has {message}: {remedy}"


def test_the_remedy_is_for_all_that_is_wrong() -> None:
    vm = domain("a b", settings={"layout": "flat", "foo": "1", "vcpu_cpus": "\x1b"})
    with pytest.raises(Refusal) as error:
        for_domain(Config({}), vm)
    assert str(error.value) == (
        'VM a b has foo = "1" in its metadata: there is no such setting: '
        f"change it, or remove it: virt-cgroup domain {UUID} --unset foo --unset vcpu_cpus "
        "--config"
    )


@pytest.mark.parametrize("layout", ["native", "/vms/$NAME", "nested"])
def test_a_limit_of_memory_holds_for_a_vm_with_a_parent(layout: str) -> None:
    assert for_domain(
        configured("reserved_host_mem = '1 GiB'", "smt"), domain(settings={"layout": layout})
    )
