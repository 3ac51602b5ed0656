# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a VM's cgroup is: five historic layouts, and any template an administrator writes."""

from __future__ import annotations

from .errors import Error, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .domain import Domain

NATIVE = "native"
PRESETS = {
    NATIVE: NATIVE,
    "legacy": "$LIBVIRTD/libvirt/$DRIVER/$NAME",
    "nested": "$LIBVIRTD/$DRIVER/$NAME",
    "flat": "$LIBVIRTD/$DRIVER-$NAME",
    "root": "/$DRIVER-$NAME",
    "uuid": "/$DRIVER-$UUID",
}
VARIABLES = ("$LIBVIRTD", "$DRIVER", "$NAME", "$UUID", "$ID")
OF_THE_HOST = (["system"], ["user"])  # where a systemd host has its services and sessions
OF_THE_VM = ("$NAME", "$UUID", "$ID")
DRIVER = "qemu"
NAME_MAX = 255  # bytes, the kernel's limit for one directory name
PATH_MAX = 4096  # and for a whole path
# Files of every cgroup directory, which a child cannot be named after.
KERNEL_FILES = ("tasks", "notify_on_release", "release_agent")
SUGGESTED, SUGGESTED_PARENT = '"/vms/$NAME"', "/vms"


def apart(path: str) -> str:
    """What keeps VMs apart from what else is in their cgroup PATH, for a remedy."""
    if f"{path}/".startswith(f"{SUGGESTED_PARENT}/") or path.startswith(f"{SUGGESTED_PARENT}."):
        return "stop it, or have it run in another cgroup (Slice= of a unit)"
    return f"choose another layout, such as cgroup_layout = {SUGGESTED}"


class Layout:
    """A checked template. Raises Error for one that cannot name a cgroup of each VM's own."""

    __slots__ = ("_of_vm", "components", "own", "parent", "preset", "relative")

    def __init__(self, text: str) -> None:
        self.preset = text
        template = PRESETS.get(text, text)
        self.relative = template.startswith("$LIBVIRTD")
        self.components = [] if template == NATIVE else _components(template)
        own = _before_vm(self.components)
        # the components of the VM parent below its base: the root, or the daemon's cgroup where
        # `relative`
        self.own = [part.replace("$DRIVER", DRIVER) for part in own]
        self._of_vm = self.components[len(own) :]
        # the VM parent as template text; None where the VMs hang below the root or the daemon's
        # own cgroup
        self.parent: str | None = None
        if own and (self.relative or own not in OF_THE_HOST):
            self.parent = ("$LIBVIRTD" if self.relative else "") + "/" + "/".join(self.own)

    @property
    def native(self) -> bool:
        return not self.components

    @property
    def others(self) -> str:
        """A layout of one VM that has the same VM parent."""
        return f"{self.parent or '/machine'}/production/$NAME"

    def of_vm(self, domain: Domain) -> list[str]:
        """The components below the VM parent, with DOMAIN's name, UUID and id. Raises Error where
        it has no id.
        """
        return [_rendered(part, domain) for part in self._of_vm]

    def parent_path(self, placement: str) -> str | None:
        """The VM parent's cgroup path for a daemon at PLACEMENT ("/" or "/a/b")."""
        return self._path(self.own, placement) if self.parent else None

    def shared_path(self, placement: str) -> str:
        """The cgroup path that all VMs are below, whether they have it for themselves or not."""
        return self._path(self.own, placement)

    def vm_path(self, domain: Domain, placement: str) -> str:
        """The cgroup path of DOMAIN. Raises Error where its name or id makes none."""
        return self._path([*self.own, *_directories(self.of_vm(domain), domain)], placement)

    def vm_top(self, domain: Domain, placement: str) -> str:
        """The first directory of `vm_path` that is DOMAIN's own; what is above it is shared."""
        return self._path([*self.own, *_directories(self.of_vm(domain)[:1], domain)], placement)

    def _path(self, components: list[str], placement: str) -> str:
        base = placement.rstrip("/") if self.relative else ""
        return base + "/" + "/".join(components)


def _components(template: str) -> list[str]:
    shown = printable(template[:200])
    if len(template) > PATH_MAX:
        raise Error(
            f'layout "{shown}..." has more than {PATH_MAX} characters',
            "the kernel allows no longer path",
        )
    if any(variable not in VARIABLES for variable in _variables(template)):
        raise Error(
            f'layout "{shown}" has an unknown variable', "the variables are " + ", ".join(VARIABLES)
        )
    if not template.startswith(("/", "$LIBVIRTD/")):
        names = ", ".join(PRESETS)
        raise Error(
            f'layout "{shown}" is neither a preset nor a path',
            f"use one of {names}, or begin with / or $LIBVIRTD/",
        )
    components = template.split("/")[1:]
    if not any(variable in template for variable in OF_THE_VM):
        raise Error(
            f'layout "{shown}" contains no $NAME, $UUID or $ID, so all VMs would share one cgroup',
            "add one of them",
        )
    if any("$LIBVIRTD" in component for component in components):
        raise Error(f'layout "{shown}" has $LIBVIRTD inside', "$LIBVIRTD can only be the beginning")
    if any(component in ("", ".", "..") or not component.isprintable() for component in components):
        raise Error(
            f'layout "{shown}" has an empty or impossible component',
            'write it without "//", "." and ".."',
        )
    return components


def _before_vm(components: list[str]) -> list[str]:
    """Those of COMPONENTS that stand before the first that names the VM."""
    own = []
    for component in components:
        if any(variable in component for variable in OF_THE_VM):
            break
        own.append(component)
    return own


def _variables(template: str) -> list[str]:
    """Each "$" with the capital letters after it."""
    found = []
    for part in template.split("$")[1:]:
        length = next((n for n, letter in enumerate(part) if not "A" <= letter <= "Z"), len(part))
        found.append("$" + part[:length])
    return found


def _rendered(component: str, domain: Domain) -> str:
    if "$ID" in component and domain.id is None:
        raise Error(
            f"VM {printable(domain.name)} has no id yet, and its cgroup's name needs one",
            "use $UUID or $NAME in the layout",
        )
    # The name goes in last, so that a VM named "$ID" stays what it is.
    parts = component.replace("$DRIVER", DRIVER).split("$NAME")
    return domain.name.join(
        part.replace("$UUID", domain.uuid).replace("$ID", str(domain.id)) for part in parts
    )


def _directories(components: list[str], domain: Domain) -> list[str]:
    names = [escaped(component) for component in components]
    if any(len(name.encode("utf-8", "surrogateescape")) > NAME_MAX for name in names):
        raise Error(
            f"the cgroup of VM {printable(domain.name)} would have a name over {NAME_MAX} bytes",
            "use $UUID in the layout",
        )
    return names


def escaped(component: str) -> str:
    """As libvirt does it (virCgroupPartitionNeedsEscaping): "_" before what the kernel or the path
    could misread.

    Controllers' files ("cpu.max", "memory.stat") begin with the controller's name and a dot.
    """
    head, dot, _ = component.partition(".")
    if (
        component[:1] in ("_", ".")
        or component in KERNEL_FILES
        or (dot and head in CONTROLLER_PREFIXES)
    ):
        return "_" + component
    return component


CONTROLLER_PREFIXES = frozenset(
    (
        "blkio cgroup cpu cpuacct cpuset debug devices dmem freezer hugetlb io irq memory "
        "misc net_cls net_prio perf_event pids rdma"
    ).split()
)
