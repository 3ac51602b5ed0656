# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files that steer VMs: drop-ins for scopes and slices that systemd is about to make."""

from __future__ import annotations

from ..host import NEW
from ..steps import LoadUnit, MakeDirectory, Remove, RemoveEmpty, Replace, Step, Touch
from . import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..host import Host

GOES_WITH_ITS_VM = "[Unit]\nStopWhenUnneeded=yes\n"
# systemd looks for drop-ins in the directories that it remembers, and loading a transient scope
# does not make it look again (247 to 257: unit_load_fragment returns before
# unit_file_build_name_map). Loading a unit that is not there does, if the directory has changed
# since; two changes in one tick of the kernel's clock look like one, so its time is set. libvirt
# happens to name such a unit, virtqemud.service, where Debian ships none; that is no promise.
REFRESH = (Touch(units.DROP_INS), LoadUnit("libvirt-cgroup-hooks-no-such-unit.service"))


def found(host: Host) -> list[str]:
    """Ours, for scopes and slices of VMs. An empty directory of a scope, or half a file, is what
    one that was killed has left.
    """
    found: list[str] = []
    for name in host.names(units.DROP_INS):
        is_scopes = name.startswith(units.VM_SCOPE) and name.endswith(".scope.d")
        if is_scopes or name.endswith(".slice.d"):
            files = set(host.names(f"{units.DROP_INS}/{name}"))
            if (files or is_scopes) and files <= {units.DROP_IN, units.DROP_IN + NEW}:
                found.append(units.drop_in(name.removesuffix(".d")))
    return found


def write(host: Host, path: str, text: str) -> list[Step]:
    """The drop-in PATH says TEXT."""
    old = host.read_optional(path)
    return [MakeDirectory(path.rpartition("/")[0]), Replace(path, text, old, mode=0o644)]


def remove(host: Host, path: str) -> list[Step]:
    """The drop-in PATH, what was half written beside it, and its directory, if that is empty
    then.
    """
    directory = path.rpartition("/")[0]
    if not host.exists(directory):
        return []
    steps: list[Step] = []
    for file in (path, path + NEW):
        text = host.read_optional(file)
        if text is not None:
            steps.append(Remove(file, text, mode=0o644))
    return [*steps, RemoveEmpty(directory)]
