"""Each setting: what it takes, in which canonical text it is kept, and what it says to anything
else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from libvirt_cgroup_hooks import configfile, settings, virconf
from libvirt_cgroup_hooks.config import Config
from libvirt_cgroup_hooks.errors import Error

if TYPE_CHECKING:
    from libvirt_cgroup_hooks.virconf import Value

TABLE = {setting.key: setting for setting in settings.TABLE}
GIB = 2**30


@pytest.mark.parametrize(
    ("key", "value", "canonical"),
    [
        ("reserved_host_cpus", "0-1", "0-1"),
        ("reserved_host_cpus", "0-3,^1", "0,2-3"),
        ("reserved_host_cpus", "3,2,1", "1-3"),
        ("reserved_host_cpus", "auto", "auto"),
        ("reserved_host_cpus", 2, "count 2"),
        ("reserved_host_cpus", "2", "2"),  # in quotes it is CPU 2
        ("reserved_host_mem", "auto", "auto"),
        ("reserved_host_mem", "4 GiB", str(4 * GIB)),
        ("reserved_host_mem", "4GiB", str(4 * GIB)),
        ("reserved_host_mem", " 4  GiB ", str(4 * GIB)),
        ("reserved_host_mem", "4G", str(4 * GIB)),
        ("reserved_host_mem", "4 GB", str(4 * 10**9)),
        ("reserved_host_mem", "512 MiB", str(512 * 2**20)),
        ("reserved_host_mem", "512M", str(512 * 2**20)),
        ("reserved_host_mem", "1 MB", str(10**6)),
        ("reserved_host_mem", "8 KiB", "8192"),
        ("reserved_host_mem", "8K", "8192"),
        ("reserved_host_mem", "8 KB", "8000"),
        ("reserved_host_mem", "8192 B", "8192"),
        ("reserved_host_mem", "1 TiB", str(2**40)),
        ("reserved_host_mem", "1T", str(2**40)),
        ("reserved_host_mem", "1 TB", str(10**12)),
        ("reserved_host_mem", "10%", "10%"),
        ("reserved_host_mem", "05 %", "5%"),
        ("cgroup_layout", "native", "native"),
        ("cgroup_layout", "legacy", "legacy"),
        ("cgroup_layout", "/vms/$DRIVER-$UUID", "/vms/$DRIVER-$UUID"),
        ("emulator_cpus", "2,3", "2-3"),
        ("vcpu_cpus", "4-15", "4-15"),
        ("iothread_cpus", "0", "0"),
        ("pin_conflict", "refuse", "refuse"),
        ("pin_conflict", "warn", "warn"),
        ("memory_admission", 0, "0"),
        ("memory_admission", 1, "1"),
        ("hook_timeout", 1, "1"),
        ("hook_timeout", 600, "600"),
        ("on_error", "refuse", "refuse"),
        ("on_error", "warn", "warn"),
        ("confine_host", "asked", "asked"),
        ("host_units", ["system.slice"], "system.slice"),
        ("host_units", ["a-b.slice", "init.scope", "a-b.slice"], "a-b.slice init.scope"),
        ("host_units", ["openrc.sshd"], "openrc.sshd"),
    ],
)
def test_what_a_setting_takes(key: str, value: Value, canonical: str) -> None:
    assert TABLE[key].read(value) == canonical


LIST = "write numbers and ranges"
ONE_OF = 'the value has to be "refuse" or "warn"'


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "reserved_host_cpus",
            0,
            "the count of CPUs has to be 1 or more: to reserve none, remove the line",
        ),
        ("reserved_host_cpus", -1, "the count of CPUs has to be 1 or more"),
        (
            "reserved_host_cpus",
            ["0"],
            'the value has to be a string or a count: write "0-1", 2 or "auto"',
        ),
        (
            "reserved_host_cpus",
            "",
            "the CPU list is empty: name at least one CPU, or remove the line",
        ),
        ("reserved_host_cpus", "1,^1", "the CPU list is empty"),
        ("reserved_host_cpus", "Auto", f'"Auto" is not a CPU list: {LIST}'),
        ("reserved_host_cpus", "10%", f'"10%" is not a CPU list: {LIST}'),
        (
            "reserved_host_mem",
            4,
            'an amount of memory needs a unit: write "4 MiB" or "4 GiB"',
        ),
        (
            "reserved_host_mem",
            "4",
            'an amount of memory needs a unit: write "4 MiB" or "4 GiB"',
        ),
        ("reserved_host_mem", "4096 ", "an amount of memory needs a unit"),
        ("reserved_host_mem", ["4 GiB"], "the value has to be a string: put it in quotes"),
        (
            "reserved_host_mem",
            "",
            '"" is not an amount of memory: write "4 GiB", "512 MiB", "10%" or "auto"',
        ),
        ("reserved_host_mem", "4 gib", '"4 gib" is not an amount of memory'),
        ("reserved_host_mem", "4 GiB 2 MiB", '"4 GiB 2 MiB" is not an amount of memory'),
        ("reserved_host_mem", "1.5 GiB", '"1.5 GiB" is not an amount of memory'),
        ("reserved_host_mem", "-4 GiB", '"-4 GiB" is not an amount of memory'),
        ("reserved_host_mem", "4 Gi", '"4 Gi" is not an amount of memory'),
        ("reserved_host_mem", "4 PiB", '"4 PiB" is not an amount of memory'),
        ("reserved_host_mem", "GiB", '"GiB" is not an amount of memory'),
        ("reserved_host_mem", "%", '"%" is not an amount of memory'),
        ("reserved_host_mem", "1%%", '"1%%" is not an amount of memory'),
        ("reserved_host_mem", "٤ GiB", '"٤ GiB" is not an amount of memory'),
        ("reserved_host_mem", "9" * 16 + " B", '"9999999999999999 B" is not an amount of memory'),
        (
            "reserved_host_mem",
            "0 GiB",
            "the amount of memory is zero: to reserve none, remove the line",
        ),
        ("reserved_host_mem", "0%", '"0%" of memory cannot be reserved: write 1% to 99%'),
        ("reserved_host_mem", "100%", '"100%" of memory cannot be reserved'),
        ("cgroup_layout", 1, "the value has to be a string: put it in quotes"),
        ("cgroup_layout", "vms/$NAME", 'layout "vms/$NAME" is neither a preset nor a path'),
        ("emulator_cpus", 2, "the value has to be a string: put it in quotes"),
        ("vcpu_cpus", "", "the CPU list is empty"),
        ("iothread_cpus", "auto", f'"auto" is not a CPU list: {LIST}'),
        ("pin_conflict", 1, ONE_OF + ": put it in quotes"),
        ("pin_conflict", "Refuse", ONE_OF),
        ("on_error", "ignore", ONE_OF),
        ("host_units", "system.slice", "the value has to be a list of names: write "),
        ("host_units", [], "the value has to be a list of names"),
        ("host_units", [["a"]], "\"['a']\" is not a unit name"),
        ("host_units", [".."], '".." is not a unit name'),
        ("host_units", ["-.slice"], '"-.slice" is not a unit name'),
        ("host_units", ["a/b"], '"a/b" is not a unit name'),
        ("host_units", ["a b"], '"a b" is not a unit name'),
        ("host_units", ["sshd.service"], "sshd.service is not a slice"),
        ("host_units", ["a.scope"], "a.scope is not a slice"),
        ("on_error", ["refuse"], ONE_OF + ": put it in quotes"),
        ("memory_admission", 2, "the value has to be 0 or 1: write it without quotes"),
        ("memory_admission", "1", "the value has to be 0 or 1: write it without quotes"),
        ("memory_admission", [1], "the value has to be 0 or 1"),
        (
            "hook_timeout",
            0,
            "the value has to be a number of seconds from 1 to 600: write it without quotes",
        ),
        ("hook_timeout", 601, "the value has to be a number of seconds from 1 to 600"),
        ("hook_timeout", "10", "the value has to be a number of seconds from 1 to 600"),
        ("hook_timeout", [10], "the value has to be a number of seconds from 1 to 600"),
    ],
)
def test_what_a_setting_refuses(key: str, value: Value, message: str) -> None:
    with pytest.raises(Error) as error:
        TABLE[key].read(value)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("key", "default"),
    [
        ("reserved_host_cpus", None),
        ("reserved_host_mem", ""),
        ("emulator_cpus", None),
        ("vcpu_cpus", None),
        ("iothread_cpus", None),
        ("pin_conflict", "refuse"),
        ("memory_admission", False),
        ("hook_timeout", 10),
        ("on_error", "refuse"),
    ],
)
def test_defaults(key: str, default: object) -> None:
    assert getattr(Config({}), key) == default


def test_the_default_layout_is_libvirts_own() -> None:
    assert Config({}).cgroup_layout.native
    assert not Config({})


def test_the_keys_of_the_table() -> None:
    assert (
        list(TABLE)
        == (
            "reserved_host_cpus reserved_host_mem cgroup_layout emulator_cpus vcpu_cpus "
            "iothread_cpus pin_conflict memory_admission hook_timeout on_error "
            "confine_host host_units host_cpus_for vm_swap_max protect_host_mem "
            "vm_cpu_weight"
        ).split()
    )
    assert set(Config({}).values) == set(TABLE)


def uncommented(sample: str) -> str:
    """`#key = value` is a setting that is off; `# text` is prose."""
    return "\n".join(
        line[1:] if line[:1] == "#" and line[1:2].isalpha() else line
        for line in sample.splitlines()
    )


def test_the_sample_sets_nothing() -> None:
    assert virconf.parse(settings.sample(), "sample") == []
    assert configfile.inert(settings.sample())


def test_the_sample_shows_every_setting_once() -> None:
    parsed = virconf.parse(uncommented(settings.sample()), "sample")
    assert [statement.key for statement in parsed] == list(TABLE)


def test_the_sample_is_accepted_with_all_settings_on() -> None:
    parsed = configfile.parse(uncommented(settings.sample()), "sample")
    assert parsed.values == {key: setting.read(parsed.given[key]) for key, setting in TABLE.items()}
    assert parsed.warnings == []


@pytest.mark.parametrize(
    "key", "cgroup_layout pin_conflict memory_admission hook_timeout on_error".split()
)
def test_the_sample_shows_the_default_where_there_is_one(key: str) -> None:
    assert configfile.parse(uncommented(settings.sample())).values[key] == TABLE[key].default


def test_the_sample_keeps_to_what_libvirts_augeas_lens_reads() -> None:
    for line in settings.sample().splitlines():
        assert line == "" or (line.startswith(("# ", "#")) and len(line) <= 80)
        assert line == line.rstrip()
    for setting in TABLE.values():
        ends = setting.example[0] + setting.example[-1]
        assert setting.example.isdigit() or ends in ('""', "[]")
