# SPDX-License-Identifier: LGPL-2.1-or-later
"""A running VM as the kernel shows it, for people and for JSON."""

from __future__ import annotations

from typing import Any

from .. import conformance, threads
from ..domain import Domain
from ..errors import Error
from ..host import Host
from ..managers.base import Manager


def describe(host: Host, manager: Manager, domain: Domain) -> dict[str, Any]:
    """What status and validate say of DOMAIN: its cgroup, its threads and their problems."""
    found = threads.threads(host, domain)
    rows, problems = [], []
    try:
        manager = manager.for_domain(domain)
    except Error as error:
        problems.append(str(error))
    place = conformance.not_limited(manager, domain, found[0]) if found else None
    if place is not None:
        problems.append(f"it is in {place}, where reserved_host_mem does not limit it")
    for thread in found:
        cpus = threads.cpus_allowed(host, domain, thread)
        rows.append(
            {
                "tid": thread.tid,
                "comm": thread.comm,
                "group": thread.group,
                "cgroup": manager.cgroup_of(thread),
                "cpus": str(cpus),
            }
        )
        for text in conformance.problems(manager, domain, thread, cpus):
            problems.append(f"thread {thread.tid} ({thread.group}): {text}")
    return {
        "name": domain.name,
        "uuid": domain.uuid,
        "id": domain.id,
        "pid": domain.pid,
        "layout": manager.config.cgroup_layout.preset,
        "cgroup": manager.vm_of(found[0]) if found else None,
        "conforms": not problems,
        "problems": problems,
        "notes": manager.notes(found),
        "threads": rows,
    }
