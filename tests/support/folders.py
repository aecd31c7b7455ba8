"""Temporary folders for servers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yields a folder with a path short enough for sockets, which `nobody` can enter. pytest's tmp_path is neither."""
    path = Path(tempfile.mkdtemp(prefix="daguerre-", dir="/tmp"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
