"""Making lab hosts: a Debian root file system, booted once and saved.

All is kept in the lab's folder, and made once for each recipe.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from . import qemu
from .clock import Deadline, progress
from .errors import LabError
from .host import HostImage, LabHost, overlay
from .programs import program
from .qemu import Boot
from .recipe import (
    DPKG_OPTIONS,
    FACTS_PATH,
    ROOT_LABEL,
    ROOT_SIZE,
    SMOKE_SCRIPT,
    Recipe,
)

# Ends for a busy machine, too; each takes a minute or two on an idle one.
BOOTSTRAP_TIMEOUT = 3600.0
DISK_TIMEOUT = 1800.0
BUILD_LOCK_TIMEOUT = 7200.0
BUILDING = ".building-"
# What /proc/PID/attr/current has of libvirtd, and of a VM
CONFINED_BY_DRIVER: Mapping[str, str] = {
    "apparmor": r": \S*libvirt\S* \(enforce\)$",
    "selinux": r": system_u:system_r:(virtd|virt_|svirt)\S*",
    "none": r": unconfined",
}
CGROUP_OF_MANAGER: Mapping[str, str] = {"systemd": "/machine.slice/", "cgroupfs": "/machine/"}

OUTER_PACKAGES: Mapping[str, str] = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    qemu.QEMU: "qemu-system-x86",
}


def lab_folder() -> Path:
    """Where images are kept: $LAB_DIR, or the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LAB_DIR") or Path(cache) / "libvirt-cgroup-hooks-lab").absolute()


def recipe(release: str, variant: str = "") -> Recipe:
    """The recipe for the QEMU of this machine, which is installed when missing."""
    install_programs()
    return Recipe(release, variant, (qemu.version(), *qemu.MACHINE, *qemu.KERNEL_ARGUMENTS))


def install_programs() -> None:
    missing = [package for name, package in OUTER_PACKAGES.items() if not shutil.which(name)]
    if not missing:
        return
    if os.geteuid() != 0:
        raise LabError(
            f"not installed: {', '.join(missing)}", f"apt-get install {' '.join(missing)}"
        )
    progress(f"installing {', '.join(missing)}")
    program(["apt-get", "update", "-q"], 300)
    install = ["apt-get", "install", "-q", "-y", "--no-install-recommends"]
    program(["env", "DEBIAN_FRONTEND=noninteractive", *install, *missing], 900)


def build(wanted: Recipe) -> HostImage:
    """The host of a recipe, made when it does not exist yet."""
    folder = lab_folder() / wanted.host_key
    if not folder.is_dir():
        with building_alone():
            root = made(wanted.root_key, lambda new: make_root(wanted, new))
            made(wanted.host_key, lambda new: make_host(wanted, root, new))
    return HostImage(folder, wanted.kernel_arguments)


def made(key: str, make: Callable[[Path], None]) -> Path:
    """The folder of that key, made when it is not there.

    A new one gets its name only when it is complete; what older recipes made then goes.
    """
    folder = lab_folder() / key
    if folder.is_dir():
        return folder
    new = Path(tempfile.mkdtemp(prefix=BUILDING, dir=lab_folder()))
    try:
        new.chmod(0o755)
        make(new)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    remove_older(folder)
    return folder


def remove_older(folder: Path) -> None:
    name = folder.name.rpartition("-")[0]
    for other in folder.parent.iterdir():
        if other != folder and other.name.rpartition("-")[0] == name:
            progress(f"removing {other.name}: made by an older recipe")
            half = Path(tempfile.mkdtemp(prefix=BUILDING, dir=folder.parent))
            other.rename(half / "old")
            shutil.rmtree(half)


@contextmanager
def building_alone() -> Iterator[None]:
    """Hold the lab's build lock; what a build that was cut off left behind is removed."""
    lab_folder().mkdir(parents=True, exist_ok=True)
    with (lab_folder() / "lock").open("w") as lock:
        deadline = Deadline(BUILD_LOCK_TIMEOUT)
        while not locked(lock.fileno()):
            progress("waiting for another build")
            if deadline.passed():
                raise LabError(f"another build holds {lab_folder() / 'lock'}")
            time.sleep(10)
        for left_over in lab_folder().glob(BUILDING + "*"):
            shutil.rmtree(left_over)
        yield


def locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def make_root(wanted: Recipe, new: Path) -> None:
    """root.img, vmlinuz and initrd of a release."""
    if os.geteuid() != 0:
        raise LabError("making a lab host's root file system needs root", "run the build as root")
    progress(f"installing {wanted.release.codename}")
    tree = new / "root"
    bootstrap(wanted, tree)
    add_guest_files(wanted, tree)
    shutil.copyfile(tree / "vmlinuz", new / "vmlinuz")
    shutil.copyfile(tree / "initrd.img", new / "initrd")
    progress("making the disk image")
    program(
        ["mke2fs", "-q", "-t", "ext4", "-L", ROOT_LABEL, "-d", tree, new / "root.img", ROOT_SIZE],
        DISK_TIMEOUT,
    )
    shutil.rmtree(tree)


def bootstrap(wanted: Recipe, tree: Path) -> None:
    options = [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
    options += [f"--aptopt={option}" for option in wanted.release.apt_options]
    program(
        [
            "mmdebstrap",
            "--variant=minbase",
            "--mode=root",
            *options,
            f"--include={','.join(wanted.packages)}",
            wanted.release.codename,
            tree,
            *debian_mirror(),
        ],
        BOOTSTRAP_TIMEOUT,
    )


def debian_mirror() -> list[str]:
    """The mirror of this machine's own sources.

    None on a machine that has no Debian source: mmdebstrap knows one.
    """
    targets = [
        "apt-get",
        "indextargets",
        "--format",
        "$(ORIGIN) $(CODENAME) $(REPO_URI)",
        "Identifier: Packages",
    ]
    for line in program(targets, 60, capture=True).splitlines():
        origin, codename, uri = line.rsplit(" ", 2)
        if origin == "Debian" and codename.isalpha():  # not bookworm-security and the like
            return [uri]
    return []


def add_guest_files(wanted: Recipe, tree: Path) -> None:
    for path, text in wanted.guest_files.items():
        file = tree / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        if text.startswith("#!"):
            file.chmod(0o755)
    for path, target in wanted.guest_links.items():
        link = tree / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def make_host(wanted: Recipe, root: Path, new: Path) -> None:
    """disk.qcow2 on top of the root image, and the state of the booted host."""
    progress(f"booting {wanted.name}")
    for name in ("vmlinuz", "initrd"):
        os.link(root / name, new / name)
    # A relative name: the folder is about to get another name beside this one.
    overlay(Path("..") / root.name / "root.img", new / "disk.qcow2")
    host = LabHost(HostImage(new, wanted.kernel_arguments))
    try:
        arguments = wanted.kernel_arguments
        host.boot(Boot(new / "disk.qcow2", new / "vmlinuz", new / "initrd", arguments))
        prepare_host(host, wanted)
        progress("saving the booted host")
        host.save(new / "state")
    finally:
        host.close()


def prepare_host(host: LabHost, wanted: Recipe) -> None:
    host.check(f"echo {shlex.quote(json.dumps(wanted.facts))} >{FACTS_PATH}")
    if wanted.variant.script:
        progress(f"making the variant {wanted.variant_name}")
        host.check(wanted.variant.script)
    progress("starting a VM in the host")
    said = host.check(SMOKE_SCRIPT)
    manager, driver = wanted.variant.manager, wanted.security_driver
    if CGROUP_OF_MANAGER[manager] not in said:
        raise LabError(f"a VM of {wanted.name} is not where the manager {manager} puts it", said)
    if len(re.findall(CONFINED_BY_DRIVER[driver], said, re.MULTILINE)) != 2:
        raise LabError(f"libvirtd or a VM of {wanted.name} is not confined by {driver}", said)
