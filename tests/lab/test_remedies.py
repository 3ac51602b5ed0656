"""As tests/live/test_remedies.py, for what only systemd and cgroup v2 have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..live.dedicating import dedicated
from ..live.harness import destroy_all_vms, start_vm
from ..live.remedies import Case, assert_the_remedy_helps, nothing, runs, shell
from .host import CGROUP, HOOK, SYSTEMD, V2, configure, fenced, reload_libvirtd, virt_cgroup

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not (SYSTEMD and V2), reason="systemd does not manage cpusets here"),
]

LAYOUT = "/vms/$NAME"
WELL = fenced(LAYOUT)
CONFINED = fenced(LAYOUT, more='confine_host = "always"')
PROTECTED = fenced(LAYOUT, more='protect_host_mem = "{}"')
UNITS = '["system.slice", "user.slice", "init.scope", "other.slice"]'
WORKQUEUES = Path("/sys/devices/virtual/workqueue/cpumask")
GENERATIONS = Path("/sys/kernel/mm/lru_gen/enabled")
TAKERS = (CGROUP / "mine", CGROUP / "mine-too")


def sets(unit: str, value: str) -> Callable[[], object]:
    return runs(f"systemctl set-property --runtime {unit} {value}")


def service(*properties: str) -> Callable[[], object]:
    options = " ".join(f"-p {one}" for one in properties)
    return runs(f"systemctl reset-failed; systemd-run --unit=other {options} sleep infinity")


END_SERVICE = runs("systemctl stop other.service")


def pins_service() -> None:
    """Before its slice is to keep to the host's CPUs: nobody can be pinned to others then."""
    service("CPUAffinity=5")()
    configure(CONFINED)


def takes_cpus(*parts: str) -> Callable[[], object]:
    """By remote partitions (Linux 6.7), since VMs name these CPUs, too. None may have all that VMs
    name (6.9).
    """

    def fault() -> None:
        for top, cpus in zip(TAKERS, parts):
            part = top / "part"
            part.mkdir(parents=True)
            (top / "cpuset.cpus.exclusive").write_text(cpus)
            (top / "cgroup.subtree_control").write_text("+cpuset")
            for name in ("cpus", "cpus.exclusive"):
                (part / f"cpuset.{name}").write_text(cpus)
            (part / "cpuset.cpus.partition").write_text("root")

    return fault


CASES = [
    Case("fence-open", sets("vms.slice", "AllowedCPUs=0-7")),
    Case("limit-forgotten", runs("rm /run/systemd/system.control/vms.slice.d/50-MemoryMax.conf")),
    Case("limit-unwanted", lambda: configure(f'cgroup_layout = "{LAYOUT}"\n')),
    Case("cpus-taken", takes_cpus("6-7")),
    Case("cpus-all-taken", takes_cpus("2-4", "5-7")),
    Case("cpus-offline", runs("echo 0 >/sys/devices/system/cpu/cpu1/online")),
    Case("others-limited", service("Slice=vms.slice"), by_hand=END_SERVICE),
    Case("host-unconfined", sets("system.slice", "AllowedCPUs=0-7"), CONFINED),
    Case("host-pinned", pins_service, by_hand=END_SERVICE),
    Case(
        "cgroup-not-confined",
        service("Slice=other.slice"),
        CONFINED,
        by_hand=lambda: configure(f"{CONFINED}host_units = {UNITS}\n"),
    ),
    Case("workqueues", nothing, CONFINED),
    Case(
        "dedicated-with-host",
        nothing,
        xml=dedicated("web", "5"),
        by_hand=lambda: configure(CONFINED),
    ),
    Case("protection-missing", sets("system.slice", "MemoryMin=0"), PROTECTED.format("min")),
    Case("protection-weak", nothing, PROTECTED.format("low")),
    Case(
        "protection-not-recursive",
        runs("mount -t cgroup2 -o remount,nsdelegate cgroup2 /sys/fs/cgroup"),
        PROTECTED.format("min"),
    ),
    Case("hook-missing", runs(f"rm {HOOK}")),
    Case("hook-not-seen", runs(f"touch {HOOK}")),
    Case("apparmor-denies", runs(f"mv {HOOK} /srv/hook; ln -s /srv/hook {HOOK}")),
]


@pytest.fixture(autouse=True)
def host_as_before() -> Iterator[None]:
    text = HOOK.read_text()
    mask, generations = WORKQUEUES.read_text(), GENERATIONS.read_text()
    yield
    destroy_all_vms()
    shell("systemctl stop other.service; systemctl revert other.slice", check=False)
    for group in filter(Path.exists, (place for top in TAKERS for place in (top / "part", top))):
        group.rmdir()
    shell("echo 1 >/sys/devices/system/cpu/cpu1/online")
    WORKQUEUES.write_text(mask)
    GENERATIONS.write_text(generations)
    HOOK.unlink(missing_ok=True)
    HOOK.write_text(text)
    HOOK.chmod(0o755)
    configure("")
    virt_cgroup("apply", "--parent")


@pytest.mark.parametrize("case", CASES, ids=Case.__str__)
def test_the_remedy_helps(case: Case, tmp_path: Path) -> None:
    configure(case.config or WELL)
    vm = start_vm("web", xml=case.xml or None)
    reload_libvirtd()
    assert_the_remedy_helps(case, vm, tmp_path)
