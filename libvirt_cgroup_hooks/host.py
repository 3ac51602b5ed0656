# SPDX-License-Identifier: LGPL-2.1-or-later
"""The only door to /proc, /sys, /run and /etc. Every failure names the path, and the value where
there is one.
"""

from __future__ import annotations

import posix  # the os module without its paths and mappings: those take a ninth of a run
import time

from .cpuset import CpuSet
from .errors import Error, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable
else:
    # what the signal module is made of, without the enum and collections that it loads
    import _signal as signal

# The same numbers on every Linux; the errno module would cost the hook an import.
# ENOENT, ESRCH, ENODEV, ENOTDIR, ENAMETOOLONG, EOPNOTSUPP
ABSENT = (2, 3, 19, 20, 36, 95)
NEW = ".new"  # ends the name of a file that is being written
# Where programs are; the last is NixOS's
PATH = "/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin"
BUS = "/run/dbus/system_bus_socket"
DENIED = (1, 13)  # EPERM, EACCES
ESRCH, EAGAIN, EBUSY, ENOTEMPTY = 3, 11, 16, 39


class Refused(Error):
    """The kernel refused: `errno` says how."""

    def __init__(self, attempt: str, error: OSError) -> None:
        denied = error.errno in DENIED and posix.geteuid() != 0
        super().__init__(f"cannot {attempt}: {error.strerror}", "run as root" if denied else "")
        self.denied = denied
        self.errno = error.errno


