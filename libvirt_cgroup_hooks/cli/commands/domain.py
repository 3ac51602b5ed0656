# SPDX-License-Identifier: LGPL-2.1-or-later
"""virt-cgroup domain: the settings that a VM has of its own, in its metadata, and its partition."""

from __future__ import annotations

import argparse
import sys
from typing import Any
from urllib.parse import urlsplit

from ... import managers, operations, snapshot
from ...config import PATH, Config
from ...domain import Domain
from ...domainxml import SETTINGS_URI, parse
from ...errors import Error, Refusal, printable
from ...host import Host
from ...own_settings import for_domain, laid_over
from ...settings import OF_VM, read_of_vm
from ...topology import Topology
from .. import metadata, partition
from ..command import add as add_command
from ..connect import add_connect, asked, binding, connection, find_domain
from ..output import print_json, print_pairs, print_warnings

Settings = dict[str, str]
PARTITION_STANDS_ALONE = ("set", "unset", "live", "current")

NOT_ASKED = f'confine_host of a VM has no effect without confine_host = "asked" in {PATH}'


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "domain",
        run,
        "show or change the settings of one VM",
        "virt-cgroup domain web --set vcpu_cpus=4-7 --set emulator_cpus=2-3 --config",
        root=False,
    )
    parser.add_argument("domain", metavar="DOMAIN", help="the VM's name, id or UUID")
    keys = ", ".join(OF_VM)
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help=f"change a setting: {keys}"
    )
    parser.add_argument(
        "--unset",
        metavar="KEY",
        action="append",
        default=[],
        help="remove a setting; the host's applies again",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--partition", metavar="PATH", help="set <resource><partition> in the persistent XML"
    )
    which.add_argument(
        "--no-partition", action="store_true", help="remove <partition> from the persistent XML"
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="change the metadata of the running VM; virt-cgroup apply DOMAIN then applies it",
    )
    parser.add_argument(
        "--config", action="store_true", help="change the persistent XML, for the next start"
    )
    parser.add_argument(
        "--current",
        action="store_true",
        help="running VM: --live; otherwise --config (the default)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="set it even if the VM could then not start on this host",
    )
    add_connect(parser)


def run(arguments: argparse.Namespace, host: Host) -> int:
    if not host.real:
        raise Error("domain cannot be used with --root", "it asks the running libvirt (-c URI)")
    _check_options(arguments)
    if arguments.partition is not None or arguments.no_partition:
        return _change_partition(arguments)
    changes = _changes(arguments.set, arguments.unset)
    with connection(arguments.connect, read_only=not changes) as opened:
        vm = find_domain(opened, arguments.domain)
        domain = _domain(vm)
        areas = _areas(arguments, vm, domain)
        found = {area: _read(vm, domain, flag) for area, flag in areas.items()}
        local = not urlsplit(opened.getURI()).hostname
        refused: dict[str, Error] = {}
        if changes:
            before = found
            found = {
                area: changed(domain, settings, changes, area) for area, settings in found.items()
            }
            if local and not arguments.force:
                check(host, changes)
            if local:
                refused = _refused(host, vm, domain, before, found, arguments.force)
            _write(vm, domain, {area: (flag, found[area]) for area, flag in areas.items()})
    _warn(host if local else None, domain, found, refused)
    _print(arguments, domain, found, changes)
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    """In virsh's words."""
    if arguments.partition is not None or arguments.no_partition:
        option = "--no-partition" if arguments.no_partition else "--partition"
        pairs = [
            (option, f"--{other}") for other in PARTITION_STANDS_ALONE if getattr(arguments, other)
        ]
    else:
        given = [f"--{area}" for area in ("live", "config") if getattr(arguments, area)]
        pairs = [("--current", area) for area in given if arguments.current]
        if len(given) == 2 and not (arguments.set or arguments.unset):
            pairs.append(("--live", "--config"))  # one is shown at a time
    for one, other in pairs:
        raise Error(f"Options {one} and {other} are mutually exclusive")


