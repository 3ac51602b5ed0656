"""CPUs that belong to one VM alone while it runs, on recorded hosts of every kind."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import state

from .support.hosts import Kernel
from .support.reserving import KINDS, made
from .support.several import PLAIN, One, pinned, settings

LAYOUTS = ("native", "/vms/$NAME", "root")
RESERVED = "reserved_host_cpus = '0'\n"
YES = settings(dedicated="yes")
every_host = pytest.mark.parametrize("kind", KINDS)
every_layout = pytest.mark.parametrize("name", LAYOUTS)
every_fence = pytest.mark.parametrize("conf", ["", RESERVED], ids=["nothing reserved", "fence"])


def host_of(root: Path, kind: str, conf: str = "", name: str = "native") -> Kernel:
    return made(root, kind, f"{conf}cgroup_layout = '{name}'\n# configured\n")


def three(host: Kernel, name: str = "native") -> tuple[One, One, One]:
    """One that has CPU 3 for itself, and two others."""
    return (
        One(host, "web", YES + pinned(3), 4, name),
        One(host, "db", PLAIN, 5, name),
        One(host, "mail", pinned(1), 6, name),
    )


def rows(host: Kernel) -> list[str]:
    return [row for row in host.get(state.SHARED).splitlines() if "vm-cpus" in row]


@every_host
@every_layout
@every_fence
def test_in_every_order(tmp_path: Path, kind: str, name: str, conf: str) -> None:
    all_of_it = "1-3" if conf else "0-3"
    others = "1-2" if conf else "0-2"
    orders = list(itertools.permutations(range(3)))
    for number, order in enumerate(orders if name == "native" else orders[::4]):
        host = host_of(tmp_path / str(number), kind, conf, name)
        vms = three(host, name)
        web, db, mail = vms
        for which in order:
            vms[which].start()
        assert db.all == {others}
        assert (mail.emulator, mail.vcpu(), mail.iothread) == (others, "1", others)
        assert (web.emulator, web.vcpu(), web.iothread) == (others, "3", others)
        for which in order[::-1]:
            vms[which].end()
            left = [vms[one] for one in order[: order.index(which)]]
            free = all_of_it if web not in left else others
            assert all(one.emulator == free for one in left if one is not web)
            assert all(one.all == {free} for one in left if one is db)
            assert not mail.host.exists(f"/proc/{mail.pid}") or mail.vcpu() == "1"
        assert rows(host) == []
        assert not host.exists(state.SHARED) or "dedicated" not in host.get(state.SHARED)
