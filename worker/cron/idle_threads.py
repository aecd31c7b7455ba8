"""Threads whose reads give way to all others on the disk."""

from __future__ import annotations

import ctypes
import platform
import sys
from concurrent.futures import ThreadPoolExecutor

# linux/ioprio.h: the class "idle" of the calling thread. Schedulers without classes ignore it.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_WHO_PROCESS, _CALLING_THREAD = 1, 0
_CLASS_IDLE = 3 << 13


def idle_threads(name: str) -> ThreadPoolExecutor:
    """One thread. Only its reads are idle: at a low priority of the processor it would keep the interpreter's lock from
    threads that clients wait for.
    """
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_be_idle)


def _be_idle() -> None:
    number = _IOPRIO_SET.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        ctypes.CDLL(None).syscall(number, _WHO_PROCESS, _CALLING_THREAD, _CLASS_IDLE)
