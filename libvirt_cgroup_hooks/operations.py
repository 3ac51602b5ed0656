# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happens at each operation of libvirt's, in order: the table of docs/running.md as code.

Each function adds to a plan what is to be done, and raises Error where what is configured cannot
be.
"""

from __future__ import annotations

from . import idle, managers, state
from .errors import Error, Refusal, printable, size
from .host import page_size
from .kinds import CPU_WEIGHT, CPUS, HOST_CPUS, MEMORY
from .layout import SUGGESTED, apart
from .plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .config import Config
    from .domain import Domain
    from .host import Host
    from .kinds import Kind
    from .managers.base import Manager

ENFORCE = ("prepare", "start", "started", "reconnect")
CLEAN_UP = ("stopped", "release")


def concerns(host: Host, config: Config, operation: str) -> bool:
    """Whether there can be anything to do at OPERATION for a VM without settings of its own."""
    if idle.never(host, config, operation):
        return False
    if operation in CLEAN_UP:
        return host.exists(state.DIRECTORY)
    return operation in ENFORCE and (bool(config) or host.exists(state.SHARED))


def asks_configuration(host: Host, operation: str, domain: Domain) -> bool:
    """Cleaning up goes by what was recorded, whatever the configuration says now, but for the room
    that hugepages had, and what the host's own units, and other VMs, have while VMs run.
    """
    if operation in ENFORCE:
        return True
    record = state.Record.read(host, domain.uuid) if operation == "release" else None
    if record is None:
        return False
    shared = state.Remembered(host)
    return record.hugepages > 0 or shared.of_host or shared.of_vms


def plan(
    host: Host,
    config: Config,
    operation: str,
    domain: Domain,
    daemon: dict[str, str] | None = None,
    imagine: bool = False,
) -> Plan:
    """What the hook, or a daemon that is where DAEMON says, does for DOMAIN.

    With IMAGINE, a VM that is not running is planned for as if it had just started.
    """
    made = Plan(operation, transaction=operation not in CLEAN_UP)
    if operation not in ENFORCE + CLEAN_UP:
        return made
    manager = managers.choose(host, config, daemon)
    if operation == "prepare":
        prepare(made, manager, domain)
    elif operation == "start":
        start(made, manager, domain)
    elif operation in ("started", "reconnect"):
        started(made, manager, domain, imagine)
    elif operation == "stopped":
        stopped(made, manager, domain)
    elif operation == "release":
        release(made, manager, domain)
    return made


def prepare(plan: Plan, manager: Manager, domain: Domain) -> None:
    """A VM is to start; QEMU does not exist yet."""
    forget_left_behind(plan, manager, but=domain.uuid)
    count_running(plan, manager)
    if not manager.config.memory_admission:
        plan.add_shared(*manager.records.admitted.drop())
    own = manager.for_domain(domain)
    check_controllers(manager)
    _add_hugepages(manager, domain)
    check_parent(manager, own, domain)
    _admit(plan, own, domain)
    if own.config.dedicated != "no" or manager.records.dedicated():
        from . import apart

        apart.admit(manager, own, domain)
    own.prepare(plan, domain)
    secure(plan, manager, [domain])
    _tell_of_memory(plan, manager, domain)
    idle.tell(plan, manager)


def start(plan: Plan, manager: Manager, domain: Domain) -> None:
    """The VM has an id; QEMU is about to be made."""
    own = manager.for_domain(domain)
    if manager.records.dedicated():
        from . import apart, limits

        apart.admit(manager, own, domain)
        limits.enforce(plan, manager, [domain])
    own.start(plan, domain)


def started(plan: Plan, manager: Manager, domain: Domain, imagine: bool = False) -> None:
    """QEMU runs, or was found running by a daemon that has started (reconnect)."""
    from . import limits, threads

    own = manager.for_domain(domain)
    running = threads.status(manager.host, domain.name)
    vm_threads = threads.threads(manager.host, running) if running else []
    if vm_threads:
        count(plan, own, domain)
        if own.config.dedicated != "no" or manager.records.dedicated():
            from . import apart

            apart.dedicate(plan, manager, own, domain)
    count_running(plan, manager)
    limits.enforce(plan, manager, [running if running and vm_threads else domain])
    if running and vm_threads:
        own.place(plan, domain, running, vm_threads)
        if plan.operation == "reconnect":  # `prepare` tells of one that starts
            tell_of_losses(plan, manager, running)
    elif imagine:
        plan.warnings.append(
            f"VM {printable(domain.name)} is not running, so there is no process to place"
        )
        own.imagined(plan, domain)
    else:
        raise Error(f"VM {printable(domain.name)} has no process", "it has ended meanwhile")
    idle.withdraw(plan, manager)


def stopped(plan: Plan, manager: Manager, domain: Domain) -> None:
    """QEMU has ended; libvirt still knows the VM."""
    record = state.Record.read(manager.host, domain.uuid)
    if record:
        manager.stopped(plan, record)


def release(plan: Plan, manager: Manager, domain: Domain) -> None:
    """libvirt has removed what it knew of, so what is left of the VM is ours to remove."""
    forget_left_behind(plan, manager, but=domain.uuid)
    record = state.Record.read(manager.host, domain.uuid)
    if record is None:
        return
    plan.add(*manager.remains(record))
    manager.records.forget(plan, domain.uuid, record)
    last = not manager.records.living()
    stays = not (last and manager.makes(MEMORY))
    charged = record.hugepages and manager.limits_hugepages and stays
    if charged and _take_hugepages(plan, manager, record):
        return
    shared = manager.records.remembered()
    if last or shared.of_host or shared.of_vms:
        from . import limits

        limits.end(plan, manager, last)


def tell_of_losses(plan: Plan, manager: Manager, domain: Domain) -> None:
    """What is told of DOMAIN, which runs, if the steps of PLAN take CPUs that it asks for."""
    if plan.steps and manager.fence.cpus is not None and (domain.pins() or domain.settings):
        from . import claims

        told = claims.tell(manager, domain)
        plan.warnings += [text for text in told if text not in plan.warnings]


def _add_hugepages(manager: Manager, domain: Domain) -> None:
    """DOMAIN is about to start. What an earlier run of it has left is counted no more."""
    if manager.limits_hugepages:
        stale = state.Record.read(manager.host, domain.uuid)
        manager.fence.hugepages -= stale.hugepages if stale else 0
        manager.fence.hugepages += domain.hugepage_memory(page_size())


def _take_hugepages(plan: Plan, manager: Manager, record: state.Record) -> bool:
    """The VM has given its hugepages back. False where others have more memory meanwhile than they
    should: the limit stays, which is told.
    """
    from . import limits

    manager.fence.hugepages -= record.hugepages
    lowering = Plan(plan.operation)
    try:
        limits.enforce(lowering, manager, [])
    except Error as error:
        plan.warnings.append(str(error))
        return False
    plan.add_shared(*lowering.steps)
    plan.warnings += lowering.warnings
    return True


def count_running(plan: Plan, manager: Manager) -> None:
    """VMs that have no record, as there was no hook, or nothing to count, when they started."""
    host, anew = manager.host, manager.config.anew
    missing = manager.counts and (anew or state.lacks_records(host))
    if not (missing or (anew and manager.limits_hugepages)):
        return
    from . import threads

    for domain in threads.running(host, {}):
        if not state.Record.exists(host, domain.uuid):
            count(plan, manager, domain)


def count(plan: Plan, manager: Manager, domain: Domain) -> None:
    """A VM that runs, and that started before there was a hook or anything to count, is counted
    from now on. MANAGER is that of its own settings.
    """
    if manager.counts or (manager.limits_hugepages and domain.hugepages):
        record, old = manager.records.of(domain)
        record.confines = manager.asks_to_confine
        manager.records.save(plan, record, old)


def forget_left_behind(
    plan: Plan, manager: Manager, but: str = "", running: set[str] | None = None
) -> None:
    """What is left of VMs that are gone, where the hook or the daemon was killed before it had
    cleaned up.

    Not of the VM BUT (a UUID); RUNNING is as for `state.left_behind`.
    """
    host = manager.host
    plan.add_shared(*state.half_written(host))
    for uuid in state.left_behind(host, running, manager.remembers):
        record = state.Record.read(host, uuid)
        if uuid == but:
            continue
        if record:
            plan.add_shared(*manager.remains(record))
        manager.records.forget(plan, uuid, record)


def check_controllers(manager: Manager) -> None:
    """Raises Error where the kernel cannot limit what is to be limited."""
    fence = manager.fence
    if fence.cpus is not None and manager.tree_of(CPUS) is None:
        raise Error(
            "cannot keep CPUs for the host: there is no cpuset controller", "mount or enable it"
        )
    if fence.memory is not None and manager.tree_of(MEMORY) is None:
        raise Error(
            "cannot keep memory for the host: there is no memory controller", "mount or enable it"
        )
    if fence.swap is not None and not any(tree.counts_swap for tree in manager.trees):
        raise Error(
            "cannot limit the swap of VMs (vm_swap_max): the kernel does not count it",
            "boot with swapaccount=1, or remove vm_swap_max",
        )
    if fence.cpu_weight is not None and manager.tree_of(CPU_WEIGHT) is None:
        raise Error("cannot weigh VMs: there is no cpu controller", "mount or enable it")
    _check_host_units(manager)


def _check_host_units(manager: Manager) -> None:
    """Raises Error where VMs would get what is the host's, too."""
    if manager.config.confine_host != "no":
        _check_apart(manager, HOST_CPUS, "keep {} to the host's CPUs")
    if manager.protection:
        _check_apart(manager, manager.protection, "protect the memory of {}")


