"""The source tree, put on a lab host."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from .clock import progress
from .host import LabHost
from .programs import program

SOURCE = "/root/src"
PACKAGE = "libvirt_cgroup_hooks"

# The system's Python finds the package here also with -I, as the hook runs it.
INSTALL_SCRIPT = f"""\
set -e
packages=$(/usr/bin/python3 -c 'import site; print(site.getsitepackages()[0])')
mkdir -p "$packages"
rm -rf "$packages/{PACKAGE}"
cp -r {SOURCE}/{PACKAGE} "$packages/"
install -D {SOURCE}/hooks/qemu "$packages/share/libvirt-cgroup-hooks/qemu"
/usr/bin/python3 -m compileall -q "$packages/{PACKAGE}"
/usr/bin/python3 -I -c 'import {PACKAGE}'
"""


def install_tree(host: LabHost, tree: Path) -> None:
    """Copy the tree to SOURCE and its package to where the host's Python looks."""
    tar = source_tar(tree)
    host.push(tar, SOURCE)
    progress(f"source tree copied ({len(tar) >> 10} KiB)")
    if (tree / PACKAGE).is_dir():
        host.check(INSTALL_SCRIPT)
        progress(f"{PACKAGE} installed")
    else:
        progress(f"no {PACKAGE} in {tree}: nothing installed")


def source_tar(tree: Path) -> bytes:
    """A gzipped tar of what git tracks or would track, as it is on disk."""
    listing = [
        "git",
        "-C",
        str(tree),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name in sorted(set(program(listing, 60, capture=True).split("\0"))):
            path = tree / name
            if name and (path.is_symlink() or path.is_file()):
                tar.add(path, name, recursive=False, filter=owned_by_root)
    return buffer.getvalue()


def owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
