"""The system calls that a child may make. A filter of seccomp refuses all others: in the kernel, for good, and for all
later threads.

The list is what libvips, libheif, librsvg and Pillow call over the sample files (found by strace), and what other
versions of the C library call in their place: nothing of it reaches other processes, the network, or a file that was
not opened. `tests/integration/sandbox/test_confinement.py` keeps it up: it decodes and encodes every format behind
the filter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

# linux/audit.h, and the column of the numbers below.
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Numbers on x86_64 and aarch64 (asm/unistd.h); None where there is no such call.
Numbers = tuple[int | None, int | None]
ALLOWED: dict[str, Numbers] = {
    # Files that are open.
    "read": (0, 63), "readv": (19, 65), "pread64": (17, 67), "preadv": (295, 69), "preadv2": (327, 286),
    "write": (1, 64), "writev": (20, 66), "close": (3, 57), "close_range": (436, 436), "lseek": (8, 62),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "fstat": (5, 80), "fstatfs": (138, 44),
    "fadvise64": (221, 223), "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    # Files of the installation: Landlock decides which.
    "open": (2, None), "openat": (257, 56), "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79),
    "statx": (332, 291), "statfs": (137, 43), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17),
    # Memory.
    "brk": (12, 214), "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226),
    "madvise": (28, 233), "membarrier": (324, 283), "mseal": (462, 462),
    # Threads, and waiting for them.
    "futex": (202, 98), "futex_waitv": (449, 449), "futex_wake": (454, 454), "futex_wait": (455, 455),
    "futex_requeue": (456, 456), "set_robust_list": (273, 99), "set_tid_address": (218, 96), "rseq": (334, 293),
    "gettid": (186, 178), "getpid": (39, 172), "getppid": (110, 173), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "sched_getscheduler": (145, 120), "sched_getparam": (143, 121),
    "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126), "getcpu": (309, 168),
    "exit": (60, 93), "exit_group": (231, 94), "eventfd2": (290, 19),
    # Signals to itself.
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    # Time, chance, and what the system is.
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165),
    "getrlimit": (97, 163), "setrlimit": (160, 164), "getrandom": (318, 278), "uname": (63, 160),
    "sysinfo": (99, 179), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158), "capget": (125, 90),
}  # fmt: skip

# Calls that are allowed by the value of an argument (by its place, from 0).
BY_ARGUMENT: dict[str, tuple[Numbers, int, tuple[int, ...]]] = {
    # linux/fcntl.h: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC. No owner, signal, lease, lock or notice.
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 1030)),
    # asm-generic/ioctls.h: TCGETS, TCGETS2, FIONREAD, FIONCLEX, FIOCLEX. No flags of files.
    "ioctl": ((16, 29), 1, (0x5401, 0x802C542A, 0x541B, 0x5450, 0x5451)),
    # linux/prctl.h: PR_SET_NAME, PR_GET_NAME, PR_SET_VMA.
    "prctl": ((157, 167), 0, (15, 16, 0x53564D41)),
    "recvmsg": ((47, 212), 0, (0,)),  # stdin: requests with the descriptors of their files
    "prlimit64": ((302, 261), 0, (0,)),  # its own limits, not the worker's
}
_TGKILL: Numbers = (234, 131)
_CLONE: Numbers = (56, 220)
# linux/sched.h. The C libraries start a thread with these flags, CLONE_THREAD among them: no process, no namespace.
_CLONE_THREAD, _THREAD_FLAGS = 0x10000, 0x7D0F00

# From here on both architectures have the same numbers, and all calls came with Linux 5.1 or later. The C libraries try
# them first, e.g. clone3, whose flags a filter cannot see, and take older calls where they are not implemented.
_RECENT = 424
_X32 = 0x40000000  # the same calls once more, under other numbers

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_REFUSE, _NOT_IMPLEMENTED = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS

# linux/bpf_common.h: load a word of the call, return, jump if equal, not less, a bit set.
_LOAD, _RETURN, _EQUAL, _NOT_LESS, _SET = 0x20, 0x06, 0x15, 0x35, 0x45
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def restrict(libc: ctypes.CDLL) -> bool:
    """Installs the filter. Returns whether this system can. Needs no_new_privs."""
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        return False
    instructions = _filter(*_ARCHITECTURES[machine])
    program = _Program(len(instructions), b"".join(instructions))
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _filter(architecture: int, column: int) -> list[bytes]:
    return [
        _instruction(_LOAD, _ARCHITECTURE),
        *_unless(_EQUAL, architecture, _KILL),
        _instruction(_LOAD, _NUMBER),
        *_if(_NOT_LESS, _X32, _REFUSE),
        *(line for numbers in ALLOWED.values() for line in _allow(numbers[column])),
        *(line for numbers, place, values in BY_ARGUMENT.values() for line in _by(numbers[column], place, values)),
        *_by(_TGKILL[column], 0, (os.getpid(),)),  # an abort signals itself
        *_allow_threads(_CLONE[column]),
        *_if(_NOT_LESS, _RECENT, _NOT_IMPLEMENTED),
        _instruction(_RETURN, _REFUSE),
    ]


def _allow(number: int | None) -> list[bytes]:
    return [] if number is None else _if(_EQUAL, number, _ALLOW)


def _by(number: int | None, place: int, values: Sequence[int]) -> list[bytes]:
    return _only(number, place, [line for value in values for line in _if(_EQUAL, value, _ALLOW)], _REFUSE)


def _allow_threads(number: int | None) -> list[bytes]:
    others = ~_THREAD_FLAGS & 0xFFFFFFFF
    return _only(number, 0, [*_unless(_SET, _CLONE_THREAD, _REFUSE), *_if(_SET, others, _REFUSE)], _ALLOW)


def _only(number: int | None, place: int, tests: list[bytes], otherwise: int) -> list[bytes]:
    """Tests of the lower half of an argument: the kernel looks at no more of these."""
    if number is None:
        return []
    lines = [_instruction(_LOAD, _ARGUMENTS + 8 * place), *tests, _instruction(_RETURN, otherwise)]
    return [_instruction(_EQUAL, number, 0, len(lines)), *lines]


def _if(test: int, value: int, answer: int) -> list[bytes]:
    return [_instruction(test, value, 0, 1), _instruction(_RETURN, answer)]


def _unless(test: int, value: int, answer: int) -> list[bytes]:
    return [_instruction(test, value, 1, 0), _instruction(_RETURN, answer)]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
