"""Checks of virt-cgroup validate that advise: each on a recorded host, found and not found."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cli.checks import recipes, results
from libvirt_cgroup_hooks.cli.checks.recipes import setting_cpus
from libvirt_cgroup_hooks.cli.checks.subject import Problem, Subject
from libvirt_cgroup_hooks.cli.hookfile import DIRECTORY, HOOK

from ..support.hosts import Kernel
from ..support.operations import NAMED as CONF
from ..support.validating import Break, install, well

CPU = "/sys/devices/system/cpu"
STATUS = "/run/libvirt/qemu/vm.xml"
PAGES = "/sys/kernel/mm/hugepages"
SIZE, LARGE = "hugepages-2048kB", "hugepages-1048576kB"
HUGE = "<memoryBacking><hugepages/></memoryBacking>"
OF_1G = "<memoryBacking><hugepages><page size='1' unit='G'/></hugepages></memoryBacking>"
BOTH = (
    "<memoryBacking><hugepages><page size='1' unit='G' nodeset='0'/><page size='2' unit='M'/>"
    "</hugepages></memoryBacking>"
)
PINNED = "<cputune><vcpupin vcpu='0' cpuset='2'/></cputune>"
DEVICE = (
    "<devices><hostdev mode='subsystem' type='pci'><source>"
    "<address domain='0x0000' bus='0x81' slot='0x00' function='0x1'/></source>"
    "<address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/>"
    "</hostdev></devices>"
)
RECIPE = """\
#!/bin/sh
# systemctl set-property --runtime -- user.slice AllowedCPUs=0
if [ "$2" = started ]; then
    systemctl set-property --runtime -- user.slice AllowedCPUs=0
