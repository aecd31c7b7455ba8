"""Limits of a decoder's memory and CPU time, which the kernel enforces."""

from __future__ import annotations

import ctypes
import math
import resource
import time

MEMORY_BYTES = 4 << 30
# The worker kills a decoder at its time limit. The kernel does so this much later, in case the worker cannot.
CPU_MARGIN_S = 2
# The total for all pictures of one process. Then the worker replaces the process; the kernel kills it some time later.
MAX_CPU_S = 1_000

# mallopt(3) of glibc. Other C libraries lack it, and keep their defaults.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Freed memory that a decoder does not return: the next picture needs as much, and a new allocation costs a sixth of its
# time.
_KEPT_BYTES = 64 << 20
# The maximum that glibc accepts. Larger blocks go back to the system at once; by default all from 128 KB on would.
_LARGE_BLOCK_BYTES = 32 << 20


def limit_memory() -> None:
    """Call it before libvips is loaded."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_total_cpu(timeout_s: float) -> None:
    """Sets the hard limit for the life of the process. `extend_cpu_limit` may raise the soft limit up to this."""
    maximum = math.ceil(MAX_CPU_S + timeout_s) + CPU_MARGIN_S
    resource.setrlimit(resource.RLIMIT_CPU, (maximum, maximum))


def extend_cpu_limit(timeout_s: float) -> None:
    """Allows CPU time for one more picture. Beyond it the kernel kills the process with SIGXCPU."""
    _, maximum = resource.getrlimit(resource.RLIMIT_CPU)
    limit = math.ceil(time.process_time() + timeout_s) + CPU_MARGIN_S
    resource.setrlimit(
        resource.RLIMIT_CPU, (limit if maximum == resource.RLIM_INFINITY else min(limit, maximum), maximum)
    )


def keep_freed_memory() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
