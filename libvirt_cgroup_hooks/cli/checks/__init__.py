# SPDX-License-Identifier: LGPL-2.1-or-later
"""The checks of virt-cgroup validate, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ...errors import Error
from ...state import Remembered
from . import advice, hook, host, others, recipes, vm
from .subject import Problem, Subject


def always(_: Subject) -> bool:
    return True


def live(subject: Subject) -> bool:
    return subject.host.real


def understood(subject: Subject) -> bool:
    return subject.config is not None


def configured(subject: Subject) -> bool:
    """Understood, and not nothing."""
    return bool(subject.config)


def confining(subject: Subject) -> bool:
    return subject.config is not None and subject.config.confine_host != "no"


def dedicating(subject: Subject) -> bool:
    return bool(Remembered(subject.host).dedicated)


def protecting(subject: Subject) -> bool:
    return subject.config is not None and subject.config.protect_host_mem != "no"


def proposed(subject: Subject) -> bool:
    """Understood, not nothing, and not in place yet."""
    return configured(subject) and subject.proposed is not None


class Check(NamedTuple):
    """`find` yields what is wrong; it is asked only where `when` says that the question makes
    sense, and, of a configuration that is not in place yet, if it is one to ask `ahead`.
    """

    area: str
    title: str
    find: Callable[[Subject], Iterator[Problem]]
    when: Callable[[Subject], bool] = always
    ahead: bool = False


TABLE = (
    Check("HOST", "for root privileges", host.rights, live, ahead=True),
    Check("HOST", "the configuration", host.configuration, ahead=True),
    Check("HOST", "for the manager of cgroups", host.manager),
    Check(
        "HOST",
        "for the cgroup controllers that the limits need",
        host.controllers,
        configured,
        ahead=True,
    ),
    Check("HOST", "for these controllers on the VM parent", host.parent_controllers, configured),
    Check("HOST", "that VMs can start", host.first_start, configured, ahead=True),
    Check("HOST", "the limits of the VM parent", host.fence_in_effect, configured),
    Check("HOST", "for what else is in the VM parent", host.beside_vms, configured),
    Check("HOST", "that the host keeps to its own CPUs", host.confined, confining),
    Check("HOST", "for what confine_host does not reach", others.not_confined, confining),
    Check("HOST", "that the host's memory is protected", host.protected, protecting),
    Check("HOST", "for limits that are no longer wanted", host.unwanted_limits, understood),
    Check("HOST", "for what running VMs may come to use", host.memory, configured),
    Check("HOST", "for offline and isolated CPUs", host.special_cpus, configured, ahead=True),
    Check("HOST", "that the host has whole cores", advice.whole_cores, configured, ahead=True),
    Check("HOST", "that the host's swap is not the VMs'", advice.swap, configured),
    Check("HOST", "for hugepages that nobody uses", advice.hugepages, configured),
    Check("HOOK", "for the hook", hook.installed),
    Check("HOOK", "if the hook is executable", hook.executable, hook.known),
    Check(
        "HOOK",
        "if the hook finds this package",
        hook.program,
        lambda subject: live(subject) and hook.runs(subject),
    ),
    Check("HOOK", "if the daemon knows the hook", hook.seen, hook.runs),
    Check("HOOK", "if daemons can read qemu.d", hook.directory),
    Check("HOOK", "for hooks of other programs", hook.others),
    Check("HOOK", "for hooks that set the same CPUs", recipes.left, configured),
    Check("HOOK", "for leftovers in qemu.d", hook.leftovers),
    Check("HOOK", "for SELinux", hook.selinux),
    Check("HOOK", "for AppArmor", hook.apparmor),
    Check("VM", "for QEMU that is not limited", vm.outside, configured),
    Check("VM", "that running VMs are not in the way", vm.in_the_way, proposed, ahead=True),
    Check("VM", "that VMs can start again with their pins", vm.pinned_to_reserved, configured),
    Check("VM", "that VMs match the configuration", vm.conforming, configured),
    Check("VM", "that dedicated CPUs are one VM's alone", vm.dedicated, dedicating),
    Check("VM", "that VMs are pinned to isolated CPUs", advice.pinned, configured),
    Check("VM", "that the host is near the VMs' devices", advice.near_devices, configured),
)


def results(subject: Subject) -> Iterator[tuple[Check, Problem]]:
    """Every check that makes sense, with each of its problems, or one that says PASS."""
    for check in TABLE:
        if subject.proposed is not None and not check.ahead:
            continue
        for problem in _find(check, subject):
            yield check, problem


def _find(check: Check, subject: Subject) -> list[Problem]:
    """A check that cannot be made says so, and the others are made all the same."""
    try:
        return (list(check.find(subject)) or [Problem("", "")]) if check.when(subject) else []
    except Error as error:
        return [Problem("not-checked", f"cannot be checked: {error.message}", error.hint)]
    except (OSError, ValueError, IndexError) as error:
        # a file of the kernel's that says what no kernel should
        return [Problem("not-checked", f"cannot be checked: {error}")]
