"""virt-cgroup validate where systemd owns the cgroups."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from ..live.harness import domain_xml
from ..live.pace import patient
from .host import (
    HOOK,
    configure,
    fenced,
    needs_systemd,
    reload_libvirtd,
    run,
    start,
    virt_cgroup,
)

SEEN = "if the daemon knows the hook"
FENCE = "the limits of the VM parent"
OUTSIDE = "for QEMU that is not limited"
USER = "joe"


def not_passed() -> dict[str, str]:
    command = ["/usr/bin/python3", "-I", "-m", "libvirt_cgroup_hooks", "validate", "--json", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patient())
    assert done.stderr == ""
    return {row["check"]: f"{row['result']} {row['message']}" for row in json.loads(done.stdout)}


@needs_systemd
def test_a_reload_is_enough_for_a_new_hook() -> None:
    configure(fenced("/vms/$NAME"))
    time.sleep(0.05)
    HOOK.touch()
    start("web")
    found = not_passed()
    assert list(found) == [SEEN], found
    assert found[SEEN].startswith("WARN ")
    reload_libvirtd()
    assert not_passed() == {}


@needs_systemd
def test_somebody_else_sets_the_slice() -> None:
    configure(fenced("/vms/$NAME"))
    start("web")
    reload_libvirtd()
    run("systemctl", "set-property", "--runtime", "vms.slice", "MemoryMax=infinity")
    found = not_passed()
    assert list(found) == [FENCE], found
    assert found[FENCE].startswith("FAIL ")
    assert "has no memory limit" in found[FENCE]
    virt_cgroup("apply", "--parent")
    assert not_passed() == {}


@needs_systemd
def test_a_session_vm() -> None:
    configure(fenced("/vms/$NAME"))
    start("web")
    reload_libvirtd()
    run("useradd", "--create-home", USER)
    run("install", "-d", "-o", USER, "/run/joe")
    as_user = [
        "runuser",
        "-u",
        USER,
        "--",
        "env",
        f"HOME=/home/{USER}",
        "XDG_RUNTIME_DIR=/run/joe",
        "virsh",
        "-c",
    ]
    xml = domain_xml("own", machine="q35", confined=True).replace(
        "model='none'/>", "model='nec-xhci'/>", 1
    )
    Path("/run/joe/own.xml").write_text(xml)
    run(*as_user, "qemu:///session", "create", "/run/joe/own.xml")
    try:
        found = not_passed()
    finally:
        run(*as_user, "qemu:///session", "destroy", "own")
    assert list(found) == [OUTSIDE], found
    assert found[OUTSIDE].startswith("WARN process ")
    uid = run("id", "-u", USER).strip()
    assert f"(qemu-system-x86) of user {uid} is in /" in found[OUTSIDE]
