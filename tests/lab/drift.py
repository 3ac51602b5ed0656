"""What `status` and `validate` say of the VM parent while something changes it behind our back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cli.checks import TABLE
from libvirt_cgroup_hooks.cli.checks.subject import Subject
from libvirt_cgroup_hooks.host import Host

from ..live.harness import virsh
from ..live.pace import patient
from ..live.reserving import COMMAND
from .host import V2, directory, status, xml

LAYOUT = "/vms/$NAME"
PINS = {0: "6-7", 1: "7"}
START = "that VMs can start"
FENCE = "the limits of the VM parent"
SPECIAL = "for offline and isolated CPUs"
CONFORM = "that VMs match the configuration"
only_v1 = pytest.mark.skipif(V2, reason="cgroup v1 is not used here")
only_v2 = pytest.mark.skipif(not V2, reason="cgroup v2 is not used here")
thorough = pytest.mark.thorough


def findings() -> dict[str, str]:
    """What `validate` has to say of the fence: by check the result and the message of its first
    problem.
    """
    subject = Subject(Host())
    checks = [
        check
        for check in TABLE
        if check.title in (START, FENCE, SPECIAL, CONFORM) and check.when(subject)
    ]
    found = {check.title: list(check.find(subject)) for check in checks}
    return {
        title: f"{problems[0].result} {problems[0].message}"
        for title, problems in found.items()
        if problems
    }


class Shown:
    """What `status` says now."""

    def __init__(self) -> None:
        self.report = status()
        self.fence, self.parent = self.report["fence"], self.report["parent"]

    def cpus(self, name: str) -> dict[str, str]:
        """Of each thread group of the VM."""
        vm = next(vm for vm in self.report["domains"] if vm["name"] == name)
        return {row["group"]: row["cpus"] for row in reversed(vm["threads"])}

    def pinned(self, name: str) -> tuple[str, str]:
        """Of the first two vCPUs."""
        return self.cpus(name)["vcpu0"], self.cpus(name)["vcpu1"]

    def allowed(self, name: str) -> set[str]:
        return set(self.cpus(name).values())


def cpu_files() -> Path:
    """The VM parent where its CPUs are."""
    return directory("cpuset", status()["parent"]["path"])


def not_started(name: str, **options: object) -> str:
    result = virsh("create", "/dev/stdin", stdin=xml(name, **options), check=False)
    assert result.returncode
    return result.stderr


def not_applied() -> str:
    result = subprocess.run(
        [*COMMAND, "apply", "--all"],
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(),
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr
