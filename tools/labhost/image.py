"""Making lab hosts: a Debian root file system, booted once and saved.

All is kept in the lab's folder, and made once for each recipe.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from . import emulator, qemu
from .clock import progress
from .debian import bootstrap
from .errors import LabError
from .host import HostImage, LabHost, overlay
from .programs import program
from .qemu import Boot
from .recipe import (
    FACTS_PATH,
    ROOT_LABEL,
    ROOT_SIZE,
    SMOKE_SCRIPT,
    Recipe,
)
from .store import building_alone, lab_folder, made

DISK_TIMEOUT = 1800.0  # for a busy machine, too
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
}


def recipe(release: str, variant: str = "") -> Recipe:
    """The recipe for the lab's QEMU, which is made when it is missing."""
    install_programs()
    emulator.install()
    return Recipe(release, variant, (emulator.version(), *qemu.MACHINE, *qemu.KERNEL_ARGUMENTS))


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


def make_root(wanted: Recipe, new: Path) -> None:
    """root.img, vmlinuz and initrd of a release."""
    progress(f"installing {wanted.release.codename}")
    tree = new / "root"
    release = wanted.release
    bootstrap(release.codename, wanted.packages, tree, apt_options=release.apt_options)
    add_guest_files(wanted, tree)
    shutil.copyfile(tree / "vmlinuz", new / "vmlinuz")
    shutil.copyfile(tree / "initrd.img", new / "initrd")
    progress("making the disk image")
    program(
        ["mke2fs", "-q", "-t", "ext4", "-L", ROOT_LABEL, "-d", tree, new / "root.img", ROOT_SIZE],
        DISK_TIMEOUT,
    )
    shutil.rmtree(tree)


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