class Host:
    """The files of the host below ROOT ("/" is this host; another is a copy of one, to look at)."""

    def __init__(self, root: str = "/") -> None:
        self.root = root.rstrip("/")
        self._child = 0

    @property
    def real(self) -> bool:
        return not self.root

    def read(self, path: str) -> str:
        """The whole text; bytes that are no UTF-8 survive as surrogates. Raises Refused."""
        try:
            return self.read_bytes(path).decode("utf-8", "surrogateescape")
        except OSError as error:
            raise Refused(f"read {printable(path)}", error) from None
        except ValueError:  # a NUL, which no path has
            raise Refused(
                f"read {printable(path)}", OSError(2, "No such file or directory")
            ) from None

    def read_optional(self, path: str) -> str | None:
        """As `read`, but None where the file is not there or has nothing to say."""
        try:
            return self.read(path)
        except Refused as error:
            if error.errno in ABSENT:
                return None
            raise

    def read_bytes(self, path: str) -> bytes:
        descriptor = posix.open(self.root + path, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            return _all(descriptor)
        finally:
            posix.close(descriptor)

    def write(self, path: str, value: str) -> None:
        """Writes VALUE in a single call, as cgroup files want it. Raises Refused."""
        try:
            descriptor = posix.open(self.root + path, posix.O_WRONLY | posix.O_CLOEXEC)
            try:
                posix.write(descriptor, value.encode())
            finally:
                posix.close(descriptor)
        except OSError as error:
            raise Refused(f'write "{printable(value)}" to {printable(path)}', error) from None

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        """It may be there already. Raises Refused."""
        try:
            posix.mkdir(self.root + path, mode)
        except FileExistsError:
            pass
        except OSError as error:
            raise Refused(f"make {printable(path)}", error) from None

    def remove_directory(self, path: str) -> None:
        """It may be gone already. Raises Refused."""
        try:
            posix.rmdir(self.root + path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise Refused(f"remove {printable(path)}", error) from None

    def directories(self, path: str) -> list[str]:
        """Names of the directories in PATH, sorted; none where there is no PATH."""
        try:
            with posix.scandir(self.root + path) as entries:
                return sorted(
                    entry.name for entry in entries if entry.is_dir(follow_symlinks=False)
                )
        except OSError:
            return []

    def names(self, path: str) -> list[str]:
        """Names of the entries of PATH, sorted; none where there is no PATH."""
        try:
            return sorted(posix.listdir(self.root + path))
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        try:
            posix.stat(self.root + path)
        except (OSError, ValueError):  # a NUL, which no path has
            return False
        return True

    def written_at(self, path: str) -> float | None:
        """When the file was written, in seconds of the epoch; None where there is none."""
        moment = self.moment(path)
        return None if moment is None else moment / 10**9

    def moment(self, path: str) -> int | None:
        """As `written_at`, in nanoseconds."""
        try:
            return posix.stat(self.root + path).st_mtime_ns
        except OSError:
            return None

    def now(self) -> int:
        """Nanoseconds of the epoch."""
        return time.time_ns()

    def age(self, path: str) -> float:
        """Seconds since the file was written; 0 where there is none."""
        moment = self.written_at(path)
        return 0 if moment is None else time.time() - moment

    def fingerprint(self, path: str) -> str:
        """Changes whenever the file does; "" where there is none."""
        try:
            status = posix.stat(self.root + path)
        except OSError:
            return ""
        return f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_size} {status.st_ino}"

    def replace(self, path: str, text: str, mode: int = 0o600) -> None:
        """Write the whole file so that a reader sees the old or the new text, never a part. Raises
        Refused.

        Callers hold the lock. What one that was killed has left in PATH.new is replaced, whatever
        it is.
        """
        temporary = self.root + path + NEW
        try:
            _unlink(temporary)
            descriptor = posix.open(
                temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600
            )
            try:
                _write_all(descriptor, text.encode("utf-8", "surrogateescape"))
                posix.fchown(descriptor, *self._owner(path))
                # whatever the umask; and half a program is never executable
                posix.fchmod(descriptor, mode)
                posix.fsync(descriptor)
            finally:
                posix.close(descriptor)
            posix.rename(temporary, self.root + path)
        except OSError as error:
            _unlink(temporary)
            raise Refused(f"write {printable(path)}", error) from None

    def _owner(self, path: str) -> tuple[int, int]:
        """User and group of the file, as chown(2) takes them; -1, which changes nothing, where
        there is none.
        """
        try:
            status = posix.lstat(self.root + path)
        except FileNotFoundError:
            return -1, -1
        return status.st_uid, status.st_gid

    def remove(self, path: str) -> None:
        """It may be gone already. Raises Refused."""
        try:
            posix.unlink(self.root + path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise Refused(f"remove {printable(path)}", error) from None

    def forget(self, path: str) -> None:
        """Removes the file, if that can be."""
        _unlink(self.root + path)

    def touch(self, path: str, moment: int) -> None:
        """Sets the time of the last change, in nanoseconds. Raises Refused."""
        try:
            posix.utime(self.root + path, ns=(moment, moment))
        except OSError as error:
            raise Refused(f"touch {printable(path)}", error) from None

    def locked(self, path: str, shared: bool = False) -> Lock:
        """A `with` block that has the lock on PATH, alone or SHARED with others, and waits for it.
        Raises Refused.
        """
        return Lock(self.root, path, shared)

    def resolved(self, path: str) -> str:
        """PATH with symbolic links followed, so that replacing it replaces what they lead to."""
        import os

        return os.path.realpath(self.root + path)[len(self.root) :]

    def mode(self, path: str) -> int | None:
        """The permission bits; None where there is no such file."""
        try:
            return posix.stat(self.root + path).st_mode & 0o7777
        except FileNotFoundError:
            return None

    def run(self, command: list[str]) -> str:
        """Run a program to its end and return what it printed. Raises Error where it fails; leaves
        no child behind.
        """
        pipe = list(posix.pipe())
        try:
            self._spawn(command, pipe)
            text = _all(pipe[0]).decode("utf-8", "replace").strip()
            status = self._reap()
        except OSError as error:
            raise Refused(f"run {printable(' '.join(command))}", error) from None
        finally:
            self.end_child()  # there is one only if the deadline came first
            for descriptor in pipe:
                posix.close(descriptor)
        if status:
            attempt = printable(" ".join(command))
            raise Error(
                f"cannot run {attempt}: exit status {status}", printable(text) or "it said nothing"
            )
        return text

    # The deadline must not come between something that happens to a child and our taking note of
    # it.

    def _spawn(self, command: list[str], pipe: list[int]) -> None:
        """The program gets the second end of PIPE, which is then no longer ours."""
        actions = [
            (posix.POSIX_SPAWN_OPEN, 0, "/dev/null", posix.O_RDONLY, 0),
            *((posix.POSIX_SPAWN_DUP2, pipe[1], n) for n in (1, 2)),
        ]
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        try:
            environment = {"PATH": PATH, "LC_ALL": "C"}
            self._child = posix.posix_spawn(
                _program(command[0]), command, environment, file_actions=actions, setsigmask=()
            )
            posix.close(pipe.pop())
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])

    def _reap(self) -> int:
        posix.waitid(posix.P_PID, self._child, posix.WEXITED | posix.WNOWAIT)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        try:
            status = posix.waitstatus_to_exitcode(posix.waitpid(self._child, 0)[1])
            self._child = 0
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        return status

    def end_child(self) -> None:
        """Kills the program that `run` is waiting for, if any."""
        child, self._child = self._child, 0
        try:
            if child and posix.waitpid(child, posix.WNOHANG) == (0, 0):
                posix.kill(child, 9)
                posix.waitpid(child, 0)
        except ChildProcessError:
            # it has ended and was waited for when the deadline came: the id may be another's by now
            pass

    def load_unit(self, unit: str) -> None:
        """Has systemd load UNIT, and waits until it has. Raises Refused."""
        from . import bus

        try:
            bus.load_unit(self.root + BUS, unit)
        except OSError as error:
            raise Refused(f"have systemd load {printable(unit)} through {BUS}", error) from None

    def affinity(self, thread: int) -> CpuSet | None:
        """The CPUs the thread may run on, as it set them within its cpuset; None where it has
        ended, and in a copy.
        """
        if not self.real:
            return None
        try:
            return CpuSet(posix.sched_getaffinity(thread))
        except ProcessLookupError:
            return None

    def set_affinity(self, thread: int, cpus: Iterable[int]) -> None:
        """The thread may have ended. Raises Refused, and Error for a copy of a host, which has
        none.
        """
        if not self.real:
            raise Error(f"cannot set the CPUs of thread {thread}", "this is a copy of a host")
        try:
            posix.sched_setaffinity(thread, cpus)
        except ProcessLookupError:
            pass
        except OSError as error:
            raise Refused(f"set the CPUs of thread {thread} to {CpuSet(cpus)}", error) from None


class Lock:
    """Ends with the block, or with the process.

    The kernel lets those who share pass somebody who waits to be alone, for ever if they are many:
    all queue at PATH.turn.
    """

    def __init__(self, root: str, path: str, shared: bool) -> None:
        self.root = root
        self.path = path
        self.shared = shared

    def __enter__(self) -> None:
        import fcntl

        try:
            turn = self._open(f"{self.path}.turn")
            fcntl.flock(turn, fcntl.LOCK_EX)
            self.descriptor = self._open(self.path)
            fcntl.flock(self.descriptor, fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX)
            posix.close(turn)
        except OSError as error:
            raise Refused(f"lock {printable(self.path)}", error) from None

    def _open(self, path: str) -> int:
        return posix.open(
            self.root + path,
            posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC,
            0o600,
        )

    def __exit__(self, *_: object) -> None:
        posix.close(self.descriptor)


def _all(descriptor: int) -> bytes:
    parts: list[bytes] = []
    while True:
        part = posix.read(descriptor, 65536)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _program(name: str) -> str:
    """The path of the program NAME; NAME itself where there is none, or where it is a path."""
    if "/" in name:
        return name
    paths = [f"{directory}/{name}" for directory in PATH.split(":")]
    return next((path for path in paths if posix.access(path, posix.X_OK)), name)


def _write_all(descriptor: int, data: bytes) -> None:
    """A file system that becomes full takes a part, and only then refuses the rest."""
    while data:
        data = data[posix.write(descriptor, data) :]


def _unlink(path: str) -> None:
    try:
        posix.unlink(path)
    except OSError:  # it is not there; or what follows says why
        return


def page_size() -> int:
    """Bytes in a page of the running kernel."""
    return posix.sysconf("SC_PAGE_SIZE")