fi
"""


def problems(host: Kernel, code: str) -> list[Problem]:
    return [problem for _, problem in results(Subject(host)) if problem.code == code]


def put(path: str, text: str) -> Break:
    return lambda host: host.put(path, text)


def vm(inner: str) -> Break:
    """The VM that runs has INNER, too."""
    return lambda host: host.put(STATUS, host.get(STATUS).replace("</name>", f"</name>{inner}"))


def defined(inner: str) -> Break:
    return put("/etc/libvirt/qemu/db.xml", f"<domain><name>db</name>{inner}</domain>")


def conf(text: str) -> Break:
    return lambda host: host.configure(CONF + text)


def free(name: str = SIZE, count: int = 4, promised: int = 0, of: int = 4) -> Break:
    def run(host: Kernel) -> None:
        host.put(f"{PAGES}/{name}/nr_hugepages", f"{of}\n")
        host.put(f"{PAGES}/{name}/free_hugepages", f"{count}\n")
        host.put(f"{PAGES}/{name}/resv_hugepages", f"{promised}\n")

    return run


def device(node: str) -> Break:
    return put("/sys/bus/pci/devices/0000:81:00.1/numa_node", node)


@pytest.mark.parametrize(
    ("recorded", "breaks", "code", "message", "remedy"),
    [
        (
            "smt",
            [],
            "core-split",
            "CPUs 0 of the host and CPUs 4 of VMs are threads of the same cores",
            "run virt-cgroup reserve --cpus 0,4 --live --config",
        ),
        (
            "smt",
            [],
            "swap-unlimited",
            "VMs that reach their memory limit may fill the host's swap of ",
            "run virt-cgroup reserve --swap 0 --live --config",
        ),
        (
            "v2",
            [free()],
            "hugepages-unused",
            "4 hugepages of 2 MiB are free (8 MiB), and no VM uses that size",
            f"if nothing else needs them: echo 0 >{PAGES}/{SIZE}/nr_hugepages",
        ),
        (
            "v2",
            [free(promised=1), free(LARGE), vm(OF_1G)],
            "hugepages-unused",
            "3 hugepages of 2 MiB are free (6 MiB)",
            f"if nothing else needs them: echo 0 >{PAGES}/{SIZE}/nr_hugepages",
        ),
        (
            "v2",
            [free(count=2000, of=2048), defined(f"{HUGE}<memory unit='MiB'>1000</memory>")],
            "hugepages-unused",
            "2000 hugepages of 2 MiB are free (3.9 GiB), and all VMs together have use for 1.0 GiB",
            f"if nothing else needs them: echo 500 >{PAGES}/{SIZE}/nr_hugepages",
        ),
        (
            "v2",
            [put(f"{CPU}/isolated", "1-3")],
            "vms-unpinned",
            "vCPUs 0 of VM vm have no pins, and all CPUs of VMs (1-3) are isolated (isolcpus)",
            "pin each: virsh vcpupin vm 0 1 --live",  # it is transient
        ),
        (
            "v2",
            [put(f"{CPU}/isolated", "1-3"), put("/etc/libvirt/qemu/vm.xml", "<domain/>")],
            "vms-unpinned",
            "vCPUs 0 of VM vm have no pins, and all CPUs of VMs (1-3) are isolated (isolcpus)",
            "pin each: virsh vcpupin vm 0 1 --live --config",
        ),
        (
            "v2",
            [vm(PINNED.replace("'2'", "'0,2'"))],
            "vm-pinned-to-reserved",
            "VM vm is pinned to reserved CPUs: vcpu0 to 0,2 (reserved: 0)",
            "pin it within 1-3 (virsh vcpupin vm 0 1-3 --live)",
        ),
        (
            "numa",
            [vm(DEVICE), device("1")],
            "device-far",
            "PCI device 0000:81:00.1 of VM vm is on NUMA node 1, of which none of the host's CPUs "
            "(0) is",
            "run virt-cgroup reserve --cpus 0,",
        ),
    ],
)
def test_what_could_be_better_is_told(
    tmp_path: Path, recorded: str, breaks: list[Break], code: str, message: str, remedy: str
) -> None:
    host = well(tmp_path, recorded)
    for one in breaks:
        one(host)
    (problem,) = problems(host, code)
    assert problem.message.startswith(message)
    assert problem.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("recorded", "breaks", "code"),
    [
        ("smt", [lambda h: h.configure(CONF.replace("'0'", "'0,4'"))], "core-split"),
        ("v2", [], "core-split"),
        ("smt", [conf("vm_swap_max = 0")], "swap-unlimited"),
        ("smt", [lambda h: h.configure("reserved_host_cpus = '0'")], "swap-unlimited"),
        ("v2", [], "swap-unlimited"),
        ("v2", [free(count=0)], "hugepages-unused"),
        ("v2", [free(promised=4)], "hugepages-unused"),
        ("v2", [free(LARGE), vm(OF_1G)], "hugepages-unused"),
        ("v2", [free(LARGE), defined(OF_1G)], "hugepages-unused"),
        (
            "v2",
            [free(count=900, of=1000), defined(f"{HUGE}<memory unit='MiB'>1000</memory>")],
            "hugepages-unused",  # 1000 MiB are more than VMs ask for, which is little
        ),
        (
            "v2",
            [free(LARGE, 9, of=9), defined(OF_1G), vm(BOTH)],
            "hugepages-unused",
        ),
        ("v2", [put(f"{CPU}/isolated", "1-2")], "vms-unpinned"),
        ("v2", [put(f"{CPU}/isolated", "1-3"), vm(PINNED)], "vms-unpinned"),
        ("v2", [vm(PINNED)], "vm-pinned-to-reserved"),
        ("numa", [vm(DEVICE), device("0")], "device-far"),
        ("numa", [vm(DEVICE), device("-1")], "device-far"),
        ("numa", [vm(DEVICE)], "device-far"),
        ("numa", [vm(DEVICE.replace("0x81", "x")), device("1")], "device-far"),
        ("v2", [vm(DEVICE), device("1")], "device-far"),
    ],
)
def test_what_is_as_it_should_be(
    tmp_path: Path, recorded: str, breaks: list[Break], code: str
) -> None:
    host = well(tmp_path, recorded)
    for one in breaks:
        one(host)
    assert problems(host, code) == []


def test_a_vm_that_names_no_size_of_hugepages_has_the_default_one(tmp_path: Path) -> None:
    host = well(tmp_path)
    host.put("/proc/meminfo", host.get("/proc/meminfo") + "\nHugepagesize:    2048 kB\n")
    free()(host)
    assert problems(host, "hugepages-unused")
    defined(HUGE)(host)
    assert not problems(host, "hugepages-unused")


# hooks that set the same CPUs


def confining(tmp_path: Path) -> Kernel:
    host = well(tmp_path, conf=CONF + 'confine_host = "running"\nhost_units = ["user.slice"]\n')
    host.make_directory("/sys/fs/cgroup/user.slice")
    return host


@pytest.mark.parametrize("path", [HOOK, f"{DIRECTORY}/10-x", f"{DIRECTORY}/vm/prepare/begin/x.sh"])
def test_a_recipe_is_told_with_its_line(tmp_path: Path, path: str) -> None:
    host = confining(tmp_path)
    install(host, path, RECIPE)
    assert problems(host, "hook-recipe") == [
        Problem(
            "hook-recipe",
            f"{path}:4 sets AllowedCPUs of /user.slice, and so does the hook of this package",
            recipes.REMEDY,
        )
    ]


def test_a_recipe_for_what_is_not_ours_is_nobodys_business(tmp_path: Path) -> None:
    host = well(tmp_path)  # the host is not confined
    install(host, f"{DIRECTORY}/10-x", RECIPE)
    assert problems(host, "hook-recipe") == []


def test_what_libvirt_does_not_run_is_not_read(tmp_path: Path) -> None:
    host = confining(tmp_path)
    install(host, f"{DIRECTORY}/10-x", RECIPE, 0o644)
    os.mkfifo(f"{host.root}{DIRECTORY}/20-x", 0o755)
    Path(f"{host.root}{DIRECTORY}/loop").symlink_to(".")
    Path(f"{host.root}{DIRECTORY}/gone").symlink_to("nowhere")
    assert problems(host, "hook-recipe") == []


def test_only_a_little_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = confining(tmp_path)
    install(host, f"{DIRECTORY}/10-x", "\0\xff" * recipes.BYTES + RECIPE)
    assert problems(host, "hook-recipe") == []
    install(host, f"{DIRECTORY}/10-x", RECIPE * 20)
    assert len(problems(host, "hook-recipe")) == recipes.SHOWN + 1
    assert problems(host, "hook-recipe")[-1].message == "10 more lines do so"
    monkeypatch.setattr(recipes, "FILES", 0)
    assert problems(host, "hook-recipe") == []


def test_hooks_are_never_run(tmp_path: Path) -> None:
    host = confining(tmp_path)
    trace = tmp_path / "ran"
    install(host, f"{DIRECTORY}/10-x", f"#!/bin/sh\ntouch {trace}\n{RECIPE}")
    assert stat.S_IMODE(os.stat(f"{host.root}{DIRECTORY}/10-x").st_mode) == 0o755
    assert problems(host, "hook-recipe")
    assert not trace.exists()


PLACES = ["/user.slice", "/machine.slice", "/vms.slice/vms-prod.slice", "/vms"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "systemctl set-property --runtime -- user.slice AllowedCPUs=0,1",
            [(1, "sets AllowedCPUs of /user.slice")],
        ),
        (
            "\nsystemctl set-property \\\n  vms-prod.slice \\\n  'AllowedCPUs=0'\n",
            [(2, "sets AllowedCPUs of /vms.slice/vms-prod.slice")],
        ),
        (
            'for u in user.slice machine.slice\ndo\nsystemctl set-property "$u" AllowedCPUs=0',
            [(3, "sets AllowedCPUs of /user.slice, /machine.slice")],
        ),
        (
            "P=AllowedCPUs=0\nsystemctl set-property user.slice $P",
            [(2, "sets AllowedCPUs of /user.slice")],
        ),
        (
            'run(["systemctl", "set-property", "user.slice", "AllowedCPUs=" + cpus])',
            [(1, "sets AllowedCPUs of /user.slice")],
        ),
        (
            "echo 0-1 > /sys/fs/cgroup/user.slice/cpuset.cpus",
            [(1, "writes cpuset.cpus of /user.slice")],
        ),
        (
            "echo 0 | tee /sys/fs/cgroup/cpuset/vms/cpuset.cpus",
            [(1, "writes cpuset.cpus of /vms")],
        ),
        ("cgset -r cpuset.cpus=0 machine.slice", [(1, "writes cpuset.cpus of /machine.slice")]),
        (
            "  cset shield --cpu 2-7 --kthread on",
            [(1, "runs cset, which moves processes away from the CPUs of their cgroups")],
        ),
        ("systemctl set-property user.slice MemoryMax=1G", []),
        ("systemctl set-property other.slice AllowedCPUs=0", []),
        ("#systemctl set-property user.slice AllowedCPUs=0", []),
        ("cat /sys/fs/cgroup/user.slice/cpuset.cpus > /tmp/x", []),
        ("echo 1 > /sys/fs/cgroup/user.slice/cpuset.cpus.exclusive", []),
        ("echo cset is not run", []),
        ("", []),
    ],
)
def test_what_a_script_sets(text: str, found: list[tuple[int, str]]) -> None:
    assert list(setting_cpus(text, PLACES)) == found
