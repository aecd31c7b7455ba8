"""What a child gives up before it sees the first picture, so that code in a hostile one finds nothing to take or harm.

Landlock keeps it from files, `seccomp` from what Landlock does not know, limits from using up the machine. It
holds for root too: the capabilities go, and with them the way to raise a limit.

Why not a library: pyseccomp rests since 2021 and needs libseccomp; landlock and py-landlock are first versions;
landlockpy and seccompy are some months old, take longer to load than all else here, and seccompy's filter lets x86_64's
second set of system calls, x32, through. Used here are five calls of the kernel.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from worker.sandbox import seccomp

MEMORY_BYTES = 4 << 30
FILES = 64
# Beyond its time-out, by which the worker ends it: for one whose worker cannot.
CPU_MARGIN_S = 2
# Of all pictures of one process together: its worker replaces it then, or the kernel ends it some time after.
MAX_CPU_S = 1_000

_PR_SET_NO_NEW_PRIVS = 38

# linux/capability.h: version 3, and reading what others own, where the installation is not root's.
_CAPABILITY_VERSION = 0x20080522
_CAP_DAC_READ_SEARCH = 1 << 2

# linux/landlock.h
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # by the version they came with: bits of them that the kernel knows
_TCP, _TCP_SINCE = 3, 4
_SCOPES, _SCOPES_SINCE = 3, 6  # abstract Unix sockets, signals

# Fonts, and what libraries load late. Nothing of /proc.
_SYSTEM = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib",
    "/etc/fonts", "/usr/share/fonts", "/usr/share/fontconfig", "/usr/share/xml/fontconfig", "/usr/local/share/fonts",
    "/var/cache/fontconfig", "/etc/ld.so.cache", "/dev/null", "/dev/urandom",
)  # fmt: skip


def limit_all_cpu(timeout_s: float) -> None:
    """For as long as the process lives: it may raise what `allow_cpu` allows, but not this."""
    most = math.ceil(MAX_CPU_S + timeout_s) + CPU_MARGIN_S
    resource.setrlimit(resource.RLIMIT_CPU, (most, most))


def limit_memory() -> None:
    """Before libvips is loaded."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def confine() -> list[str]:
    """Confines the process for good. Of files, only those of the installation can be opened from now on.

    Comes before there are other threads, which would stay as they are. Returns what this system lacks.
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    # What it has to say goes through pipes. Python ignores SIGXFSZ: a library that tries to write is told, not ended.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform != "linux":
        return ["Landlock", "seccomp"]
    libc = ctypes.CDLL(None, use_errno=True)
    missing = []
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        missing.append("no_new_privs")
    if not _drop_capabilities(libc):
        missing.append("capabilities")
    if not _restrict_files(libc):
        missing.append("Landlock")
    if not seccomp.restrict(libc):
        missing.append("seccomp")
    return missing


def allow_cpu(timeout_s: float) -> None:
    """For one more picture: past this the kernel ends the process, with SIGXCPU."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    until = math.ceil(time.process_time() + timeout_s) + CPU_MARGIN_S
    resource.setrlimit(resource.RLIMIT_CPU, (until if most == resource.RLIM_INFINITY else min(until, most), most))


def _drop_capabilities(libc: ctypes.CDLL) -> bool:
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(24)
    if libc.capget(header, held) != 0:
        return False
    kept = struct.unpack("=6I", held.raw)[1] & _CAP_DAC_READ_SEARCH
    return bool(libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)) == 0)


def _restrict_files(libc: ctypes.CDLL) -> bool:
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    handled = (1 << max(bits for since, bits in _FILE_RIGHTS.items() if since <= version)) - 1
    tcp, scopes = _TCP * (version >= _TCP_SINCE), _SCOPES * (version >= _SCOPES_SINCE)
    wanted = struct.pack("=QQQ", handled, tcp, scopes)
    # An older kernel takes what it does not know as long as that is zero.
    rules = libc.syscall(_CREATE_RULESET, wanted, ctypes.c_size_t(len(wanted)), 0)
    if rules < 0:
        return False
    try:
        allowed = [_allow(libc, rules, path, _READ_FILE | _READ_DIR) for path in _installation()]
        return all(allowed) and libc.syscall(_RESTRICT_SELF, rules, 0) == 0
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> bool:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True  # it is not there, so there is nothing to allow
    try:
        if not path.is_dir():
            rights &= _READ_FILE  # the kernel takes no others for a file
        return bool(libc.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", rights, fd), 0) == 0)
    finally:
        os.close(fd)


def _installation() -> Iterator[Path]:
    yield from map(Path, _SYSTEM)
    yield Path(os.__file__).parent  # the standard library
    packages = [module for name, module in sys.modules.items() if "." not in name]
    yield from {Path(folder) for package in packages for folder in getattr(package, "__path__", ())}
