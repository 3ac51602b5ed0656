# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's list of a VM's devices on cgroup v2 is a BPF program attached to its cgroup; a moved VM
takes it along.

The program's map stays shared with libvirt, so a device that is attached later is allowed here too,
until libvirt has to make the map larger (it begins with 64 entries).
"""

from __future__ import annotations

import os
import sys

from ..errors import Error, printable
from ..host import Refused
from ..steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..host import Host

# include/uapi/linux/bpf.h
PROG_ATTACH, PROG_GET_FD_BY_ID, PROG_QUERY = 8, 13, 16
CGROUP_DEVICE = 6
SYSCALL = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "ppc64le": 361,
    "s390x": 351,
}
MAX_PROGRAMS = 64


class CarryDevices(Step):
    """Attaches to the cgroup directory NEW the device programs of OLD; none there, none here."""

    def __init__(self, old: str, new: str) -> None:
        self.old = old
        self.new = new

    def __str__(self) -> str:
        return f"attach the device filter of {printable(self.old)} to {printable(self.new)}"

    def run(self, host: Host) -> None:
        if not host.real:
            raise Error(
                f"cannot attach a program to {printable(self.new)}", "this is a copy of a host"
            )
        old = new = -1
        try:
            old = os.open(self.old, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            new = os.open(self.new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for program in _query(old):
                _attach(new, program)
        except OSError as error:
            raise Refused(str(self), error) from None
        finally:
            for descriptor in (old, new):
                if descriptor >= 0:
                    os.close(descriptor)


def _query(cgroup: int) -> list[int]:
    """Ids of the device programs attached to the cgroup itself."""
    import ctypes

    ids = (ctypes.c_uint32 * MAX_PROGRAMS)()
    # union bpf_attr: target_fd, attach_type, query_flags, attach_flags, prog_ids (pointer),
    # prog_cnt
    pointer = ctypes.addressof(ids).to_bytes(8, sys.byteorder)
    answer = _bpf(
        PROG_QUERY, _words(cgroup, CGROUP_DEVICE, 0, 0) + pointer + _words(MAX_PROGRAMS, 0)
    )[1]
    count = int.from_bytes(answer[24:28], sys.byteorder)
    return list(ids[:count])


def _attach(cgroup: int, program: int) -> None:
    descriptor = _bpf(PROG_GET_FD_BY_ID, _words(program, 0, 0))[0]
    try:
        # target_fd, attach_bpf_fd, attach_type, attach_flags
        _bpf(PROG_ATTACH, _words(cgroup, descriptor, CGROUP_DEVICE, 0))
    finally:
        os.close(descriptor)


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """The system call's result and the attributes as the kernel left them. Raises OSError."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    number = SYSCALL.get(os.uname().machine)
    if number is None:
        raise OSError(38, f"the number of bpf(2) on {os.uname().machine} is not known")
    result = libc.syscall(ctypes.c_long(number), ctypes.c_long(command), buffer, ctypes.c_long(128))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result), buffer.raw


def _words(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, sys.byteorder) for value in values)