def _changes(to_set: list[str], to_unset: list[str]) -> dict[str, str | None]:
    """By key its canonical new value, None to remove it. Raises Error."""
    changes: dict[str, str | None] = {}
    for given in to_set:
        if "=" not in given:
            raise Error(
                f'--set "{printable(given)}" has no value', "write KEY=VALUE, as in vcpu_cpus=4-7"
            )
    pairs = [given.partition("=") for given in to_set]
    for key, value in [
        *((key, value) for key, _, value in pairs),
        *((key, None) for key in to_unset),
    ]:
        if key in changes:
            raise Error(f"{printable(key)} is changed twice", "give each key once")
        changes[key] = value if value is None else _checked(key, value)
    return changes


def _checked(key: str, value: str) -> str:
    if key in OF_VM and not value.strip():
        raise Error(f"--set {key}= has no value", f"--unset {key} removes the setting")
    try:
        return read_of_vm(key, value)[1]
    except Error as error:
        raise Error(f'cannot set {key} to "{value[:200]}": {error.message}', error.hint) from None


def changed(
    domain: Domain, settings: Settings, changes: dict[str, str | None], area: str
) -> Settings:
    """SETTINGS of DOMAIN in AREA with CHANGES, all of them right. Raises Error."""
    for key, value in changes.items():
        if value is None and key not in settings and key not in OF_VM:
            raise Error(
                f"VM {domain.name} has no setting {key}",
                "the settings of a VM are " + ", ".join(OF_VM),
            )
    merged: dict[str, str | None] = {**settings, **changes}
    domain.settings = {key: value for key, value in merged.items() if value is not None}
    for_domain(Config({}), domain, area=area)  # what was there before may not be right
    return {key: read_of_vm(key, value)[1] for key, value in domain.settings.items()}


def check(host: Host, changes: dict[str, str | None]) -> None:
    """Raises Error for CHANGES of a VM that would keep it from starting on HOST."""
    wanted = {key: value for key, value in changes.items() if value is not None}
    try:
        config, present = snapshot.load(host, []), Topology.read(host.read_optional).present
    except Error:  # a mistake in the file, of which _warn tells
        return
    for key, reason in laid_over(config, wanted, present)[1].items():
        raise Error(
            f'cannot set {key} to "{printable(wanted[key])}": {reason}',
            "--force sets it anyway, but the VM will not start on this host",
        )


def _refused(
    host: Host,
    vm: Any,
    domain: Domain,
    before: dict[str, Settings],
    after: dict[str, Settings],
    force: bool,
) -> dict[str, Error]:
    """By area, why the VM could not start on HOST with the settings AFTER. Raises Error, without
    FORCE, for what is no fault of those BEFORE.
    """
    found: dict[str, Error] = {}
    for area in after:
        error, is_new = refusal(host, _xml(vm, domain, area), before[area], after[area])
        if error and is_new and not force:
            raise Error(
                f"VM {domain.name} could not start with this: {error.message}",
                f"{error.hint}; --force sets it anyway",
            )
        if error:
            found[area] = error
    return found


def refusal(host: Host, xml: str, before: Settings, after: Settings) -> tuple[Error | None, bool]:
    """Why the hook would refuse the start of the VM that XML describes, on HOST, with the settings
    AFTER, if it would; and whether it would not for the same reason with those of BEFORE.
    """
    error = _refusal(host, xml, after)
    return error, error is not None and str(error) != str(_refusal(host, xml, before))


def _refusal(host: Host, xml: str, settings: Settings) -> Error | None:
    try:
        config = snapshot.load(host, [])
    except Error:  # a mistake in the file, of which _warn tells
        return None
    domain = parse(xml.encode("utf-8", "surrogateescape"))
    domain.settings = settings
    try:
        operations.plan(host, config, "prepare", domain, managers.daemon(host))
    except Error as error:
        refuses = config.on_error == "refuse" and not error.denied
        return error if refuses or isinstance(error, Refusal) else None
    return None


def _xml(vm: Any, domain: Domain, area: str) -> str:
    flag = binding().VIR_DOMAIN_XML_INACTIVE if area == "config" else 0
    return str(asked(f"read the XML of VM {domain.name}", vm.XMLDesc, flag))


def _domain(vm: Any) -> Domain:
    domain = Domain()
    domain.name, domain.uuid = vm.name(), vm.UUIDString()
    return domain


