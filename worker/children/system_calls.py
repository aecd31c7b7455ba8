"""System calls that no decoder needs, refused by seccomp: a filter in the kernel, for good and for all later threads.

It names what is refused, not what is allowed: the latter depends on the C library and on the decoders' versions.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

# linux/audit.h, and the column of the numbers below.
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Numbers on x86_64 and aarch64 (asm/unistd.h); None where there is no such call.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # The network, and sockets of this machine.
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # Programs, other processes.
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140), "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    # File systems and namespaces.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    # Parts of the kernel that are attacked most; io_uring would go around this filter.
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # Memory that RLIMIT_AS does not count, or that outlives the process.
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180),
    # Changes to files that Landlock lets pass.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "truncate": (76, 45),
    "ftruncate": (77, 46),
}  # fmt: skip
_CLONE, _CLONE3, _TGKILL, _PRLIMIT = (56, 220), 435, (234, 131), (302, 261)
_CLONE_THREAD = 0x10000
_X32 = 0x40000000  # the same calls once more, under other numbers

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

# linux/bpf_common.h: load a word of the call, return, jump if equal, not less, a bit set.
_LOAD, _RETURN, _EQUAL, _NOT_LESS, _SET = 0x20, 0x06, 0x15, 0x35, 0x45
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse(libc: ctypes.CDLL) -> bool:
    """Whether this system can. Needs no_new_privs."""
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        return False
    instructions = _filter(*_ARCHITECTURES[machine])
    program = _Program(len(instructions), b"".join(instructions))
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _filter(architecture: int, column: int) -> list[bytes]:
    refusal = _ERRNO | errno.EPERM
    numbers = [number for numbers in REFUSED.values() if (number := numbers[column]) is not None]
    return [
        _instruction(_LOAD, _ARCHITECTURE),
        *_unless(_EQUAL, architecture, _KILL),
        _instruction(_LOAD, _NUMBER),
        *_if(_NOT_LESS, _X32, refusal),
        *(instruction for number in numbers for instruction in _if(_EQUAL, number, refusal)),
        # Its flags are in memory, where a filter cannot look: the C library takes clone instead.
        *_if(_EQUAL, _CLONE3, _ERRNO | errno.ENOSYS),
        *_only_if(_CLONE[column], _SET, _CLONE_THREAD, refusal),
        *_only_if(_TGKILL[column], _EQUAL, os.getpid(), refusal),  # an abort signals itself
        *_only_if(_PRLIMIT[column], _EQUAL, 0, refusal),  # its own limits, not the worker's
        _instruction(_RETURN, _ALLOW),
    ]


def _if(test: int, value: int, answer: int) -> list[bytes]:
    return [_instruction(test, value, 0, 1), _instruction(_RETURN, answer)]


def _unless(test: int, value: int, answer: int) -> list[bytes]:
    return [_instruction(test, value, 1, 0), _instruction(_RETURN, answer)]


def _only_if(number: int, test: int, value: int, refusal: int) -> list[bytes]:
    """One call, by its first argument."""
    test_argument = [_instruction(_LOAD, _FIRST_ARGUMENT), *_unless(test, value, refusal)]
    done = [*test_argument, _instruction(_RETURN, _ALLOW)]
    return [_instruction(_EQUAL, number, 0, len(done)), *done]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
