"""Small disks in memory, for tests that fill one or make it read-only. Only root can mount them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import do_without


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """`size` is of mount(8), e.g. 40m. Skips the test if this is not root."""
    if os.geteuid() != 0:
        do_without("only root can mount a small disk")
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "daguerre", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, options: str) -> None:
    """E.g. `ro`, which fails while a file is open to be written."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def fill(folder: Path) -> Path:
    """Returns a file that takes all that is free, or may take what others free."""
    path = folder / "filling"
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(bytes(1 << 20)):
            pass
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(bytes(1 << 12)):
            pass
    return path
