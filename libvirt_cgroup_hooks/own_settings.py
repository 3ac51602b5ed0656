# SPDX-License-Identifier: LGPL-2.1-or-later
"""The settings that a VM has of its own, in its metadata, laid over those of the host."""

from __future__ import annotations

from . import settings
from .config import Config
from .cpuset import CpuSet
from .errors import Error, Refusal, printable
from .layout import Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .domain import Domain


def for_domain(
    config: Config, domain: Domain, present: CpuSet | None = None, area: str | None = None
) -> Config:
    """CONFIG with DOMAIN's own settings laid over. PRESENT: the CPUs that the host has, where
    they are known. AREA: whether they are of its "live" or its "config" XML, where that does
    not follow from whether it runs.

    Raises Refusal for what cannot be right: a guess would put the VM where nobody wants it.
    """
    if not domain.settings:
        return config
    values, bad = laid_over(config, domain.settings, present)
    if bad:
        raise _refusal(domain, bad, area or ("live" if domain.pid else "config"))
    return Config(values)


def laid_over(
    config: Config, own: dict[str, str], present: CpuSet | None
) -> tuple[dict[str, str], dict[str, str]]:
    """The values of CONFIG with the settings OWN of a VM, and by key what is wrong with those."""
    values = dict(config.values)
    bad: dict[str, str] = {}
    for name, value in own.items():
        try:
            key, values[key] = settings.read_of_vm(name, value)
            _check(config, key, values[key], present)
        except Error as error:
            bad[name] = error.message
    return values, bad


def _check(config: Config, key: str, value: str, present: CpuSet | None) -> None:
    if key == "cgroup_layout":
        layout = Layout(value)
        if config.reserved_host_mem and not layout.native and layout.parent is None:
            raise Error("the VM would be outside the limit that reserved_host_mem sets")
    if not key.endswith("_cpus"):
        return
    cpus = CpuSet.parse(value)
    if present is not None and not cpus <= present:
        raise Error(f"this host has no {(cpus - present).named()} (its CPUs are {present})")
    if config.all_reserved(key.removesuffix("_cpus"), cpus):
        raise Error(
            f"all of these CPUs are reserved (reserved_host_cpus {config.reserved_host_cpus})"
        )


def _refusal(domain: Domain, bad: dict[str, str], area: str) -> Refusal:
    """BAD: by key what is wrong with it. Tells the first, and a remedy for all."""
    key, message = next(iter(bad.items()))
    setting = printable(f'{key} = "{domain.settings[key][:200]}"')
    options = printable(" ".join(f"--unset {name}" for name in bad))
    return Refusal(
        f"VM {printable(domain.name)} has {setting} in its metadata: {message}",
        f"change it, or remove it: virt-cgroup domain {domain.handle} {options} --{area}",
    )
