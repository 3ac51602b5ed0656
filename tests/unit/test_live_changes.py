"""What `virt-cgroup reserve --live` has changed: until when it holds, and over what."""

from __future__ import annotations

from pathlib import Path

import pytest

from libvirt_cgroup_hooks import configfile, snapshot, state
from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.snapshot import LIVE, Live
from libvirt_cgroup_hooks.state import FORMAT

from .support.hosts import CONF, Kernel, run
from .test_plan import planned

GIB = 2**30


@pytest.fixture
def host(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path, "v2", "reserved_host_cpus = '0'\n")


def change(host: Kernel, changes: dict[str, tuple[str, str]]) -> list[str]:
    live = Live(host)
    live.changes = changes
    made = planned(*live.save())
    run(host, made)
    return str(made).splitlines()


def load(host: Kernel, save: bool = True) -> tuple[str, str]:
    made = snapshot.load(host, [], save=save)
    return str(made.reserved_host_cpus or ""), made.reserved_host_mem


# what is kept


@pytest.mark.parametrize(
    "changes",
    [
        {"reserved_host_cpus": ("0", "0-1")},
        {"reserved_host_cpus": ("", "count 2"), "reserved_host_mem": ("auto", str(GIB))},
        {"reserved_host_mem": ("10%", "")},
    ],
)
def test_what_was_changed_is_read_again(host: Kernel, changes: dict[str, tuple[str, str]]) -> None:
    assert change(host, changes) == [f"save {LIVE}"]
    assert Live(host).changes == changes
    assert Live(host).save() == []
    assert change(host, {}) == [f"remove {LIVE}"]
    assert Live(host).changes == {}
    assert Live(host).save() == []


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (f"{FORMAT}\nreserved_host_cpus\t\t1\n", {"reserved_host_cpus": ("", "1")}),
        (
            f"{FORMAT}\nreserved_host_cpus\t0\nreserved_host_mem\t\t{GIB}\n",
            {"reserved_host_mem": ("", str(GIB))},
        ),
        (f"{FORMAT}\nreserved_host_cpus 0 1\n", {}),
        (f"{FORMAT}\na\tb\tc\td\n", {}),
        ("libvirt-cgroup-hooks 2\nreserved_host_cpus\t0\t1\n", {}),
        ("reserved_host_cpus\t0\t1\n", {}),
        ("", {}),
        ("\udc80\0", {}),
    ],
)
def test_a_damaged_file(host: Kernel, text: str, changes: dict[str, tuple[str, str]]) -> None:
    state.prepare_directory(host)
    host.replace(LIVE, text)
    assert Live(host).changes == changes


@pytest.mark.parametrize("value", ["99", "x", "count", "count 99", "count x", "auto 1"])
def test_a_value_that_cannot_be_is_an_error(host: Kernel, value: str) -> None:
    change(host, {"reserved_host_cpus": ("0", value)})
    with pytest.raises(Error):
        snapshot.load(host, [])


# what holds


@pytest.mark.parametrize(
    ("text", "changes", "values"),
    [
        (
            "reserved_host_cpus = '0'",
            {"reserved_host_cpus": ("0", "1")},
            {"reserved_host_cpus": "1"},
        ),
        ("", {"reserved_host_cpus": ("", "1")}, {"reserved_host_cpus": "1"}),
        ("reserved_host_cpus = '0'", {"reserved_host_cpus": ("0", "")}, {"reserved_host_cpus": ""}),
        # edited since
        (
            "reserved_host_cpus = '2'",
            {"reserved_host_cpus": ("0", "1")},
            {"reserved_host_cpus": "2"},
        ),
        (
            "reserved_host_cpus = '2'",
            {"reserved_host_cpus": ("", "1")},
            {"reserved_host_cpus": "2"},
        ),
        ("", {"reserved_host_cpus": ("0", "1")}, {}),
        # written in another way, which means the same
        (
            "reserved_host_cpus = '0,1'",
            {"reserved_host_cpus": ("0-1", "1")},
            {"reserved_host_cpus": "1"},
        ),
        (
            "reserved_host_mem = '1 GiB'",
            {"reserved_host_mem": (str(GIB), "")},
            {"reserved_host_mem": ""},
        ),
        # each for itself
        (
            "reserved_host_cpus = '2'\nreserved_host_mem = '10%'",
            {"reserved_host_cpus": ("0", "1"), "reserved_host_mem": ("10%", "20%")},
            {"reserved_host_cpus": "2", "reserved_host_mem": "20%"},
        ),
    ],
)
def test_a_change_holds_until_its_setting_is_edited(
    text: str, changes: dict[str, tuple[str, str]], values: dict[str, str]
) -> None:
    assert configfile.parse(text, CONF, changes).values == values


def test_what_a_change_makes_impossible_names_the_change() -> None:
    with pytest.raises(Error) as error:
        configfile.parse("cgroup_layout = 'root'", CONF, {"reserved_host_mem": ("", str(GIB))})
    assert str(error.value).startswith(
        f'virt-cgroup reserve --live: reserved_host_mem = "{GIB}": cgroup_layout = "root"'
    )


# the snapshot


def test_the_snapshot_follows(host: Kernel) -> None:
    assert load(host) == ("0", "")
    change(host, {"reserved_host_cpus": ("0", "1-2")})
    assert load(host, save=False) == ("1-2", "")
    before = host.read(snapshot.SNAPSHOT)
    assert load(host) == ("1-2", "")
    assert host.read(snapshot.SNAPSHOT) != before
    host.remove(LIVE)
    assert load(host) == ("0", "")
    change(host, {"reserved_host_cpus": ("0", "")})
    assert load(host) == ("", "")
    host.configure("reserved_host_cpus = '3'\n")
    assert load(host) == ("3", "")


@pytest.mark.parametrize("text", [None, "", "# prose\n"])
def test_a_change_needs_no_configuration(tmp_path: Path, text: str | None) -> None:
    host = Kernel(tmp_path, "v2", text)
    change(host, {"reserved_host_cpus": ("", "1")})
    assert load(host) == ("1", "")
    assert load(host) == ("1", "")
    change(host, {})
    assert load(host) == ("", "")