def _check_apart(manager: Manager, kind: Kind, attempt: str) -> None:
    for unit in manager.host_units(kind):
        for path in manager.shared_paths():
            if f"{path}/".startswith(f"{unit}/"):
                raise Error(
                    f"cannot {attempt.format(printable(unit))} (host_units): VMs are in "
                    f"{printable(path)}",
                    f"choose another layout, such as cgroup_layout = {SUGGESTED}, or take it out "
                    "of host_units",
                )


def secure(
    plan: Plan,
    manager: Manager,
    domains: list[Domain],
    whole: bool = False,
    everyone: bool = False,
) -> None:
    """Raises Error where a cgroup that gets its first limit holds more than VMs, or will.

    WHOLE: DOMAINS are all VMs that run, and get what each of them carries. EVERYONE is as for
    `limits.enforce`.
    """
    from . import limits

    new = limits.enforce(plan, manager, domains, whole, everyone)
    if not new:
        return
    from . import conformance

    for path, others in conformance.others_in(manager, new).items():
        raise Error(
            f"cannot limit {printable(path)} as a parent of VMs: it holds the host's own work "
            f"({', '.join(map(printable, others))})",
            _away_from(manager, path, domains),
        )


def _away_from(manager: Manager, path: str, domains: list[Domain]) -> str:
    """What has one of DOMAINS not start in PATH."""
    if path in manager.parent_paths().values():
        return apart(path)
    for domain in domains:
        if "layout" in domain.settings and path in manager.for_domain(domain).parents(CPUS, []):
            command = f"virt-cgroup domain {domain.handle} --unset layout --config"
            return f"that is the VM's own layout, so remove it: {command}"
    name = domains[0].handle if len(domains) == 1 else "NAME"
    return f"give VMs a partition below /machine: virt-cgroup domain {name} --no-partition"


