"""Folders that Daguerre makes."""

from __future__ import annotations

from pathlib import Path


def make_folder(path: Path) -> None:
    """For this user alone, with the folders above it that are missing; one that is there stays as it is.

    Blocks; raises OSError.
    """
    if path.is_dir():
        return
    if not path.parent.exists():
        make_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
