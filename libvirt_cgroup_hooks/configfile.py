# SPDX-License-Identifier: LGPL-2.1-or-later
"""cgroup-hooks.conf: from its text to a Config. The hook loads this only where the file has
changed.
"""

from __future__ import annotations

from . import settings
from .config import PATH, Config
from .cpuset import CpuSet
from .errors import Error, printable
from .fence import cpus_left, memory_left
from .layout import Layout
from .lending import CLASSES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .topology import Topology
    from .virconf import Value

    # Made at run time: by key, the canonical text that was configured then, and what holds instead
    Changes = dict[str, tuple[str, str]]


class Invalid(Error):
    """A setting that cannot be right: KEY, and the MESSAGE without where it was given."""

    def __init__(self, key: str, given: str, message: str, hint: str) -> None:
        super().__init__(f"{given}: {message}", hint)
        self.key = key
        self.reason = message


class Parsed:
    """Settings before the host is known: by key the canonical text, the value as given, and where
    it was given.
    """

    __slots__ = ("given", "values", "warnings", "where")

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.given: dict[str, Value] = {}
        self.where: dict[str, str] = {}
        self.warnings: list[str] = []

    def override(self, changes: Changes) -> None:
        """One whose setting has been edited since is void."""
        for key, (configured, value) in changes.items():
            if self.values.get(key, "") == configured:
                self.values[key] = self.given[key] = value
                self.where[key] = "virt-cgroup reserve --live"

    def error(self, key: str, message: str, hint: str) -> Error:
        shown = self.given[key]
        text = (
            f'"{printable(shown[:200])}"' if isinstance(shown, str) else printable(str(shown)[:200])
        )
        return Invalid(key, f"{self.where[key]}: {key} = {text}", message, hint)


def on_error_of(text: str) -> str:
    """What TEXT says of on_error in a line of its own, whatever is wrong with the other lines."""
    from . import virconf

    on_error = settings.named("on_error")
    for line in text.splitlines():
        try:
            for statement in virconf.parse(line, PATH):
                if statement.key == on_error.key:
                    return on_error.read(statement.value)
        except Error:
            continue
    return on_error.default


def inert(text: str) -> bool:
    """Whether TEXT has no setting at all: only blank lines and comments."""
    return all(line.lstrip()[:1] in ("", "#") for line in text.splitlines())


def parse(text: str, path: str = PATH, changes: Changes | None = None) -> Parsed:
    """What TEXT says, and CHANGES, whatever the host. Raises Error with PATH:LINE, key, value and
    remedy.
    """
    # The grammar and ConfigObj are only read where the file has changed: together they cost the
    # hook 20 ms.
    import configobj

    from . import virconf

    try:
        from configobj.validate import Validator
    except ImportError:  # before configobj 5.0.8
        from validate import Validator

    parsed = Parsed()
    for statement in virconf.parse(text, path):
        key, where = statement.key, f"{path}:{statement.line}"
        if key in parsed.given:
            first = parsed.where[key].rpartition(":")[2]
            parsed.warnings.append(
                f"{where}: {key} is already set in line {first}; that value is used"
            )
            continue
        parsed.where[key] = where
        parsed.given[key] = statement.value
    # ConfigObj holds the values against the table. It is given values, not text: its own dialect
    # has sections, and neither lists over lines nor the difference between 1 and "1".
    keys = [setting.key for setting in settings.TABLE]
    spec = configobj.ConfigObj(
        {key: key for key in keys}, list_values=False, interpolation=False, _inspec=True
    )
    conf = configobj.ConfigObj(parsed.given, configspec=spec, interpolation=False)
    conf.validate(Validator({setting.key: _checked(setting, parsed) for setting in settings.TABLE}))
    for _, key in configobj.get_extra_values(conf):
        raise parsed.error(
            key, "there is no such setting", settings.meant(key, "the settings", keys)
        )
    parsed.values = {key: conf[key] for key in keys if key in conf}
    parsed.override(changes or {})
    _check_together(parsed)
    return parsed


def resolve(parsed: Parsed, topology: Topology, page_size: int) -> Config:
    """Hold what the file says against the host. Raises Error with file, line, key and value."""
    values = dict(parsed.values)
    cpus = values.get("reserved_host_cpus", "")
    if cpus.startswith("count "):
        count = int(cpus[len("count ") :])
        if count > len(topology.online):
            raise parsed.error(
                "reserved_host_cpus",
                f"the host has only {len(topology.online)} CPUs",
                "reserve fewer CPUs",
            )
        values["reserved_host_cpus"] = str(topology.take(count))
    elif cpus == "auto":
        values["reserved_host_cpus"] = str(topology.auto_cpus())
    config = Config(values)
    for key in ("reserved_host_cpus", "emulator_cpus", "vcpu_cpus", "iothread_cpus"):
        missing = CpuSet.parse(values.get(key, "")) - topology.present
        if missing:
            raise parsed.error(
                key, f"this host has no {missing.named()}", f"its CPUs are {topology.present}"
            )
    try:
        left = cpus_left(config.reserved_host_cpus, topology.online)
    except Error as error:
        raise parsed.error("reserved_host_cpus", error.message, error.hint) from None
    try:
        memory_left(config.reserved_host_mem, topology.memory, page_size)
    except Error as error:
        raise parsed.error("reserved_host_mem", error.message, error.hint) from None
    for key in ("emulator_cpus", "vcpu_cpus", "iothread_cpus"):
        group = key.removesuffix("_cpus")
        if config.all_reserved(group, CpuSet.parse(values.get(key, ""))):
            remedy = f"VMs may use {left}"
            if group in CLASSES:
                remedy += f', or allow it with host_cpus_for = ["{group}"]'
            raise parsed.error(key, "all of these CPUs are reserved", remedy)
    return config


def _checked(setting: settings.Setting, parsed: Parsed) -> Callable[[Value], str]:
    def check(value: Value) -> str:
        try:
            return setting.read(value)
        except Error as error:
            raise parsed.error(setting.key, error.message, error.hint) from None

    return check


def _check_together(parsed: Parsed) -> None:
    values = parsed.values
    layout = Layout(values.get("cgroup_layout", "native"))
    for key in ("reserved_host_mem", "vm_swap_max", "vm_cpu_weight"):
        if not values.get(key) or layout.native or layout.parent is not None:
            continue
        raise parsed.error(
            key,
            f'cgroup_layout = "{layout.preset}" has no cgroup that holds only VMs',
            'use a layout with a parent of its own, such as "/vms/$DRIVER-$NAME" or "native"',
        )
    for key in ("confine_host", "host_cpus_for"):
        if values.get(key, "no") != "no" and not values.get("reserved_host_cpus"):
            raise parsed.error(key, "it needs reserved_host_cpus", "set that, too")
    for key in ("memory_admission", "protect_host_mem"):
        if values.get(key, "no") not in ("0", "no") and not values.get("reserved_host_mem"):
            raise parsed.error(key, "it needs reserved_host_mem", "set that, too")
