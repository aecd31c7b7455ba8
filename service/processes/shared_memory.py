"""Memory that API processes share: their parent creates it, and they inherit its descriptor."""

from __future__ import annotations

import os
import sys
import tempfile


def create_memory(name: str, size: int) -> int:
    """A descriptor of so many bytes of memory, all zero, for processes to share. It is the caller's to close."""
    if sys.platform == "linux":
        descriptor = os.memfd_create(name)
        os.truncate(descriptor, size)
        return descriptor
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return os.dup(file.fileno())
