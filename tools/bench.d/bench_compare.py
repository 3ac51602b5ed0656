"""The hook of this tree and that of an earlier commit, in turn."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections import defaultdict
from functools import partial
from pathlib import Path

from bench_growth import LAYOUT, MANY_THREADS, STATUS
from bench_host import NAME, SCRATCH, STATE, TREE, UUID, install, remove_tree, settings, vm_xml
from bench_run import BARE_PYTHON, PYTHON, Took, in_turn, run, say
from bench_table import Row, measured

from libvirt_cgroup_hooks.cgroups import detect
from libvirt_cgroup_hooks.host import Host
from tests.live.harness import LAST_CPU, configure

OPERATIONS = {"prepare": "prepare", "start": "start", "started": "place {} pinned vCPUs", "reconnect": "reconnect, {} vCPUs"}
VCPUS = (2, 512)
VARIANTS = {
    "if the interpreter were taken apart": ("os._exit(main(sys.argv))", "sys.exit(main(sys.argv))"),
    "if it ran with -S": (" -I -c ", " -I -S -c "),
    "without garbage collection": ("import os, sys", "import gc, os, sys; gc.disable()"),
}


def compare(rounds: int, before: str) -> list[Row]:
    """CPU time, since what is compared is close together."""
    SCRATCH.mkdir(exist_ok=True)
    STATUS.mkdir(parents=True, exist_ok=True)
    configure(settings(LAYOUT))
    hooks = {"before": _install("before", before), "now": _install("now", "HEAD")}
    rows = []
    for vcpus in VCPUS:
        say(f"{vcpus} vCPUs")
        command = [PYTHON, "-c", MANY_THREADS, str(vcpus)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as vm:
            assert vm.stdout
            _write_status(vm.pid, list(map(int, vm.stdout.readline().split())))
            rows += _rows(vm.pid, vcpus, hooks, rounds if vcpus < 100 else max(3, rounds // 3))
            _leave(vm.pid)
            vm.kill()
    return rows + _variants(hooks["now"], rounds)


def _rows(pid: int, vcpus: int, hooks: dict[str, Path], rounds: int) -> list[Row]:
    took: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(-1, rounds):
        bare = run(BARE_PYTHON)
        for version in list(hooks)[:: -1 if number % 2 else 1]:
            for operation, one in _round(pid, hooks[version]).items():
                if number >= 0:
                    took[operation, version].append(one.cpu)
        if number >= 0:
            took["", ""].append(bare.cpu)
    shown = OPERATIONS if vcpus == VCPUS[0] else {one: OPERATIONS[one] for one in ("started", "reconnect")}
    rows = []
    for operation, title in shown.items():
        base = {"bare python3": took["", ""]}
        before, now = took[operation, "before"], took[operation, "now"]
        rows.append(measured(f"{title.format(vcpus)}: before", before, base))
        rows.append(measured(f"{title.format(vcpus)}: now", now, {**base, "before": before}))
    return rows


def _variants(hook: Path, rounds: int) -> list[Row]:
    """prepare as it is, and with what could be changed."""
    text = hook.read_text()
    commands: dict[str, list[str]] = {"": [str(hook), NAME, "prepare", "begin", "-"]}
    for name, (old, new) in VARIANTS.items():
        assert old in text, f"the entrypoint has no {old}"
        path = SCRATCH / f"variant{len(commands)}"
        install(path, text.replace(old, new))
        commands[name] = [str(path), *commands[""][1:]]

    def prepare(command: list[str]) -> float:
        (STATE / "vms" / UUID).unlink(missing_ok=True)
        return run(command, str(SCRATCH / "vm.xml")).cpu

    samples = in_turn({name: partial(prepare, command) for name, command in commands.items()}, rounds)
    return [measured(f"prepare: {name}", samples[name], {"now": samples[""]}) for name in VARIANTS]


def _round(pid: int, hook: Path) -> dict[str, Took]:
    """Every operation once, with another VM's record there, and nothing of the other version."""
    _leave(pid)
    shutil.rmtree(STATE, ignore_errors=True)
    xml = str(SCRATCH / "vm.xml")
    run([str(hook), "resident", "prepare", "begin", "-"], str(SCRATCH / "resident.xml"))
    return {operation: run([str(hook), NAME, operation, "begin", "-"], xml) for operation in OPERATIONS}


def _install(name: str, commit: str) -> Path:
    """The entrypoint of COMMIT, which finds its own package; HEAD: the tree as it is."""
    folder = SCRATCH / name
    if commit == "HEAD":
        shutil.copytree(TREE / "libvirt_cgroup_hooks", folder / "libvirt_cgroup_hooks")
        shutil.copytree(TREE / "hooks", folder / "hooks")
    else:
        archive = ["git", "-C", str(TREE), "archive", commit, "libvirt_cgroup_hooks", "hooks"]
        data = subprocess.run(archive, check=True, stdout=subprocess.PIPE).stdout
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extractall(folder)  # noqa: S202 - our own commit
    subprocess.run([PYTHON, "-m", "compileall", "-q", str(folder)], check=True)
    hook = folder / "hooks/qemu"
    begin = "/usr/bin/python3 -I -c '\n"
    text = hook.read_text()
    assert begin in text, "the entrypoint no longer begins as this expects"
    hook.write_text(text.replace(begin, f'{begin}import sys\nsys.path.insert(0, "{folder}")\n'))
    hook.chmod(0o755)
    return hook


def _write_status(pid: int, tids: list[int]) -> None:
    vcpus = "".join(f"<vcpu id='{number}' pid='{tid}'/>" for number, tid in enumerate(tids))
    xml = vm_xml(NAME, len(tids), 0, LAST_CPU).replace("<domain ", "<domain id='1' ")
    (SCRATCH / "vm.xml").write_text(xml)
    other = vm_xml("resident").replace("<memory", "<uuid>0d5fbb05-3a7e-4b4c-8f4d-ba9876543210</uuid><memory", 1)
    (SCRATCH / "resident.xml").write_text(other)
    (STATUS / f"{NAME}.xml").write_text(f"<domstatus state='running' pid='{pid}'><vcpus>{vcpus}</vcpus>{xml}</domstatus>")


def _leave(pid: int) -> None:
    for hierarchy in detect(Host().read_optional).hierarchies:
        place = hierarchy.directory(f"/vms/qemu-{NAME}")
        if os.path.exists(place):
            Path(hierarchy.directory(hierarchy.placement), "cgroup.procs").write_text(str(pid))
            remove_tree(place)
