"""Memory that a child has freed and keeps: the next picture takes as much, and to get it anew costs a sixth of that."""

from __future__ import annotations

import ctypes

# mallopt(3), of glibc; what other systems have in its place is left as it is.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 64 << 20
# The most that glibc takes. Larger blocks go back at once, as all from 128 KB on would.
_LARGE_BYTES = 32 << 20


def keep_freed_memory() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