def _areas(arguments: argparse.Namespace, vm: Any, domain: Domain) -> dict[str, int]:
    """The names and flags of what is asked for; as in libvirt, "current" is what the VM's state
    makes it. Raises Error for what the VM has not.
    """
    flags = {"live": binding().VIR_DOMAIN_AFFECT_LIVE, "config": binding().VIR_DOMAIN_AFFECT_CONFIG}
    wanted = [area for area in flags if getattr(arguments, area)]
    is_active = asked(f"ask for the state of VM {domain.name}", vm.isActive)
    if "live" in wanted and not is_active:
        raise Error(
            f"cannot use --live for VM {domain.name}: domain is not running",
            "use --config, which is for its next start",
        )
    if "config" in wanted and not asked(f"ask for VM {domain.name}", vm.isPersistent):
        raise _is_transient(domain)
    return {area: flags[area] for area in wanted or ["live" if is_active else "config"]}


def _is_transient(domain: Domain) -> Error:
    return Error(
        f"VM {domain.name} is transient and has no persistent XML", "define it first: virsh define"
    )


def _read(vm: Any, domain: Domain, flag: int) -> Settings:
    libvirt = binding()

    def read() -> str:
        try:
            return str(vm.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, SETTINGS_URI, flag))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
                return ""
            raise

    xml = asked(f"read the metadata of VM {domain.name}", read)
    return metadata.read(xml) if xml else {}


def _write(vm: Any, domain: Domain, wanted: dict[str, tuple[int, Settings]]) -> None:
    """One call of libvirt where all are to be the same."""
    calls: dict[str | None, int] = {}
    for flag, settings in wanted.values():
        xml = metadata.write(settings) if settings else None
        calls[xml] = calls.get(xml, 0) | flag
    kind = binding().VIR_DOMAIN_METADATA_ELEMENT
    for xml, flags in calls.items():
        attempt = f"change the metadata of VM {domain.name}"
        asked(
            attempt,
            vm.setMetadata,
            kind,
            xml,
            metadata.PREFIX if xml else None,
            SETTINGS_URI,
            flags,
        )


def _warn(
    host: Host | None, domain: Domain, found: dict[str, Settings], refused: dict[str, Error]
) -> None:
    """Tells what would keep the VM from starting, REFUSED as well; HOST is None where that is
    another.
    """
    warnings: list[str] = []
    for area, settings in found.items():
        domain.settings = settings
        try:
            if host and settings:
                present = Topology.read(host.read_optional).present
                config = snapshot.load(host, warnings)
                for_domain(config, domain, present, area)
                warnings += [str(refused[area])] if area in refused else []
                if settings.get("confine_host") == "yes" and config.confine_host == "no":
                    warnings.append(NOT_ASKED)
            else:
                for_domain(Config({}), domain, area=area)
        except Error as error:
            warnings.append(str(error))
    print_warnings(dict.fromkeys(warnings))


def _print(
    arguments: argparse.Namespace,
    domain: Domain,
    found: dict[str, Settings],
    changes: dict[str, str | None],
) -> None:
    if arguments.json:
        print_json({"name": domain.name, "uuid": domain.uuid, "settings": found})
    elif changes:
        print("Metadata modified")
    else:
        (settings,) = found.values()
        print_pairs([(key, settings.get(key, "-")) for key in dict.fromkeys([*OF_VM, *settings])])
    if changes and "live" in found:
        until = "" if "config" in found else ", until the VM ends"
        note = f"only the metadata has changed{until}; to apply it now: "
        note += f"virt-cgroup apply {domain.handle}"
        if "layout" in changes:
            note += "; with machined, a layout takes effect when the VM starts (--config)"
        print(f"note: {note}", file=sys.stderr)


def _change_partition(arguments: argparse.Namespace) -> int:
    path = None if arguments.no_partition else partition.check(arguments.partition)
    libvirt = binding()
    with connection(arguments.connect) as opened:
        vm = find_domain(opened, arguments.domain)
        domain = _domain(vm)
        if not asked(f"ask for VM {domain.name}", vm.isPersistent):
            raise _is_transient(domain)
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        old = asked(f"read the XML of VM {domain.name}", vm.XMLDesc, flags)
        new = partition.edit(old, path)
        if new != old:
            attempt = f"change the partition of VM {domain.name}"
            asked(attempt, opened.defineXMLFlags, new, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    if arguments.json:
        print_json(
            {"name": domain.name, "uuid": domain.uuid, "partition": path, "changed": new != old}
        )
    else:
        print(
            f"Domain '{printable(domain.name)}' XML configuration "
            f"{'edited' if new != old else 'not changed'}."
        )
    return 0
