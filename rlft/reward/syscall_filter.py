"""A filter of system calls for the sandbox: a seccomp program that refuses memory which belongs to no process.

The limits of the sandbox count what its processes have mapped. System V shared memory, message queues and files in
memory can be filled and let go, so that nothing counts them; sockets hold little unless their buffers are enlarged; new
user namespaces give rights within which more of that kind can be made. Programs like those that are judged need none of
it.
"""

from __future__ import annotations

import platform
import struct

_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET: the flags of `clone` that make namespaces."""

# Number of each refused call on the architectures that there are tables for: man 2 syscalls, asm/unistd_64.h.
_REFUSED = {
    "x86_64": {
        **{"shmget": 29, "shmat": 30, "shmctl": 31, "semget": 64, "msgget": 68, "msgsnd": 69, "mq_open": 240},
        **{"memfd_create": 319, "memfd_secret": 447, "vmsplice": 278, "userfaultfd": 323, "io_uring_setup": 425},
        **{"unshare": 272, "setns": 308, "add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321},
        **{"perf_event_open": 298, "setsockopt": 54},
    },
    "aarch64": {
        **{"shmget": 194, "shmat": 196, "shmctl": 195, "semget": 190, "msgget": 186, "msgsnd": 189, "mq_open": 180},
        **{"memfd_create": 279, "memfd_secret": 447, "vmsplice": 75, "userfaultfd": 282, "io_uring_setup": 425},
        **{"unshare": 97, "setns": 268, "add_key": 217, "request_key": 218, "keyctl": 219, "bpf": 280},
        **{"perf_event_open": 241, "setsockopt": 208},
    },
}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
"""Calls of x86_64's other interface have this bit."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026  # linux/seccomp.h
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little-endian


def unknown_machine() -> str:
    """The architecture of this machine, where there is no table for it; else empty."""
    return "" if platform.machine() in _REFUSED else platform.machine()


def program() -> bytes:
    """The filter for this machine, as an array of struct sock_filter.

    It refuses with EPERM; calls of another architecture end the process. glibc takes `clone` where there is no
    `clone3`, whose flags a filter cannot see.
    """
    machine = platform.machine()
    rows = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        *_answer(_EQUAL, _AUDIT_ARCH[machine], _KILL, if_not=True),
        (_LOAD, 0, 0, _NUMBER),
        *_answer(_AT_LEAST, _X32, _ENOSYS),
        *_answer(_EQUAL, _CLONE3, _ENOSYS),
    ]
    for number in _REFUSED[machine].values():
        rows += _answer(_EQUAL, number, _EPERM)
    rows += [
        (_EQUAL, 0, 3, _CLONE[machine]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *_answer(_ANY_BIT, _NAMESPACES, _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *row) for row in rows)


def _answer(test: int, value: int, result: int, *, if_not: bool = False) -> list[tuple[int, int, int, int]]:
    """Return the result if the test of what is loaded holds (or does not), else go on."""
    jumps = (1, 0) if if_not else (0, 1)
    return [(test, *jumps, value), (_RETURN, 0, 0, result)]
