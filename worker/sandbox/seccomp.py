"""The allowlist of system calls of a decoder. A seccomp filter refuses all others, in this thread and all later ones.

The list is what libvips, libheif, librsvg and Pillow call over the sample files (recorded by strace), and what other
versions of the C library call instead. None of them can reach other processes, the network, or a file that is not open.
New calls of later kernels are refused until they are listed here. `tests/integration/sandbox/test_confinement.py`
decodes and encodes every format behind the filter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

# AUDIT_ARCH_* of linux/audit.h, and the column of the numbers below.
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Numbers on x86_64 and aarch64 (asm/unistd.h), or None if the architecture lacks the call.
Numbers = tuple[int | None, int | None]
ALLOWED: dict[str, Numbers] = {
    # Open files.
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
    # Time, random bytes, and facts about the system.
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165),
    "getrlimit": (97, 163), "setrlimit": (160, 164), "getrandom": (318, 278), "uname": (63, 160),
    "sysinfo": (99, 179), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158), "capget": (125, 90),
}  # fmt: skip

# Calls that are allowed for some values of one argument (by its index).
BY_ARGUMENT: dict[str, tuple[Numbers, int, tuple[int, ...]]] = {
    # linux/fcntl.h: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC. No owner, signal, lease, lock or notification.
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 1030)),
    # asm-generic/ioctls.h: TCGETS, TCGETS2, FIONREAD, FIONCLEX, FIOCLEX. No flags of files.
    "ioctl": ((16, 29), 1, (0x5401, 0x802C542A, 0x541B, 0x5450, 0x5451)),
    # linux/prctl.h: PR_SET_NAME, PR_GET_NAME, PR_SET_VMA.
    "prctl": ((157, 167), 0, (15, 16, 0x53564D41)),
    "recvmsg": ((47, 212), 0, (0,)),  # on stdin: requests with the descriptors of their files
    "prlimit64": ((302, 261), 0, (0,)),  # its own limits, not the worker's
}
TGKILL: Numbers = (234, 131)
CLONE: Numbers = (56, 220)
# linux/sched.h. The C libraries start a thread with flags of this set, always CLONE_THREAD: no process, no namespace.
_CLONE_THREAD, _THREAD_FLAGS = 0x10000, 0x7D0F00

# From here on both architectures have the same numbers, and all calls came with Linux 5.1 or later. The C libraries try
# them first, e.g. clone3, whose flags a filter cannot read, and fall back to older calls if they get ENOSYS.
_FIRST_RECENT = 424
_X32 = 0x40000000  # the bit of the x32 ABI: the same calls under other numbers

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_REFUSE, _NOT_IMPLEMENTED = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS

# linux/bpf_common.h: load a word of the call, return, jump if equal, if greater or equal, if a bit is set.
_LOAD, _RETURN, _EQUAL, _GREATER_EQUAL, _SET = 0x20, 0x06, 0x15, 0x35, 0x45
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install_filter(libc: ctypes.CDLL) -> bool:
    """Installs the filter. Returns False if this system does not support it. Requires no_new_privs."""
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        return False
    instructions = build_filter(*_ARCHITECTURES[machine])
    program = _Program(len(instructions), b"".join(instructions))
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def build_filter(architecture: int, column: int) -> list[bytes]:
    """Returns the instructions of the BPF program."""
    return [
        _instruction(_LOAD, _ARCHITECTURE),
        *_unless(_EQUAL, architecture, _KILL),
        _instruction(_LOAD, _NUMBER),
        *_if(_GREATER_EQUAL, _X32, _REFUSE),
        *(line for numbers in ALLOWED.values() for line in _allow(numbers[column])),
        *(
            line
            for numbers, index, values in BY_ARGUMENT.values()
            for line in _allow_values(numbers[column], index, values)
        ),
        *_allow_values(TGKILL[column], 0, (os.getpid(),)),  # abort(3) signals its own process
        *_allow_threads(CLONE[column]),
        *_if(_GREATER_EQUAL, _FIRST_RECENT, _NOT_IMPLEMENTED),
        _instruction(_RETURN, _REFUSE),
    ]


def _allow(number: int | None) -> list[bytes]:
    return [] if number is None else _if(_EQUAL, number, _ALLOW)


def _allow_values(number: int | None, index: int, values: Sequence[int]) -> list[bytes]:
    tests = [line for value in values for line in _if(_EQUAL, value, _ALLOW)]
    return _test_argument(number, index, tests, otherwise=_REFUSE)


def _allow_threads(number: int | None) -> list[bytes]:
    other_flags = ~_THREAD_FLAGS & 0xFFFFFFFF
    tests = [*_unless(_SET, _CLONE_THREAD, _REFUSE), *_if(_SET, other_flags, _REFUSE)]
    return _test_argument(number, 0, tests, otherwise=_ALLOW)


def _test_argument(number: int | None, index: int, tests: list[bytes], *, otherwise: int) -> list[bytes]:
    """Tests the lower 32 bits of an argument: the kernel reads no more of these arguments."""
    if number is None:
        return []
    lines = [_instruction(_LOAD, _ARGUMENTS + 8 * index), *tests, _instruction(_RETURN, otherwise)]
    return [_instruction(_EQUAL, number, 0, len(lines)), *lines]


def _if(test: int, value: int, action: int) -> list[bytes]:
    return [_instruction(test, value, 0, 1), _instruction(_RETURN, action)]


def _unless(test: int, value: int, action: int) -> list[bytes]:
    return [_instruction(test, value, 1, 0), _instruction(_RETURN, action)]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