def check_parent(manager: Manager, own: Manager, domain: Domain) -> None:
    """Raises Refusal where DOMAIN's own layout or partition would take it out of the fence, or out
    of the one memory limit of all VMs.
    """
    if own is manager and not domain.partition:
        return
    _check_host_units(own)
    if manager.fence and domain.partition and not domain.partition.strip("/"):
        raise _partition_outside(domain, "VMs are limited by a cgroup below the root")
    if manager.fence.memory is None:
        return
    tops = manager.parent_paths()
    for tree, path in own.parent_paths(domain).items():
        top = tops.get(tree)
        if not tree.has_memory or top is None or f"{path}/".startswith(f"{top}/"):
            continue
        why = f"reserved_host_mem only limits VMs below {top}"
        if "layout" not in domain.settings:
            raise _partition_outside(domain, why)
        raise Refusal(
            f'VM {printable(domain.name)} has layout = "{printable(own.layout.preset)}" in its '
            f"metadata, but {why}",
            f"give it one that begins as that of the others, such as {manager.layout.others}, or "
            f"none: virt-cgroup domain {domain.handle} --unset layout --config",
        )


def _partition_outside(domain: Domain, why: str) -> Refusal:
    return Refusal(
        f"VM {printable(domain.name)} has the partition {printable(domain.partition)} in its XML, "
        f"but {why}",
        f"choose one below /machine (virt-cgroup domain {domain.handle} --partition /machine/NAME) "
        f"or none (virt-cgroup domain {domain.handle} --no-partition)",
    )


def _admit(plan: Plan, manager: Manager, domain: Domain) -> None:
    """Raises Refusal for a VM that may not start. Most VMs have nothing to be asked for."""
    config, fence = manager.config, manager.fence
    if fence.cpus is not None and domain.pins():
        from . import admission, conformance

        cpus = conformance.cpus_for_pins(manager, fence.cpus)
        plan.warnings += admission.check_cpus(domain, cpus, config.pin_conflict)
    if fence.lent:
        _lend(plan, manager, domain)
    if fence.memory is not None and config.memory_admission:
        from . import admission

        stale = state.Record.read(manager.host, domain.uuid)
        others = manager.records.admitted.total - (stale.memory if stale else 0)
        admission.check_memory(domain, domain.host_memory(page_size()), others, fence.memory)


def _lend(plan: Plan, manager: Manager, domain: Domain) -> None:
    """Raises Refusal for a VM that may have CPUs of the host's, and cannot yet."""
    from . import lending, limits

    config, fence = manager.config, manager.fence
    told = lending.not_lent(config, fence, domain)
    if told:
        plan.warnings.append(told)
    if lending.borrows(config, fence, domain) and limits.outgrown(manager):
        raise Refusal(
            f"VM {printable(domain.name)} is to have CPUs of the host (host_cpus_for), and those "
            "are still closed to all VMs together",
            "run virt-cgroup apply --all, which gives each running VM a limit of its own",
        )


def _tell_of_memory(plan: Plan, manager: Manager, domain: Domain) -> None:
    """What the start may do to VMs that run, where it is not refused."""
    limit = manager.fence.memory_limit
    if limit is None or manager.config.memory_admission:
        return
    needed, used = domain.host_memory(page_size()), manager.memory_in_use()
    if manager.limits_hugepages:
        needed += domain.hugepage_memory(page_size())
    if needed + used > limit:
        plan.warnings.append(
            f"VM {printable(domain.name)} may come to use {size(needed)}, and VMs already use "
            f"{size(used)} of the {size(limit)} available to them: the kernel may then kill one of "
            "them (memory_admission = 1 refuses such a start)"
        )
