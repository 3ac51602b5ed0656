"""hooks/qemu ends without Python where there is nothing to do, and at nothing else."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.managers.units import slice_path

from ..live.harness import CONFIG, STATE, age, destroy_vm, virsh
from ..live.pace import in_time, wait_for
from .host import (
    FENCE_CPUS,
    HOOK,
    SYSTEMD,
    V2,
    configure,
    directory,
    drop_ins,
    fenced,
    needs_systemd,
    run,
    start,
    status,
    virt_cgroup,
    xml,
)

TRACE = Path("/run/started-programs")
STAND_IN = HOOK.with_name("python-that-notes")  # /run may be mounted noexec
PYTHON = "/usr/bin/python3"
PLACED = "/vms/$NAME"
AT_EACH = ["prepare", *([] if V2 else ["start"]), "started", "release"]
usual = pytest.mark.skipif(not V2 or not SYSTEMD, reason="here each VM has a record")


@contextmanager
def programs() -> Iterator[list[str]]:
    """Afterwards: the operations that the hook has started Python for, in order."""
    found: list[str] = []
    text = HOOK.read_text()
    TRACE.write_text("")
    STAND_IN.write_text(f'#!/bin/sh\necho "$5" >>{TRACE}\nexec {PYTHON} "$@"\n')
    STAND_IN.chmod(0o755)
    HOOK.write_text(text.replace(f"\n{PYTHON} ", f"\n{STAND_IN} "))
    try:
        yield found
        found += TRACE.read_text().split()
    finally:
        HOOK.write_text(text)
        STAND_IN.unlink()


def life(name: str = "web") -> list[str]:
    """The operations of a VM's life that Python is started for."""
    with programs() as found:
        virsh("create", "/dev/stdin", stdin=xml(name))
        virsh("destroy", name)
    return found


def _status(pid: str) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def cpus(path: str) -> str:
    return (directory("cpuset", path) / "cpuset.cpus").read_text().strip()


@contextmanager
def start_kept(name: str) -> Iterator[None]:
    start(name)
    yield
    destroy_vm(name)


@usual
def test_one_interpreter_for_a_vms_life() -> None:
    configure(fenced("native"))
    life()
    assert life() == ["prepare"]
    with start_kept("db"):
        assert life() == ["prepare"]
        assert status()["domains"][0]["conforms"]
    assert cpus("/machine.slice") == FENCE_CPUS


@needs_systemd
def test_where_a_layout_places_vms() -> None:
    configure(fenced(PLACED))
    life()
    assert life() == AT_EACH


@usual
def test_a_configuration_edited_a_moment_ago() -> None:
    configure(fenced("native"))
    life()
    for layout, parent in ((PLACED, slice_path("vms.slice")), ("native", "/machine.slice")) * 2:
        CONFIG.write_text(in_time(fenced(layout)))
        with start_kept("web"):
            assert status()["domains"][0]["conforms"]
            assert status()["domains"][0]["threads"][0]["cgroup"].startswith(f"{parent}/")
        assert not drop_ins()


@usual
def test_a_configuration_that_is_older_than_the_one_before() -> None:
    configure(fenced("native"))
    life()
    CONFIG.write_text(in_time(fenced(PLACED)))
    age(CONFIG)
    with start_kept("web"):
        assert status()["domains"][0]["conforms"]
    assert not drop_ins()


@usual
def test_what_is_kept_in_run_is_gone() -> None:
    configure(fenced("native"))
    life()
    shutil.rmtree(STATE)
    with start_kept("web"):
        assert status()["domains"][0]["conforms"]
    assert life() == ["prepare"]


@usual
def test_a_fence_that_others_have_changed_is_mended_when_the_next_vm_starts() -> None:
    configure(fenced("native"))
    start("web")
    run("systemctl", "set-property", "--runtime", "machine.slice", "AllowedCPUs=0-7")
    destroy_vm("web")
    assert cpus("/machine.slice") == "0-7"
    with start_kept("db"):
        assert cpus("/machine.slice") == FENCE_CPUS


@usual
def test_vms_beside_one_with_settings_of_its_own() -> None:
    configure(fenced("native", memory=False))
    life()
    virsh("define", "/dev/stdin", stdin=xml("db"))
    virt_cgroup("domain", "db", "--set", "vcpu_cpus=4", "--set", f"layout={PLACED}", "--config")
    virsh("start", "db")
    assert life() == AT_EACH
    assert all(vm["conforms"] for vm in status()["domains"])
    destroy_vm("db")
    assert not drop_ins()
    assert not list((STATE / "vms").iterdir())
    life()
    assert life() == ["prepare"]


@usual
def test_the_host_is_confined_and_set_free_for_vms_that_were_not_counted() -> None:
    configure(fenced("native"))
    life()
    start("web")
    assert not list((STATE / "vms").iterdir())
    virt_cgroup("reserve", "--confine", "running", "--live")
    assert cpus("/system.slice") == "0-1"
    destroy_vm("web")
    wait_for(
        lambda: cpus("/system.slice") in ("", "0-7"),
        "the host to be set free",
    )
    virt_cgroup("reserve", "--confine", "no", "--live")


@usual
def test_the_configuration_is_edited_while_a_vm_starts() -> None:
    """Between prepare and start: what was left for prepare's configuration holds no more."""
    configure(fenced("native"))
    life()
    delay = Path("/etc/libvirt/hooks/qemu.d/00-edit")
    delay.parent.mkdir(exist_ok=True)
    delay.write_text(f'#!/bin/sh\n[ "$2" != start ] || cp /run/edited {CONFIG}\n')
    delay.chmod(0o755)
    Path("/run/edited").write_text(in_time(fenced("native", more='vcpu_cpus = "4"')))
    try:
        with programs() as found:
            virsh("create", "/dev/stdin", stdin=xml("web"))
            time.sleep(1)
        assert found[0] == "prepare"
        assert "started" in found
        assert status()["domains"][0]["conforms"]
    finally:
        delay.unlink()


@usual
def test_one_interpreter_for_a_vms_life_as_the_kernel_sees_it() -> None:
    """Slow, since QEMU is below strace as well."""
    configure(fenced("native"))
    life()
    options = ["-f", "-qq", "-e", "trace=execve", "-e", "status=successful", "-o", str(TRACE)]
    daemon = run("pidof", "libvirtd").split()[0]
    with subprocess.Popen(["strace", *options, "-p", daemon]) as strace:
        wait_for(lambda: "TracerPid:\t0" not in _status(daemon), "strace to be there")
        virsh("create", "/dev/stdin", stdin=xml("web"))
        virsh("destroy", "web")
        strace.send_signal(signal.SIGINT)
    started = re.findall(r'execve\("([^"]+)"', TRACE.read_text())
    assert started.count(str(HOOK)) == 5
    assert [name for name in started if "python" in name] == [PYTHON]
