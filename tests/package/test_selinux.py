"""The policy module: it compiles, and has for virtqemud what Fedora's has for virtnetworkd."""

from __future__ import annotations

from pathlib import Path

from .conftest import run

SOURCE = "packaging/selinux/libvirt_cgroup_hooks.te"


def test_it_compiles(tmp_path: Path) -> None:
    module, whole = tmp_path / "libvirt_cgroup_hooks.mod", tmp_path / "libvirt_cgroup_hooks.pp"
    run("checkmodule", "-M", "-m", "-o", module, SOURCE)
    run("semodule_package", "-o", whole, "-m", module)
    cil = run(
        "sh", "-c", "/usr/libexec/selinux/hll/pp <$1 || /usr/lib/selinux/hll/pp <$1", "sh", whole
    )
    assert "(typetransition virtqemud_t virt_hook_t process virt_hook_unconfined_t)" in cil
    assert "(allow virtqemud_t virt_hook_unconfined_t (process (" in cil
    assert "(allow virtd_t init_runtime_t (file (" in cil
