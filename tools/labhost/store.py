"""The lab's folder: what is made once for each recipe, and kept."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .clock import Deadline, progress
from .errors import LabError

BUILD_LOCK_TIMEOUT = 7200.0
BUILDING = ".building-"


def lab_folder() -> Path:
    """Where images are kept: $LAB_DIR, or the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LAB_DIR") or Path(cache) / "libvirt-cgroup-hooks-lab").absolute()


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
