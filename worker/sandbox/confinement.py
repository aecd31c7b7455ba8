"""The sandbox of a decoder. A hostile picture that takes over the process finds nothing to steal or damage.

A decoder enters it before it sees the first picture. Landlock denies it files, `seccomp` all system calls that decoding
does not need. This also holds for root, because the capabilities are dropped, including the right to raise a limit.

Why not a library: pyseccomp has had no release since 2021 and needs libseccomp; landlock and py-landlock are first
versions; landlockpy and seccompy are some months old and take longer to load than everything else here, and seccompy's
filter allows x86_64's second set of system calls, x32. This module needs five system calls.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from worker.sandbox import seccomp

MAX_OPEN_FILES = 64

_PR_SET_NO_NEW_PRIVS = 38

# linux/capability.h: version 3. Reading files of other users stays allowed, because root may not own the installation.
_CAPABILITY_VERSION = 0x20080522
_CAP_DAC_READ_SEARCH = 1 << 2

# linux/landlock.h
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # ABI version: how many bits of file rights it knows
_TCP, _TCP_SINCE = 3, 4
_SCOPES, _SCOPES_SINCE = 3, 6  # abstract Unix sockets, signals

# Fonts, and libraries that are loaded late. Nothing of /proc.
_SYSTEM = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib",
    "/etc/fonts", "/usr/share/fonts", "/usr/share/fontconfig", "/usr/share/xml/fontconfig", "/usr/local/share/fonts",
    "/var/cache/fontconfig", "/etc/ld.so.cache", "/dev/null", "/dev/urandom",
)  # fmt: skip


def enter_sandbox() -> list[str]:
    """Confines this process permanently. Afterwards it can open only files of the installation.

    Call it before another thread starts, because existing threads are not confined. Returns the parts of the sandbox
    that are missing.
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    # Responses go through a pipe. Python ignores SIGXFSZ, so a library that writes to a file gets an error.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform != "linux":
        return ["Landlock", "seccomp"]
    libc = ctypes.CDLL(None, use_errno=True)
    missing = []
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - Path.iterdir takes longer
        missing.append("other threads")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        missing.append("no_new_privs")
    if not _drop_capabilities(libc):
        missing.append("capabilities")
    if not _restrict_files(libc):
        missing.append("Landlock")
    if not seccomp.install_filter(libc):
        missing.append("seccomp")
    return missing


def _drop_capabilities(libc: ctypes.CDLL) -> bool:
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    current = ctypes.create_string_buffer(24)
    if libc.capget(header, current) != 0:
        return False
    permitted = struct.unpack("=6I", current.raw)[1] & _CAP_DAC_READ_SEARCH
    return bool(libc.capset(header, struct.pack("=6I", permitted, permitted, 0, 0, 0, 0)) == 0)


def _restrict_files(libc: ctypes.CDLL) -> bool:
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    handled = (1 << max(bits for since, bits in _FILE_RIGHTS.items() if since <= version)) - 1
    tcp, scopes = _TCP * (version >= _TCP_SINCE), _SCOPES * (version >= _SCOPES_SINCE)
    attributes = struct.pack("=QQQ", handled, tcp, scopes)
    # An older kernel accepts fields that it does not know if they are zero.
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    try:
        added = [_allow_reading(libc, ruleset, path) for path in _installation()]
        return all(added) and libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow_reading(libc: ctypes.CDLL, ruleset: int, path: Path) -> bool:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True  # a path that does not exist needs no rule
    try:
        # The kernel rejects the rights of folders on files.
        rights = _READ_FILE | _READ_DIR if path.is_dir() else _READ_FILE
        return bool(libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, fd), 0) == 0)
    finally:
        os.close(fd)


def _installation() -> Iterator[Path]:
    yield from map(Path, _SYSTEM)
    yield Path(os.__file__).parent  # the standard library
    packages = [module for name, module in sys.modules.items() if "." not in name]
    yield from {Path(folder) for package in packages for folder in getattr(package, "__path__", ())}
