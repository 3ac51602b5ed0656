"""What SELinux, which is permissive, would have denied the hook, with our policy module loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..live.harness import LAB_FACTS
from .host import run

AUDIT = Path("/var/log/audit/audit.log")
SOURCE = Path(__file__).resolve().parents[2] / "packaging/selinux/libvirt_cgroup_hooks.te"
# The hook is called qemu, as its file; what it runs has names of its own. Its type is the daemon's.
DENIAL = re.compile(
    r'^type=AVC .* denied +(\{[^}]*\}) .* comm="(?:qemu|python3[.\d]*|systemctl)" .*:virtd_t:'
    r".* tcontext=[^:]*:[^:]*:(\w+).* tclass=(\w+)",
    re.MULTILINE,
)


def is_used() -> bool:
    return bool(json.loads(LAB_FACTS.read_text())["security"] == "selinux")


def load_module(folder: Path) -> None:
    module, package = (folder / f"libvirt_cgroup_hooks.{kind}" for kind in ("mod", "pp"))
    run("checkmodule", "-M", "-m", "-o", str(module), str(SOURCE))
    run("semodule_package", "-o", str(package), "-m", str(module))
    run("semodule", "-i", str(package))


def denials() -> list[tuple[str, str, str]]:
    """Permissions, the type and the class of what they were asked for."""
    return DENIAL.findall(AUDIT.read_text(errors="replace"))
