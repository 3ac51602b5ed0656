"""virt-cgroup validate as a doctor: the code of what is wrong is told, its remedy is carried out as
it is written, and the code is gone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cli.checks.recipes import REMEDY

from ..live.harness import CONFIG, virsh
from .host import (
    HOOK,
    SYSTEMD,
    V2,
    configure,
    directory,
    fenced,
    problems,
    reload_libvirtd,
    run,
    start,
    swap_file,
    virt_cgroup,
)

thorough = (pytest.mark.thorough, pytest.mark.releases)
pytestmark = pytest.mark.skipif(not (SYSTEMD and V2), reason="systemd does not manage cpusets here")

LAYOUT = "/vms/prod/$NAME"
SLICE, CGROUP = "vms-prod.slice", "/vms.slice/vms-prod.slice"
FENCE = "2-7"
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
HUGE = "<memoryBacking><hugepages/></memoryBacking>"
SYSTEM = Path("/etc/systemd/system")
CONFINE = 'confine_host = "always"'
RECIPE = """\
#!/bin/sh
if [ "$2" = started ]; then
    systemctl set-property --runtime -- system.slice AllowedCPUs=0-7
fi
"""


def told() -> dict[str, tuple[str, str, str]]:
    """Result, message and remedy by code."""
    return {
        code: (row["result"], row["message"], row["remedy"]) for code, row in problems().items()
    }


def obey(remedy: str, start_of: str) -> None:
    """Runs the command in REMEDY that begins with START_OF."""
    command = remedy[remedy.index(start_of) :]
    run("sh", "-ec", command.replace("virt-cgroup", "python3 -I -m libvirt_cgroup_hooks", 1))


def cpus() -> str:
    return (directory("cpuset", CGROUP) / "cpuset.cpus.effective").read_text().strip()


def promised() -> list[str]:
    """The CPUs and the memory limit that systemd has for the slice; the kernel gets them when
    a property of the slice is set.
    """
    keys = ("AllowedCPUs", "MemoryMax")
    return [run("systemctl", "show", "--value", "-p", key, SLICE).strip() for key in keys]


@pytest.fixture
def fence() -> Iterator[None]:
    configure(fenced(LAYOUT))
    start("web")
    reload_libvirtd()
    assert set(told()) <= {"hook-not-seen"}
    yield
    run("systemctl", "revert", SLICE)
    for folder in ("vms-.slice.d", "slice.d"):
        shutil.rmtree(SYSTEM / folder, ignore_errors=True)
    run("systemctl", "daemon-reload")


def drop_in(folder: str, name: str, text: str) -> Path:
    file = SYSTEM / folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"[Slice]\n{text}\n")
    return file


@pytest.mark.parametrize(
    "folder",
    [
        f"{SLICE}.d",
        pytest.param("vms-.slice.d", marks=thorough),
        pytest.param("slice.d", marks=thorough),
    ],
)
def test_a_drop_in_that_wins_at_the_next_reload(fence: None, folder: str) -> None:
    file = drop_in(folder, "90-x.conf", "AllowedCPUs=0-7\nMemoryMax=infinity")
    result, message, remedy = told()["limit-replaced"]
    assert (result, remedy) == (
        "FAIL",
        f"remove that line from {file}, then run systemctl daemon-reload",
    )
    assert message.startswith(f"{file} sets ")
    run("systemctl", "daemon-reload")
    assert promised() == ["0-7", "infinity"]  # as validate said
    run("systemctl", "set-property", "--runtime", SLICE, "CPUWeight=100")
    assert cpus() == "0-7"
    assert "fence-open" in told()
    file.unlink()
    run("systemctl", "daemon-reload")
    virt_cgroup("apply", "--parent")
    assert cpus() == FENCE
    assert told() == {}


@pytest.mark.thorough
@pytest.mark.releases
@pytest.mark.parametrize(
    ("folder", "name", "text"),
    [
        ("slice.d", "10-x.conf", "AllowedCPUs=0-1\nMemoryMax=infinity"),
        ("slice.d", "50-MemoryMax.conf", "MemoryMax=infinity"),
        (f"{SLICE}.d", "90-x.conf", "AllowedCPUs=2-3"),
        (f"{SLICE}.d", "90-x.conf", "[Unit]\nMemoryMax=infinity"),
        (f"{SLICE}.d", "90-x.conf", "#AllowedCPUs=0 \\\nMemoryMax=32M \\\n\nMemoryMax=1G"),
        ("vms.slice.d", "90-x.conf", "MemoryMax=infinity"),
    ],
)
def test_a_drop_in_that_does_not(fence: None, folder: str, name: str, text: str) -> None:
    file = drop_in(folder, name, text)
    try:
        assert set(told()) <= {"limit-kept"}
        run("systemctl", "daemon-reload")
        assert promised()[0] == FENCE
        assert promised()[1] != "infinity"
    finally:
        file.unlink()


def test_a_recipe_in_a_hook() -> None:
    configure(fenced("/vms/$NAME", more=CONFINE))
    virt_cgroup("apply", "--parent")
    recipe = HOOK.parent / "qemu.d/web/started/begin/isolate.sh"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(RECIPE)
    recipe.chmod(0o755)
    try:
        result, message, remedy = told()["hook-recipe"]
        assert (result, remedy) == ("WARN", REMEDY)
        assert message.startswith(f"{recipe}:3 sets AllowedCPUs of /system.slice, ")
        run(str(recipe), "web", "started", "begin", "-")  # what it would do, told as it is
        assert "host-unconfined" in told()
        lines = recipe.read_text().splitlines(keepends=True)
        recipe.write_text("".join([*lines[:2], ":\n", *lines[3:]]))
        virt_cgroup("apply", "--parent")
        assert not {"hook-recipe", "host-unconfined"} & set(told())
    finally:
        shutil.rmtree(HOOK.parent / "qemu.d/web")
        configure(fenced("/vms/$NAME"))
        virt_cgroup("apply", "--parent")


def test_swap_that_vms_may_fill() -> None:
    configure(fenced("/vms/$NAME"))
    assert "swap-unlimited" not in told()
    with swap_file(64):
        result, _, remedy = told()["swap-unlimited"]
        assert result == "NOTE"
        obey(remedy, "virt-cgroup")
        assert 'vm_swap_max = "0"' in CONFIG.read_text() or "vm_swap_max = 0" in CONFIG.read_text()
        assert "swap-unlimited" not in told()


def test_hugepages_that_nobody_uses() -> None:
    configure(fenced("/vms/$NAME"))
    POOL.write_text("8")
    try:
        result, message, remedy = told()["hugepages-unused"]
        assert result == "NOTE"
        assert message.startswith("8 hugepages of 2 MiB are free (16 MiB)")
        domain = "<domain type='qemu'><name>huge</name><memory>4096</memory>{}<os><type>hvm</type>"
        virsh("define", "/dev/stdin", stdin=domain.format(HUGE) + "</os></domain>")
        assert "hugepages-unused" not in told()  # a VM that does not run has use for them
        virsh("undefine", "huge")
        obey(remedy, "echo")
        assert POOL.read_text().strip() == "0"
        assert "hugepages-unused" not in told()
    finally:
        POOL.write_text("0")


def test_a_core_that_host_and_vms_share(tmp_path: Path) -> None:
    """The lab's CPUs have no siblings: files that say otherwise are mounted over the kernel's."""
    configure('reserved_host_cpus = "0"\ncgroup_layout = "/vms/$NAME"\n')
    start("web")
    assert "core-split" not in told()
    pair = tmp_path / "pair"
    pair.write_text("0,4\n")
    with ExitStack() as stack:
        for cpu in (0, 4):
            over = f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
            run("mount", "--bind", str(pair), over)
            stack.callback(run, "umount", over)
        result, message, remedy = told()["core-split"]
        assert result == "NOTE"
        assert message.startswith("CPUs 0 of the host and CPUs 4 of VMs ")
        obey(remedy, "virt-cgroup")
        effective = directory("cpuset", "/vms.slice") / "cpuset.cpus.effective"
        assert effective.read_text().strip() == "1-3,5-7"
        assert "core-split" not in told()


def test_it_is_shown(fence: None) -> None:
    """For people: the code ends the line, and --explain takes it."""
    drop_in("slice.d", "90-x.conf", "MemoryMax=infinity")
    text = run(
        "/usr/bin/python3", "-I", "-m", "libvirt_cgroup_hooks", "validate", "-q", check=False
    )
    print(text)
    (line,) = text.splitlines()
    code = line.rpartition("[")[2].removesuffix("]")
    explained = virt_cgroup("validate", "--explain", code)
    print(explained)
    assert explained.startswith("limit-replaced: ")
