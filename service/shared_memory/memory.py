"""Memory that API processes share: their parent creates it, and they inherit its descriptor."""

from __future__ import annotations

import os
import sys
import tempfile


def create_memory(name: str, size: int) -> int:
    """Returns the descriptor of `size` bytes of zeroed memory for processes to share. The caller closes it."""
    if sys.platform == "linux":
        descriptor = os.memfd_create(name)
        os.truncate(descriptor, size)
        return descriptor
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return os.dup(file.fileno())
