# SPDX-License-Identifier: LGPL-2.1-or-later
"""A running VM as the kernel shows it, for people and for JSON."""

from __future__ import annotations

from typing import Any

from .. import conformance, threads
from ..conformance import Difference
from ..domain import Domain
from ..errors import Error
from ..host import Host
from ..managers.base import Manager


def describe(host: Host, manager: Manager, domain: Domain) -> dict[str, Any]:
    """What status and validate say of DOMAIN: its cgroup, its threads and their problems."""
    found = threads.threads(host, domain)
    rows = []
    differences: list[Difference] = []
    of_all = manager
    try:
        manager = manager.for_domain(domain)
    except Error as error:
        differences.append(Difference(conformance.SETTINGS, str(error)))
    if found and not differences:
        outside = conformance.outside(of_all, manager, domain, found[0])
        differences += [outside] if outside else conformance.not_dedicated(manager, domain)
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
        for one in conformance.differences(manager, domain, thread, cpus):
            text = f"thread {thread.tid} ({thread.group}): {one.text}"
            differences.append(Difference(one.reason, text))
    return {
        "name": domain.name,
        "uuid": domain.uuid,
        "id": domain.id,
        "pid": domain.pid,
        "layout": manager.config.cgroup_layout.preset,
        "dedicated": str(conformance.dedicated(manager).get(domain.uuid, "")),
        "cgroup": manager.vm_of(found[0]) if found else None,
        "conforms": not differences,
        "reasons": sorted({one.reason for one in differences}),
        "problems": [one.text for one in differences],
        "notes": manager.notes(found),
        "threads": rows,
    }
